//! `IQ4_NL`: 32 nibbles that index 16 unevenly spaced levels, and one scale. y = d `T[q]`.

use margay_tensor::DType;

use crate::{
    BlockFormat,
    block::{decode_each, encode_each, f16_at, field, put_f16},
    search::{ZERO_BELOW, extreme, inverse},
};

/// Numbers a block.
pub const ELEMENTS: usize = 32;
/// Bytes a block.
pub const BYTES: usize = 18;
/// Where the f16 scale d lies.
pub const SCALE: usize = 0;
/// Where the 16 bytes of nibbles lie: byte j holds number j in its low nibble, number j + 16 in its high one.
pub const QUANTS: usize = 2;
/// The levels. Source: `kvalues_iq4nl` in `ggml-common.h`.
pub const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Trials on each side of the first scale. Source: `quantize_iq4_nl`.
const TRIALS: i32 = 7;

/// The format.
pub struct IQ4_NL;

/// The level nearest to `x`; the upper one of two equally near.
fn nearest_level(x: f32) -> u8 {
    let upper = LEVELS.iter().position(|&level| x < f32::from(level)).unwrap_or(LEVELS.len());
    match upper {
        0 => 0,
        16 => 15,
        i if x - f32::from(LEVELS[i - 1]) < f32::from(LEVELS[i]) - x => (i - 1) as u8,
        i => i as u8,
    }
}

/// The x²-weighted sums of x T and T² for the levels that `id` assigns.
fn fit(x: &[f32; ELEMENTS], id: f32) -> (f32, f32) {
    let (mut sum_qx, mut sum_q2) = (0.0, 0.0);
    for x in x {
        let (w, q) = (x * x, f32::from(LEVELS[usize::from(nearest_level(id * x))]));
        sum_qx += w * q * x;
        sum_q2 += w * q * q;
    }
    (sum_qx, sum_q2)
}

/// The scale that the best of the trials fits, 0 for a block of (almost) zeros.
pub(crate) fn fitted_scale(x: &[f32; ELEMENTS]) -> f32 {
    let max = extreme(x);
    if max.abs() < ZERO_BELOW {
        return 0.0;
    }
    let lowest = f32::from(LEVELS[0]);
    let (sum_qx, sum_q2) = fit(x, 1.0 / (-max / lowest));
    let mut d = if sum_q2 > 0.0 { sum_qx / sum_q2 } else { 0.0 };
    let mut best = d * sum_qx;
    for trial in -TRIALS..=TRIALS {
        let (sum_qx, sum_q2) = fit(x, (trial as f32 + lowest) / max);
        if sum_q2 > 0.0 && sum_qx * sum_qx > best * sum_q2 {
            d = sum_qx / sum_q2;
            best = d * sum_qx;
        }
    }
    d
}

/// Writes the nearest levels of `x * id`, two halves of the block a byte.
pub(crate) fn put_levels(x: &[f32; ELEMENTS], id: f32, quants: &mut [u8]) {
    for (j, byte) in quants.iter_mut().enumerate() {
        *byte = nearest_level(id * x[j]) | nearest_level(id * x[j + 16]) << 4;
    }
}

impl BlockFormat for IQ4_NL {
    fn dtype(&self) -> DType {
        DType::IQ4_NL
    }

    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        decode_each(blocks, out, |block: &[u8; BYTES], y: &mut [f32; ELEMENTS]| {
            let d = f16_at(block, SCALE);
            let (low, high) = y.split_at_mut(16);
            for (j, &q) in field::<16>(block, QUANTS).iter().enumerate() {
                low[j] = d * f32::from(LEVELS[usize::from(q & 15)]);
                high[j] = d * f32::from(LEVELS[usize::from(q >> 4)]);
            }
        });
    }

    fn encode(&self, values: &[f32], out: &mut [u8]) {
        encode_each(values, out, |x: &[f32; ELEMENTS], block: &mut [u8; BYTES]| {
            let d = fitted_scale(x);
            put_f16(block, SCALE, d);
            put_levels(x, inverse(d), &mut block[QUANTS..]);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_take_the_level_nearest_to_zero_as_the_reference_does() {
        let mut block = [0xaa; BYTES];
        IQ4_NL.encode(&[0.0; ELEMENTS], &mut block);
        assert_eq!(block[..QUANTS], [0, 0]);
        assert_eq!(block[QUANTS..], [0x88; 16]);
    }

    #[test]
    fn ties_go_to_the_upper_level() {
        for (x, level) in [(-1000.0, 0), (-4.5, 8), (-4.6, 7), (7.0, 9), (101.0, 15), (1000.0, 15)] {
            assert_eq!(nearest_level(x), level, "{x}");
        }
    }
}
