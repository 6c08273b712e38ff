//! How much of a picture is text: a cheap look at its pixels, so that nothing is left out where words would be lost.
//!
//! Along a line of letters, brightness goes up and down between two levels (ink and ground) in short steps, and the next row
//! of pixels does the same. Shapes, horizons and stripes have few such turns, soft noise none that are high enough. Noise of
//! full contrast looks like text here, which errs on the side that keeps everything.

use super::{Filter, Picture, resize};

/// A picture with at least this share of text holds text that counts.
///
/// In the suite of `training/nano/suite.py` it finds 121 of 123 pictures with a sign of three to six letters that are asked to be
/// read, and none of the 49 that are known to hold none: see `docs/sessions.md`.
pub const DENSE_TEXT: f32 = 0.005;

/// Longest sides, in pixels, at which a picture is looked at, larger ones shrunk: letters are found from about 8 to 60 pixels.
const SIDES: [u32; 2] = [256, 1024];
/// Least difference of ink and ground, levels of 0 to 255.
const CONTRAST: i32 = 56;
/// From one turn to the next at most, pixels: a stroke or the space between two.
const STEP: usize = 18;
/// Levels by which ink, or ground, may vary along a line.
const EVEN: i32 = 48;
/// Turns of a line at least.
const TURNS: usize = 6;
/// Rows of a line of text at least.
const ROWS: usize = 4;

/// Share of the picture that lines of letters cover, 0 to 1; the greater of what is found at two sizes.
pub fn text_density(picture: &Picture) -> f32 {
    let (width, height) = (picture.width(), picture.height());
    let longest = width.max(height);
    let mut most = 0.0f32;
    for side in SIDES {
        if longest <= side {
            return most.max(covered(picture));
        }
        let scaled = |length: u32| (u64::from(length) * u64::from(side)).div_ceil(u64::from(longest)) as u32;
        // A picture that cannot be shrunk cannot be looked at either; its preprocessing says so.
        let Ok(small) = resize(picture, scaled(width), scaled(height), Filter::Box) else { return most };
        most = most.max(covered(&small));
    }
    most
}

fn covered(picture: &Picture) -> f32 {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    // Rec. 601 in 8 bits.
    let luma = |p: &[u8]| (i32::from(p[0]) * 77 + i32::from(p[1]) * 150 + i32::from(p[2]) * 29) >> 8;
    let light: Vec<i32> = picture.rgb().chunks_exact(3).map(luma).collect();
    let row = |y: usize| &light[y.min(height - 1) * width..][..width];
    let mut total = 0usize;
    // How many rows in a row cover each column so far.
    let mut runs = vec![0usize; width];
    let mut mean = vec![0; width];
    let mut in_line = vec![false; width];
    for y in 0..=height {
        in_line.fill(false);
        if y < height {
            let above = row(y.saturating_sub(1));
            let three = above.iter().zip(row(y)).zip(row(y + 1));
            mean.iter_mut().zip(three).for_each(|(mean, ((a, b), c))| *mean = (a + b + c) / 3);
            lines(&turns(&mean), &mut in_line);
        }
        for (run, in_line) in runs.iter_mut().zip(&in_line) {
            if *in_line {
                *run += 1;
            } else {
                total += if *run >= ROWS { *run } else { 0 };
                *run = 0;
            }
        }
    }
    total as f32 / (width * height) as f32
}

/// Where brightness turns by [`CONTRAST`] or more: places, levels, and whether it is a height.
fn turns(row: &[i32]) -> Vec<(usize, i32, bool)> {
    let mut turns = vec![];
    let (mut high, mut low) = (0, 0);
    let mut rising = None;
    for (x, level) in row.iter().enumerate() {
        if rising != Some(false) && *level > row[high] {
            high = x;
        }
        if rising != Some(true) && *level < row[low] {
            low = x;
        }
        if rising != Some(false) && row[high] - level >= CONTRAST {
            turns.push((high, row[high], true));
            (rising, low) = (Some(false), x);
        } else if rising != Some(true) && level - row[low] >= CONTRAST {
            turns.push((low, row[low], false));
            (rising, high) = (Some(true), x);
        }
    }
    turns
}

/// Marks the columns between turns that are near one another and go between the same two levels.
fn lines(turns: &[(usize, i32, bool)], in_line: &mut [bool]) {
    let mut first = 0;
    while first < turns.len() {
        let mut levels = [None, None];
        let mut last = first;
        for (at, (x, level, is_high)) in turns.iter().enumerate().skip(first) {
            let known = levels[usize::from(*is_high)].get_or_insert(*level);
            if (*level - *known).abs() > EVEN || (at > first && x - turns[at - 1].0 > STEP) {
                break;
            }
            last = at;
        }
        if last + 1 - first >= TURNS {
            in_line[turns[first].0..=turns[last].0].fill(true);
        }
        first = last + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: u32, height: u32, level: impl FnMut(u32) -> u8) -> Picture {
        let levels: Vec<u8> = (0..width * height).map(level).collect();
        Picture::new(width, height, levels.into_iter().flat_map(|level| [level; 3]).collect()).unwrap()
    }

    /// Letters of 5 x 7 dots, `scale` pixels a dot, on `lines` lines of `count`: E, H, I, N, T in turn.
    fn page(scale: u32, lines: u32, count: u32) -> Picture {
        const LETTERS: [[u8; 7]; 5] = [
            [0b11111, 0b10000, 0b10000, 0b11110, 0b10000, 0b10000, 0b11111],
            [0b10001, 0b10001, 0b10001, 0b11111, 0b10001, 0b10001, 0b10001],
            [0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100],
            [0b10001, 0b11001, 0b11001, 0b10101, 0b10011, 0b10011, 0b10001],
            [0b11111, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100],
        ];
        let (width, height) = (count * 6 * scale + 20, lines * 10 * scale + 20);
        picture(width, height, |at| {
            let (x, y) = ((at % width).wrapping_sub(10) / scale, (at / width).wrapping_sub(10) / scale);
            let (letter, line) = (x / 6, y / 10);
            let inside = letter < count && line < lines && x % 6 < 5 && y % 10 < 7;
            let dots = LETTERS[((letter + line) % 5) as usize][(y % 10 % 7) as usize];
            if inside && dots >> (4 - x % 6) & 1 == 1 { 20 } else { 235 }
        })
    }

    #[test]
    fn pages_are_dense_whatever_the_size_of_their_letters() {
        for (scale, lines, count) in [(2, 20, 40), (3, 8, 20), (5, 3, 7), (2, 60, 80)] {
            let density = text_density(&page(scale, lines, count));
            assert!(density > 30.0 * DENSE_TEXT, "{scale}: {density}");
        }
        // A word in a corner of a plain picture.
        let word = page(3, 1, 6);
        let mut rgb = vec![235; 300 * 300 * 3];
        for (y, row) in word.rgb().chunks_exact(word.width() as usize * 3).enumerate() {
            rgb[(y * 300 + 20) * 3..][..row.len()].copy_from_slice(row);
        }
        let density = text_density(&Picture::new(300, 300, rgb).unwrap());
        assert!(density >= DENSE_TEXT, "{density}");
    }

    #[test]
    fn noise_gradients_and_shapes_are_no_text() {
        // Knuth's linear congruential generator.
        let mut state = 7u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        // Twelve uniform numbers make a bell: noise of a sensor, far stronger than a photograph's.
        let mut bell = |spread: f32| {
            let sum: f32 = (0..12).map(|_| random()).sum();
            ((sum - 6.0) * spread + 128.0).clamp(0.0, 255.0) as u8
        };
        let noise = picture(256, 256, |_| bell(25.0));
        let disc = |at: u32, x: u32, y: u32, r: u32| {
            (at % 256).abs_diff(x).pow(2) + (at / 256).abs_diff(y).pow(2) < r * r
        };
        let shapes = picture(256, 256, |at| {
            if disc(at, 60, 60, 30) || disc(at, 150, 70, 40) || disc(at, 100, 190, 20) { 20 } else { 200 }
        });
        let ramp = picture(256, 256, |at| (at % 256) as u8);
        let stripes = picture(256, 256, |at| if at % 256 / 32 % 2 == 0 { 30 } else { 220 });
        let flat = picture(1, 1, |_| 9);
        let big = picture(1200, 900, |at| if at % 1200 < 600 { 0 } else { 255 });
        for (name, picture) in [
            ("noise", noise),
            ("shapes", shapes),
            ("ramp", ramp),
            ("stripes", stripes),
            ("flat", flat),
            ("big", big),
        ] {
            assert_eq!(text_density(&picture), 0.0, "{name}");
        }
    }
}
