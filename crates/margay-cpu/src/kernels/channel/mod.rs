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

/// One product: `rows` rows times a panel of 16 outputs over `k` columns.
pub(crate) struct ChannelProduct {
    pub(crate) rows: usize,
    /// A multiple of [`crate::pack::CHANNEL_STEP`].
    pub(crate) k: usize,
    /// Activation codes; rows `lda` apart.
    pub(crate) q: *const i8,
    /// The same in 16 bits, for kernels that ask for them.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only AVX2 reads them"))]
    pub(crate) q16: *const i16,
    pub(crate) lda: usize,
    /// Codes of the panel, `[k / 4][16][4]`, or what `unpack` made of them.
    pub(crate) codes: *const u8,
    /// Sums, `[rows][16]`, rows `ldc` apart.
    pub(crate) sums: *mut i32,
    pub(crate) ldc: usize,
    /// True where the sums are to be set, false where they are to be added to.
    pub(crate) first: bool,
}

/// The kernels of one instruction set.
pub(crate) struct ChannelKernels {
    /// For people.
    pub(crate) name: &'static str,
    /// Whether products read [`ChannelProduct::q16`].
    pub(crate) wants_q16: bool,
    /// Unpacks `k` columns of codes to twice their size, where `gemm` wants that.
    pub(crate) unpack: Option<Unpack>,
    /// What `gemm` adds to every weight code.
    pub(crate) zero: i32,
    /// Adds to the sums.
    ///
    /// # Safety
    /// Every pointer of the product is valid for what its field says.
    pub(crate) gemm: unsafe fn(&ChannelProduct),
}

/// # Safety
/// `packed` holds `k * 16` bytes, `out` room for `k * 32`.
type Unpack = unsafe fn(packed: *const u8, k: usize, out: *mut u8);

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
