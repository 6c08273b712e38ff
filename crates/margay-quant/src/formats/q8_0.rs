//! `Q8_0`: 32 signed bytes and one scale. y = d q.

use margay_tensor::DType;

use crate::{
    BlockFormat,
    block::{decode_each, encode_each, f16_at, field, put_f16},
    search::{extreme, inverse},
};

/// Numbers a block.
pub const ELEMENTS: usize = 32;
/// Bytes a block.
pub const BYTES: usize = 34;
/// Where the f16 scale d lies.
pub const SCALE: usize = 0;
/// Where the 32 signed bytes lie, in order.
pub const QUANTS: usize = 2;

/// The format. Off by at most d/2 and the rounding of d.
pub struct Q8_0;

impl BlockFormat for Q8_0 {
    fn dtype(&self) -> DType {
        DType::Q8_0
    }

    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        decode_each(blocks, out, |block: &[u8; BYTES], y: &mut [f32; ELEMENTS]| {
            let d = f16_at(block, SCALE);
            for (y, &q) in y.iter_mut().zip(field::<ELEMENTS>(block, QUANTS)) {
                *y = d * f32::from(q as i8);
            }
        });
    }

    fn encode(&self, values: &[f32], out: &mut [u8]) {
        encode_each(values, out, |x: &[f32; ELEMENTS], block: &mut [u8; BYTES]| {
            let d = extreme(x).abs() / 127.0;
            // The codes use the scale before it is rounded to half precision, as the reference does.
            let id = inverse(d);
            put_f16(block, SCALE, d);
            for (q, x) in block[QUANTS..].iter_mut().zip(x) {
                *q = (x * id).round() as i8 as u8;
            }
        });
    }
}
