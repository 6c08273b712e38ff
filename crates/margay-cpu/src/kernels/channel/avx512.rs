//! AVX-512 VNNI: four rows side by side times four panels, 16 products on 8 loads.
//!
//! `vpdpbusd` multiplies unsigned bytes with signed ones. Activations are made unsigned by 128, and sums begin at what those
//! add to them.

use super::{COPY_ROWS, ChannelKernels, ChannelProduct, avx2};
use crate::pack::PANEL;
use std::arch::x86_64::*;

/// Panels of a tile.
const PANELS: usize = 4;

pub(super) static TABLE: ChannelKernels = ChannelKernels {
    name: "vpdpbusd of AVX-512 VNNI",
    copy: Some(|rows, columns, q, lda, to, signed| {
        // SAFETY: the caller's promise; AVX-512 is detected only together with AVX2, FMA and F16C.
        unsafe { avx2::copy(rows, columns, q, lda, to, signed) }
    }),
    panels: PANELS,
    zero: 0,
    gemm: |p| {
        // SAFETY: the caller's promise, and AVX-512 was detected.
        unsafe {
            match p.panels {
                PANELS => tiles::<PANELS>(p),
                3 => tiles::<3>(p),
                2 => tiles::<2>(p),
                _ => tiles::<1>(p),
            }
        }
    },
};

/// # Safety
/// As [`ChannelKernels::gemm`], of `NP` panels.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tiles<const NP: usize>(p: &ChannelProduct) {
    for first in (0..p.rows).step_by(COPY_ROWS) {
        let mut sums = [[_mm512_setzero_si512(); NP]; COPY_ROWS];
        // SAFETY: the caller's promise: the sums have room for whole blocks of rows, and the copy holds such; k is a
        // multiple of 8.
        unsafe {
            let out = p.sums.add(first * p.ldc);
            for (r, sums) in sums.iter_mut().enumerate() {
                for (x, sum) in sums.iter_mut().enumerate() {
                    *sum = if p.first {
                        let added =
                            _mm512_slli_epi32::<7>(_mm512_loadu_si512(p.totals.add(x * PANEL).cast()));
                        _mm512_sub_epi32(_mm512_setzero_si512(), added)
                    } else {
                        _mm512_loadu_si512(out.add(r * p.ldc + x * PANEL).cast())
                    };
                }
            }
            let (mut q, mut codes) = (p.copy.add(first * p.k), p.codes);
            // Two chunks a step, so that moving the pointers costs half.
            for _ in 0..p.k / 8 {
                for i in 0..2 {
                    let w: [__m512i; NP] = std::array::from_fn(|x| {
                        _mm512_loadu_si512(codes.add(x * p.codes_panel + i * 4 * PANEL).cast())
                    });
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let a = q.add(4 * (i * COPY_ROWS + r)).cast::<i32>().read_unaligned();
                        for (sum, w) in sums.iter_mut().zip(w) {
                            *sum = _mm512_dpbusd_epi32(*sum, _mm512_set1_epi32(a), w);
                        }
                    }
                }
                codes = codes.add(8 * PANEL);
                q = q.add(8 * COPY_ROWS);
            }
            for (r, sums) in sums.into_iter().enumerate() {
                for (x, sum) in sums.into_iter().enumerate() {
                    _mm512_storeu_si512(out.add(r * p.ldc + x * PANEL).cast(), sum);
                }
            }
        }
    }
}
