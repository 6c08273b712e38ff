//! Portable integer kernels: the meaning of all others.

use super::{Product, QuantKernels, scales};
use crate::pack::{Codes, Kind, Offset, PANEL as NR};

pub(super) static TABLE: QuantKernels = QuantKernels {
    name: "portable loops",
    copies: &[],
    panels: 1,
    unpacked_bytes: |kind| if kind.codes == Codes::I8 { 0 } else { 32 * NR },
    gemv_reads_packed: |_, _| false,
    unpack,
    scales: |kind, scaling, packed, s, m| scales::unpack::<NR>(kind, scaling, packed, s, m),
    gemm: |product| {
        // SAFETY: the caller's promise.
        unsafe { multiply(product, Codes::I8) }
    },
    gemv: |product| {
        // SAFETY: the caller's promise.
        unsafe { multiply(product, product.kind.codes) }
    },
};

/// # Safety
/// As [`QuantKernels::unpack`].
unsafe fn unpack(kind: Kind, packed: *const u8, k: usize, out: *mut u8) {
    // SAFETY: the caller's promise.
    let out = unsafe { std::slice::from_raw_parts_mut(out, k * NR) };
    for (chunk, out) in out.chunks_exact_mut(4 * NR).enumerate() {
        for (i, out) in out.iter_mut().enumerate() {
            // SAFETY: as above.
            *out = unsafe { code(kind.codes, packed, chunk, i) };
        }
    }
}

/// Code `i` of the `[16][4]` of a chunk.
///
/// # Safety
/// The panel has that chunk.
#[inline(always)]
unsafe fn code(codes: Codes, panel: *const u8, chunk: usize, i: usize) -> u8 {
    // SAFETY: the caller's promise.
    let line = |line: usize| unsafe { *panel.add(line * 4 * NR + i) };
    match codes {
        Codes::U4 => line(chunk / 2) >> (4 * (chunk % 2)) & 0b1111,
        Codes::U5 => {
            let (first, at) = (chunk / 8 * 5, chunk % 4);
            match chunk % 8 {
                0..4 => line(first + at) & 0b1_1111,
                _ => line(first + at) >> 5 << 2 | line(first + 4) >> (6 - 2 * at) & 0b11,
            }
        }
        Codes::U6 => {
            let first = chunk / 4 * 3;
            match chunk % 4 {
                3 => line(first) >> 6 << 4 | line(first + 1) >> 6 << 2 | line(first + 2) >> 6,
                at => line(first + at) & 0b11_1111,
            }
        }
        Codes::I8 => line(chunk),
    }
}

/// The product with codes that lie as those of `layout` do.
///
/// # Safety
/// As [`QuantKernels::gemm`].
unsafe fn multiply(p: &Product, layout: Codes) {
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
                                let w = code(layout, p.codes, chunk, column * 4 + i);
                                let w =
                                    if p.kind.codes == Codes::I8 { i32::from(w as i8) } else { i32::from(w) };
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
