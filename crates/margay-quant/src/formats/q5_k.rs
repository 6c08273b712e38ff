//! `Q5_K`: 256 five-bit codes in 8 groups of 32 with 6-bit scales and minima. y = d s q - dmin m.

use margay_tensor::DType;

use crate::{
    BlockFormat,
    block::{decode_each, encode_each, encode_each_weighted, f16_at, field, k_scales, whole},
    formats::q4_k::{encode_groups, encode_groups_weighted},
    search::AffineTrials,
};

/// Numbers a block.
pub const ELEMENTS: usize = 256;
/// Numbers that share a 6-bit scale.
pub const GROUP: usize = 32;
/// Bytes a block.
pub const BYTES: usize = 176;
/// Where the f16 scale d of the scales lies.
pub const SCALE: usize = 0;
/// Where the f16 scale dmin of the minima lies.
pub const MIN: usize = 2;
/// Where the 12 bytes of scales and minima lie; [`crate::k_scales`] unpacks them.
pub const SCALES: usize = 4;
/// Where the 32 bytes of fifth bits lie: number i has bit i / 32 of byte i % 32.
pub const HIGH_BITS: usize = 16;
/// Where the 128 bytes of nibbles lie: of each 64 numbers the first 32 are the low nibbles of 32 bytes, the rest the
/// high ones.
pub const QUANTS: usize = 48;

/// Source: `quantize_row_q5_K_ref`.
const TRIALS: AffineTrials = AffineTrials { top: 31, first: -0.5, delta: 0.1, steps: 15 };

/// The format.
pub struct Q5_K;

impl BlockFormat for Q5_K {
    fn dtype(&self) -> DType {
        DType::Q5_K
    }

    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        decode_each(
            blocks,
            out,
            #[inline(always)]
            |block: &[u8; BYTES], y: &mut [f32; ELEMENTS]| {
                let (d, dmin) = (f16_at(block, SCALE), f16_at(block, MIN));
                let (scales, mins) = k_scales(field(block, SCALES));
                let high_bits = field::<GROUP>(block, HIGH_BITS);
                let quants = field::<128>(block, QUANTS).as_chunks::<GROUP>().0;
                for (j, y) in y.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                    let (scale, min) = (d * f32::from(scales[j]), dmin * f32::from(mins[j]));
                    let shift = 4 * (j % 2);
                    for ((y, q), high) in y.iter_mut().zip(&quants[j / 2]).zip(high_bits) {
                        *y = scale * f32::from(q >> shift & 15 | (high >> j & 1) << 4) - min;
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
                put(&encode_groups_weighted(x, importance, block, TRIALS.top, 63), block);
            },
        );
    }

    fn codes(&self) -> usize {
        32
    }

    fn put_codes(&self, codes: &[u8], block: &mut [u8]) {
        put(whole(codes), block);
    }
}

/// Writes the codes of a block.
#[inline(always)]
fn put(codes: &[u8; ELEMENTS], block: &mut [u8]) {
    let groups = codes.as_chunks::<GROUP>().0;
    for (l, byte) in block[HIGH_BITS..QUANTS].iter_mut().enumerate() {
        *byte = groups.iter().enumerate().fold(0, |bits, (j, codes)| bits | codes[l] >> 4 << j);
    }
    for (groups, bytes) in groups.chunks(2).zip(block[QUANTS..].as_chunks_mut::<GROUP>().0) {
        for (l, byte) in bytes.iter_mut().enumerate() {
            *byte = groups[0][l] & 15 | groups[1][l] << 4;
        }
    }
}
