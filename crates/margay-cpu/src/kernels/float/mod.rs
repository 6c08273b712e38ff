//! Float32 matrix products over panels of 16 columns, and conversions of half precision.
//!
//! For each output the products are added in the order of k, one after the other, so the result depends neither on the
//! number of rows nor on how the work is cut. All versions use fused multiply-adds and agree bit for bit.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

use crate::{Isa, pack::FloatType};

/// Columns of a panel.
pub(crate) const NR: usize = crate::pack::FLOAT_PANEL;

/// One product: `c[r][p][0..16] (+)= sum over k of a[r][k] * b[p][k][0..16]`.
#[derive(Clone, Copy)]
pub(crate) struct FloatProduct {
    pub(crate) rows: usize,
    pub(crate) panels: usize,
    pub(crate) k: usize,
    pub(crate) a: *const f32,
    /// Distance of rows of a, floats.
    pub(crate) lda: usize,
    /// Numbers of type `kind`.
    pub(crate) b: *const u8,
    pub(crate) kind: FloatType,
    /// Distance of panels of b, numbers.
    pub(crate) b_panel: usize,
    /// Distance of consecutive k in b, numbers.
    pub(crate) ldb: usize,
    pub(crate) c: *mut f32,
    /// Distance of rows of c, floats.
    pub(crate) ldc: usize,
    /// Distance of panels of c, floats.
    pub(crate) c_panel: usize,
    /// True where c is to be set, false where it is to be added to.
    pub(crate) first: bool,
}

/// Float kernels of one instruction set.
pub(crate) struct FloatKernels {
    /// Panels that `gemm` reads at once where rows are many.
    pub(crate) panels: usize,
    /// The product.
    ///
    /// # Safety
    /// Every pointer of the product is valid for what its field says.
    pub(crate) gemm: unsafe fn(&FloatProduct),
    /// Half to single precision.
    pub(crate) widen: fn(&[u16], &mut [f32]),
    /// Single to half precision, ties to even.
    pub(crate) narrow: fn(&[f32], &mut [u16]),
}

/// The kernels of `isa`, which the processor must have.
pub(crate) fn table(isa: Isa) -> &'static FloatKernels {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::AvxVnni => &avx2::TABLE,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => &avx512::TABLE,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon | Isa::Dotprod | Isa::I8mm => &neon::TABLE,
        _ => &scalar::TABLE,
    }
}
