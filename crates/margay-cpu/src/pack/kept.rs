//! Packed matrices kept from an earlier run.

use super::{FloatMatrix, QuantMatrix};
use crate::ops::linear::Matrix;
use margay_graph::{PackedForm, PackedWeight};
use margay_tensor::{Storage, Tensor};

/// Version of the order in which weights are packed. Whoever changes what any weight packs to raises it, so that packed
/// files of before are made anew; a test below knows the bytes.
pub(crate) const LAYOUT_VERSION: u32 = 2;

/// What the kernels rely on.
const ALIGN_BYTES: usize = 64;

impl Matrix {
    /// What `tensor` packs to.
    pub(crate) fn form_of(tensor: &Tensor) -> PackedForm {
        let (dtype, shape) = (tensor.dtype(), tensor.shape());
        if let Some(m) = QuantMatrix::unfilled(tensor) {
            let form = format!("{dtype} {shape} as {:?} {:?}", m.kind, m.scaling);
            return PackedForm { form, part_bytes: m.packed_bytes().to_vec() };
        }
        let kind = FloatMatrix::kind_of(dtype);
        let bytes = FloatMatrix::packed_bytes(shape.rows().unwrap_or(0), shape.row(), kind);
        PackedForm { form: format!("{dtype} {shape} as {kind:?}"), part_bytes: vec![bytes] }
    }

    /// The packed form of `tensor` over parts made earlier; `None` where they cannot be those.
    pub(crate) fn over(tensor: &Tensor, parts: &[Storage]) -> Option<Self> {
        let fits = Self::form_of(tensor).part_bytes.iter().copied().eq(parts.iter().map(Storage::len));
        let aligned = |part: &Storage| part.as_bytes().as_ptr().addr().is_multiple_of(ALIGN_BYTES);
        if !fits || !parts.iter().all(|part| part.is_empty() || aligned(part)) {
            return None;
        }
        match (QuantMatrix::unfilled(tensor), parts) {
            (Some(unfilled), [codes, scales]) => {
                Some(Matrix::Quant(unfilled.over(codes.clone(), scales.clone())))
            }
            (None, [bytes]) => {
                let (n, k) = (tensor.shape().rows()?, tensor.shape().row());
                let kind = FloatMatrix::kind_of(tensor.dtype());
                Some(Matrix::Float(FloatMatrix::over(n, k, kind, bytes.clone())))
            }
            _ => None,
        }
    }

    /// What it holds, to be kept: `tensor` is what it was packed from.
    pub(crate) fn keep(&self, tensor: &Tensor) -> PackedWeight {
        let parts = match self {
            Matrix::Quant(m) => m.storages().into_iter().cloned().collect(),
            Matrix::Float(m) => vec![m.storage().clone()],
            // Made anew at each load: what is kept serves the exact encoder.
            Matrix::Channel(_) | Matrix::Bf16(_) => vec![],
        };
        PackedWeight { form: Self::form_of(tensor), parts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{lines::Arena, threads::Pool};
    use margay_tensor::{DType, Shape};

    /// Formats that matrices come in, one of each kind of layout.
    const FORMATS: [DType; 15] = [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Q8_0,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q2_K,
        DType::Q3_K,
        DType::Q4_K,
        DType::Q5_K,
        DType::Q6_K,
        DType::IQ4_NL,
        DType::IQ4_XS,
    ];

    /// What [`digest`] gave when [`LAYOUT_VERSION`] was set to the number beside it.
    const KNOWN: (u32, u64) = (2, 12_933_885_041_971_861_155);

    fn matrix(dtype: DType) -> Tensor {
        // A panel and a part of one; two super blocks.
        let shape = Shape::from([19, 512]);
        let bytes = Tensor::size_bytes(dtype, &shape).unwrap();
        // Any bytes are a block of every format; as floats, small exponents keep them numbers.
        let byte = |i: usize| (i as u32).wrapping_mul(0x9e37_79b1).to_be_bytes()[0] & 0x3f;
        let bytes: Vec<u8> = (0..bytes).map(byte).collect();
        Tensor::new(dtype, shape, Storage::from_bytes(&bytes)).unwrap()
    }

    fn pack(tensor: &Tensor) -> Matrix {
        Matrix::pack("m", tensor, &Pool::new(2, None), &Arena::default()).unwrap()
    }

    /// FNV-1a of form and packed bytes of a matrix of each format.
    fn digest() -> u64 {
        let mut digest = 0xcbf2_9ce4_8422_2325_u64;
        for dtype in FORMATS {
            let kept = pack(&matrix(dtype)).keep(&matrix(dtype));
            let parts = kept.parts.iter().flat_map(|part| part.as_bytes());
            for byte in kept.form.form.as_bytes().iter().chain(parts) {
                digest = (digest ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
        digest
    }

    #[test]
    fn another_layout_has_another_version() {
        let now = (LAYOUT_VERSION, digest());
        assert_eq!(
            now, KNOWN,
            "weights pack to other bytes: raise LAYOUT_VERSION, then note both numbers in KNOWN"
        );
    }

    #[test]
    fn what_is_kept_comes_back_and_nothing_else_is_taken() {
        for dtype in FORMATS {
            let tensor = matrix(dtype);
            let kept = pack(&tensor).keep(&tensor);
            assert_eq!(kept.form, Matrix::form_of(&tensor));
            let sizes: Vec<usize> = kept.parts.iter().map(Storage::len).collect();
            assert_eq!(sizes, kept.form.part_bytes, "{dtype}");
            let again = Matrix::over(&tensor, &kept.parts).unwrap().keep(&tensor);
            for (a, b) in kept.parts.iter().zip(&again.parts) {
                assert_eq!(a.as_bytes(), b.as_bytes(), "{dtype}");
            }
            let first = &kept.parts[0];
            for wrong in [
                vec![],
                vec![first.slice(0..first.len() - 64).unwrap()],
                vec![Storage::from_bytes(&vec![0; first.len() + 64])],
                [kept.parts.clone(), vec![first.clone()]].concat(),
            ] {
                assert!(Matrix::over(&tensor, &wrong).is_none(), "{dtype}");
            }
            let shifted = Storage::from_bytes(&vec![0; first.len() + 1]).slice(1..first.len() + 1).unwrap();
            let shifted = [vec![shifted], kept.parts[1..].to_vec()].concat();
            assert!(Matrix::over(&tensor, &shifted).is_none(), "{dtype}: not aligned");
        }
    }
}
