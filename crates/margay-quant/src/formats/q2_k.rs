//! `Q2_K`: 256 two-bit codes in 16 groups of 16 with 4-bit scales and minima. y = d s q - dmin m.

use margay_tensor::DType;

use crate::{
    BlockFormat,
    block::{decode_each, encode_each, encode_each_weighted, f16_at, field, put_f16, put_pairs, whole},
    search::{AffineTrials, LANES, affine, nearest_int, positive, side_by_side, sum_squares, total, weigh},
};

/// Numbers a block.
pub const ELEMENTS: usize = 256;
/// Numbers that share a 4-bit scale.
pub const GROUP: usize = 16;
/// Bytes a block.
pub const BYTES: usize = 84;
/// Where the 16 bytes of scales (low nibble) and minima (high nibble) lie.
pub const SCALES: usize = 0;
/// Where the 64 bytes of codes lie: of each 128 numbers, number i has bits 2 (i / 32) of byte i % 32.
pub const QUANTS: usize = 16;
/// Where the f16 scale d of the scales lies.
pub const SCALE: usize = 80;
/// Where the f16 scale dmin of the minima lies.
pub const MIN: usize = 82;

/// Source: `quantize_row_q2_K_ref`.
const TRIALS: AffineTrials = AffineTrials { top: 3, first: -0.5, delta: 0.1, steps: 15 };

/// The format.
pub struct Q2_K;

impl BlockFormat for Q2_K {
    fn dtype(&self) -> DType {
        DType::Q2_K
    }

    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        decode_each(
            blocks,
            out,
            #[inline(always)]
            |block: &[u8; BYTES], y: &mut [f32; ELEMENTS]| {
                let (d, dmin) = (f16_at(block, SCALE), f16_at(block, MIN));
                for (j, y) in y.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                    let packed = block[SCALES + j];
                    let (scale, min) = (d * f32::from(packed & 15), dmin * f32::from(packed >> 4));
                    let shift = 2 * (j / 2 % 4);
                    let quants = field::<GROUP>(block, QUANTS + 32 * (j / 8) + 16 * (j % 2));
                    for (y, q) in y.iter_mut().zip(quants) {
                        *y = scale * f32::from(q >> shift & 3) - min;
                    }
                }
            },
        );
    }

    fn encode(&self, values: &[f32], out: &mut [u8]) {
        encode_each(
            values,
            out,
            #[inline(always)]
            |x: &[f32; ELEMENTS], block: &mut [u8; BYTES]| {
                let groups = x.as_chunks::<GROUP>().0;
                let mut codes = [[0; GROUP]; 16];
                let (mut scales, mut mins) = ([0.0; 16], [0.0; 16]);
                for first in [0, LANES] {
                    let x = side_by_side(&groups[first..first + LANES]);
                    let weights = x.map(|x| x.map(f32::abs));
                    let (scale, min) = affine::<_, true>(&x, &weights, &mut codes[first..][..LANES], &TRIALS);
                    scales[first..][..LANES].copy_from_slice(&scale);
                    mins[first..][..LANES].copy_from_slice(&min);
                }
                let four_bits = |values: &[f32; 16], max: f32| {
                    let inverse = if max > 0.0 { 15.0 / max } else { 0.0 };
                    values.map(|v| nearest_int(inverse * v).clamp(0, 15) as u8)
                };
                let largest =
                    |values: &[f32; 16]| values.iter().fold(0.0, |max, &v| if v > max { v } else { max });
                let (max_scale, max_min) = (largest(&scales), largest(&mins));
                put_f16(block, SCALE, max_scale / 15.0);
                put_f16(block, MIN, max_min / 15.0);
                finish(groups, &four_bits(&scales, max_scale), &four_bits(&mins, max_min), codes, block);
            },
        );
    }

    fn encode_weighted(&self, row: &[f32], importance: &[f32], out: &mut [u8]) {
        encode_each_weighted(
            row,
            importance,
            out,
            #[inline(always)]
            |x: &[f32; ELEMENTS], importance, block: &mut [u8; BYTES]| {
                let spread = sum_squares(x) / ELEMENTS as f32;
                let (groups, importance) = (x.as_chunks::<GROUP>().0, importance.as_chunks::<GROUP>().0);
                let weights: [[f32; GROUP]; 16] =
                    std::array::from_fn(|j| weigh(&groups[j], &importance[j], spread));
                let mut codes = [[0; GROUP]; 16];
                let (mut scales, mut mins) = ([0.0; 16], [0.0; 16]);
                for first in [0, LANES] {
                    let (scale, min) = affine::<_, false>(
                        &side_by_side(&groups[first..first + LANES]),
                        &side_by_side(&weights[first..first + LANES]),
                        &mut codes[first..][..LANES],
                        &AffineTrials::weighted(TRIALS.top),
                    );
                    scales[first..][..LANES].copy_from_slice(&scale);
                    mins[first..][..LANES].copy_from_slice(&min);
                }
                let totals = weights.map(|weights| total(&weights));
                let (mut scale_codes, mut min_codes) = ([0; 16], [0; 16]);
                let d = positive(&scales, &totals, &mut scale_codes, 15);
                let dmin = positive(&mins, &totals, &mut min_codes, 15);
                put_f16(block, SCALE, d);
                put_f16(block, MIN, dmin);
                finish(groups, &scale_codes, &min_codes, codes, block);
            },
        );
    }

    fn codes(&self) -> usize {
        4
    }

    fn put_codes(&self, codes: &[u8], block: &mut [u8]) {
        put_pairs(whole(codes), &mut block[QUANTS..SCALE]);
    }
}

/// Writes scales and minima beside the d and dmin that are there, and the codes that they ask for. A group whose scale
/// rounds to zero keeps the codes of the search.
#[inline(always)]
fn finish(
    groups: &[[f32; GROUP]],
    scales: &[u8; 16],
    mins: &[u8; 16],
    mut codes: [[u8; GROUP]; 16],
    block: &mut [u8; BYTES],
) {
    let (d, dmin) = (f16_at(block, SCALE), f16_at(block, MIN));
    for (j, x) in groups.iter().enumerate() {
        let packed = scales[j] | mins[j] << 4;
        block[SCALES + j] = packed;
        let (scale, min) = (d * f32::from(packed & 15), dmin * f32::from(packed >> 4));
        if scale != 0.0 {
            codes[j] = x.map(|x| nearest_int((x + min) / scale).clamp(0, TRIALS.top) as u8);
        }
    }
    put_pairs(whole(codes.as_flattened()), &mut block[QUANTS..SCALE]);
}
