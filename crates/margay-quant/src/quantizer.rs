//! Numbers to codes one at a time: what methods need that correct one column for the errors of another.

use crate::{BlockFormat, search::nearest_int};

/// A way of giving numbers codes: neighbouring columns of a row form groups, for each of which scales are chosen once.
pub trait Quantizer: Sync {
    /// Columns of a group. Rows are whole groups.
    fn group(&self) -> usize;

    /// Bytes of a packed group; 0 where only the rounded numbers are wanted.
    fn packed_bytes(&self) -> usize;

    /// Chooses the scales of a group for the numbers `x`, of which `importance` says how much an error matters where that
    /// is known, writes them to `packed`, and returns the numbers that codes stand for.
    fn fit(&self, x: &[f32], importance: Option<&[f32]>, packed: &mut [u8]) -> Grid;

    /// Writes the codes of a group beside its scales.
    fn put_codes(&self, codes: &[u8], packed: &mut [u8]);

    /// Rounds a whole row to what it would come back as.
    fn round_row(&self, row: &mut [f32], importance: Option<&[f32]>) {
        let mut packed = vec![0; self.packed_bytes()];
        for (g, x) in row.chunks_mut(self.group()).enumerate() {
            let weights = importance.map(|weights| &weights[g * self.group()..][..x.len()]);
            let grid = self.fit(x, weights, &mut packed);
            for (i, x) in x.iter_mut().enumerate() {
                *x = grid.round(i, *x).1;
            }
        }
    }
}

/// The numbers that the codes of a group stand for.
#[derive(Clone, Debug)]
pub enum Grid {
    /// Evenly spaced: code q of number i is `lowest[i] + q * step[i]`, up to `top`.
    Uniform {
        /// What code 0 stands for.
        lowest: Vec<f32>,
        /// From one code to the next; may be negative or zero.
        step: Vec<f32>,
        /// The largest code.
        top: i32,
    },
    /// Sixteen numbers each, in any order.
    Table(Vec<[f32; 16]>),
}

impl Grid {
    /// The code nearest to `x` for number `i` of the group, and what it stands for.
    ///
    /// # Panics
    /// Beyond the last number of the group.
    #[inline]
    pub fn round(&self, i: usize, x: f32) -> (u8, f32) {
        match self {
            Self::Uniform { lowest, step, top } => {
                let (lowest, step) = (lowest[i], step[i]);
                if step == 0.0 {
                    return (0, lowest);
                }
                // Within the codes first: far outside, the nearest whole number is not to be had by this trick.
                let place = ((x - lowest) / step).clamp(0.0, *top as f32);
                let code = nearest_int(place).clamp(0, *top);
                (code as u8, lowest + code as f32 * step)
            }
            Self::Table(levels) => {
                let mut best = (0, levels[i][0]);
                for (code, &level) in levels[i].iter().enumerate().skip(1) {
                    if (level - x).abs() < (best.1 - x).abs() {
                        best = (code as u8, level);
                    }
                }
                best
            }
        }
    }
}

/// The blocks of a format, as groups.
#[derive(Clone, Copy)]
pub struct Blocks<'a>(pub &'a dyn BlockFormat);

impl Blocks<'_> {
    /// The numbers that the codes of a packed block stand for: what decoding makes of its lowest and highest codes, or of
    /// all where they are not evenly spaced.
    pub(crate) fn grid(&self, packed: &mut [u8]) -> Grid {
        let n = self.group();
        let mut decoded = |code: u8| {
            let mut numbers = vec![0.0; n];
            self.0.put_codes(&vec![code; n], packed);
            self.0.decode(packed, &mut numbers);
            numbers
        };
        if self.0.uniform() {
            let top = self.0.codes() as i32 - 1;
            let (lowest, highest) = (decoded(0), decoded(top as u8));
            let step = lowest.iter().zip(&highest).map(|(low, high)| (high - low) / top as f32).collect();
            return Grid::Uniform { lowest, step, top };
        }
        let mut levels = vec![[0.0; 16]; n];
        for code in 0..16 {
            for (levels, number) in levels.iter_mut().zip(decoded(code)) {
                levels[usize::from(code)] = number;
            }
        }
        Grid::Table(levels)
    }
}

impl Quantizer for Blocks<'_> {
    fn group(&self) -> usize {
        self.0.dtype().block_elements()
    }

    fn packed_bytes(&self) -> usize {
        self.0.dtype().block_bytes()
    }

    fn fit(&self, x: &[f32], importance: Option<&[f32]>, packed: &mut [u8]) -> Grid {
        match importance {
            Some(importance) => self.0.encode_weighted(x, importance, packed),
            None => self.0.encode(x, packed),
        }
        self.grid(packed)
    }

    fn put_codes(&self, codes: &[u8], packed: &mut [u8]) {
        self.0.put_codes(codes, packed);
    }

    fn round_row(&self, row: &mut [f32], importance: Option<&[f32]>) {
        let mut packed = vec![0; row.len() / self.group() * self.packed_bytes()];
        match importance {
            Some(importance) => self.0.encode_weighted(row, importance, &mut packed),
            None => self.0.encode(row, &mut packed),
        }
        self.0.decode(&packed, row);
    }
}

/// How a [`Uniform`] quantizer places its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// From the smallest to the largest number, zero included: zero is exact.
    /// Source: `quant.py` of the GPTQ code.
    Asymmetric,
    /// From the smallest to the largest number, the zero point cut off at the ends.
    /// Source: `pseudo_quantize_tensor` of the AWQ code.
    MinMax,
    /// The largest magnitude both ways; one code more below zero.
    /// Source: `quant.py` of the GPTQ code.
    Symmetric,
}

/// Evenly spaced codes with one scale a group: the quantizer of the studies, of which no bytes are stored.
#[derive(Clone, Copy, Debug)]
pub struct Uniform {
    /// Bits a code, 1 to 8.
    pub bits: u32,
    /// Columns of a group.
    pub group: usize,
    /// Where the range lies.
    pub range: Range,
}

impl Quantizer for Uniform {
    fn group(&self) -> usize {
        self.group
    }

    fn packed_bytes(&self) -> usize {
        0
    }

    fn fit(&self, x: &[f32], _importance: Option<&[f32]>, _packed: &mut [u8]) -> Grid {
        let top = (1 << self.bits) - 1;
        let (min, max) = crate::search::bounds(x);
        let (min, max) = match self.range {
            Range::Asymmetric => (min.min(0.0), max.max(0.0)),
            Range::MinMax => (min, max),
            Range::Symmetric => (-max.max(-min), max.max(-min)),
        };
        let (step, zero) = match self.range {
            Range::MinMax => {
                let step = (max - min).max(1e-5) / top as f32;
                (step, (-(min / step).round_ties_even()).clamp(0.0, top as f32))
            }
            _ if max == min => (2.0 / top as f32, (top as f32 / 2.0).round_ties_even()),
            Range::Asymmetric => {
                let step = (max - min) / top as f32;
                (step, (-min / step).round_ties_even())
            }
            Range::Symmetric => ((max - min) / top as f32, (top as f32 + 1.0) / 2.0),
        };
        Grid::Uniform { lowest: vec![-zero * step; x.len()], step: vec![step; x.len()], top }
    }

    fn put_codes(&self, _codes: &[u8], _packed: &mut [u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FORMATS;

    /// Numbers that end up between two codes may be a rounding away from either.
    const SLACK: f32 = 1e-5;

    #[test]
    fn rounding_to_a_grid_finds_what_decoding_gives_and_nothing_nearer() {
        let x: Vec<f32> = (0..256).map(|i| (i as f32 * 0.71).sin() * (1.0 + (i / 40) as f32)).collect();
        for format in FORMATS.iter().filter(|format| format.codes() > 0) {
            let blocks = Blocks(*format);
            let n = blocks.group();
            let mut packed = vec![0; blocks.packed_bytes()];
            let grid = blocks.fit(&x[..n], None, &mut packed);
            let (codes, values): (Vec<u8>, Vec<f32>) = (0..n).map(|i| grid.round(i, x[i])).unzip();
            blocks.put_codes(&codes, &mut packed);
            let mut decoded = vec![0.0; n];
            format.decode(&packed, &mut decoded);
            for i in 0..n {
                let name = format.dtype();
                assert!(
                    (decoded[i] - values[i]).abs() <= SLACK * 8.0,
                    "{name} {i}: {} {}",
                    decoded[i],
                    values[i]
                );
                for code in 0..format.codes() {
                    let other = match &grid {
                        Grid::Uniform { lowest, step, .. } => lowest[i] + code as f32 * step[i],
                        Grid::Table(levels) => levels[i][code],
                    };
                    assert!((values[i] - x[i]).abs() <= (other - x[i]).abs() + SLACK, "{name} {i} {code}");
                }
            }
        }
    }

    #[test]
    fn codes_are_written_as_the_encoder_writes_them() {
        let x: Vec<f32> = (0..256).map(|i| (i as f32 * 0.37).cos()).collect();
        for format in FORMATS.iter().filter(|format| format.codes() > 0) {
            let n = format.dtype().block_elements();
            let mut packed = vec![0; format.dtype().block_bytes()];
            format.encode(&x[..n], &mut packed);
            let mut decoded = vec![0.0; n];
            format.decode(&packed, &mut decoded);
            let mut again = packed.clone();
            let grid = Blocks(*format).grid(&mut again);
            let codes: Vec<u8> = (0..n).map(|i| grid.round(i, decoded[i]).0).collect();
            format.put_codes(&codes, &mut again);
            let mut once_more = vec![0.0; n];
            format.decode(&again, &mut once_more);
            assert_eq!(decoded, once_more, "{}", format.dtype());
        }
    }

    #[test]
    fn a_group_of_zeros_stays_zero() {
        for range in [Range::Asymmetric, Range::MinMax, Range::Symmetric] {
            let mut row = [0.0; 8];
            Uniform { bits: 3, group: 4, range }.round_row(&mut row, None);
            assert_eq!(row, [0.0; 8], "{range:?}");
        }
    }
}
