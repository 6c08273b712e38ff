//! `F16`: IEEE half precision.

use half::{f16, slice::HalfFloatSliceExt};
use margay_tensor::DType;

use crate::BlockFormat;

/// Numbers converted in one go: as many as keep the vector conversion busy and the buffer in registers and L1.
const GROUP: usize = 64;

/// The format. Rounds halves to even; beyond 65504 lies infinity.
pub struct F16;

impl BlockFormat for F16 {
    fn dtype(&self) -> DType {
        DType::F16
    }

    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        assert_eq!(blocks.len(), out.len() * 2, "two bytes a number");
        let mut halves = [f16::ZERO; GROUP];
        for (bytes, out) in blocks.chunks(2 * GROUP).zip(out.chunks_mut(GROUP)) {
            let halves = &mut halves[..out.len()];
            for (half, bytes) in halves.iter_mut().zip(bytes.as_chunks().0) {
                *half = f16::from_le_bytes(*bytes);
            }
            halves.convert_to_f32_slice(out);
        }
    }

    fn encode(&self, values: &[f32], out: &mut [u8]) {
        assert_eq!(values.len() * 2, out.len(), "two bytes a number");
        let mut halves = [f16::ZERO; GROUP];
        for (values, bytes) in values.chunks(GROUP).zip(out.chunks_mut(2 * GROUP)) {
            let halves = &mut halves[..values.len()];
            halves.convert_from_f32_slice(values);
            for (half, bytes) in halves.iter().zip(bytes.as_chunks_mut().0) {
                *bytes = half.to_le_bytes();
            }
        }
    }
}
