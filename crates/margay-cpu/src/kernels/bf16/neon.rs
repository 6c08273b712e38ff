//! `bfdot`, in inline assembly because its intrinsics are unstable in Rust 1.95.

use super::{Bf16Kernels, Bf16Product};
use crate::{Isa, kernels::rows, pack::PANEL};
use std::arch::{aarch64::*, asm};

pub(super) static TABLE: Bf16Kernels = Bf16Kernels {
    name: "bfdot of NEON",
    side_by_side: 1,
    panels: 1,
    round: |x, _, k, to| (rows::table(Isa::Scalar).round_to_bf16)(&x[..k], &mut to[..k]),
    gemm: |p| {
        // SAFETY: the caller's promise, and `table` hands this out only where bf16 was found.
        unsafe { gemm(p) }
    },
};

/// # Safety
/// As [`Bf16Kernels::gemm`].
unsafe fn gemm(p: &Bf16Product) {
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

/// `sum` of 4 outputs plus the products of their pairs with pair `$lane` of `a`.
macro_rules! bfdot {
    ($sum:expr, $w:expr, $a:expr, $lane:literal) => {
        asm!(
            concat!("bfdot {s:v}.4s, {w:v}.8h, {a:v}.2h[", $lane, "]"),
            s = inout(vreg) $sum, w = in(vreg) $w, a = in(vreg) $a,
            options(pure, nomem, nostack, preserves_flags),
        )
    };
}

/// # Safety
/// As [`gemm`], and `row + ROWS <= p.rows`.
#[target_feature(enable = "neon,bf16")]
unsafe fn tile<const ROWS: usize>(p: &Bf16Product, row: usize) {
    // 5 rows by 16 outputs are 20 sums, 5 rows of activations and 4 registers of weights: 29 of 32.
    let mut sums = [[vdupq_n_f32(0.0); 4]; ROWS];
    // SAFETY: all offsets lie within what the fields of the product describe.
    unsafe {
        let out = p.c.add(row * p.ldc);
        if !p.first {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = vld1q_f32(out.add(r * p.ldc + 4 * i));
                }
            }
        }
        let rows = p.a.add(row * p.k);
        for k in (0..p.k).step_by(8) {
            let mut a = [vdupq_n_u16(0); ROWS];
            for (r, a) in a.iter_mut().enumerate() {
                *a = vld1q_u16(rows.add(r * p.k + k));
            }
            macro_rules! pair {
                ($lane:literal, $at:expr) => {
                    let b = p.b.add(($at) * PANEL);
                    for i in 0..4 {
                        let w = vld1q_u16(b.add(8 * i));
                        for (sums, a) in sums.iter_mut().zip(a) {
                            bfdot!(sums[i], w, a, $lane);
                        }
                    }
                };
            }
            pair!("0", k);
            pair!("1", k + 2);
            pair!("2", k + 4);
            pair!("3", k + 6);
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (i, sum) in sums.into_iter().enumerate() {
                vst1q_f32(out.add(r * p.ldc + 4 * i), sum);
            }
        }
    }
}
