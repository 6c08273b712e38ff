//! AVX2 integer kernels: one row here, many in [`blocks`].
//!
//! `vpmaddubsw` multiplies unsigned codes with signed activations (-127..=127) and adds neighbours in 16 bits: a pair
//! is at most 2 * 15 * 127 = 3810 for 4-bit codes, so 8 pairs (30480) fit; 4 of 5-bit codes (31496), 2 of 6-bit ones
//! (32004). The zero point costs nothing: the sums begin at minus zero times the sum of the activations, which fits as
//! well because what is left is the sum of products with codes less their zero point.

mod blocks;

use super::{COPY_ROWS, Product, QuantKernels};
use crate::pack::{Codes, Kind, Offset, PANEL, Scaling};
use std::arch::x86_64::*;

/// Outputs a register holds.
const NR: usize = 8;
/// Registers a panel takes.
const PANELS: usize = PANEL / NR;
/// Bytes of 4 columns of a panel.
const CHUNK: usize = 4 * PANEL;

pub(super) static TABLE: QuantKernels = QuantKernels {
    name: "vpmaddubsw and vpmaddwd of AVX2",
    copies: &blocks::COPIES,
    unpacked_bytes: blocks::unpacked_bytes,
    gemv_reads_packed: |kind, scaling| {
        kind.offset != Offset::Min && scaling == Scaling::Plain && streams(kind)
    },
    unpack: |kind, packed, k, out| {
        // SAFETY: the caller's promise, and AVX2 was detected.
        unsafe { blocks::unpack(kind, packed, k, out) }
    },
    scales: |kind, scaling, packed, s, m| {
        // SAFETY: this table is used only where AVX2 was detected.
        unsafe { unpack_scales(kind, scaling, packed, s, m) }
    },
    gemm: |p| {
        // SAFETY: the caller's promise, and AVX2 was detected.
        unsafe { blocks::gemm(p) }
    },
    gemv: |p| {
        // SAFETY: the caller's promise, and AVX2 was detected.
        unsafe { gemv(p) }
    },
};

/// See [`QuantKernels::scales`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn unpack_scales(kind: Kind, scaling: Scaling, packed: &[u8], s: &mut [f32], m: &mut [f32]) {
    let (s, m) = (s.as_chunks_mut::<PANEL>().0, m.as_chunks_mut::<PANEL>().0);
    let lines = packed.as_chunks::<{ 2 * PANEL }>().0;
    match (scaling, kind.offset == Offset::Min) {
        (Scaling::Plain, false) => {
            for (s, line) in s.iter_mut().zip(lines) {
                store(s, halves(line));
            }
        }
        (Scaling::Plain, true) => {
            for ((s, m), [scales, mins]) in s.iter_mut().zip(m).zip(lines.as_chunks::<2>().0) {
                store(s, halves(scales));
                store(m, halves(mins));
            }
        }
        (Scaling::Super { signed }, false) => {
            // A line of 32 bytes holds the 16-bit scales of scales, or two groups of scales.
            let groups = 8 * kind.halves;
            for (s, lines) in s.chunks_exact_mut(groups).zip(lines.chunks_exact(1 + groups / 2)) {
                let (d, codes) = lines.split_first().expect("invariant: whole blocks");
                let d = halves(d);
                for (s, code) in s.iter_mut().zip(codes.as_flattened().as_chunks::<PANEL>().0) {
                    store(s, product(d, if signed { signed_bytes(code) } else { bytes(code) }));
                }
            }
        }
        (Scaling::Super { .. }, true) => {
            let groups = 8 * kind.halves;
            let blocks = lines.chunks_exact(2 + groups);
            for ((s, m), lines) in s.chunks_exact_mut(groups).zip(m.chunks_exact_mut(groups)).zip(blocks) {
                let minus = _mm256_set1_ps(-0.0);
                let d = halves(&lines[0]);
                let dmin = halves(&lines[1]).map(|d| _mm256_xor_ps(minus, d));
                for ((s, m), line) in s.iter_mut().zip(m).zip(&lines[2..]) {
                    let (scales, mins) = line.split_first_chunk::<PANEL>().expect("invariant: 32 bytes");
                    let mins = mins.first_chunk().expect("invariant: 32 bytes");
                    store(s, product(d, bytes(scales)));
                    store(m, product(dmin, bytes(mins)));
                }
            }
        }
    }
}

type Pair = [__m256; PANELS];

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn store(out: &mut [f32; PANEL], pair: Pair) {
    for (out, part) in out.as_chunks_mut::<NR>().0.iter_mut().zip(pair) {
        // SAFETY: 8 floats fit.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), part) }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn product(a: Pair, b: Pair) -> Pair {
    [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn halves(bytes: &[u8; 2 * PANEL]) -> Pair {
    // SAFETY: 16 bytes are 8 halves.
    let half = |at: usize| _mm256_cvtph_ps(unsafe { _mm_loadu_si128(bytes[at..at + 16].as_ptr().cast()) });
    [half(0), half(16)]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn bytes(bytes: &[u8; PANEL]) -> Pair {
    // SAFETY: 8 bytes are read.
    let part = |at: usize| unsafe { _mm_loadl_epi64(bytes[at..at + 8].as_ptr().cast()) };
    [0, 8].map(|at| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(part(at))))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn signed_bytes(bytes: &[u8; PANEL]) -> Pair {
    // SAFETY: 8 bytes are read.
    let part = |at: usize| unsafe { _mm_loadl_epi64(bytes[at..at + 8].as_ptr().cast()) };
    [0, 8].map(|at| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(part(at))))
}

/// # Safety
/// `packed` holds `k * 8` bytes, `out` room for `k * 16`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn unpack_nibbles(packed: *const u8, k: usize, out: *mut u8) {
    let mask = _mm256_set1_epi8(15);
    for i in 0..k / 8 {
        for half in [0, 32] {
            // SAFETY: 64 packed bytes become 128.
            unsafe {
                let both = _mm256_loadu_si256(packed.add(i * CHUNK + half).cast());
                let high = _mm256_and_si256(_mm256_srli_epi16::<4>(both), mask);
                let out = out.add(i * 2 * CHUNK + half);
                _mm256_storeu_si256(out.cast(), _mm256_and_si256(both, mask));
                _mm256_storeu_si256(out.add(CHUNK).cast(), high);
            }
        }
    }
}

/// 16 codes of four rows, four of each row side by side; zeros for a row that is not there.
///
/// # Safety
/// 16 bytes lie at each.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::kernels) unsafe fn side_by_side(rows: [Option<*const i8>; COPY_ROWS]) -> [__m128i; 4] {
    let mut quads = [_mm_setzero_ps(); COPY_ROWS];
    // No closures: they would not be inlined.
    for (quad, row) in quads.iter_mut().zip(rows) {
        if let Some(row) = row {
            // SAFETY: the caller's promise.
            *quad = unsafe { _mm_loadu_ps(row.cast()) };
        }
    }
    let [mut a, mut b, mut c, mut d] = quads;
    _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut d);
    [a, b, c, d].map(|quad| _mm_castps_si128(quad))
}

/// `[k/4][16][4]` bytes to `[k/2][16][2]` 16-bit numbers.
///
/// # Safety
/// `packed` holds `k * 16` bytes, `out` room for `k * 32`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn widen_bytes(packed: *const u8, k: usize, out: *mut u8) {
    // Within each 4 bytes of a row the first two go to the first chunk, the others to the second.
    let order = _mm256_setr_epi8(
        0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11,
        14, 15,
    );
    for i in 0..k / 4 {
        for half in [0, 32] {
            // SAFETY: 64 packed bytes become 128.
            unsafe {
                let bytes = _mm256_loadu_si256(packed.add(i * CHUNK + half).cast());
                let sorted = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_shuffle_epi8(bytes, order));
                let first = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(sorted));
                let second = _mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(sorted));
                let out = out.add(i * 2 * CHUNK + half);
                _mm256_storeu_si256(out.cast(), first);
                _mm256_storeu_si256(out.add(CHUNK).cast(), second);
            }
        }
    }
}

const ZERO: u8 = 1;
const MIN: u8 = 2;

/// # Safety
/// As [`QuantKernels::gemv`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn gemv(p: &Product) {
    // SAFETY: the caller's promise.
    unsafe {
        match p.kind.codes {
            Codes::U4 => match (p.kind.halves, p.kind.offset) {
                (1, Offset::Min) => stream_nibbles::<1, MIN>(p),
                (1, _) => stream_nibbles::<1, ZERO>(p),
                (_, Offset::Min) => stream_nibbles::<2, MIN>(p),
                _ => stream_nibbles::<2, ZERO>(p),
            },
            Codes::I8 => stream_bytes(p),
            Codes::U5 if p.kind.offset == Offset::Min => stream_codes::<4, 1, MIN>(p),
            Codes::U5 => stream_codes::<4, 1, ZERO>(p),
            Codes::U6 => stream_codes::<2, 2, ZERO>(p),
        }
    }
}

/// # Safety
/// `at` points at 4 readable bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::kernels) unsafe fn broadcast4<T>(at: *const T) -> __m256i {
    // SAFETY: the caller's promise.
    _mm256_set1_epi32(unsafe { at.cast::<i32>().read_unaligned() })
}

/// Where the 16-bit sums of a half group begin: at minus the zero point times the sums of activations, broadcast.
///
/// # Safety
/// As [`QuantKernels::gemm`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn start<const DEPTH: usize, const HALVES: usize, const OFFSET: u8>(at: *const [i16; 2]) -> __m256i {
    if OFFSET != ZERO {
        return _mm256_setzero_si256();
    }
    // SAFETY: the caller's promise.
    let sums = unsafe { broadcast4(at) };
    // Zero points are powers of two: 8 of 4 bits, 4 where halves of a group have scales of their own, 16 and 32.
    match (DEPTH, HALVES) {
        (8, 1) => _mm256_slli_epi16::<3>(sums),
        (8, _) => _mm256_slli_epi16::<2>(sums),
        (4, _) => _mm256_slli_epi16::<4>(sums),
        _ => _mm256_slli_epi16::<5>(sums),
    }
}

/// Whether decode has a kernel of its own for these codes.
fn streams(kind: Kind) -> bool {
    matches!(kind.codes, Codes::U4 | Codes::I8)
}

/// The scales of 8 outputs of one group: packed halves where there are no others.
///
/// # Safety
/// As [`QuantKernels::gemv`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scales_of(p: &Product, index: usize, w: usize) -> __m256 {
    let at = index * PANEL + w * NR;
    // SAFETY: the caller's promise.
    unsafe {
        if p.packed_scales.is_null() {
            _mm256_loadu_ps(p.scales.add(at))
        } else {
            _mm256_cvtph_ps(_mm_loadu_si128(p.packed_scales.add(2 * at).cast()))
        }
    }
}

/// True where [`start`] knows the zero point of such codes.
fn zero_is_known(kind: Kind) -> bool {
    let Offset::Zero(zero) = kind.offset else { return true };
    zero == match (kind.codes, kind.halves) {
        (Codes::U4, 1) => 8,
        (Codes::U4, _) => 4,
        (Codes::U5, _) => 16,
        (Codes::U6, _) => 32,
        (Codes::I8, _) => return false,
    }
}

/// One row times a panel of packed codes of 5 or 6 bits. `DEPTH` is how many products of pairs fit 16 bits.
///
/// # Safety
/// As [`QuantKernels::gemv`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn stream_codes<const DEPTH: usize, const HALVES: usize, const OFFSET: u8>(p: &Product) {
    debug_assert!(zero_is_known(p.kind));
    let ones = _mm256_set1_epi16(1);
    let chunks = 8 / HALVES;
    // SAFETY: all offsets lie within what the fields of `Product` describe; prefetches may point anywhere.
    unsafe {
        let mut acc = [_mm256_setzero_ps(); PANELS];
        if !p.first {
            acc = [_mm256_loadu_ps(p.c), _mm256_loadu_ps(p.c.add(NR))];
        }
        for group in 0..p.groups {
            _mm_prefetch::<_MM_HINT_T0>(p.ahead.wrapping_add(group * p.ahead_step).cast());
            let mut t = [_mm256_setzero_ps(); PANELS];
            for half in 0..HALVES {
                let mut sums = [_mm256_setzero_si256(); PANELS];
                for run in 0..chunks / DEPTH {
                    let mut pairs = [_mm256_setzero_si256(); PANELS];
                    if run == 0 {
                        let at = if HALVES == 1 {
                            p.a.starts32.add(group)
                        } else {
                            p.a.starts16.add(group * 2 + half)
                        };
                        pairs = [start::<DEPTH, HALVES, OFFSET>(at); PANELS];
                    }
                    for i in 0..DEPTH {
                        let chunk = (group * HALVES + half) * chunks + run * DEPTH + i;
                        let at = p.codes.add(chunk * CHUNK);
                        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH_BYTES).cast());
                        let a = broadcast4(p.a.q.add(chunk * 4));
                        for w in 0..PANELS {
                            let codes = _mm256_loadu_si256(at.add(w * 32).cast());
                            pairs[w] = _mm256_add_epi16(pairs[w], _mm256_maddubs_epi16(codes, a));
                        }
                    }
                    for w in 0..PANELS {
                        sums[w] = _mm256_add_epi32(sums[w], _mm256_madd_epi16(pairs[w], ones));
                    }
                }
                for w in 0..PANELS {
                    let s = _mm256_loadu_ps(p.scales.add((group * HALVES + half) * PANEL + w * NR));
                    let sum = _mm256_cvtepi32_ps(sums[w]);
                    t[w] = if half == 0 { _mm256_mul_ps(sum, s) } else { _mm256_fmadd_ps(sum, s, t[w]) };
                }
            }
            if OFFSET == MIN {
                for half in 0..HALVES {
                    let u =
                        if HALVES == 1 { *p.a.sum32.add(group) } else { *p.a.sum16.add(group * 2 + half) };
                    for w in 0..PANELS {
                        let m = p.mins.add((group * HALVES + half) * PANEL + w * NR);
                        t[w] = _mm256_fmadd_ps(_mm256_loadu_ps(m), _mm256_set1_ps(u), t[w]);
                    }
                }
            }
            let a = _mm256_set1_ps(*p.a.scale.add(group));
            for w in 0..PANELS {
                acc[w] = _mm256_fmadd_ps(t[w], a, acc[w]);
            }
        }
        _mm256_storeu_ps(p.c, acc[0]);
        _mm256_storeu_ps(p.c.add(NR), acc[1]);
    }
}

/// How far ahead of its loads decode asks for weights, bytes.
const PREFETCH_BYTES: usize = 2048;

/// One row times a panel of packed 4-bit codes.
///
/// # Safety
/// As [`QuantKernels::gemv`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn stream_nibbles<const HALVES: usize, const OFFSET: u8>(p: &Product) {
    let ones = _mm256_set1_epi16(1);
    let mask = _mm256_set1_epi8(15);
    debug_assert!(zero_is_known(p.kind));
    // SAFETY: all offsets lie within what the fields of `Product` describe; prefetches may point anywhere.
    unsafe {
        let mut acc = [_mm256_setzero_ps(); PANELS];
        if !p.first {
            acc = [_mm256_loadu_ps(p.c), _mm256_loadu_ps(p.c.add(NR))];
        }
        for group in 0..p.groups {
            _mm_prefetch::<_MM_HINT_T0>(p.ahead.wrapping_add(group * p.ahead_step).cast());
            let mut t = [_mm256_setzero_ps(); PANELS];
            for half in 0..HALVES {
                let at =
                    if HALVES == 1 { p.a.starts32.add(group) } else { p.a.starts16.add(group * 2 + half) };
                let mut pairs = [start::<8, HALVES, OFFSET>(at); PANELS];
                for i in 0..4 / HALVES {
                    let at = p.codes.add((group * 4 + half * 2 + i) * CHUNK);
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH_BYTES).cast());
                    let a = p.a.q.add(group * 32 + half * 16 + i * 8);
                    let (a0, a1) = (broadcast4(a), broadcast4(a.add(4)));
                    for w in 0..PANELS {
                        let both = _mm256_loadu_si256(at.add(w * 32).cast());
                        let low = _mm256_and_si256(both, mask);
                        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(both), mask);
                        let sum =
                            _mm256_add_epi16(_mm256_maddubs_epi16(low, a0), _mm256_maddubs_epi16(high, a1));
                        pairs[w] = _mm256_add_epi16(pairs[w], sum);
                    }
                }
                for w in 0..PANELS {
                    let s = scales_of(p, group * HALVES + half, w);
                    let sum = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs[w], ones));
                    t[w] = if half == 0 { _mm256_mul_ps(sum, s) } else { _mm256_fmadd_ps(sum, s, t[w]) };
                }
            }
            if OFFSET == MIN {
                for half in 0..HALVES {
                    let u =
                        if HALVES == 1 { *p.a.sum32.add(group) } else { *p.a.sum16.add(group * 2 + half) };
                    for w in 0..PANELS {
                        let m = p.mins.add((group * HALVES + half) * PANEL + w * NR);
                        t[w] = _mm256_fmadd_ps(_mm256_loadu_ps(m), _mm256_set1_ps(u), t[w]);
                    }
                }
            }
            let a = _mm256_set1_ps(*p.a.scale.add(group));
            for w in 0..PANELS {
                acc[w] = _mm256_fmadd_ps(t[w], a, acc[w]);
            }
        }
        _mm256_storeu_ps(p.c, acc[0]);
        _mm256_storeu_ps(p.c.add(NR), acc[1]);
    }
}

/// One row times a panel of signed bytes: |w| times the activation with the sign of w. Neither is -128 where it
/// would matter: |-128| is 128 as an unsigned byte, and activations stop at -127.
///
/// # Safety
/// As [`QuantKernels::gemv`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn stream_bytes(p: &Product) {
    let ones = _mm256_set1_epi16(1);
    // SAFETY: all offsets lie within what the fields of `Product` describe; prefetches may point anywhere.
    unsafe {
        let mut acc = [_mm256_setzero_ps(); PANELS];
        if !p.first {
            acc = [_mm256_loadu_ps(p.c), _mm256_loadu_ps(p.c.add(NR))];
        }
        for group in 0..p.groups {
            _mm_prefetch::<_MM_HINT_T0>(p.ahead.wrapping_add(group * p.ahead_step).cast());
            let mut sums = [_mm256_setzero_si256(); PANELS];
            for i in 0..8 {
                let chunk = group * 8 + i;
                let a = broadcast4(p.a.q.add(chunk * 4));
                let at = p.codes.add(chunk * CHUNK);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH_BYTES).cast());
                for w in 0..PANELS {
                    let code = _mm256_loadu_si256(at.add(w * 32).cast());
                    let product = _mm256_maddubs_epi16(_mm256_abs_epi8(code), _mm256_sign_epi8(a, code));
                    sums[w] = _mm256_add_epi32(sums[w], _mm256_madd_epi16(product, ones));
                }
            }
            let a = _mm256_set1_ps(*p.a.scale.add(group));
            for w in 0..PANELS {
                let s = scales_of(p, group, w);
                let t = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[w]), s);
                acc[w] = _mm256_fmadd_ps(t, a, acc[w]);
            }
        }
        _mm256_storeu_ps(p.c, acc[0]);
        _mm256_storeu_ps(p.c.add(NR), acc[1]);
    }
}
