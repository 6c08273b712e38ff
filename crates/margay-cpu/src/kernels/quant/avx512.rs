//! AVX-512 VNNI integer kernels: `vpdpbusd` multiplies unsigned codes with signed activations and adds 4 neighbours in
//! 32 bits, without saturation. Signed codes become unsigned by flipping the top bit, which adds 128: a zero point.

use super::{Product, QuantKernels, scales};
use crate::pack::{Codes, Kind, Offset, PANEL, Scaling};
use std::arch::x86_64::*;

/// Bytes of 4 columns of a panel: one register.
const CHUNK: usize = 4 * PANEL;
/// Rows a tile keeps in registers: enough to hide the latency of `vpdpbusd`.
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
        unsafe { if p.kind.codes == Codes::U4 { tile::<true, 1>(p, 0) } else { tile::<false, 1>(p, 0) } }
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

/// # Safety
/// As [`QuantKernels::gemm`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn gemm(p: &Product) {
    let mut row = 0;
    // SAFETY: the caller's promise; rows stay below `p.rows`.
    unsafe {
        while p.rows - row >= TILE_ROWS {
            tile::<false, TILE_ROWS>(p, row);
            row += TILE_ROWS;
        }
        while p.rows - row >= 2 {
            tile::<false, 2>(p, row);
            row += 2;
        }
        if p.rows > row {
            tile::<false, 1>(p, row);
        }
    }
}

/// `ROWS` rows from `row` on, times a panel of bytes or of packed nibbles.
///
/// # Safety
/// As [`QuantKernels::gemm`], and `row + ROWS <= p.rows`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn tile<const NIBBLES: bool, const ROWS: usize>(p: &Product, row: usize) {
    let signed = p.kind.codes == Codes::I8;
    let zero = match p.kind.offset {
        Offset::Zero(zero) => f32::from(zero),
        _ if signed => 128.0,
        _ => 0.0,
    };
    let flip = _mm512_set1_epi8(if signed { -128 } else { 0 });
    let mask = _mm512_set1_epi8(15);
    let (halves, lda, ldg) = (p.kind.halves, p.a.k, p.a.k / 32);
    let chunks = 8 / halves;
    let mut acc = [_mm512_setzero_ps(); ROWS];
    // SAFETY: all offsets lie within what the fields of `Product` describe; prefetches may point anywhere.
    unsafe {
        let c = p.c.add(row * p.ldc);
        if !p.first {
            for (r, acc) in acc.iter_mut().enumerate() {
                *acc = _mm512_loadu_ps(c.add(r * p.ldc));
            }
        }
        let q = p.a.q.add(row * lda);
        for group in 0..p.groups {
            if ROWS == 1 {
                _mm_prefetch::<_MM_HINT_T0>(p.ahead.wrapping_add(group * p.ahead_step).cast());
            }
            let code_sum = |r: usize, half: usize| {
                if halves == 1 {
                    *p.a.sum32.add((row + r) * ldg + group)
                } else {
                    *p.a.sum16.add((row + r) * ldg * 2 + group * 2 + half)
                }
            };
            let mut t = [_mm512_setzero_ps(); ROWS];
            for half in 0..halves {
                let mut sums = [_mm512_setzero_si512(); ROWS];
                let first = (group * halves + half) * chunks;
                for chunk in first..first + chunks {
                    let w = if NIBBLES {
                        let at = p.codes.add(chunk / 2 * CHUNK);
                        let both = _mm512_loadu_si512(at.cast());
                        if chunk % 2 == 0 {
                            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH_BYTES).cast());
                            _mm512_and_si512(both, mask)
                        } else {
                            _mm512_and_si512(_mm512_srli_epi16::<4>(both), mask)
                        }
                    } else {
                        let at = p.codes.add(chunk * CHUNK);
                        if ROWS == 1 {
                            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH_BYTES).cast());
                        }
                        _mm512_xor_si512(_mm512_loadu_si512(at.cast()), flip)
                    };
                    for (r, sum) in sums.iter_mut().enumerate() {
                        let a = q.add(r * lda + chunk * 4).cast::<i32>().read_unaligned();
                        *sum = _mm512_dpbusd_epi32(*sum, w, _mm512_set1_epi32(a));
                    }
                }
                let s = _mm512_loadu_ps(p.scales.add((group * halves + half) * PANEL));
                for (r, (t, sum)) in t.iter_mut().zip(sums).enumerate() {
                    // Exact: all are integers below 2^24.
                    let u = _mm512_set1_ps(code_sum(r, half));
                    let sum = _mm512_fnmadd_ps(_mm512_set1_ps(zero), u, _mm512_cvtepi32_ps(sum));
                    *t = if half == 0 { _mm512_mul_ps(sum, s) } else { _mm512_fmadd_ps(sum, s, *t) };
                }
            }
            if p.kind.offset == Offset::Min {
                for half in 0..halves {
                    let m = _mm512_loadu_ps(p.mins.add((group * halves + half) * PANEL));
                    for (r, t) in t.iter_mut().enumerate() {
                        *t = _mm512_fmadd_ps(m, _mm512_set1_ps(code_sum(r, half)), *t);
                    }
                }
            }
            for (r, (acc, t)) in acc.iter_mut().zip(t).enumerate() {
                let a = _mm512_set1_ps(*p.a.scale.add((row + r) * ldg + group));
                *acc = _mm512_fmadd_ps(t, a, *acc);
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            _mm512_storeu_ps(c.add(r * p.ldc), acc);
        }
    }
}
