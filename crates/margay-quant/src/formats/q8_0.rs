//! `Q8_0`: 32 signed bytes and one scale. y = d q.

use margay_tensor::DType;

use crate::{
    BlockFormat,
    block::{decode_each, encode_each, f16_at, field, put_f16, whole},
    search::{bounds, inverse, truncate},
};

/// Numbers a block.
pub const ELEMENTS: usize = 32;
/// Bytes a block.
pub const BYTES: usize = 34;
/// Where the f16 scale d lies.
pub const SCALE: usize = 0;
/// Where the 32 signed bytes lie, in order.
pub const QUANTS: usize = 2;

/// The code that means zero, where codes count from the lowest level, -127, that the encoder uses.
pub const ZERO: i32 = 127;

/// The format. Off by at most d/2 and the rounding of d.
pub struct Q8_0;

impl BlockFormat for Q8_0 {
    fn dtype(&self) -> DType {
        DType::Q8_0
    }

    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        decode_each(
            blocks,
            out,
            #[inline(always)]
            |block: &[u8; BYTES], y: &mut [f32; ELEMENTS]| {
                let d = f16_at(block, SCALE);
                for (y, &q) in y.iter_mut().zip(field::<ELEMENTS>(block, QUANTS)) {
                    *y = d * f32::from(q as i8);
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
                let (min, max) = bounds(x);
                let d = max.max(-min).abs() / 127.0;
                // The codes use the scale before it is rounded to half precision, as the reference does.
                let id = inverse(d);
                put_f16(block, SCALE, d);
                for (q, x) in block[QUANTS..].iter_mut().zip(x) {
                    *q = round(x * id) as u8;
                }
            },
        );
    }

    fn codes(&self) -> usize {
        255
    }

    fn put_codes(&self, codes: &[u8], block: &mut [u8]) {
        for (q, code) in block[QUANTS..].iter_mut().zip(whole::<ELEMENTS>(codes)) {
            *q = (i32::from(*code) - ZERO) as u8;
        }
    }
}

/// Nearest whole number, halves away from zero; in steps that a vector unit without a rounding instruction has.
#[inline(always)]
fn round(x: f32) -> i32 {
    let whole = truncate(x);
    let part = x - whole as f32;
    // Where there is no whole number, the part is none either.
    let (up, down) = ((0.5..1.0).contains(&part), (0.5..1.0).contains(&-part));
    whole + i32::from(up) - i32::from(down)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_goes_away_from_zero() {
        for x in
            [0.0, 0.5, -0.5, 0.49999997, -0.49999997, 1.5, 126.5, -126.5, 127.0, -127.0, 2.5, 3.4999998f32]
        {
            assert_eq!(round(x), x.round() as i32, "{x}");
        }
        assert_eq!(round(f32::NAN) as u8, 0);
    }
}
