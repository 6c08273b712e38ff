//! AVX2: `vpmaddwd` of widened codes, exact.

use super::{ChannelKernels, ChannelProduct};
use crate::kernels::quant::avx2::{broadcast4, widen_bytes};
use std::arch::x86_64::*;

pub(super) static TABLE: ChannelKernels = ChannelKernels {
    name: "vpmaddwd of AVX2",
    wants_q16: true,
    unpack: Some(|packed, k, out| {
        // SAFETY: the caller's promise, and AVX2 was detected.
        unsafe { widen_bytes(packed, k, out) }
    }),
    zero: 0,
    gemm: |p| {
        // SAFETY: the caller's promise, and AVX2 was detected.
        unsafe { gemm(p) }
    },
};

/// # Safety
/// As [`ChannelKernels::gemm`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn gemm(p: &ChannelProduct) {
    let mut row = 0;
    // SAFETY: the caller's promise; rows stay below `p.rows`.
    unsafe {
        while p.rows - row >= 6 {
            tile::<6>(p, row);
            row += 6;
        }
        while p.rows - row >= 2 {
            tile::<2>(p, row);
            row += 2;
        }
        if p.rows > row {
            tile::<1>(p, row);
        }
    }
}

/// # Safety
/// As [`gemm`], and `row + ROWS <= p.rows`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const ROWS: usize>(p: &ChannelProduct, row: usize) {
    let mut sums = [[_mm256_setzero_si256(); 2]; ROWS];
    // SAFETY: all offsets lie within what the fields of the product describe.
    unsafe {
        let out = p.sums.add(row * p.ldc);
        if !p.first {
            for (r, sums) in sums.iter_mut().enumerate() {
                let at = out.add(r * p.ldc);
                *sums = [_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(8).cast())];
            }
        }
        let q = p.q16.add(row * p.lda);
        for pair in 0..p.k / 2 {
            let codes = p.codes.add(pair * 64);
            let w = [_mm256_loadu_si256(codes.cast()), _mm256_loadu_si256(codes.add(32).cast())];
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = broadcast4(q.add(r * p.lda + pair * 2));
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(w, a));
                }
            }
        }
        for (r, [low, high]) in sums.into_iter().enumerate() {
            let at = out.add(r * p.ldc);
            _mm256_storeu_si256(at.cast(), low);
            _mm256_storeu_si256(at.add(8).cast(), high);
        }
    }
}
