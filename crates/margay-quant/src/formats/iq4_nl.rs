//! `IQ4_NL`: 32 nibbles that index 16 unevenly spaced levels, and one scale. y = d `T[q]`.

use margay_tensor::DType;

use crate::{
    BlockFormat,
    block::{decode_each, f16_at, field, put_f16, put_nibbles, whole, whole_blocks, wide},
    search::{LANES, Lanes, ZERO_BELOW, extremes, inlined, inverse, side_by_side, sum_squares, weigh},
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

/// Half way between each level and the next. Exact: near a middle both distances are, so that comparing with it decides
/// as comparing them does.
const MIDDLES: [f32; 15] = {
    let mut middles = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        middles[i] = (LEVELS[i] as f32 + LEVELS[i + 1] as f32) / 2.0;
        i += 1;
    }
    middles
};

/// The code of the level nearest to `x`; the upper one of two equally near.
#[inline(always)]
fn nearest_code(x: f32) -> u8 {
    // NaN counts as above everything, as the reference's search has it.
    15 - MIDDLES.iter().map(|&middle| u8::from(x < middle)).sum::<u8>()
}

/// The level nearest to `x`.
#[inline(always)]
fn nearest_level(x: f32) -> f32 {
    let mut level = f32::from(LEVELS[0]);
    for (i, &middle) in MIDDLES.iter().enumerate() {
        level += if x < middle { 0.0 } else { f32::from(LEVELS[i + 1]) - f32::from(LEVELS[i]) };
    }
    level
}

/// The scale of each group that the best of the trials fits, 0 for a group of (almost) zeros.
#[inline(always)]
pub(crate) fn fitted_scales(x: &[Lanes; ELEMENTS], weights: &[Lanes; ELEMENTS]) -> Lanes {
    let fit = inlined(
        #[inline(always)]
        |id: &Lanes| {
            let (mut sum_qx, mut sum_q2) = ([0.0; LANES], [0.0; LANES]);
            for (x, w) in x.iter().zip(weights) {
                for g in 0..LANES {
                    let q = nearest_level(id[g] * x[g]);
                    sum_qx[g] += w[g] * q * x[g];
                    sum_q2[g] += w[g] * q * q;
                }
            }
            (sum_qx, sum_q2)
        },
    );
    let max = extremes(x);
    let lowest = f32::from(LEVELS[0]);
    let (sum_qx, sum_q2) = fit(&max.map(|max| 1.0 / (-max / lowest)));
    let mut d: Lanes = std::array::from_fn(|g| if sum_q2[g] > 0.0 { sum_qx[g] / sum_q2[g] } else { 0.0 });
    let mut best: Lanes = std::array::from_fn(|g| d[g] * sum_qx[g]);
    for trial in -TRIALS..=TRIALS {
        let (sum_qx, sum_q2) = fit(&max.map(|max| (trial as f32 + lowest) / max));
        for g in 0..LANES {
            if sum_q2[g] > 0.0 && sum_qx[g] * sum_qx[g] > best[g] * sum_q2[g] {
                d[g] = sum_qx[g] / sum_q2[g];
                best[g] = d[g] * sum_qx[g];
            }
        }
    }
    std::array::from_fn(|g| if max[g].abs() < ZERO_BELOW { 0.0 } else { d[g] })
}

/// Writes the nearest levels of `x * id`, two halves of the block a byte.
#[inline(always)]
pub(crate) fn put_levels(x: &[f32; ELEMENTS], id: f32, quants: &mut [u8]) {
    put_nibbles(&x.map(|x| nearest_code(id * x)), quants);
}

/// Packs up to [`LANES`] blocks whose numbers and weights stand side by side in `lanes` and `weights`.
#[inline(always)]
fn encode_blocks(
    x: &[[f32; ELEMENTS]],
    lanes: &[Lanes; ELEMENTS],
    weights: &[Lanes; ELEMENTS],
    blocks: &mut [[u8; BYTES]],
) {
    for ((block, x), d) in blocks.iter_mut().zip(x).zip(fitted_scales(lanes, weights)) {
        put_f16(block, SCALE, d);
        put_levels(x, inverse(d), &mut block[QUANTS..]);
    }
}

impl BlockFormat for IQ4_NL {
    fn dtype(&self) -> DType {
        DType::IQ4_NL
    }

    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        decode_each(
            blocks,
            out,
            #[inline(always)]
            |block: &[u8; BYTES], y: &mut [f32; ELEMENTS]| {
                let d = f16_at(block, SCALE);
                let (low, high) = y.split_at_mut(16);
                for (j, &q) in field::<16>(block, QUANTS).iter().enumerate() {
                    low[j] = d * f32::from(LEVELS[usize::from(q & 15)]);
                    high[j] = d * f32::from(LEVELS[usize::from(q >> 4)]);
                }
            },
        );
    }

    fn encode(&self, values: &[f32], out: &mut [u8]) {
        let (values, out) = whole_blocks(values, out);
        wide(
            #[inline(always)]
            || {
                for (x, blocks) in values.chunks(LANES).zip(out.chunks_mut(LANES)) {
                    let lanes = side_by_side(x);
                    encode_blocks(x, &lanes, &lanes.map(|x| x.map(|x| x * x)), blocks);
                }
            },
        );
    }

    fn encode_weighted(&self, row: &[f32], importance: &[f32], out: &mut [u8]) {
        assert_eq!(row.len(), importance.len(), "one importance a column");
        let (values, out) = whole_blocks(row, out);
        let importance = importance.as_chunks::<ELEMENTS>().0;
        wide(
            #[inline(always)]
            || {
                for ((x, importance), blocks) in
                    values.chunks(LANES).zip(importance.chunks(LANES)).zip(out.chunks_mut(LANES))
                {
                    let mut weights = [[0.0; ELEMENTS]; LANES];
                    for ((weights, x), importance) in weights.iter_mut().zip(x).zip(importance) {
                        *weights = weigh(x, importance, sum_squares(x) * (2.0 / ELEMENTS as f32));
                    }
                    encode_blocks(x, &side_by_side(x), &side_by_side(&weights), blocks);
                }
            },
        );
    }

    fn codes(&self) -> usize {
        16
    }

    fn uniform(&self) -> bool {
        false
    }

    fn put_codes(&self, codes: &[u8], block: &mut [u8]) {
        put_nibbles(whole(codes), &mut block[QUANTS..]);
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
            assert_eq!(nearest_code(x), level, "{x}");
            assert_eq!(nearest_level(x), f32::from(LEVELS[usize::from(level)]), "{x}");
        }
    }
}
