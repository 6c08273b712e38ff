//! Few rows with AVX-512: a register a panel, 4 to 16 accumulators of the 32.

use super::{F16, F32, FewRows, I8, Numbers, Stored, Vector, panels};
use std::arch::x86_64::*;

/// # Safety
/// As [`super::AttentionKernels::few`].
pub(super) unsafe fn few(p: &FewRows, kind: Stored) {
    // SAFETY: the caller's promise, and AVX-512 was detected.
    unsafe {
        match kind {
            Stored::F32 => few_of::<F32>(p),
            Stored::F16 => few_of::<F16>(p),
            Stored::I8 => few_of::<I8>(p),
        }
    }
}

/// # Safety
/// As [`super::AttentionKernels::few`], with numbers of that type.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn few_of<N: Numbers>(p: &FewRows) {
    // SAFETY: the caller's promise.
    unsafe {
        match p.rows {
            0 => {}
            1 => panels::<__m512, N, 1, 1, 4>(p, 0),
            2 => panels::<__m512, N, 1, 2, 4>(p, 0),
            3 => panels::<__m512, N, 1, 3, 4>(p, 0),
            4 => panels::<__m512, N, 1, 4, 4>(p, 0),
            5 => panels::<__m512, N, 1, 5, 2>(p, 0),
            6 => panels::<__m512, N, 1, 6, 2>(p, 0),
            7 => panels::<__m512, N, 1, 7, 2>(p, 0),
            _ => panels::<__m512, N, 1, 8, 2>(p, 0),
        }
    }
}

impl Vector for __m512 {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller has AVX-512.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(at) }
    }

    #[inline(always)]
    unsafe fn load_halves(at: *const u16) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bytes(at: *const i8) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast()))) }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_ps(at, self) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: as for `splat`.
        unsafe { _mm512_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}
