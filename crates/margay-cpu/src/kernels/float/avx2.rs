//! AVX2 float kernels: tiles of 6 rows by 16 columns, 12 accumulators.

use super::{FloatKernels, FloatProduct, NR};
use crate::pack::FloatType;
use std::arch::x86_64::*;

pub(super) static TABLE: FloatKernels = FloatKernels {
    panels: 1,
    gemm: |p| {
        // SAFETY: the caller's promise, and AVX2 was detected.
        unsafe { gemm(p) }
    },
    widen: |from, to| {
        // SAFETY: F16C was detected.
        unsafe { widen(from, to) }
    },
    narrow: |from, to| {
        // SAFETY: F16C was detected.
        unsafe { narrow(from, to) }
    },
};

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn widen(from: &[u16], to: &mut [f32]) {
    let (from, from_rest) = from.as_chunks::<8>();
    let (to, to_rest) = to.as_chunks_mut::<8>();
    for (from, to) in from.iter().zip(to) {
        // SAFETY: 8 halves become 8 floats.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())));
        }
    }
    for (from, to) in from_rest.iter().zip(to_rest) {
        *to = half::f16::from_bits(*from).to_f32();
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn narrow(from: &[f32], to: &mut [u16]) {
    let (from, from_rest) = from.as_chunks::<8>();
    let (to, to_rest) = to.as_chunks_mut::<8>();
    for (from, to) in from.iter().zip(to) {
        // SAFETY: 8 floats become 8 halves.
        unsafe {
            let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(from.as_ptr()));
            _mm_storeu_si128(to.as_mut_ptr().cast(), halves);
        }
    }
    for (from, to) in from_rest.iter().zip(to_rest) {
        *to = half::f16::from_f32(*from).to_bits();
    }
}

const F32: u8 = 0;
const F16: u8 = 1;
const BF16: u8 = 2;

/// # Safety
/// As [`FloatKernels::gemm`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn gemm(p: &FloatProduct) {
    // SAFETY: the caller's promise.
    unsafe {
        match p.kind {
            FloatType::F32 => tiles::<F32>(p),
            FloatType::F16 => tiles::<F16>(p),
            FloatType::Bf16 => tiles::<BF16>(p),
        }
    }
}

/// # Safety
/// As [`FloatKernels::gemm`], with `T` the type of b.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tiles<const T: u8>(p: &FloatProduct) {
    let mut panel = 0;
    // SAFETY: rows and panels stay below those of `p`.
    unsafe {
        // Few rows: more panels at once, or each addition would wait for the last.
        if p.rows <= 2 {
            while p.panels - panel >= 2 && p.rows == 2 {
                tile::<T, 2, 2>(p, 0, panel);
                panel += 2;
            }
            while p.panels - panel >= 4 && p.rows == 1 {
                tile::<T, 1, 4>(p, 0, panel);
                panel += 4;
            }
        }
        for panel in panel..p.panels {
            let mut row = 0;
            while p.rows - row >= 6 {
                tile::<T, 6, 1>(p, row, panel);
                row += 6;
            }
            match p.rows - row {
                0 => {}
                1 => tile::<T, 1, 1>(p, row, panel),
                2 => tile::<T, 2, 1>(p, row, panel),
                3 => tile::<T, 3, 1>(p, row, panel),
                4 => tile::<T, 4, 1>(p, row, panel),
                _ => tile::<T, 5, 1>(p, row, panel),
            }
        }
    }
}

/// # Safety
/// 16 numbers of type `T` are readable from the `at`th of `b`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load<const T: u8>(b: *const u8, at: usize) -> (__m256, __m256) {
    // SAFETY: the caller's promise.
    unsafe {
        match T {
            F32 => {
                let b = b.cast::<f32>().add(at);
                (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)))
            }
            F16 => {
                let b = b.cast::<u16>().add(at);
                (
                    _mm256_cvtph_ps(_mm_loadu_si128(b.cast())),
                    _mm256_cvtph_ps(_mm_loadu_si128(b.add(8).cast())),
                )
            }
            _ => {
                let b = b.cast::<u16>().add(at);
                let wide = |b: *const u16| {
                    let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(b.cast()));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
                };
                (wide(b), wide(b.add(8)))
            }
        }
    }
}

/// # Safety
/// As [`tiles`], with `row + ROWS <= p.rows` and `panel + PANELS <= p.panels`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const T: u8, const ROWS: usize, const PANELS: usize>(
    p: &FloatProduct,
    row: usize,
    panel: usize,
) {
    // SAFETY: all offsets lie within what the fields of `FloatProduct` describe.
    unsafe {
        let c = p.c.add(row * p.ldc + panel * p.c_panel);
        let a = p.a.add(row * p.lda);
        let b0 = panel * p.b_panel;
        let mut sums = [[[_mm256_setzero_ps(); 2]; PANELS]; ROWS];
        if !p.first {
            for r in 0..ROWS {
                for w in 0..PANELS {
                    let c = c.add(r * p.ldc + w * p.c_panel);
                    sums[r][w] = [_mm256_loadu_ps(c), _mm256_loadu_ps(c.add(NR / 2))];
                }
            }
        }
        for k in 0..p.k {
            for w in 0..PANELS {
                let (low, high) = load::<T>(p.b, b0 + w * p.b_panel + k * p.ldb);
                for r in 0..ROWS {
                    let a = _mm256_set1_ps(*a.add(r * p.lda + k));
                    sums[r][w][0] = _mm256_fmadd_ps(a, low, sums[r][w][0]);
                    sums[r][w][1] = _mm256_fmadd_ps(a, high, sums[r][w][1]);
                }
            }
        }
        for r in 0..ROWS {
            for w in 0..PANELS {
                let c = c.add(r * p.ldc + w * p.c_panel);
                _mm256_storeu_ps(c, sums[r][w][0]);
                _mm256_storeu_ps(c.add(NR / 2), sums[r][w][1]);
            }
        }
    }
}
