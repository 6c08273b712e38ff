//! `Q3_K`: 256 three-bit codes in 16 groups of 16 with 6-bit scales. y = d (s - 32) (q - 4).

use margay_tensor::DType;

use crate::{
    BlockFormat,
    block::{decode_each, encode_each, encode_each_weighted, f16_at, field, put_f16, put_pairs, whole},
    search::{
        LANES, extreme, nearest_int, side_by_side, sum_squares, symmetric, symmetric_by_descent, total, weigh,
    },
};

/// Numbers a block.
pub const ELEMENTS: usize = 256;
/// Numbers that share a 6-bit scale.
pub const GROUP: usize = 16;
/// Bytes a block.
pub const BYTES: usize = 110;
/// Where the 32 bytes of third bits lie: number i has bit i / 32 of byte i % 32.
pub const HIGH_BITS: usize = 0;
/// Where the 64 bytes of low bit pairs lie: of each 128 numbers, number i has bits 2 (i / 32) of byte i % 32.
pub const QUANTS: usize = 32;
/// Where the 12 bytes of scales lie.
pub const SCALES: usize = 96;
/// Where the f16 scale d of the scales lies.
pub const SCALE: usize = 108;
/// The code that means zero.
pub const ZERO: i32 = 4;

/// The format.
pub struct Q3_K;

/// The 16 scales, -32 to 31: their low nibbles fill 8 bytes (first 8 low, last 8 high), their top pairs 4.
#[inline(always)]
fn unpack_scales(packed: &[u8; 12]) -> [i8; 16] {
    std::array::from_fn(|j| {
        let low = packed[j % 8] >> (4 * (j / 8)) & 15;
        let high = packed[8 + j % 4] >> (2 * (j / 4)) & 3;
        (low | high << 4) as i8 - 32
    })
}

impl BlockFormat for Q3_K {
    fn dtype(&self) -> DType {
        DType::Q3_K
    }

    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        decode_each(
            blocks,
            out,
            #[inline(always)]
            |block: &[u8; BYTES], y: &mut [f32; ELEMENTS]| {
                let d = f16_at(block, SCALE);
                let scales = unpack_scales(field(block, SCALES)).map(|s| d * f32::from(s));
                for (j, y) in y.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                    let first = 16 * (j % 2);
                    let quants = field::<GROUP>(block, QUANTS + 32 * (j / 8) + first);
                    let high_bits = field::<GROUP>(block, HIGH_BITS + first);
                    let (pair, bit) = (2 * (j / 2 % 4), j / 2);
                    for ((y, q), high) in y.iter_mut().zip(quants).zip(high_bits) {
                        let q = q >> pair & 3 | (high >> bit & 1) << 2;
                        *y = scales[j] * (i32::from(q) - ZERO) as f32;
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
                let mut scales = [0.0; 16];
                for ((scale, x), codes) in scales.iter_mut().zip(groups).zip(&mut codes) {
                    *scale = symmetric_by_descent(x, codes, ZERO);
                }
                let max_scale = extreme(&scales);
                let (mut d, mut levels) = (0.0, [0; 16]);
                if max_scale != 0.0 {
                    let iscale = -32.0 / max_scale;
                    levels = scales.map(|scale| (nearest_int(iscale * scale) as i8).clamp(-32, 31) + 32);
                    d = 1.0 / iscale;
                }
                finish(groups, d, &levels.map(|level| level as u8), codes, block);
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
                let spread = 2.0 * sum_squares(x) / ELEMENTS as f32;
                let (groups, importance) = (x.as_chunks::<GROUP>().0, importance.as_chunks::<GROUP>().0);
                let weights: [[f32; GROUP]; 16] =
                    std::array::from_fn(|j| weigh(&groups[j], &importance[j], spread));
                let mut codes = [[0; GROUP]; 16];
                let mut scales = [0.0; 16];
                for first in [0, LANES] {
                    let scale = symmetric(
                        &side_by_side(&groups[first..first + LANES]),
                        &side_by_side(&weights[first..first + LANES]),
                        &mut codes[first..][..LANES],
                        ZERO,
                    );
                    scales[first..][..LANES].copy_from_slice(&scale);
                }
                // The scales are fitted as numbers are, each weighing what its group does.
                let totals = weights.map(|weights| total(&weights));
                let mut levels = [[0; 16]];
                let d = symmetric(&side_by_side(&[scales]), &side_by_side(&[totals]), &mut levels, 32)[0];
                finish(groups, d, &levels[0], codes, block);
            },
        );
    }

    fn codes(&self) -> usize {
        8
    }

    fn put_codes(&self, codes: &[u8], block: &mut [u8]) {
        put(whole(codes), block);
    }
}

/// Writes d, the scales (32 more than they are) and the codes that they ask for. A group whose scale rounds to zero keeps
/// the codes of the search.
#[inline(always)]
fn finish(
    groups: &[[f32; GROUP]],
    d: f32,
    scales: &[u8; 16],
    mut codes: [[u8; GROUP]; 16],
    block: &mut [u8; BYTES],
) {
    let d = put_f16(block, SCALE, d);
    block[SCALES..SCALE].fill(0);
    for (j, l) in scales.iter().enumerate() {
        block[SCALES + j % 8] |= (l & 15) << (4 * (j / 8));
        block[SCALES + 8 + j % 4] |= l >> 4 << (2 * (j / 4));
    }
    for ((x, codes), s) in groups.iter().zip(&mut codes).zip(unpack_scales(field(block, SCALES))) {
        let scale = d * f32::from(s);
        if scale != 0.0 {
            *codes = x.map(|x| (nearest_int(x / scale).clamp(-ZERO, ZERO - 1) + ZERO) as u8);
        }
    }
    put(whole(codes.as_flattened()), block);
}

/// Writes the codes of a block.
#[inline(always)]
fn put(codes: &[u8; ELEMENTS], block: &mut [u8]) {
    put_pairs(codes, &mut block[QUANTS..SCALES]);
    let eighths = codes.as_chunks::<32>().0;
    for (l, byte) in block[HIGH_BITS..QUANTS].iter_mut().enumerate() {
        *byte = eighths.iter().enumerate().fold(0, |bits, (i, codes)| bits | codes[l] >> 2 << i);
    }
}
