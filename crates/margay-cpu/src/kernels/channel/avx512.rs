//! AVX-512 VNNI: `vpdpbusd`. Weight codes become unsigned by flipping the top bit, which adds 128.

use super::{ChannelKernels, ChannelProduct};
use crate::pack::PANEL;
use std::arch::x86_64::*;

pub(super) static TABLE: ChannelKernels = ChannelKernels {
    name: "vpdpbusd of AVX-512 VNNI",
    copy: None,
    zero: 128,
    gemm: |p| {
        // SAFETY: the caller's promise, and AVX-512 was detected.
        unsafe { gemm(p) }
    },
};

/// # Safety
/// As [`ChannelKernels::gemm`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn gemm(p: &ChannelProduct) {
    let mut row = 0;
    // SAFETY: the caller's promise; rows stay below `p.rows`.
    unsafe {
        // 12 rows take 13 loads for 12 products: two of each a cycle.
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
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tile<const ROWS: usize>(p: &ChannelProduct, row: usize) {
    let top_bit = _mm512_set1_epi8(-128);
    let mut sums = [_mm512_setzero_si512(); ROWS];
    // SAFETY: all offsets lie within what the fields of the product describe.
    unsafe {
        let out = p.sums.add(row * p.ldc);
        if !p.first {
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = _mm512_loadu_si512(out.add(r * p.ldc).cast());
            }
        }
        // A pointer to every third row: an address reaches one or two rows further by itself.
        let mut q: [*const i8; 4] =
            [0, 3, 6, 9].map(|r| if r < ROWS { p.q.add((row + r) * p.lda) } else { p.q });
        let mut codes = p.codes;
        // Two chunks a step, so that moving the pointers costs half.
        for _ in 0..p.k / 8 {
            for i in 0..2 {
                let w = _mm512_xor_si512(_mm512_loadu_si512(codes.add(i * 4 * PANEL).cast()), top_bit);
                for (r, sum) in sums.iter_mut().enumerate() {
                    let a = q[r / 3].add(r % 3 * p.lda + 4 * i).cast::<i32>().read_unaligned();
                    *sum = _mm512_dpbusd_epi32(*sum, w, _mm512_set1_epi32(a));
                }
            }
            codes = codes.add(8 * PANEL);
            q = q.map(|q| q.wrapping_add(8));
        }
        for (r, sum) in sums.into_iter().enumerate() {
            _mm512_storeu_si512(out.add(r * p.ldc).cast(), sum);
        }
    }
}
