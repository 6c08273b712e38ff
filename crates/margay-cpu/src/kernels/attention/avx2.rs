//! Few rows with AVX2: 8 to 14 accumulators of the 16 registers.

use super::{F16, F32, FewRows, I8, Numbers, Stored, Vector, panels};
use std::arch::x86_64::*;

/// # Safety
/// As [`super::AttentionKernels::few`].
pub(super) unsafe fn few(p: &FewRows, kind: Stored) {
    // SAFETY: the caller's promise, and AVX2 was detected.
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
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn few_of<N: Numbers>(p: &FewRows) {
    // SAFETY: the caller's promise; the parts add up to the rows.
    unsafe {
        match p.rows {
            0 => {}
            1 => panels::<__m256, N, 2, 1, 4>(p, 0),
            2 => panels::<__m256, N, 2, 2, 3>(p, 0),
            3 => panels::<__m256, N, 2, 3, 2>(p, 0),
            4 => panels::<__m256, N, 2, 4, 1>(p, 0),
            5 => panels::<__m256, N, 2, 5, 1>(p, 0),
            6 => panels::<__m256, N, 2, 6, 1>(p, 0),
            7 => {
                panels::<__m256, N, 2, 4, 1>(p, 0);
                panels::<__m256, N, 2, 3, 2>(p, 4);
            }
            _ => {
                panels::<__m256, N, 2, 4, 1>(p, 0);
                panels::<__m256, N, 2, 4, 1>(p, 4);
            }
        }
    }
}

impl Vector for __m256 {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller has AVX2, F16C and FMA.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(at) }
    }

    #[inline(always)]
    unsafe fn load_halves(at: *const u16) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bytes(at: *const i8) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast()))) }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_ps(at, self) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: as for `splat`.
        unsafe { _mm256_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}
