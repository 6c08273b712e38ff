//! Integer matrix products: int8 rows times packed codes, with scales per group.
//!
//! For each output, and each 32 columns in order, with i the exact integer sums of code (less the zero point) times
//! activation code, s the scales, m the minima, a the activation scale and u the sums of activation codes:
//!
//! ```text
//! t = i0 * s0            then, with two groups,     t = fma(i1, s1, t)
//! t = fma(m0, u0, t)     where there are minima,    t = fma(m1, u1, t)
//! y = fma(t, a, y)
//! ```
//!
//! Every instruction set does exactly this, so all give the same bits, whatever the number of rows.

/// Calls `one_row::<BITS, PACKED, HALVES, MIN>` for a product of one row: bits of a code, whether scales are read as packed,
/// scales of a group, whether there are minima.
macro_rules! one_row_of_kind {
    ($p:ident) => {{
        let (min, packed) = ($p.kind.offset == Offset::Min, !$p.packed_scales.is_null());
        match ($p.kind.codes, $p.kind.halves, min, packed) {
            (Codes::U4, 1, false, false) => one_row::<4, false, 1, false>($p),
            (Codes::U4, 1, false, true) => one_row::<4, true, 1, false>($p),
            (Codes::U4, 1, true, false) => one_row::<4, false, 1, true>($p),
            (Codes::U4, 1, true, true) => one_row::<4, true, 1, true>($p),
            (Codes::U4, _, false, _) => one_row::<4, false, 2, false>($p),
            (Codes::U4, _, true, _) => one_row::<4, false, 2, true>($p),
            (Codes::U5, _, false, false) => one_row::<5, false, 1, false>($p),
            (Codes::U5, _, false, true) => one_row::<5, true, 1, false>($p),
            (Codes::U5, _, true, false) => one_row::<5, false, 1, true>($p),
            (Codes::U5, _, true, true) => one_row::<5, true, 1, true>($p),
            (Codes::U6, ..) => one_row::<6, false, 2, false>($p),
            (Codes::I8, .., false) => one_row::<8, false, 1, false>($p),
            (Codes::I8, .., true) => one_row::<8, true, 1, false>($p),
        }
    }};
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avxvnni;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
mod scales;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vnni;

use crate::{
    Isa,
    pack::{Codes, Kind, Scaling},
};

/// Quantized activations, from some row and column on.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    /// Codes; rows `k` apart.
    pub(crate) q: *const i8,
    /// The [`RowCopy`] of the columns of one product, from the same row on.
    pub(crate) copy: *const u8,
    /// Scales; rows `k / 32` apart.
    pub(crate) scale: *const f32,
    /// Sums of codes of each 16; rows `k / 16` apart.
    pub(crate) sum16: *const f32,
    /// Sums of codes of each 32; rows `k / 32` apart.
    pub(crate) sum32: *const f32,
    /// Of each 16 codes minus the sum of those at 0 and 1 of every 4, and minus the sum of those at 2 and 3; rows
    /// `k / 16` apart. Times the zero point this is where the products of such pairs have to start.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "x86 kernels read them"))]
    pub(crate) starts16: *const [i16; 2],
    /// The same of each 32 codes; rows `k / 32` apart.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "as above"))]
    pub(crate) starts32: *const [i16; 2],
    /// Columns of a whole row.
    pub(crate) k: usize,
}

#[cfg(target_arch = "aarch64")]
impl Rows {
    /// The sum of codes of a row in a group, or in one of its two halves.
    ///
    /// # Safety
    /// The row has that group.
    #[inline(always)]
    unsafe fn code_sum(&self, row: usize, group: usize, halves: usize, half: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe {
            if halves == 1 {
                *self.sum32.add(row * self.k / 32 + group)
            } else {
                *self.sum16.add(row * self.k / 16 + group * 2 + half)
            }
        }
    }
}

/// One product: `rows` rows times one or more panels over `groups` groups of 32 columns.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "some fields serve x86 kernels only"))]
pub(crate) struct Product {
    pub(crate) kind: Kind,
    pub(crate) rows: usize,
    pub(crate) groups: usize,
    /// 1 to [`QuantKernels::panels`]; of `gemv` 1.
    pub(crate) panels: usize,
    pub(crate) a: Rows,
    /// Codes of the first panel; of `gemm` unpacked, where they are.
    pub(crate) codes: *const u8,
    /// Distance of the codes of panels, bytes.
    pub(crate) codes_panel: usize,
    /// `[groups * halves][16]` of the first panel.
    pub(crate) scales: *const f32,
    /// Distance of the scales of panels, and of their minima.
    pub(crate) scales_panel: usize,
    /// The scales as packed, for a `gemv` that reads them so.
    pub(crate) packed_scales: *const u8,
    /// As `scales`, read where there are minima.
    pub(crate) mins: *const f32,
    /// Results, `[rows][panels][16]`, rows `ldc` apart; of `gemm` with room for a multiple of [`COPY_ROWS`].
    pub(crate) c: *mut f32,
    pub(crate) ldc: usize,
    /// True where c is to be set, false where it is to be added to.
    pub(crate) first: bool,
    /// Memory that will be read next, for `gemv` to ask for: `ahead_step` bytes with each group.
    pub(crate) ahead: *const u8,
    pub(crate) ahead_step: usize,
}

/// Rows a [`RowCopy`] may put together.
pub(crate) const COPY_ROWS: usize = 4;

/// Kinds of copies that an instruction set has at most.
pub(crate) const MOST_COPIES: usize = 2;

/// Quantized rows in the order in which a kernel reads them, once for all panels.
#[derive(Clone, Copy)]
pub(crate) struct RowCopy {
    /// Whether products with such codes read it.
    pub(crate) serves: fn(Codes) -> bool,
    /// Bytes that 32 columns of a row take.
    pub(crate) bytes: usize,
    /// Copies so many columns, a multiple of 32, of so many rows. Where these are no multiple of [`COPY_ROWS`], zeros may
    /// take the place of those that are missing.
    ///
    /// # Safety
    /// The rows are valid; `to` has room for so many columns of the next multiple of [`COPY_ROWS`] rows.
    pub(crate) make: unsafe fn(rows: usize, columns: usize, from: &Rows, to: *mut u8),
}

/// Integer kernels of one instruction set.
pub(crate) struct QuantKernels {
    /// For people.
    pub(crate) name: &'static str,
    /// Where `gemm` reads rows in another order, at most [`MOST_COPIES`].
    pub(crate) copies: &'static [RowCopy],
    /// Panels that `gemm` takes at once.
    pub(crate) panels: usize,
    /// Bytes that 32 columns of a panel take once unpacked for `gemm`; 0 where `gemm` reads the packed codes.
    pub(crate) unpacked_bytes: fn(Kind) -> usize,
    /// Unpacks `[k/4][16][4]` codes, in whatever order `gemm` reads them. Called only where `unpacked_bytes` is not 0.
    ///
    /// # Safety
    /// Source and destination hold `k` columns of one panel.
    pub(crate) unpack: unsafe fn(kind: Kind, packed: *const u8, k: usize, out: *mut u8),
    /// Float scales and minima of whole groups of one panel, `[groups][16]` each.
    pub(crate) scales: fn(kind: Kind, scaling: Scaling, packed: &[u8], scales: &mut [f32], mins: &mut [f32]),
    /// The product with unpacked codes.
    ///
    /// # Safety
    /// Every pointer of the product is valid for what its field says.
    pub(crate) gemm: unsafe fn(&Product),
    /// Whether `gemv` reads `Product::packed_scales` of such a matrix, so that nobody has to unpack them.
    pub(crate) gemv_reads_packed: fn(Kind, Scaling) -> bool,
    /// The product of one row with packed codes.
    ///
    /// # Safety
    /// As `gemm`.
    pub(crate) gemv: unsafe fn(&Product),
}

impl QuantKernels {
    /// Which of the copies products of many rows with such codes read.
    pub(crate) fn copy_for(&self, codes: Codes) -> Option<usize> {
        self.copies.iter().position(|copy| (copy.serves)(codes))
    }
}

/// The kernels of `isa`, which the processor must have.
pub(crate) fn table(isa: Isa) -> &'static QuantKernels {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => &avx2::TABLE,
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni => &avxvnni::TABLE,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => &avx512::TABLE,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => &neon::NEON,
        #[cfg(target_arch = "aarch64")]
        Isa::Dotprod => &neon::DOTPROD,
        #[cfg(target_arch = "aarch64")]
        Isa::I8mm => &neon::I8MM,
        _ => &scalar::TABLE,
    }
}
