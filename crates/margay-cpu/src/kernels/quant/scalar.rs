//! Portable integer kernels: the meaning of all others.

use super::{Product, QuantKernels, scales};
use crate::pack::{Codes, Kind, Offset, PANEL as NR};

pub(super) static TABLE: QuantKernels = QuantKernels {
    name: "portable loops",
    copies: &[],
    panels: 1,
    unpacked_bytes: |kind| if kind.codes == Codes::U4 { 32 * NR } else { 0 },
    gemv_reads_packed: |_, _| false,
    unpack,
    scales: |kind, scaling, packed, s, m| scales::unpack::<NR>(kind, scaling, packed, s, m),
    gemm: |product| {
        // SAFETY: the caller's promise.
        unsafe { multiply(product, false) }
    },
    gemv: |product| {
        // SAFETY: the caller's promise.
        unsafe { multiply(product, product.kind.codes == Codes::U4) }
    },
};

/// # Safety
/// As [`QuantKernels::unpack`].
unsafe fn unpack(_: Kind, packed: *const u8, k: usize, out: *mut u8) {
    // SAFETY: the caller's promise: k * NR / 2 packed bytes, k * NR unpacked ones.
    let (packed, out) = unsafe {
        (std::slice::from_raw_parts(packed, k * NR / 2), std::slice::from_raw_parts_mut(out, k * NR))
    };
    for (packed, out) in packed.chunks_exact(4 * NR).zip(out.chunks_exact_mut(8 * NR)) {
        let (low, high) = out.split_at_mut(4 * NR);
        for ((byte, low), high) in packed.iter().zip(low).zip(high) {
            (*low, *high) = (byte & 15, byte >> 4);
        }
    }
}

/// # Safety
/// As [`QuantKernels::gemm`].
unsafe fn multiply(p: &Product, nibbles: bool) {
    let zero = match p.kind.offset {
        Offset::Zero(zero) => i32::from(zero),
        _ => 0,
    };
    let halves = p.kind.halves;
    let chunks = 8 / halves;
    for row in 0..p.rows {
        for column in 0..NR {
            // SAFETY: all offsets lie within what the fields of `Product` describe.
            unsafe {
                let (s, m) = (p.scales.add(column), p.mins.wrapping_add(column));
                let c = p.c.add(row * p.ldc + column);
                let mut y = if p.first { 0.0 } else { *c };
                for group in 0..p.groups {
                    let mut t = 0.0;
                    for half in 0..halves {
                        let mut sum = 0;
                        for chunk in 0..chunks {
                            let chunk = (group * halves + half) * chunks + chunk;
                            for i in 0..4 {
                                let a = i32::from(*p.a.q.add(row * p.a.k + chunk * 4 + i));
                                let w = if nibbles {
                                    let byte = *p.codes.add((chunk / 2 * NR + column) * 4 + i);
                                    i32::from(byte >> (4 * (chunk % 2)) & 15)
                                } else {
                                    let byte = *p.codes.add((chunk * NR + column) * 4 + i);
                                    if p.kind.codes == Codes::I8 {
                                        i32::from(byte as i8)
                                    } else {
                                        i32::from(byte)
                                    }
                                };
                                sum += a * (w - zero);
                            }
                        }
                        let s = *s.add((group * halves + half) * NR);
                        t = if half == 0 { sum as f32 * s } else { (sum as f32).mul_add(s, t) };
                    }
                    if p.kind.offset == Offset::Min {
                        for half in 0..halves {
                            let u = if halves == 1 {
                                *p.a.sum32.add(row * p.a.k / 32 + group)
                            } else {
                                *p.a.sum16.add(row * p.a.k / 16 + group * 2 + half)
                            };
                            t = (*m.add((group * halves + half) * NR)).mul_add(u, t);
                        }
                    }
                    y = t.mul_add(*p.a.scale.add(row * p.a.k / 32 + group), y);
                }
                *c = y;
            }
        }
    }
}
