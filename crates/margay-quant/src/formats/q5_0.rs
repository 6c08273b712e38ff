//! `Q5_0`: 32 five-bit codes and one scale. y = d (q - 16).

use margay_tensor::DType;

use crate::{
    BlockFormat,
    block::{
        decode_each, encode_each, encode_lanes_weighted, f16_at, field, fifth_bits, put_f16, put_nibbles,
        whole,
    },
    search::{LANES, cut_codes, extreme, inverse, symmetric},
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
        decode_each(
            blocks,
            out,
            #[inline(always)]
            |block: &[u8; BYTES], y: &mut [f32; ELEMENTS]| {
                let d = f16_at(block, SCALE);
                let high_bits = u32::from_le_bytes(*field(block, HIGH_BITS));
                let (low, high) = y.split_at_mut(16);
                for (j, &q) in field::<16>(block, QUANTS).iter().enumerate() {
                    let (q0, q1) = (u32::from(q & 15), u32::from(q >> 4));
                    low[j] = d * ((q0 | (high_bits >> j & 1) << 4) as i32 - ZERO) as f32;
                    high[j] = d * ((q1 | (high_bits >> (j + 16) & 1) << 4) as i32 - ZERO) as f32;
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
                let d = extreme(x) / -16.0;
                let id = inverse(d);
                put_f16(block, SCALE, d);
                put(&cut_codes(x, 31.0, |x| x * id + 16.5), block);
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
                    put(codes, block);
                }
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
    block[HIGH_BITS..QUANTS].copy_from_slice(&fifth_bits(codes));
    put_nibbles(codes, &mut block[QUANTS..]);
}
