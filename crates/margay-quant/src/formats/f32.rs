//! `F32`: the numbers themselves.

use margay_tensor::DType;

use crate::{
    BlockFormat,
    block::{decode_each, encode_each},
};

/// The format. Exact both ways.
pub struct F32;

impl BlockFormat for F32 {
    fn dtype(&self) -> DType {
        DType::F32
    }

    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        decode_each(
            blocks,
            out,
            #[inline(always)]
            |block, [y]| *y = f32::from_le_bytes(*block),
        );
    }

    fn encode(&self, values: &[f32], out: &mut [u8]) {
        encode_each(
            values,
            out,
            #[inline(always)]
            |[x], block| *block = x.to_le_bytes(),
        );
    }
}
