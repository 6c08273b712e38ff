//! One file a format: where its fields lie (`*_BYTES`, `SCALE`, `QUANTS`, ...), how it decodes, how it encodes.
//!
//! All numbers are little-endian; offsets count bytes from the start of a block. Source of the layouts:
//! `ggml-common.h` and `ggml-quants.c` of ggml.

#![allow(non_camel_case_types, reason = "the field's own names")]

use margay_tensor::DType;

use crate::BlockFormat;

pub mod bf16;
pub mod f16;
pub mod f32;
pub mod iq4_nl;
pub mod iq4_xs;
pub mod mxfp4;
pub mod q2_k;
pub mod q3_k;
pub mod q4_0;
pub mod q4_1;
pub mod q4_k;
pub mod q5_0;
pub mod q5_1;
pub mod q5_k;
pub mod q6_k;
pub mod q8_0;

/// Every format there is, widest first. One line a file of this folder.
pub const FORMATS: &[&dyn BlockFormat] = &[
    &f32::F32,
    &f16::F16,
    &bf16::BF16,
    &q8_0::Q8_0,
    &q6_k::Q6_K,
    &q5_k::Q5_K,
    &q5_1::Q5_1,
    &q5_0::Q5_0,
    &q4_k::Q4_K,
    &q4_1::Q4_1,
    &q4_0::Q4_0,
    &iq4_nl::IQ4_NL,
    &iq4_xs::IQ4_XS,
    &mxfp4::MXFP4,
    &q3_k::Q3_K,
    &q2_k::Q2_K,
];

/// The format that reads and writes `dtype`, or `None` where there is none.
pub fn format(dtype: DType) -> Option<&'static dyn BlockFormat> {
    FORMATS.iter().copied().find(|format| format.dtype() == dtype)
}
