//! `Q5_0`: 32 five-bit codes and one scale. y = d (q - 16).

use margay_tensor::DType;

use crate::{
    BlockFormat,
    block::{decode_each, encode_each, f16_at, field, put_f16},
    search::{extreme, inverse},
};

/// Numbers a block.
pub const ELEMENTS: usize = 32;
/// Bytes a block.
pub const BYTES: usize = 22;
/// Where the f16 scale d lies.
pub const SCALE: usize = 0;
/// Where the u32 of fifth bits lies: bit i belongs to number i.
pub const HIGH_BITS: usize = 2;
/// Where the 16 bytes of nibbles lie: byte j holds number j in its low nibble, number j + 16 in its high one.
pub const QUANTS: usize = 6;
/// The code that means zero.
pub const ZERO: i32 = 16;

/// The format. The extreme value of a block is code 0, so only one sign reaches the end of the range.
pub struct Q5_0;

impl BlockFormat for Q5_0 {
    fn dtype(&self) -> DType {
        DType::Q5_0
    }

    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        decode_each(blocks, out, |block: &[u8; BYTES], y: &mut [f32; ELEMENTS]| {
            let d = f16_at(block, SCALE);
            let high_bits = u32::from_le_bytes(*field(block, HIGH_BITS));
            let (low, high) = y.split_at_mut(16);
            for (j, &q) in field::<16>(block, QUANTS).iter().enumerate() {
                let (q0, q1) = (u32::from(q & 15), u32::from(q >> 4));
                low[j] = d * ((q0 | (high_bits >> j & 1) << 4) as i32 - ZERO) as f32;
                high[j] = d * ((q1 | (high_bits >> (j + 16) & 1) << 4) as i32 - ZERO) as f32;
            }
        });
    }

    fn encode(&self, values: &[f32], out: &mut [u8]) {
        encode_each(values, out, |x: &[f32; ELEMENTS], block: &mut [u8; BYTES]| {
            let d = extreme(x) / -16.0;
            let id = inverse(d);
            put_f16(block, SCALE, d);
            let code = |x: f32| ((x * id + 16.5) as i32).clamp(0, 31) as u32;
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
