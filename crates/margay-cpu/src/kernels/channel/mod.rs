//! Integer products of int8 rows with one scale a row and int8 matrices with one scale an output: the sums over all of
//! k are exact integers, so every instruction set gives the same bits.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avxvnni;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(test)]
mod tests;

use crate::Isa;
pub(crate) use crate::kernels::quant::COPY_ROWS;

/// One product: `rows` rows times one or more panels of 16 outputs over `k` columns.
pub(crate) struct ChannelProduct {
    pub(crate) rows: usize,
    /// 1 to [`ChannelKernels::panels`].
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only AVX-512 takes more than one"))]
    pub(crate) panels: usize,
    /// A multiple of [`crate::pack::CHANNEL_STEP`].
    pub(crate) k: usize,
    /// Activation codes; rows `lda` apart.
    pub(crate) q: *const i8,
    pub(crate) lda: usize,
    /// What [`ChannelKernels::copy`] made of them.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only x86 reads them"))]
    pub(crate) copy: *const u8,
    /// Codes of the first panel, `[k / 4][16][4]`. Where rows are signed, those of columns 2 i and 2 i + 1 that are of one
    /// sign do not exceed 128 together.
    pub(crate) codes: *const u8,
    /// Distance of the codes of panels, bytes.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "as of panels"))]
    pub(crate) codes_panel: usize,
    /// Sums of the codes of each of the outputs, over all columns; zeros where the copy is of codes that are not signed.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "as above"))]
    pub(crate) totals: *const i32,
    /// Sums, `[rows][panels][16]`, rows `ldc` apart; with room for a multiple of [`COPY_ROWS`] where there is a copy.
    pub(crate) sums: *mut i32,
    pub(crate) ldc: usize,
    /// True where the sums are to be set, false where they are to be added to.
    pub(crate) first: bool,
}

/// The kernels of one instruction set.
pub(crate) struct ChannelKernels {
    /// For people.
    pub(crate) name: &'static str,
    /// Where `gemm` reads rows in another order.
    pub(crate) copy: Option<Copy>,
    /// Panels that `gemm` takes at once.
    pub(crate) panels: usize,
    /// What `gemm` adds to every weight code.
    pub(crate) zero: i32,
    /// Adds to the sums.
    ///
    /// # Safety
    /// Every pointer of the product is valid for what its field says.
    pub(crate) gemm: unsafe fn(&ChannelProduct),
}

/// Copies so many columns of rows, `lda` apart, with [`COPY_ROWS`] of them side by side, a byte a code. Zeros take the
/// place of rows that are missing in the end. Where none of the codes is negative, that may be told by `signed`.
///
/// # Safety
/// The rows are valid; `to` has room for so many columns of the next multiple of [`COPY_ROWS`] rows.
type Copy = unsafe fn(rows: usize, columns: usize, q: *const i8, lda: usize, to: *mut u8, signed: bool);

/// The kernels of `isa`, which the processor must have.
pub(crate) fn table(isa: Isa) -> &'static ChannelKernels {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => &avx2::TABLE,
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni => &avxvnni::TABLE,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => &avx512::TABLE,
        #[cfg(target_arch = "aarch64")]
        Isa::Dotprod | Isa::I8mm => &neon::TABLE,
        _ => &scalar::TABLE,
    }
}
