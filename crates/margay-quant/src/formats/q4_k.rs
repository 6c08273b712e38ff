//! `Q4_K`: 256 nibbles in 8 groups of 32 with 6-bit scales and minima. y = d s q - dmin m.

use margay_tensor::DType;

use crate::{
    BlockFormat,
    block::{
        decode_each, encode_each, encode_each_weighted, f16_at, field, k_scales, pack_k_scales, put_f16,
        whole,
    },
    search::{AffineTrials, LANES, affine, nearest_int, positive, side_by_side, sum_squares, total, weigh},
};

/// Numbers a block.
pub const ELEMENTS: usize = 256;
/// Numbers that share a 6-bit scale.
pub const GROUP: usize = 32;
/// Bytes a block.
pub const BYTES: usize = 144;
/// Where the f16 scale d of the scales lies.
pub const SCALE: usize = 0;
/// Where the f16 scale dmin of the minima lies.
pub const MIN: usize = 2;
/// Where the 12 bytes of scales and minima lie; [`crate::k_scales`] unpacks them.
pub const SCALES: usize = 4;
/// Where the 128 bytes of nibbles lie: of each 64 numbers the first 32 are the low nibbles of 32 bytes, the rest the
/// high ones.
pub const QUANTS: usize = 16;

/// Source: `quantize_row_q4_K_ref`.
const TRIALS: AffineTrials = AffineTrials { top: 15, first: -1.0, delta: 0.1, steps: 20 };

/// The format.
pub struct Q4_K;

impl BlockFormat for Q4_K {
    fn dtype(&self) -> DType {
        DType::Q4_K
    }

    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        decode_each(
            blocks,
            out,
            #[inline(always)]
            |block: &[u8; BYTES], y: &mut [f32; ELEMENTS]| {
                let (d, dmin) = (f16_at(block, SCALE), f16_at(block, MIN));
                let (scales, mins) = k_scales(field(block, SCALES));
                let quants = field::<128>(block, QUANTS).as_chunks::<GROUP>().0;
                for (j, y) in y.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                    let (scale, min) = (d * f32::from(scales[j]), dmin * f32::from(mins[j]));
                    let shift = 4 * (j % 2);
                    for (y, q) in y.iter_mut().zip(&quants[j / 2]) {
                        *y = scale * f32::from(q >> shift & 15) - min;
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
                put(&encode_groups(x, block, &TRIALS), block);
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
                // Scales beyond 6 bits spill into their neighbours, as the reference has it for this format only.
                put(&encode_groups_weighted(x, importance, block, TRIALS.top, u8::MAX), block);
            },
        );
    }

    fn codes(&self) -> usize {
        16
    }

    fn put_codes(&self, codes: &[u8], block: &mut [u8]) {
        put(whole(codes), block);
    }
}

/// Writes the codes of a block.
#[inline(always)]
fn put(codes: &[u8; ELEMENTS], block: &mut [u8]) {
    for (codes, bytes) in codes.as_chunks::<64>().0.iter().zip(block[QUANTS..].as_chunks_mut::<GROUP>().0) {
        let (low, high) = codes.split_at(GROUP);
        for ((byte, low), high) in bytes.iter_mut().zip(low).zip(high) {
            *byte = low & 15 | high << 4;
        }
    }
}

/// Finds and writes the scales of a `Q4_K` or `Q5_K` block, whose headers are the same, and returns the codes.
#[inline(always)]
pub(crate) fn encode_groups(x: &[f32; ELEMENTS], block: &mut [u8], t: &AffineTrials) -> [u8; ELEMENTS] {
    let groups = x.as_chunks::<GROUP>().0;
    let lanes = side_by_side(groups);
    let mut sum_x2 = [0.0; LANES];
    for x in &lanes {
        for g in 0..LANES {
            sum_x2[g] += x[g] * x[g];
        }
    }
    let typical = sum_x2.map(|sum| (sum / GROUP as f32).sqrt());
    let weights = lanes.map(|x| std::array::from_fn(|g| typical[g] + x[g].abs()));
    let mut codes = [[0; GROUP]; 8];
    let (scales, mins) = affine::<_, false>(&lanes, &weights, &mut codes, t);
    let largest = |values: &[f32; 8]| values.iter().fold(0.0, |max, &v| if v > max { v } else { max });
    let (max_scale, max_min) = (largest(&scales), largest(&mins));
    let six_bits = |values: &[f32; 8], max: f32| {
        let inverse = if max > 0.0 { 63.0 / max } else { 0.0 };
        values.map(|v| (nearest_int(inverse * v) as u8).min(63))
    };
    let (scales, mins) = (six_bits(&scales, max_scale), six_bits(&mins, max_min));
    put_f16(block, SCALE, max_scale / 63.0);
    put_f16(block, MIN, max_min / 63.0);
    finish(groups, pack_k_scales(&scales, &mins), codes, t.top, block)
}

/// As [`encode_groups`] where errors matter by `importance`; the codes of the scales are cut off at `limit`.
#[inline(always)]
pub(crate) fn encode_groups_weighted(
    x: &[f32; ELEMENTS],
    importance: &[f32; ELEMENTS],
    block: &mut [u8],
    top: i32,
    limit: u8,
) -> [u8; ELEMENTS] {
    let spread = 2.0 * sum_squares(x) / ELEMENTS as f32;
    let (groups, importance) = (x.as_chunks::<GROUP>().0, importance.as_chunks::<GROUP>().0);
    let weights: [[f32; GROUP]; 8] = std::array::from_fn(|j| weigh(&groups[j], &importance[j], spread));
    let mut codes = [[0; GROUP]; 8];
    let t = AffineTrials::weighted(top);
    let (scales, mins) = affine::<_, false>(&side_by_side(groups), &side_by_side(&weights), &mut codes, &t);
    let totals = weights.map(|weights| total(&weights));
    let (mut scale_codes, mut min_codes) = ([0; 8], [0; 8]);
    let d = positive(&scales, &totals, &mut scale_codes, 63);
    let dmin = positive(&mins, &totals, &mut min_codes, 63);
    put_f16(block, SCALE, d);
    put_f16(block, MIN, dmin);
    let packed = pack_k_scales(&scale_codes.map(|s| s.min(limit)), &min_codes.map(|m| m.min(limit)));
    finish(groups, packed, codes, top, block)
}

/// Writes the packed scales beside the d and dmin that are there and returns the codes that they ask for. A group whose
/// scale rounds to zero keeps the codes of the search.
#[inline(always)]
fn finish(
    groups: &[[f32; GROUP]],
    packed: [u8; 12],
    mut codes: [[u8; GROUP]; 8],
    top: i32,
    block: &mut [u8],
) -> [u8; ELEMENTS] {
    block[SCALES..SCALES + 12].copy_from_slice(&packed);
    let (d, dmin) = (f16_at(block, SCALE), f16_at(block, MIN));
    let (scales, mins) = k_scales(&packed);
    for (j, x) in groups.iter().enumerate() {
        let (scale, min) = (d * f32::from(scales[j]), dmin * f32::from(mins[j]));
        if scale != 0.0 {
            codes[j] = x.map(|x| nearest_int((x + min) / scale).max(0).min(top) as u8);
        }
    }
    *whole(codes.as_flattened())
}
