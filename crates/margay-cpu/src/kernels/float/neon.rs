//! NEON float kernels: tiles of 6 rows by 16 columns, 24 accumulators.

use super::{FloatKernels, FloatProduct, NR};
use crate::{kernels::quant::widen_half, pack::FloatType};
use std::arch::aarch64::*;

/// Numbers a register holds.
const LANES: usize = 4;
/// Registers a panel takes.
const REGISTERS: usize = NR / LANES;

pub(super) static TABLE: FloatKernels = FloatKernels { gemm, widen, narrow };

fn widen(from: &[u16], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = widen_half(*from);
    }
}

fn narrow(from: &[f32], to: &mut [u16]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = half::f16::from_f32(*from).to_bits();
    }
}

/// # Safety
/// As [`FloatKernels::gemm`].
unsafe fn gemm(p: &FloatProduct) {
    for panel in 0..p.panels {
        let mut row = 0;
        // SAFETY: the caller's promise; rows and panels stay below those of `p`.
        unsafe {
            while p.rows - row >= 6 {
                tile::<6>(p, row, panel);
                row += 6;
            }
            match p.rows - row {
                0 => {}
                1 => tile::<1>(p, row, panel),
                2 => tile::<2>(p, row, panel),
                3 => tile::<3>(p, row, panel),
                4 => tile::<4>(p, row, panel),
                _ => tile::<5>(p, row, panel),
            }
        }
    }
}

/// # Safety
/// 16 numbers of type `kind` are readable from the `at`th of `b`.
#[inline(always)]
unsafe fn load(kind: FloatType, b: *const u8, at: usize) -> [float32x4_t; REGISTERS] {
    let mut out = [0.0; NR];
    // SAFETY: the caller's promise.
    unsafe {
        match kind {
            FloatType::F32 => {
                let b = b.cast::<f32>().add(at);
                return [0, 4, 8, 12].map(|i| vld1q_f32(b.add(i)));
            }
            FloatType::F16 => {
                let b = b.cast::<u16>().add(at).cast::<[u16; NR]>().read_unaligned();
                out.iter_mut().zip(b).for_each(|(out, b)| *out = widen_half(b));
            }
            FloatType::Bf16 => {
                let b = b.cast::<u16>().add(at);
                return [0, 4, 8, 12].map(|i| vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(b.add(i)))));
            }
        }
        [0, 4, 8, 12].map(|i| vld1q_f32(out.as_ptr().add(i)))
    }
}

/// # Safety
/// As [`FloatKernels::gemm`], with `row + ROWS <= p.rows` and `panel < p.panels`.
unsafe fn tile<const ROWS: usize>(p: &FloatProduct, row: usize, panel: usize) {
    // SAFETY: all offsets lie within what the fields of `FloatProduct` describe.
    unsafe {
        let c = p.c.add(row * p.ldc + panel * p.c_panel);
        let a = p.a.add(row * p.lda);
        let mut sums = [[vdupq_n_f32(0.0); REGISTERS]; ROWS];
        if !p.first {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (w, sum) in sums.iter_mut().enumerate() {
                    *sum = vld1q_f32(c.add(r * p.ldc + w * LANES));
                }
            }
        }
        for k in 0..p.k {
            let b = load(p.kind, p.b, panel * p.b_panel + k * p.ldb);
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = *a.add(r * p.lda + k);
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = vfmaq_n_f32(*sum, b, a);
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (w, sum) in sums.into_iter().enumerate() {
                vst1q_f32(c.add(r * p.ldc + w * LANES), sum);
            }
        }
    }
}
