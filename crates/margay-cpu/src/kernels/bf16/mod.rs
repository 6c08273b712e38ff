//! Products of bfloat16 rows and bfloat16 matrices with float32 sums, where the processor has instructions for them.
//!
//! For each output, pairs of products are added in the order of k, so the result depends neither on the number of rows
//! nor on how the work is cut. How an instruction rounds its two additions is its own affair: x86 rounds each to the
//! nearest, ARM both to odd unless told otherwise, and either takes denormals for zero.

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(test)]
mod tests;

use crate::Isa;

/// One product: `rows` rows times one or more panels of 16 outputs over `k` columns.
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    allow(dead_code, reason = "other processors have no such kernels")
)]
pub(crate) struct Bf16Product {
    pub(crate) rows: usize,
    /// 1 to [`Bf16Kernels::panels`].
    pub(crate) panels: usize,
    /// A multiple of [`crate::pack::BF16_STEP`].
    pub(crate) k: usize,
    /// Activations, `[rows / side_by_side][k / 2][side_by_side][2]` with [`Bf16Kernels::side_by_side`].
    pub(crate) a: *const u16,
    /// The first panel, `[k / 2][16][2]`.
    pub(crate) b: *const u16,
    /// Distance of panels, elements.
    pub(crate) b_panel: usize,
    /// Sums, `[rows][panels][16]`, rows `ldc` apart; with room for whole blocks of rows.
    pub(crate) c: *mut f32,
    pub(crate) ldc: usize,
    /// True where the sums are to be set, false where they are to be added to.
    pub(crate) first: bool,
}

/// The kernels of one instruction set.
pub(crate) struct Bf16Kernels {
    /// For people.
    pub(crate) name: &'static str,
    /// Rows of activations whose pairs lie side by side.
    pub(crate) side_by_side: usize,
    /// Panels that `gemm` takes at once.
    pub(crate) panels: usize,
    /// Rounds a whole block of rows, so far apart, to the nearest, ties to even: so many columns, a multiple of
    /// [`crate::pack::BF16_STEP`], to `[k / 2][side_by_side][2]`. What is no normal number may become zero, which the
    /// products take it for.
    pub(crate) round: fn(&[f32], usize, usize, &mut [u16]),
    /// Adds to the sums.
    ///
    /// # Safety
    /// Every pointer of the product is valid for what its field says.
    pub(crate) gemm: unsafe fn(&Bf16Product),
}

/// The kernels that go with those of `isa`, where this processor has them.
pub(crate) fn table(isa: Isa) -> Option<&'static Bf16Kernels> {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => is_x86_feature_detected!("avx512bf16").then_some(&avx512::TABLE),
        #[cfg(target_arch = "aarch64")]
        Isa::I8mm => std::arch::is_aarch64_feature_detected!("bf16").then_some(&neon::TABLE),
        _ => None,
    }
}
