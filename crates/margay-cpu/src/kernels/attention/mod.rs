//! Kernels of attention: products of few rows with the KV cache as it is stored, and the online softmax.
//!
//! As in [`super::float`], the products of an output are added with fused multiply-adds in the order of k, one after the
//! other. A row therefore has the same bits whether it is computed here or, widened to float32, by the tiles for many
//! rows; and all instruction sets agree bit for bit.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod int8;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
mod softmax;
#[cfg(test)]
mod tests;
mod unpack;

use super::float::NR;
use crate::{Isa, kv::KvType};

pub(crate) use softmax::{NO_SCORE, SoftmaxKernels};

/// Keys a block: the scores that one step of the online softmax looks at.
pub(crate) const KEYS: usize = 64;
/// Rows that [`AttentionKernels::few`] takes at most.
pub(crate) const FEW_ROWS: usize = 8;

/// How the numbers of a product are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    F32,
    F16,
    I8,
}

/// One product: `c[r][p][0..16] (+)= sum over k of a[r][k] * b[p][k][0..16]`.
#[derive(Clone, Copy)]
pub(crate) struct FewRows {
    /// 1 to [`FEW_ROWS`].
    pub(crate) rows: usize,
    pub(crate) panels: usize,
    pub(crate) k: usize,
    pub(crate) a: *const f32,
    /// Distance of rows of a, floats.
    pub(crate) lda: usize,
    /// Numbers as the cache stores them; those of consecutive k follow each other.
    pub(crate) b: *const u8,
    /// Distance of panels of b, numbers.
    pub(crate) b_panel: usize,
    pub(crate) c: *mut f32,
    /// Distance of rows of c, floats; panels follow each other.
    pub(crate) ldc: usize,
    /// True where c is to be set, false where it is to be added to.
    pub(crate) first: bool,
    /// Where what is read after b begins: fetched meanwhile, as many bytes as b has. Need not be valid.
    pub(crate) ahead: *const u8,
}

/// Attention kernels of one instruction set.
#[derive(Clone, Copy)]
pub(crate) struct AttentionKernels {
    /// The product with numbers of a type.
    ///
    /// # Safety
    /// Every pointer of the product is valid for what its field says.
    pub(crate) few: unsafe fn(&FewRows, Stored),
    /// A head's part of a block of the cache in float32: see [`crate::kv::codec::unpack`].
    pub(crate) unpack: fn(KvType, usize, &[u8], &mut [f32]),
    pub(crate) softmax: &'static SoftmaxKernels,
    pub(crate) int8: &'static int8::Int8Kernels,
}

/// The kernels of `isa`, which the processor must have.
pub(crate) fn table(isa: Isa) -> AttentionKernels {
    let few = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::AvxVnni => avx2::few,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => avx512::few,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon | Isa::Dotprod | Isa::I8mm => neon::few,
        _ => scalar::few,
    };
    AttentionKernels { few, unpack: unpack::table(isa), softmax: softmax::table(isa), int8: int8::table(isa) }
}

/// Float32 numbers of one register.
trait Vector: Copy {
    /// How many.
    const LANES: usize;

    /// # Safety
    /// The instruction set is there; as for all functions of the trait.
    unsafe fn splat(x: f32) -> Self;

    /// # Safety
    /// [`Vector::LANES`] floats are readable.
    unsafe fn load(at: *const f32) -> Self;

    /// # Safety
    /// [`Vector::LANES`] half precision numbers are readable.
    unsafe fn load_halves(at: *const u16) -> Self;

    /// # Safety
    /// [`Vector::LANES`] bytes are readable.
    unsafe fn load_bytes(at: *const i8) -> Self;

    /// # Safety
    /// [`Vector::LANES`] floats are writable.
    unsafe fn store(self, at: *mut f32);

    /// `self + a * b`, rounded once.
    ///
    /// # Safety
    /// As for all.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;

    /// Asks for a cache line, which need not exist.
    ///
    /// # Safety
    /// As for all.
    unsafe fn prefetch(at: *const u8);
}

/// A type of number that the cache stores.
trait Numbers {
    type Number;

    /// # Safety
    /// As [`Vector::load`].
    unsafe fn load<V: Vector>(at: *const Self::Number) -> V;
}

struct F32;
struct F16;
struct I8;

impl Numbers for F32 {
    type Number = f32;

    #[inline(always)]
    unsafe fn load<V: Vector>(at: *const f32) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(at) }
    }
}

impl Numbers for F16 {
    type Number = u16;

    #[inline(always)]
    unsafe fn load<V: Vector>(at: *const u16) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_halves(at) }
    }
}

impl Numbers for I8 {
    type Number = i8;

    #[inline(always)]
    unsafe fn load<V: Vector>(at: *const i8) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_bytes(at) }
    }
}

/// All panels for `ROWS` rows, up to `MOST` panels at once: additions to one register wait for each other, and each
/// panel has registers of its own. A single row takes five panels rather than four and one. `REGISTERS` is
/// `NR / V::LANES`.
///
/// # Safety
/// As [`AttentionKernels::few`], with numbers of type `N` and `row + ROWS <= p.rows`.
#[inline(always)]
unsafe fn panels<V: Vector, N: Numbers, const REGISTERS: usize, const ROWS: usize, const MOST: usize>(
    p: &FewRows,
    row: usize,
) {
    const { assert!(REGISTERS * V::LANES == NR && MOST <= 4) };
    let mut panel = 0;
    while panel < p.panels {
        let left = p.panels - panel;
        let take = if ROWS == 1 && left == 5 { 5 } else { left.min(MOST) };
        // SAFETY: `panel + take` stays within the panels.
        unsafe {
            match take {
                5 if ROWS == 1 => tile::<V, N, REGISTERS, ROWS, 5>(p, row, panel),
                4 if MOST >= 4 => tile::<V, N, REGISTERS, ROWS, 4>(p, row, panel),
                3 if MOST >= 3 => tile::<V, N, REGISTERS, ROWS, 3>(p, row, panel),
                2 if MOST >= 2 => tile::<V, N, REGISTERS, ROWS, 2>(p, row, panel),
                _ => tile::<V, N, REGISTERS, ROWS, 1>(p, row, panel),
            }
        }
        panel += take;
    }
}

/// # Safety
/// As [`panels`], with `panel + PANELS <= p.panels`.
#[inline(always)]
unsafe fn tile<V: Vector, N: Numbers, const REGISTERS: usize, const ROWS: usize, const PANELS: usize>(
    p: &FewRows,
    row: usize,
    panel: usize,
) {
    let step_bytes = PANELS * NR * size_of::<N::Number>();
    // SAFETY: all offsets lie within what the fields of `FewRows` describe; prefetches may point anywhere.
    unsafe {
        let c = p.c.add(row * p.ldc + panel * NR);
        let a = p.a.add(row * p.lda);
        let b = p.b.cast::<N::Number>().add(panel * p.b_panel);
        let mut ahead = p.ahead.wrapping_add(panel * p.k * NR * size_of::<N::Number>());
        let mut sums = [[[V::splat(0.0); REGISTERS]; PANELS]; ROWS];
        if !p.first {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (w, sums) in sums.iter_mut().enumerate() {
                    for (i, sum) in sums.iter_mut().enumerate() {
                        *sum = V::load(c.add(r * p.ldc + w * NR + i * V::LANES));
                    }
                }
            }
        }
        for k in 0..p.k {
            for line in 0..step_bytes.div_ceil(64) {
                V::prefetch(ahead.wrapping_add(line * 64));
            }
            ahead = ahead.wrapping_add(step_bytes);
            for w in 0..PANELS {
                let at = b.add(w * p.b_panel + k * NR);
                let mut numbers = [V::splat(0.0); REGISTERS];
                for (i, numbers) in numbers.iter_mut().enumerate() {
                    *numbers = N::load::<V>(at.add(i * V::LANES));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let a = V::splat(*a.add(r * p.lda + k));
                    for (sum, numbers) in sums[w].iter_mut().zip(numbers) {
                        *sum = sum.add_product(a, numbers);
                    }
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (w, sums) in sums.into_iter().enumerate() {
                for (i, sum) in sums.into_iter().enumerate() {
                    sum.store(c.add(r * p.ldc + w * NR + i * V::LANES));
                }
            }
        }
    }
}
