//! AVX-512 VNNI integer kernels: `vpdpbusd` multiplies unsigned codes with signed activations and adds 4 neighbours in
//! 32 bits, without saturation. Signed codes become unsigned by flipping the top bit, which adds 128: a zero point. Zero
//! points cost nothing: sums begin at minus the zero point times the sum of the activations.

use super::{Product, QuantKernels, scales};
use crate::pack::{Codes, Kind, Offset, PANEL, Scaling};
use std::arch::x86_64::*;

/// Bytes of 4 columns of a panel: one register.
const CHUNK: usize = 4 * PANEL;
/// Rows a tile keeps in registers: enough to hide the latency of `vpdpbusd`. Of 12 the results no longer fit beside the
/// sums; static models give the same rate for both.
const TILE_ROWS: usize = 8;
/// How far ahead of its loads decode asks for weights, bytes.
const PREFETCH_BYTES: usize = 2048;

pub(super) static TABLE: QuantKernels = QuantKernels {
    name: "vpdpbusd of AVX-512 VNNI",
    wants_q16: |_| false,
    copy_rows: super::widen_rows,
    unpacked_bytes: |codes| usize::from(codes == Codes::U4),
    gemv_reads_packed: |_, _| false,
    unpack: |_, packed, k, out| {
        // SAFETY: the caller's promise, and AVX-512 was detected.
        unsafe { unpack_nibbles(packed, k, out) }
    },
    scales: |kind, scaling, packed, s, m| {
        // SAFETY: AVX-512 was detected.
        unsafe { unpack_scales(kind, scaling, packed, s, m) }
    },
    gemm: |p| {
        // SAFETY: the caller's promise, and AVX-512 was detected.
        unsafe { gemm(p) }
    },
    gemv: |p| {
        // SAFETY: the caller's promise, and AVX-512 was detected.
        unsafe { gemv(p) }
    },
};

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn unpack_scales(kind: Kind, scaling: Scaling, packed: &[u8], s: &mut [f32], m: &mut [f32]) {
    scales::unpack::<PANEL>(kind, scaling, packed, s, m);
}

/// # Safety
/// `packed` holds `k * 8` bytes, `out` room for `k * 16`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn unpack_nibbles(packed: *const u8, k: usize, out: *mut u8) {
    let mask = _mm512_set1_epi8(15);
    for i in 0..k / 8 {
        // SAFETY: 64 packed bytes become 128.
        unsafe {
            let both = _mm512_loadu_si512(packed.add(i * CHUNK).cast());
            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(both), mask);
            _mm512_storeu_si512(out.add(2 * i * CHUNK).cast(), _mm512_and_si512(both, mask));
            _mm512_storeu_si512(out.add((2 * i + 1) * CHUNK).cast(), high);
        }
    }
}

/// What stands between codes and weights.
const ZERO: u8 = 1;
const MIN: u8 = 2;
/// Signed bytes, made unsigned.
const SIGNED: u8 = 3;

macro_rules! by_kind {
    ($p:ident, $row:expr, $nibbles:literal, $rows:literal) => {
        match ($p.kind.codes, $p.kind.halves, $p.kind.offset) {
            (Codes::I8, _, _) => tile::<$nibbles, 1, SIGNED, $rows>($p, $row),
            (_, 1, Offset::Min) => tile::<$nibbles, 1, MIN, $rows>($p, $row),
            (_, 1, _) => tile::<$nibbles, 1, ZERO, $rows>($p, $row),
            (_, _, Offset::Min) => tile::<$nibbles, 2, MIN, $rows>($p, $row),
            (_, _, _) => tile::<$nibbles, 2, ZERO, $rows>($p, $row),
        }
    };
}

/// # Safety
/// As [`QuantKernels::gemm`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn gemm(p: &Product) {
    let mut row = 0;
    // SAFETY: the caller's promise; rows stay below `p.rows`.
    unsafe {
        while p.rows - row >= TILE_ROWS {
            by_kind!(p, row, false, 8);
            row += TILE_ROWS;
        }
        if p.rows - row >= 4 {
            by_kind!(p, row, false, 4);
            row += 4;
        }
        if p.rows - row >= 2 {
            by_kind!(p, row, false, 2);
            row += 2;
        }
        if p.rows > row {
            by_kind!(p, row, false, 1);
        }
    }
}

/// # Safety
/// As [`QuantKernels::gemv`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn gemv(p: &Product) {
    // SAFETY: the caller's promise.
    unsafe { if p.kind.codes == Codes::U4 { by_kind!(p, 0, true, 1) } else { by_kind!(p, 0, false, 1) } }
}

/// `ROWS` rows from `row` on, times a panel of bytes or of packed nibbles.
///
/// # Safety
/// As [`QuantKernels::gemm`], and `row + ROWS <= p.rows`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn tile<const NIBBLES: bool, const HALVES: usize, const OFFSET: u8, const ROWS: usize>(
    p: &Product,
    row: usize,
) {
    let zeros = _mm512_set1_epi16(match p.kind.offset {
        Offset::Zero(zero) => i16::from(zero),
        _ => 128,
    });
    let top_bit = _mm512_set1_epi8(-128);
    let mask = _mm512_set1_epi8(15);
    let (lda, ldg) = (p.a.k, p.a.k / 32);
    let mut acc = [_mm512_setzero_ps(); ROWS];
    // SAFETY: all offsets lie within what the fields of `Product` describe; prefetches may point anywhere.
    unsafe {
        let c = p.c.add(row * p.ldc);
        if !p.first {
            for (r, acc) in acc.iter_mut().enumerate() {
                *acc = _mm512_loadu_ps(c.add(r * p.ldc));
            }
        }
        let mut q = threes::<ROWS, _>(p.a.q.add(row * lda), lda);
        let mut scale = threes::<ROWS, _>(p.a.scale.add(row * ldg), ldg);
        // Per group, or per half group.
        let (sums, starts, lds) = match HALVES {
            1 => (p.a.sum32.add(row * ldg), p.a.starts32.add(row * ldg), ldg),
            _ => (p.a.sum16.add(row * ldg * 2), p.a.starts16.add(row * ldg * 2), ldg * 2),
        };
        let mut sums = threes::<ROWS, _>(sums, lds);
        let mut starts = threes::<ROWS, _>(starts, lds);
        let (mut codes, mut scales, mut mins) = (p.codes, p.scales, p.mins);
        for group in 0..p.groups {
            if ROWS == 1 {
                _mm_prefetch::<_MM_HINT_T0>(p.ahead.wrapping_add(group * p.ahead_step).cast());
            }
            let mut t = [_mm512_setzero_ps(); ROWS];
            for half in 0..HALVES {
                let mut products = [_mm512_setzero_si512(); ROWS];
                if OFFSET == ZERO || OFFSET == SIGNED {
                    for (r, product) in products.iter_mut().enumerate() {
                        let pair = starts[r / 3].add(r % 3 * lds).cast::<i32>().read_unaligned();
                        *product = _mm512_madd_epi16(_mm512_set1_epi32(pair), zeros);
                    }
                }
                // Two chunks a step: those that share bytes where codes are packed.
                for _ in 0..4 / HALVES {
                    let w = if NIBBLES {
                        let both = _mm512_loadu_si512(codes.cast());
                        _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(PREFETCH_BYTES).cast());
                        codes = codes.add(CHUNK);
                        [_mm512_and_si512(both, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(both), mask)]
                    } else {
                        let two = [codes, codes.add(CHUNK)];
                        codes = codes.add(2 * CHUNK);
                        two.map(|at| {
                            if ROWS == 1 {
                                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH_BYTES).cast());
                            }
                            let w = _mm512_loadu_si512(at.cast());
                            if OFFSET == SIGNED { _mm512_xor_si512(w, top_bit) } else { w }
                        })
                    };
                    for (i, w) in w.into_iter().enumerate() {
                        for (r, product) in products.iter_mut().enumerate() {
                            let a = q[r / 3].add(r % 3 * lda + 4 * i).cast::<i32>().read_unaligned();
                            *product = _mm512_dpbusd_epi32(*product, w, _mm512_set1_epi32(a));
                        }
                    }
                    step(&mut q, 8);
                }
                let s = _mm512_loadu_ps(scales);
                scales = scales.add(PANEL);
                for (t, product) in t.iter_mut().zip(products) {
                    let product = _mm512_cvtepi32_ps(product);
                    *t = if half == 0 { _mm512_mul_ps(product, s) } else { _mm512_fmadd_ps(product, s, *t) };
                }
                step(&mut starts, 1);
            }
            if OFFSET == MIN {
                for _ in 0..HALVES {
                    let m = _mm512_loadu_ps(mins);
                    mins = mins.add(PANEL);
                    for (r, t) in t.iter_mut().enumerate() {
                        let sum = *sums[r / 3].add(r % 3 * lds);
                        *t = _mm512_fmadd_ps(m, _mm512_set1_ps(sum), *t);
                    }
                    step(&mut sums, 1);
                }
            }
            for (r, (acc, t)) in acc.iter_mut().zip(t).enumerate() {
                let a = _mm512_set1_ps(*scale[r / 3].add(r % 3 * ldg));
                *acc = _mm512_fmadd_ps(t, a, *acc);
            }
            step(&mut scale, 1);
        }
        for (r, acc) in acc.into_iter().enumerate() {
            _mm512_storeu_ps(c.add(r * p.ldc), acc);
        }
    }
}

/// A pointer to every third row: an address of x86 reaches one, two or no rows further by itself.
///
/// # Safety
/// `ROWS` rows, `stride` elements apart, lie at `first`.
#[inline(always)]
unsafe fn threes<const ROWS: usize, T>(first: *const T, stride: usize) -> [*const T; 3] {
    // SAFETY: the caller's promise; rows beyond `ROWS` are not named.
    [0, 3, 6].map(|r| if r < ROWS { unsafe { first.add(r * stride) } } else { first })
}

/// Moves every pointer by `elements`; it may then point at the end, where it is not read.
#[inline(always)]
fn step<T>(pointers: &mut [*const T; 3], elements: usize) {
    for pointer in pointers {
        *pointer = pointer.wrapping_add(elements);
    }
}
