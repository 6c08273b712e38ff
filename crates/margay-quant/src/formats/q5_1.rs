//! `Q5_1`: 32 five-bit codes, one scale and one minimum. y = d q + m.

use margay_tensor::DType;

use crate::{
    BlockFormat,
    block::{
        decode_each, encode_each, encode_lanes_weighted, f16_at, field, fifth_bits, put_f16, put_nibbles,
        whole,
    },
    search::{AffineTrials, LANES, affine, bounds, cut_codes, inverse},
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
        decode_each(
            blocks,
            out,
            #[inline(always)]
            |block: &[u8; BYTES], y: &mut [f32; ELEMENTS]| {
                let (d, m) = (f16_at(block, SCALE), f16_at(block, MIN));
                let high_bits = u32::from_le_bytes(*field(block, HIGH_BITS));
                let (low, high) = y.split_at_mut(16);
                for (j, &q) in field::<16>(block, QUANTS).iter().enumerate() {
                    let (q0, q1) = (u32::from(q & 15), u32::from(q >> 4));
                    low[j] = d * (q0 | (high_bits >> j & 1) << 4) as f32 + m;
                    high[j] = d * (q1 | (high_bits >> (j + 16) & 1) << 4) as f32 + m;
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
                let d = (max - min) / 31.0;
                let id = inverse(d);
                put_f16(block, SCALE, d);
                put_f16(block, MIN, min);
                put(&cut_codes(x, 31.0, |x| (x - min) * id + 0.5), block);
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
                let (scales, mins) = affine::<_, false>(x, weights, &mut codes, &AffineTrials::weighted(31));
                for (lane, block) in blocks.iter_mut().enumerate() {
                    put_f16(block, SCALE, scales[lane]);
                    put_f16(block, MIN, -mins[lane]);
                    put(&codes[lane], block);
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
