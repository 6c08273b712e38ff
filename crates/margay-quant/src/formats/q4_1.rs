//! `Q4_1`: 32 nibbles, one scale and one minimum. y = d q + m.

use margay_tensor::DType;

use crate::{
    BlockFormat,
    block::{decode_each, encode_each, f16_at, field, put_f16},
    search::{bounds, inverse},
};

/// Numbers a block.
pub const ELEMENTS: usize = 32;
/// Bytes a block.
pub const BYTES: usize = 20;
/// Where the f16 scale d lies.
pub const SCALE: usize = 0;
/// Where the f16 minimum m lies.
pub const MIN: usize = 2;
/// Where the 16 bytes of nibbles lie: byte j holds number j in its low nibble, number j + 16 in its high one.
pub const QUANTS: usize = 4;

/// The format. Off by at most d/2 and the rounding of d and m.
pub struct Q4_1;

impl BlockFormat for Q4_1 {
    fn dtype(&self) -> DType {
        DType::Q4_1
    }

    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        decode_each(blocks, out, |block: &[u8; BYTES], y: &mut [f32; ELEMENTS]| {
            let (d, m) = (f16_at(block, SCALE), f16_at(block, MIN));
            let (low, high) = y.split_at_mut(16);
            for (j, &q) in field::<16>(block, QUANTS).iter().enumerate() {
                low[j] = d * f32::from(q & 15) + m;
                high[j] = d * f32::from(q >> 4) + m;
            }
        });
    }

    fn encode(&self, values: &[f32], out: &mut [u8]) {
        encode_each(values, out, |x: &[f32; ELEMENTS], block: &mut [u8; BYTES]| {
            let (min, max) = bounds(x);
            let d = (max - min) / 15.0;
            let id = inverse(d);
            put_f16(block, SCALE, d);
            put_f16(block, MIN, min);
            let code = |x: f32| (((x - min) * id + 0.5) as i32).clamp(0, 15) as u8;
            for j in 0..16 {
                block[QUANTS + j] = code(x[j]) | code(x[j + 16]) << 4;
            }
        });
    }
}
