//! NEON float kernels: tiles of 6 rows by 16 columns, 24 accumulators.

use super::{FloatKernels, FloatProduct, NR};
use crate::pack::FloatType;
use std::arch::aarch64::*;

/// Numbers a register holds.
const LANES: usize = 4;
/// Registers a panel takes.
const REGISTERS: usize = NR / LANES;

pub(super) static TABLE: FloatKernels = FloatKernels { panels: 1, gemm, widen, narrow };

fn widen(from: &[u16], to: &mut [f32]) {
    let (from, from_rest) = from.as_chunks::<LANES>();
    let (to, to_rest) = to.as_chunks_mut::<LANES>();
    for (to, from) in to.iter_mut().zip(from) {
        // SAFETY: 4 numbers are read, 4 written; every aarch64 converts half precision.
        unsafe { vst1q_f32(to.as_mut_ptr(), halves(from.as_ptr())) }
    }
    for (to, from) in to_rest.iter_mut().zip(from_rest) {
        *to = half::f16::from_bits(*from).to_f32();
    }
}

fn narrow(from: &[f32], to: &mut [u16]) {
    let (from, from_rest) = from.as_chunks::<LANES>();
    let (to, to_rest) = to.as_chunks_mut::<LANES>();
    for (to, from) in to.iter_mut().zip(from) {
        // SAFETY: as above; ties go to even, as Rust leaves the processor.
        unsafe { vst1_u16(to.as_mut_ptr(), vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(from.as_ptr())))) }
    }
    for (to, from) in to_rest.iter_mut().zip(from_rest) {
        *to = half::f16::from_f32(*from).to_bits();
    }
}

/// 4 half precision numbers.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn halves(at: *const u16) -> float32x4_t {
    // SAFETY: the caller's promise.
    unsafe { vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(at))) }
}

/// # Safety
/// As [`FloatKernels::gemm`].
unsafe fn gemm(p: &FloatProduct) {
    // SAFETY: the caller's promise.
    unsafe {
        match p.kind {
            FloatType::F32 => gemm_of::<F32>(p),
            FloatType::F16 => gemm_of::<F16>(p),
            FloatType::Bf16 => gemm_of::<Bf16>(p),
        }
    }
}

/// # Safety
/// As [`FloatKernels::gemm`], with numbers of that type.
unsafe fn gemm_of<N: Numbers>(p: &FloatProduct) {
    for panel in 0..p.panels {
        let mut row = 0;
        // SAFETY: the caller's promise; rows and panels stay below those of `p`.
        unsafe {
            while p.rows - row >= 6 {
                tile::<N, 6>(p, row, panel);
                row += 6;
            }
            match p.rows - row {
                0 => {}
                1 => tile::<N, 1>(p, row, panel),
                2 => tile::<N, 2>(p, row, panel),
                3 => tile::<N, 3>(p, row, panel),
                4 => tile::<N, 4>(p, row, panel),
                _ => tile::<N, 5>(p, row, panel),
            }
        }
    }
}

/// A type of number that products read.
trait Numbers {
    type Number;

    /// 4 numbers.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn load(at: *const Self::Number) -> float32x4_t;
}

struct F32;
struct F16;
struct Bf16;

impl Numbers for F32 {
    type Number = f32;

    #[inline(always)]
    unsafe fn load(at: *const f32) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { vld1q_f32(at) }
    }
}

impl Numbers for F16 {
    type Number = u16;

    #[inline(always)]
    unsafe fn load(at: *const u16) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { halves(at) }
    }
}

impl Numbers for Bf16 {
    type Number = u16;

    #[inline(always)]
    unsafe fn load(at: *const u16) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(at))) }
    }
}

/// # Safety
/// As [`FloatKernels::gemm`], with `row + ROWS <= p.rows` and `panel < p.panels`.
#[inline(never)]
unsafe fn tile<N: Numbers, const ROWS: usize>(p: &FloatProduct, row: usize, panel: usize) {
    // SAFETY: all offsets lie within what the fields of `FloatProduct` describe.
    unsafe {
        let c = p.c.add(row * p.ldc + panel * p.c_panel);
        let a = p.a.add(row * p.lda);
        let b = p.b.cast::<N::Number>().add(panel * p.b_panel);
        let mut sums = [[vdupq_n_f32(0.0); REGISTERS]; ROWS];
        if !p.first {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (w, sum) in sums.iter_mut().enumerate() {
                    *sum = vld1q_f32(c.add(r * p.ldc + w * LANES));
                }
            }
        }
        for k in 0..p.k {
            let b = b.add(k * p.ldb);
            let b = [0, 4, 8, 12].map(|i| N::load(b.add(i)));
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
