//! `Q4_0`: 32 nibbles and one scale. y = d (q - 8).

use margay_tensor::DType;

use crate::{
    BlockFormat,
    block::{decode_each, encode_each, encode_lanes_weighted, f16_at, field, put_f16, put_nibbles, whole},
    search::{LANES, cut_codes, extreme, inverse, symmetric},
};

/// Numbers a block.
pub const ELEMENTS: usize = 32;
/// Bytes a block.
pub const BYTES: usize = 18;
/// Where the f16 scale d lies.
pub const SCALE: usize = 0;
/// Where the 16 bytes of nibbles lie: byte j holds number j in its low nibble, number j + 16 in its high one.
pub const QUANTS: usize = 2;
/// The code that means zero.
pub const ZERO: i32 = 8;

/// The format. The extreme value of a block is code 0, so only one sign reaches the end of the range.
pub struct Q4_0;

impl BlockFormat for Q4_0 {
    fn dtype(&self) -> DType {
        DType::Q4_0
    }

    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        decode_each(
            blocks,
            out,
            #[inline(always)]
            |block: &[u8; BYTES], y: &mut [f32; ELEMENTS]| {
                let d = f16_at(block, SCALE);
                let (low, high) = y.split_at_mut(16);
                for (j, &q) in field::<16>(block, QUANTS).iter().enumerate() {
                    low[j] = d * (i32::from(q & 15) - ZERO) as f32;
                    high[j] = d * (i32::from(q >> 4) - ZERO) as f32;
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
                let d = extreme(x) / -8.0;
                let id = inverse(d);
                put_f16(block, SCALE, d);
                let codes = cut_codes(x, 15.0, |x| x * id + 8.5);
                put_nibbles(&codes, &mut block[QUANTS..]);
            },
        );
    }

    fn encode_weighted(&self, row: &[f32], importance: &[f32], out: &mut [u8]) {
        encode_lanes_weighted(
            row,
            importance,
            out,
            #[inline(always)]
            |x, weights, blocks: &mut [[u8; BYTES]]| {
                let mut codes = [[0; ELEMENTS]; LANES];
                let scales = symmetric(x, weights, &mut codes, ZERO);
                for ((block, codes), scale) in blocks.iter_mut().zip(&codes).zip(scales) {
                    put_f16(block, SCALE, scale);
                    put_nibbles(codes, &mut block[QUANTS..]);
                }
            },
        );
    }

    fn codes(&self) -> usize {
        16
    }

    fn put_codes(&self, codes: &[u8], block: &mut [u8]) {
        put_nibbles(whole(codes), &mut block[QUANTS..]);
    }
}
