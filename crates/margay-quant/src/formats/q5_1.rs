//! `Q5_1`: 32 five-bit codes, one scale and one minimum. y = d q + m.

use margay_tensor::DType;

use crate::{
    BlockFormat,
    block::{decode_each, encode_each, f16_at, field, put_f16},
    search::{bounds, inverse},
};

/// Numbers a block.
pub const ELEMENTS: usize = 32;
/// Bytes a block.
pub const BYTES: usize = 24;
/// Where the f16 scale d lies.
pub const SCALE: usize = 0;
/// Where the f16 minimum m lies.
pub const MIN: usize = 2;
/// Where the u32 of fifth bits lies: bit i belongs to number i.
pub const HIGH_BITS: usize = 4;
/// Where the 16 bytes of nibbles lie: byte j holds number j in its low nibble, number j + 16 in its high one.
pub const QUANTS: usize = 8;

/// The format. Off by at most d/2 and the rounding of d and m.
pub struct Q5_1;

impl BlockFormat for Q5_1 {
    fn dtype(&self) -> DType {
        DType::Q5_1
    }

    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        decode_each(blocks, out, |block: &[u8; BYTES], y: &mut [f32; ELEMENTS]| {
            let (d, m) = (f16_at(block, SCALE), f16_at(block, MIN));
            let high_bits = u32::from_le_bytes(*field(block, HIGH_BITS));
            let (low, high) = y.split_at_mut(16);
            for (j, &q) in field::<16>(block, QUANTS).iter().enumerate() {
                let (q0, q1) = (u32::from(q & 15), u32::from(q >> 4));
                low[j] = d * (q0 | (high_bits >> j & 1) << 4) as f32 + m;
                high[j] = d * (q1 | (high_bits >> (j + 16) & 1) << 4) as f32 + m;
            }
        });
    }

    fn encode(&self, values: &[f32], out: &mut [u8]) {
        encode_each(values, out, |x: &[f32; ELEMENTS], block: &mut [u8; BYTES]| {
            let (min, max) = bounds(x);
            let d = (max - min) / 31.0;
            let id = inverse(d);
            put_f16(block, SCALE, d);
            put_f16(block, MIN, min);
            let code = |x: f32| (((x - min) * id + 0.5) as i32).clamp(0, 31) as u32;
            let mut high_bits = 0;
            for j in 0..16 {
                let (q0, q1) = (code(x[j]), code(x[j + 16]));
                block[QUANTS + j] = (q0 & 15 | (q1 & 15) << 4) as u8;
                high_bits |= (q0 >> 4) << j | (q1 >> 4) << (j + 16);
            }
            block[HIGH_BITS..QUANTS].copy_from_slice(&high_bits.to_le_bytes());
        });
    }
}
