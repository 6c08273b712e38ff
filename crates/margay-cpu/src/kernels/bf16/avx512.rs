//! AVX512_BF16: tiles of 12 rows by 16 outputs, one register a row.

use super::{Bf16Kernels, Bf16Product};
use crate::pack::PANEL;
use std::arch::x86_64::*;

pub(super) static TABLE: Bf16Kernels = Bf16Kernels {
    name: "vdpbf16ps of AVX-512 BF16",
    gemm: |p| {
        // SAFETY: the caller's promise, and `table` hands this out only where AVX512_BF16 was found.
        unsafe { gemm(p) }
    },
};

/// # Safety
/// As [`Bf16Kernels::gemm`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn gemm(p: &Bf16Product) {
    let mut row = 0;
    // SAFETY: the caller's promise; rows stay below `p.rows`.
    unsafe {
        while p.rows - row >= 12 {
            tile::<12>(p, row);
            row += 12;
        }
        while p.rows - row >= 4 {
            tile::<4>(p, row);
            row += 4;
        }
        while p.rows > row {
            tile::<1>(p, row);
            row += 1;
        }
    }
}

/// # Safety
/// As [`gemm`], and `row + ROWS <= p.rows`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn tile<const ROWS: usize>(p: &Bf16Product, row: usize) {
    let mut sums = [_mm512_setzero_ps(); ROWS];
    // SAFETY: all offsets lie within what the fields of the product describe; a register of integers holds any bits.
    unsafe {
        let pairs = |x: __m512i| std::mem::transmute::<__m512i, __m512bh>(x);
        let out = p.c.add(row * p.ldc);
        if !p.first {
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = _mm512_loadu_ps(out.add(r * p.ldc));
            }
        }
        // A pointer to every third row: an address reaches one or two rows further by itself.
        let mut a: [*const u16; 4] =
            [0, 3, 6, 9].map(|r| if r < ROWS { p.a.add((row + r) * p.lda) } else { p.a });
        let mut b = p.b;
        // Two pairs a step, so that moving the pointers costs half.
        for _ in 0..p.k / 4 {
            for i in 0..2 {
                let w = pairs(_mm512_loadu_si512(b.add(i * 2 * PANEL).cast()));
                for (r, sum) in sums.iter_mut().enumerate() {
                    let a = a[r / 3].add(r % 3 * p.lda + 2 * i).cast::<i32>().read_unaligned();
                    *sum = _mm512_dpbf16_ps(*sum, w, pairs(_mm512_set1_epi32(a)));
                }
            }
            b = b.add(4 * PANEL);
            a = a.map(|a| a.wrapping_add(4));
        }
        for (r, sum) in sums.into_iter().enumerate() {
            _mm512_storeu_ps(out.add(r * p.ldc), sum);
        }
    }
}
