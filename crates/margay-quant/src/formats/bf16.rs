//! `BF16`: the upper half of a float32.

use margay_tensor::DType;

use crate::{
    BlockFormat,
    block::{decode_each, encode_each},
};

/// The format. Rounds halves to even; NaN stays NaN.
pub struct BF16;

impl BlockFormat for BF16 {
    fn dtype(&self) -> DType {
        DType::BF16
    }

    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        decode_each(
            blocks,
            out,
            #[inline(always)]
            |block, [y]| *y = f32::from_bits(u32::from(u16::from_le_bytes(*block)) << 16),
        );
    }

    fn encode(&self, values: &[f32], out: &mut [u8]) {
        encode_each(
            values,
            out,
            #[inline(always)]
            |[x], block| *block = half::bf16::from_f32(*x).to_le_bytes(),
        );
    }
}
