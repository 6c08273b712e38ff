//! AVX-VNNI: `vpdpbusd` of 32 bytes. Weight codes become unsigned by flipping the top bit, which adds 128.

use super::{ChannelKernels, ChannelProduct};
use crate::{kernels::quant::avx2::broadcast4, pack::PANEL};
use std::arch::x86_64::*;

pub(super) static TABLE: ChannelKernels = ChannelKernels {
    name: "vpdpbusd of AVX-VNNI",
    copy: None,
    panels: 1,
    zero: 128,
    gemm: |p| {
        // SAFETY: the caller's promise, and AVX-VNNI was detected.
        unsafe { gemm(p) }
    },
};

/// # Safety
/// As [`ChannelKernels::gemm`].
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn gemm(p: &ChannelProduct) {
    let mut row = 0;
    // SAFETY: the caller's promise; rows stay below `p.rows`.
    unsafe {
        // 12 sums, 2 registers of weights, one of activations and one of top bits: all 16.
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
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn tile<const ROWS: usize>(p: &ChannelProduct, row: usize) {
    let top_bit = _mm256_set1_epi8(-128);
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
        // Hidden from the compiler: it would compute each pointer from the one before, on ports that multiply.
        let q: [*const i8; ROWS] = std::hint::black_box(std::array::from_fn(|r| p.q.add((row + r) * p.lda)));
        let mut codes = p.codes;
        // Two chunks a step, so that moving the pointers costs half.
        for step in 0..p.k / 8 {
            for i in 0..2 {
                let at = codes.add(i * 4 * PANEL);
                let w = [_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(32).cast())]
                    .map(|w| _mm256_xor_si256(w, top_bit));
                for (r, sums) in sums.iter_mut().enumerate() {
                    let a = broadcast4(q[r].add(8 * step + 4 * i));
                    for (sum, w) in sums.iter_mut().zip(w) {
                        *sum = _mm256_dpbusd_avx_epi32(*sum, w, a);
                    }
                }
            }
            codes = codes.add(8 * PANEL);
        }
        for (r, [low, high]) in sums.into_iter().enumerate() {
            let at = out.add(r * p.ldc);
            _mm256_storeu_si256(at.cast(), low);
            _mm256_storeu_si256(at.add(8).cast(), high);
        }
    }
}
