//! How much of a picture differs from another of its size.

use super::Picture;

/// Side of a block, pixels.
const BLOCK: usize = 8;
/// Mean difference of a block's pixels and channels, levels of 255: above the noise of a sensor and of a codec.
const LEVELS: usize = 6;

/// Share of the blocks of 8 x 8 pixels that differ by more than a sensor's or a codec's noise (six levels of 255 in the mean), 0
/// to 1; 1 where the sizes differ. One look at each pixel; transparency is passed over.
pub fn changed_blocks(a: &Picture, b: &Picture) -> f32 {
    if (a.width(), a.height()) != (b.width(), b.height()) {
        return 1.0;
    }
    let row = a.width() as usize * 3;
    let (mut blocks, mut differ) = (0usize, 0usize);
    let band = BLOCK * row;
    let mut sums = vec![0usize; row.div_ceil(BLOCK * 3)];
    for (a, b) in a.rgb().chunks(band).zip(b.rgb().chunks(band)) {
        sums.fill(0);
        for (a, b) in a.chunks_exact(row).zip(b.chunks_exact(row)) {
            let blocks = a.chunks(BLOCK * 3).zip(b.chunks(BLOCK * 3));
            for (sum, (a, b)) in sums.iter_mut().zip(blocks) {
                *sum += a.iter().zip(b).map(|(a, b)| usize::from(a.abs_diff(*b))).sum::<usize>();
            }
        }
        let rows = a.len() / row;
        for (at, sum) in sums.iter().enumerate() {
            let values = rows * (row - at * BLOCK * 3).min(BLOCK * 3);
            blocks += 1;
            differ += usize::from(*sum > LEVELS * values);
        }
    }
    differ as f32 / blocks.max(1) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_differ_are_counted_and_noise_is_none() {
        let plain = |width, height| Picture::filled(width, height, [100; 3]).unwrap();
        let mut rgb = plain(20, 20).rgb().to_vec();
        // Nine blocks, of which the last row and column are four pixels.
        rgb[(19 * 20 + 19) * 3..].fill(255);
        let dot = Picture::new(20, 20, rgb.clone()).unwrap();
        assert_eq!(changed_blocks(&plain(20, 20), &dot), 1.0 / 9.0);
        let noise: Vec<u8> = (0..1200).map(|i| 100 + (i * 7 % 11) as u8 - 5).collect();
        assert_eq!(changed_blocks(&plain(20, 20), &Picture::new(20, 20, noise).unwrap()), 0.0);
        assert_eq!(changed_blocks(&plain(20, 20), &plain(20, 21)), 1.0);
        assert_eq!(changed_blocks(&plain(20, 20), &Picture::filled(20, 20, [110; 3]).unwrap()), 1.0);
    }
}
