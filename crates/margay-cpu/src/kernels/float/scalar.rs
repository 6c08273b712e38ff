//! Portable float kernels. They round once a product, as the fused instructions of the others do, so that every
//! instruction set gives the same bits; a processor without such instructions pays for it with a library call.

use super::{FloatKernels, FloatProduct, NR};
use crate::pack::FloatType;

pub(super) static TABLE: FloatKernels = FloatKernels { panels: 1, gemm, widen, narrow };

fn widen(from: &[u16], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = half::f16::from_bits(*from).to_f32();
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
    for row in 0..p.rows {
        for panel in 0..p.panels {
            // SAFETY: all offsets lie within what the fields of `FloatProduct` describe.
            unsafe {
                let c = p.c.add(row * p.ldc + panel * p.c_panel).cast::<[f32; NR]>();
                let mut sum = if p.first { [0.0; NR] } else { c.read_unaligned() };
                for k in 0..p.k {
                    let a = *p.a.add(row * p.lda + k);
                    let at = panel * p.b_panel + k * p.ldb;
                    let b = load(p.kind, p.b, at);
                    for (sum, b) in sum.iter_mut().zip(&b) {
                        *sum = a.mul_add(*b, *sum);
                    }
                }
                c.write_unaligned(sum);
            }
        }
    }
}

/// # Safety
/// 16 numbers of type `kind` are readable from the `at`th of `b`.
unsafe fn load(kind: FloatType, b: *const u8, at: usize) -> [f32; NR] {
    // SAFETY: the caller's promise.
    unsafe {
        match kind {
            FloatType::F32 => b.cast::<f32>().add(at).cast::<[f32; NR]>().read_unaligned(),
            FloatType::F16 => {
                let b = b.cast::<u16>().add(at).cast::<[u16; NR]>().read_unaligned();
                b.map(|b| half::f16::from_bits(b).to_f32())
            }
            FloatType::Bf16 => {
                let b = b.cast::<u16>().add(at).cast::<[u16; NR]>().read_unaligned();
                b.map(|b| f32::from_bits(u32::from(b) << 16))
            }
        }
    }
}
