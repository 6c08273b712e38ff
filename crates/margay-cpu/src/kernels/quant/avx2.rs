//! AVX2 integer kernels: one row here, many in [`blocks`].
//!
//! `vpmaddubsw` multiplies unsigned codes with signed activations (-127..=127) and adds neighbours in 16 bits, at most
//! 2 * 63 * 127 = 16002 of 6-bit codes. The zero point costs nothing: the sums begin at minus zero times the sum of the
//! activations. Sums wrap, and what is left in the end fits: for 4 bits 16 * 15 * 127 = 30480 at most, for 5 bits less 16,
//! and 6 bits less 32 in 16 columns, 32512. Codes of 5 bits that have no zero point are taken less [`ADDED`] all the same,
//! and that times the sum of the activations is added to their sums.

mod blocks;

pub(super) use blocks::{COPY_BYTES, UNSIGNED as UNSIGNED_COPY};

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
    panels: 1,
    unpacked_bytes: blocks::unpacked_bytes,
    gemv_reads_packed: |kind, scaling| kind.offset != Offset::Min && scaling == Scaling::Plain,
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

/// Codes that are not bytes as bytes, `[k/4][16][4]`.
///
/// # Safety
/// `packed` holds `k` columns of a panel, `out` has room for `k * 16` bytes.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn unpack_codes(codes: Codes, packed: *const u8, k: usize, out: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        match codes {
            Codes::U5 => unpack_bits::<5>(packed, k, out),
            Codes::U6 => unpack_bits::<6>(packed, k, out),
            Codes::U4 | Codes::I8 => unpack_bits::<4>(packed, k, out),
        }
    }
}

/// # Safety
/// As [`unpack_codes`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack_bits<const BITS: usize>(packed: *const u8, k: usize, out: *mut u8) {
    for group in 0..k / 32 {
        for w in [0, 32] {
            // SAFETY: the caller's promise.
            unsafe {
                let chunks = group_of::<BITS>(packed.add(group * BITS * CHUNK + w));
                for (chunk, codes) in chunks.into_iter().enumerate() {
                    _mm256_storeu_si256(out.add((group * 8 + chunk) * CHUNK + w).cast(), codes);
                }
            }
        }
    }
}

/// The 8 chunks of a group of codes of 4 to 6 bits, of half a panel.
///
/// # Safety
/// They lie from `at` on.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn group_of<const BITS: usize>(at: *const u8) -> [__m256i; 8] {
    // SAFETY: the caller's promise.
    let line = |i: usize| unsafe { _mm256_loadu_si256(at.add(i * CHUNK).cast()) };
    let mut chunks = [_mm256_setzero_si256(); 8];
    match BITS {
        4 => {
            for i in 0..4 {
                [chunks[2 * i], chunks[2 * i + 1]] = fours(line(i));
            }
        }
        5 => {
            let last = line(4);
            for i in 0..4 {
                [chunks[i], chunks[4 + i]] = fives(line(i), last, i);
            }
        }
        _ => {
            for i in [0, 1] {
                let four = sixes([line(3 * i), line(3 * i + 1), line(3 * i + 2)]);
                chunks[4 * i..4 * i + 4].copy_from_slice(&four);
            }
        }
    }
    chunks
}

/// Two chunks of 4-bit codes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn fours(line: __m256i) -> [__m256i; 2] {
    let mask = _mm256_set1_epi8(15);
    [_mm256_and_si256(line, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(line), mask)]
}

/// Chunks `i` and `4 + i` of 5-bit codes, of line `i` and the last.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn fives(line: __m256i, last: __m256i, i: usize) -> [__m256i; 2] {
    let low = match i {
        0 => _mm256_srli_epi16::<6>(last),
        1 => _mm256_srli_epi16::<4>(last),
        2 => _mm256_srli_epi16::<2>(last),
        _ => last,
    };
    let high = _mm256_and_si256(_mm256_srli_epi16::<3>(line), _mm256_set1_epi8(0b11100));
    let low = _mm256_and_si256(low, _mm256_set1_epi8(0b11));
    [_mm256_and_si256(line, _mm256_set1_epi8(0b1_1111)), _mm256_or_si256(high, low)]
}

/// Four chunks of 6-bit codes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn sixes([a, b, c]: [__m256i; 3]) -> [__m256i; 4] {
    let mask = _mm256_set1_epi8(0b11_1111);
    let high = _mm256_and_si256(_mm256_srli_epi16::<2>(a), _mm256_set1_epi8(0b11_0000));
    let middle = _mm256_and_si256(_mm256_srli_epi16::<4>(b), _mm256_set1_epi8(0b1100));
    let low = _mm256_and_si256(_mm256_srli_epi16::<6>(c), _mm256_set1_epi8(0b11));
    let last = _mm256_or_si256(_mm256_or_si256(high, middle), low);
    [_mm256_and_si256(a, mask), _mm256_and_si256(b, mask), _mm256_and_si256(c, mask), last]
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

/// # Safety
/// As [`QuantKernels::gemv`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn gemv(p: &Product) {
    // SAFETY: the caller's promise.
    unsafe {
        match (p.kind.codes, p.kind.halves, p.kind.offset) {
            (Codes::U4, 1, Offset::Min) => stream::<4, 1, true>(p),
            (Codes::U4, 1, _) => stream::<4, 1, false>(p),
            (Codes::U4, _, Offset::Min) => stream::<4, 2, true>(p),
            (Codes::U4, ..) => stream::<4, 2, false>(p),
            (Codes::U5, _, Offset::Min) => stream::<5, 1, true>(p),
            (Codes::U5, ..) => stream::<5, 1, false>(p),
            (Codes::U6, ..) => stream::<6, 2, false>(p),
            (Codes::I8, ..) => stream_bytes(p),
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

/// What is taken from 5-bit codes without a zero point, and added to their sums again.
const ADDED: i8 = 16;

/// Where the 16-bit sums of a group or half of one begin: at minus the zero point times the sums of activations,
/// broadcast.
///
/// # Safety
/// As [`QuantKernels::gemm`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn start<const BITS: usize, const HALVES: usize, const MIN: bool>(at: *const [i16; 2]) -> __m256i {
    // SAFETY: the caller's promise.
    let sums = unsafe { broadcast4(at) };
    // Zero points are powers of two: 8 of 4 bits, 4 where halves of a group have scales of their own, 16 and 32.
    match (BITS, HALVES, MIN) {
        (4, _, true) => _mm256_setzero_si256(),
        (4, 1, _) => _mm256_slli_epi16::<3>(sums),
        (4, ..) => _mm256_slli_epi16::<2>(sums),
        (5, ..) => _mm256_slli_epi16::<4>(sums),
        _ => _mm256_slli_epi16::<5>(sums),
    }
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

/// How far ahead of its loads decode asks for weights, bytes.
const PREFETCH_BYTES: usize = 2048;

/// Adds the products of a group or half of one, of `BITS` bits, to 16-bit sums.
///
/// # Safety
/// The codes lie at `at` and the activations at `q`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_codes<const BITS: usize, const HALVES: usize>(
    pairs: &mut [__m256i; PANELS],
    at: *const u8,
    q: *const i8,
) {
    // SAFETY: the caller's promise; prefetches may point anywhere.
    let (line, activations) = unsafe {
        (
            |i: usize| {
                let at = at.add(i * CHUNK);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH_BYTES).cast());
                [_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(32).cast())]
            },
            |chunk: usize| broadcast4(q.add(4 * chunk)),
        )
    };
    let mut add = |w: usize, codes: [__m256i; 2], a: [__m256i; 2]| {
        let [first, second] = [0, 1].map(|i| _mm256_maddubs_epi16(codes[i], a[i]));
        pairs[w] = _mm256_add_epi16(pairs[w], _mm256_add_epi16(first, second));
    };
    match BITS {
        4 => {
            for i in 0..4 / HALVES {
                let a = [activations(2 * i), activations(2 * i + 1)];
                for (w, line) in line(i).into_iter().enumerate() {
                    add(w, fours(line), a);
                }
            }
        }
        5 => {
            let last = line(4);
            for i in 0..4 {
                let a = [activations(i), activations(4 + i)];
                for (w, line) in line(i).into_iter().enumerate() {
                    add(w, fives(line, last[w], i), a);
                }
            }
        }
        _ => {
            let (a, b, c) = (line(0), line(1), line(2));
            let q = [0, 1, 2, 3].map(activations);
            for w in 0..PANELS {
                let codes = sixes([a[w], b[w], c[w]]);
                add(w, [codes[0], codes[1]], [q[0], q[1]]);
                add(w, [codes[2], codes[3]], [q[2], q[3]]);
            }
        }
    }
}

/// One row times a panel of packed codes of 4 to 6 bits.
///
/// # Safety
/// As [`QuantKernels::gemv`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn stream<const BITS: usize, const HALVES: usize, const MIN: bool>(p: &Product) {
    let ones = _mm256_set1_epi16(1);
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
                let i = group * HALVES + half;
                let at = if HALVES == 1 { p.a.starts32.add(i) } else { p.a.starts16.add(i) };
                let mut pairs = [start::<BITS, HALVES, MIN>(at); PANELS];
                let codes = p.codes.add(i * 4 * PANEL * BITS / HALVES);
                add_codes::<BITS, HALVES>(&mut pairs, codes, p.a.q.add(i * 32 / HALVES));
                for w in 0..PANELS {
                    let s = scales_of(p, i, w);
                    let mut sum = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs[w], ones));
                    if BITS == 5 && MIN {
                        // Integers below 2^24: exact.
                        let u = _mm256_set1_ps(*p.a.sum32.add(i));
                        sum = _mm256_fmadd_ps(_mm256_set1_ps(f32::from(ADDED)), u, sum);
                    }
                    t[w] = if half == 0 { _mm256_mul_ps(sum, s) } else { _mm256_fmadd_ps(sum, s, t[w]) };
                }
            }
            if MIN {
                for half in 0..HALVES {
                    let i = group * HALVES + half;
                    let u = if HALVES == 1 { *p.a.sum32.add(i) } else { *p.a.sum16.add(i) };
                    for w in 0..PANELS {
                        let m = p.mins.add(i * PANEL + w * NR);
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
