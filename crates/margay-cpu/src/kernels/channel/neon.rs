//! `sdot`, in inline assembly because its intrinsics are unstable in Rust 1.95.

use super::{ChannelKernels, ChannelProduct};
use crate::pack::PANEL;
use std::arch::{aarch64::*, asm};

pub(super) static TABLE: ChannelKernels = ChannelKernels {
    name: "sdot of NEON",
    copy: None,
    panels: 1,
    zero: 0,
    gemm: |p| {
        // SAFETY: the caller's promise, and the dot product was detected.
        unsafe { gemm(p) }
    },
};

/// # Safety
/// As [`ChannelKernels::gemm`].
unsafe fn gemm(p: &ChannelProduct) {
    let mut row = 0;
    // SAFETY: the caller's promise; rows stay below `p.rows`.
    unsafe {
        while p.rows - row >= 5 {
            tile::<5>(p, row);
            row += 5;
        }
        while p.rows > row {
            tile::<1>(p, row);
            row += 1;
        }
    }
}

/// `sum` of 4 outputs plus the products of their 4 codes each with lane `$lane` of `a`.
macro_rules! sdot {
    ($sum:expr, $w:expr, $a:expr, $lane:literal) => {
        asm!(
            concat!("sdot {s:v}.4s, {w:v}.16b, {a:v}.4b[", $lane, "]"),
            s = inout(vreg) $sum, w = in(vreg) $w, a = in(vreg) $a,
            options(pure, nomem, nostack, preserves_flags),
        )
    };
}

/// # Safety
/// As [`gemm`], and `row + ROWS <= p.rows`.
#[target_feature(enable = "neon,dotprod")]
unsafe fn tile<const ROWS: usize>(p: &ChannelProduct, row: usize) {
    // 5 rows by 16 outputs are 20 sums, 5 rows of activations and 4 registers of codes: 29 of 32.
    let mut sums = [[vdupq_n_s32(0); 4]; ROWS];
    // SAFETY: all offsets lie within what the fields of the product describe.
    unsafe {
        let out = p.sums.add(row * p.ldc);
        if !p.first {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = vld1q_s32(out.add(r * p.ldc + 4 * i));
                }
            }
        }
        let q = p.q.add(row * p.lda);
        for k in (0..p.k).step_by(16) {
            let mut a = [vdupq_n_s8(0); ROWS];
            for (r, a) in a.iter_mut().enumerate() {
                *a = vld1q_s8(q.add(r * p.lda + k));
            }
            macro_rules! chunk {
                ($lane:literal, $at:expr) => {
                    let codes = p.codes.add(($at) * PANEL).cast::<i8>();
                    for i in 0..4 {
                        let w = vld1q_s8(codes.add(16 * i));
                        for (sums, a) in sums.iter_mut().zip(a) {
                            sdot!(sums[i], w, a, $lane);
                        }
                    }
                };
            }
            chunk!("0", k);
            chunk!("1", k + 4);
            chunk!("2", k + 8);
            chunk!("3", k + 12);
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (i, sum) in sums.into_iter().enumerate() {
                vst1q_s32(out.add(r * p.ldc + 4 * i), sum);
            }
        }
    }
}
