//! AVX-512 float kernels: tiles of 12 rows by two panels of 16 columns, a register for each: 14 loads for 24 products.

use super::{FloatKernels, FloatProduct, avx2};
use crate::pack::FloatType;
use std::arch::x86_64::*;

/// Panels of a tile.
const PANELS: usize = 2;

pub(super) static TABLE: FloatKernels = FloatKernels {
    panels: PANELS,
    gemm: |p| {
        // SAFETY: the caller's promise, and AVX-512 was detected.
        unsafe { gemm(p) }
    },
    widen: |from, to| {
        // SAFETY: AVX-512 is detected only together with AVX2 and F16C.
        unsafe { avx2::widen(from, to) }
    },
    narrow: |from, to| {
        // SAFETY: as above.
        unsafe { avx2::narrow(from, to) }
    },
};

/// # Safety
/// As [`FloatKernels::gemm`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn gemm(p: &FloatProduct) {
    let mut panel = 0;
    // SAFETY: the caller's promise; rows and panels stay below those of `p`.
    unsafe {
        // Few rows: more panels at once, or each addition would wait for the last.
        while p.rows == 1 && p.panels - panel >= 4 {
            tile::<1, 4>(p, 0, panel);
            panel += 4;
        }
        while p.panels - panel >= PANELS {
            rows::<PANELS>(p, panel);
            panel += PANELS;
        }
        for panel in panel..p.panels {
            rows::<1>(p, panel);
        }
    }
}

/// All rows times so many panels.
///
/// # Safety
/// As [`FloatKernels::gemm`], with `panel + PANELS <= p.panels`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn rows<const PANELS: usize>(p: &FloatProduct, panel: usize) {
    let mut row = 0;
    // SAFETY: rows stay below those of `p`.
    unsafe {
        while p.rows - row >= 12 {
            tile::<12, PANELS>(p, row, panel);
            row += 12;
        }
        while p.rows - row >= 4 {
            tile::<4, PANELS>(p, row, panel);
            row += 4;
        }
        while p.rows > row {
            tile::<1, PANELS>(p, row, panel);
            row += 1;
        }
    }
}

/// # Safety
/// 16 numbers of type `kind` are readable from the `at`th of `b`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn load(kind: FloatType, b: *const u8, at: usize) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        match kind {
            FloatType::F32 => _mm512_loadu_ps(b.cast::<f32>().add(at)),
            FloatType::F16 => _mm512_cvtph_ps(_mm256_loadu_si256(b.cast::<u16>().add(at).cast())),
            FloatType::Bf16 => {
                let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(b.cast::<u16>().add(at).cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
            }
        }
    }
}

/// # Safety
/// As [`FloatKernels::gemm`], with `row + ROWS <= p.rows` and `panel + PANELS <= p.panels`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn tile<const ROWS: usize, const PANELS: usize>(p: &FloatProduct, row: usize, panel: usize) {
    // SAFETY: all offsets lie within what the fields of `FloatProduct` describe.
    unsafe {
        let c = p.c.add(row * p.ldc + panel * p.c_panel);
        let a = p.a.add(row * p.lda);
        let mut sums = [[_mm512_setzero_ps(); PANELS]; ROWS];
        if !p.first {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (w, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_loadu_ps(c.add(r * p.ldc + w * p.c_panel));
                }
            }
        }
        for k in 0..p.k {
            let mut b = [_mm512_setzero_ps(); PANELS];
            for (w, b) in b.iter_mut().enumerate() {
                *b = load(p.kind, p.b, (panel + w) * p.b_panel + k * p.ldb);
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = _mm512_set1_ps(*a.add(r * p.lda + k));
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = _mm512_fmadd_ps(a, b, *sum);
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (w, sum) in sums.into_iter().enumerate() {
                _mm512_storeu_ps(c.add(r * p.ldc + w * p.c_panel), sum);
            }
        }
    }
}
