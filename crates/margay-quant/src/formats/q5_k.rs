//! `Q5_K`: 256 five-bit codes in 8 groups of 32 with 6-bit scales and minima. y = d s q - dmin m.

use margay_tensor::DType;

use crate::{
    BlockFormat,
    block::{decode_each, encode_each, f16_at, field, k_scales},
    formats::q4_k::encode_groups,
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
const TRIALS: AffineTrials = AffineTrials { top: 31, first: -0.5, delta: 0.1, steps: 15, absolute: false };

/// The format.
pub struct Q5_K;

impl BlockFormat for Q5_K {
    fn dtype(&self) -> DType {
        DType::Q5_K
    }

    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        decode_each(blocks, out, |block: &[u8; BYTES], y: &mut [f32; ELEMENTS]| {
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
        });
    }

    fn encode(&self, values: &[f32], out: &mut [u8]) {
        encode_each(values, out, |x: &[f32; ELEMENTS], block: &mut [u8; BYTES]| {
            let codes = encode_groups(x, block, &TRIALS);
            let (high_bits, quants) = block[HIGH_BITS..].split_at_mut(GROUP);
            high_bits.fill(0);
            quants.fill(0);
            for (j, codes) in codes.iter().enumerate() {
                let quants = &mut quants[GROUP * (j / 2)..][..GROUP];
                for (l, code) in codes.iter().enumerate() {
                    quants[l] |= (code & 15) << (4 * (j % 2));
                    high_bits[l] |= code >> 4 << j;
                }
            }
        });
    }
}
