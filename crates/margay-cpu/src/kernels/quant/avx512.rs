//! AVX-512 VNNI integer kernels: a register holds 4 columns of all 16 outputs of a panel.

use super::{
    Product, QuantKernels, avx2,
    vnni::{self, CHUNK, GROUPS, PREFETCH_BYTES, RowFacts},
};
use crate::pack::{Codes, Offset, PANEL, Scaling};
use std::{arch::x86_64::*, mem::MaybeUninit};

/// Rows a tile keeps in registers where a group has one scale: sums and results of 12 take 24 registers, and 13 loads go
/// with 12 products, two of each a cycle.
const TILE_ROWS: usize = 12;
/// The same for all others: of more rows, what the first half gave no longer fits.
const FEWER_ROWS: usize = 8;

pub(super) static TABLE: QuantKernels = QuantKernels {
    name: "vpdpbusd of AVX-512 VNNI",
    copies: &[],
    unpacked_bytes: vnni::unpacked_bytes,
    gemv_reads_packed: |kind, scaling| kind.halves == 1 && scaling == Scaling::Plain,
    unpack: vnni::unpack,
    scales: |kind, scaling, packed, s, m| {
        // SAFETY: AVX-512 is detected only together with AVX2, FMA and F16C.
        unsafe { avx2::unpack_scales(kind, scaling, packed, s, m) }
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

/// # Safety
/// As [`QuantKernels::gemm`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn gemm(p: &Product) {
    assert!(p.groups <= GROUPS);
    // SAFETY: the caller's promise.
    unsafe {
        match (p.kind.halves, p.kind.offset) {
            (1, Offset::Min) => tiles::<1, true>(p),
            (1, _) => tiles::<1, false>(p),
            (_, Offset::Min) => tiles::<2, true>(p),
            _ => tiles::<2, false>(p),
        }
    }
}

/// # Safety
/// As [`gemm`], and `p.groups <= GROUPS`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn tiles<const HALVES: usize, const MIN: bool>(p: &Product) {
    let mut row = 0;
    // SAFETY: the caller's promise; rows stay below `p.rows`.
    unsafe {
        while HALVES == 1 && p.rows - row >= TILE_ROWS {
            tile::<HALVES, MIN, TILE_ROWS>(p, row);
            row += TILE_ROWS;
        }
        while p.rows - row >= FEWER_ROWS {
            tile::<HALVES, MIN, FEWER_ROWS>(p, row);
            row += FEWER_ROWS;
        }
        if p.rows - row >= 4 {
            tile::<HALVES, MIN, 4>(p, row);
            row += 4;
        }
        if p.rows - row >= 2 {
            tile::<HALVES, MIN, 2>(p, row);
            row += 2;
        }
        if p.rows > row {
            tile::<HALVES, MIN, 1>(p, row);
        }
    }
}

/// `ROWS` rows from `row` on, times a panel of unsigned bytes.
///
/// # Safety
/// As [`tiles`], and `row + ROWS <= p.rows`.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn tile<const HALVES: usize, const MIN: bool, const ROWS: usize>(p: &Product, row: usize) {
    let mut facts = MaybeUninit::uninit();
    let mut acc = [_mm512_setzero_ps(); ROWS];
    // SAFETY: all offsets lie within what the fields of `Product` describe.
    unsafe {
        let facts = RowFacts::<ROWS>::fill::<HALVES, MIN>(&mut facts, p, row, 0);
        let c = p.c.add(row * p.ldc);
        if !p.first {
            for (r, acc) in acc.iter_mut().enumerate() {
                *acc = _mm512_loadu_ps(c.add(r * p.ldc));
            }
        }
        let lda = p.a.k;
        let mut q = vnni::threes::<ROWS, 4>(p.a.q.add(row * lda), lda);
        let (mut codes, mut scales, mut mins) = (p.codes, p.scales, p.mins);
        for group in 0..p.groups {
            let mut t = [_mm512_setzero_ps(); ROWS];
            // No loop: the compiler keeps it, and a branch within.
            macro_rules! half {
                ($half:literal) => {
                    let mut products = [_mm512_setzero_si512(); ROWS];
                    if !MIN {
                        for (r, product) in products.iter_mut().enumerate() {
                            *product = _mm512_set1_epi32(RowFacts::start(facts, r, group * HALVES + $half));
                        }
                    }
                    for i in 0..8 / HALVES {
                        let w = _mm512_loadu_si512(codes.add(i * CHUNK).cast());
                        for (r, product) in products.iter_mut().enumerate() {
                            let a = q[r / 3].add(r % 3 * lda + 4 * i).cast::<i32>().read_unaligned();
                            *product = _mm512_dpbusd_epi32(*product, w, _mm512_set1_epi32(a));
                        }
                    }
                    codes = codes.add(8 / HALVES * CHUNK);
                    q = q.map(|q| q.wrapping_add(32 / HALVES));
                    let s = _mm512_loadu_ps(scales);
                    scales = scales.add(PANEL);
                    for (t, product) in t.iter_mut().zip(products) {
                        let product = _mm512_cvtepi32_ps(product);
                        *t = if $half == 0 {
                            _mm512_mul_ps(product, s)
                        } else {
                            _mm512_fmadd_ps(product, s, *t)
                        };
                    }
                };
            }
            half!(0);
            if HALVES == 2 {
                half!(1);
            }
            if MIN {
                for half in 0..HALVES {
                    let m = _mm512_loadu_ps(mins);
                    mins = mins.add(PANEL);
                    for (r, t) in t.iter_mut().enumerate() {
                        let sum = RowFacts::sum(facts, r, group * HALVES + half);
                        *t = _mm512_fmadd_ps(m, _mm512_set1_ps(sum), *t);
                    }
                }
            }
            for (r, (acc, t)) in acc.iter_mut().zip(t).enumerate() {
                *acc = _mm512_fmadd_ps(t, _mm512_set1_ps(RowFacts::scale(facts, r, group)), *acc);
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            _mm512_storeu_ps(c.add(r * p.ldc), acc);
        }
    }
}

/// # Safety
/// As [`QuantKernels::gemv`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn gemv(p: &Product) {
    // SAFETY: the caller's promise.
    unsafe { one_row_of_kind!(p) }
}

/// One row times a panel of codes of `BITS` bits, with `PACKED` scales or those that were unpacked.
///
/// # Safety
/// As [`QuantKernels::gemv`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn one_row<const BITS: usize, const PACKED: bool, const HALVES: usize, const MIN: bool>(p: &Product) {
    let zeros = _mm512_set1_epi16(vnni::zero(p.kind));
    // SAFETY: all offsets lie within what the fields of `Product` describe; prefetches may point anywhere.
    unsafe {
        let mut acc = if p.first { _mm512_setzero_ps() } else { _mm512_loadu_ps(p.c) };
        let mut codes = p.codes;
        for group in 0..p.groups {
            _mm_prefetch::<_MM_HINT_T0>(p.ahead.wrapping_add(group * p.ahead_step).cast());
            let mut t = _mm512_setzero_ps();
            for half in 0..HALVES {
                let i = group * HALVES + half;
                let mut product = _mm512_setzero_si512();
                if !MIN {
                    let pair = if HALVES == 1 { p.a.starts32.add(i) } else { p.a.starts16.add(i) };
                    let pair = pair.cast::<i32>().read_unaligned();
                    product = _mm512_madd_epi16(_mm512_set1_epi32(pair), zeros);
                }
                let q = p.a.q.add(i * 32 / HALVES);
                product = add_codes::<BITS, HALVES>(product, codes, q);
                codes = codes.add(BITS * CHUNK / HALVES);
                let product = _mm512_cvtepi32_ps(product);
                let s = if PACKED {
                    halves(p.packed_scales.add(i * if MIN { 4 * PANEL } else { 2 * PANEL }))
                } else {
                    _mm512_loadu_ps(p.scales.add(i * PANEL))
                };
                t = if half == 0 { _mm512_mul_ps(product, s) } else { _mm512_fmadd_ps(product, s, t) };
            }
            if MIN {
                for half in 0..HALVES {
                    let i = group * HALVES + half;
                    let m = if PACKED {
                        halves(p.packed_scales.add(i * 4 * PANEL + 2 * PANEL))
                    } else {
                        _mm512_loadu_ps(p.mins.add(i * PANEL))
                    };
                    let sum = if HALVES == 1 { *p.a.sum32.add(i) } else { *p.a.sum16.add(i) };
                    t = _mm512_fmadd_ps(m, _mm512_set1_ps(sum), t);
                }
            }
            acc = _mm512_fmadd_ps(t, _mm512_set1_ps(*p.a.scale.add(group)), acc);
        }
        _mm512_storeu_ps(p.c, acc);
    }
}

/// Adds the products of a group or half of one to sums.
///
/// # Safety
/// The codes lie at `at` and the activations at `q`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn add_codes<const BITS: usize, const HALVES: usize>(
    mut sums: __m512i,
    at: *const u8,
    q: *const i8,
) -> __m512i {
    // SAFETY: the caller's promise; prefetches may point anywhere.
    let line = |i: usize| unsafe {
        let at = at.add(i * CHUNK);
        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH_BYTES).cast());
        _mm512_loadu_si512(at.cast())
    };
    let mut add = |chunk: usize, codes: __m512i| {
        // SAFETY: the caller's promise.
        let a = unsafe { q.add(4 * chunk).cast::<i32>().read_unaligned() };
        sums = _mm512_dpbusd_epi32(sums, codes, _mm512_set1_epi32(a));
    };
    match BITS {
        4 => {
            let mask = _mm512_set1_epi8(15);
            for i in 0..4 / HALVES {
                let line = line(i);
                add(2 * i, _mm512_and_si512(line, mask));
                add(2 * i + 1, _mm512_and_si512(_mm512_srli_epi16::<4>(line), mask));
            }
        }
        5 => {
            let last = line(4);
            for i in 0..4 {
                let line = line(i);
                add(i, _mm512_and_si512(line, _mm512_set1_epi8(0b1_1111)));
                let low = match i {
                    0 => _mm512_srli_epi16::<6>(last),
                    1 => _mm512_srli_epi16::<4>(last),
                    2 => _mm512_srli_epi16::<2>(last),
                    _ => last,
                };
                let low = _mm512_and_si512(low, _mm512_set1_epi8(0b11));
                add(4 + i, and_or(_mm512_srli_epi16::<3>(line), _mm512_set1_epi8(0b11100), low));
            }
        }
        6 => {
            let (a, b, c) = (line(0), line(1), line(2));
            for (i, line) in [a, b, c].into_iter().enumerate() {
                add(i, _mm512_and_si512(line, _mm512_set1_epi8(0b11_1111)));
            }
            let low = _mm512_and_si512(_mm512_srli_epi16::<6>(c), _mm512_set1_epi8(0b11));
            let low = and_or(_mm512_srli_epi16::<4>(b), _mm512_set1_epi8(0b1100), low);
            add(3, and_or(_mm512_srli_epi16::<2>(a), _mm512_set1_epi8(0b11_0000), low));
        }
        _ => {
            for i in 0..8 / HALVES {
                add(i, _mm512_xor_si512(line(i), _mm512_set1_epi8(-128)));
            }
        }
    }
    sums
}

/// `a & mask | b`
#[inline]
#[target_feature(enable = "avx512f")]
fn and_or(a: __m512i, mask: __m512i, b: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<0b1110_1010>(a, mask, b)
}

/// 16 numbers of half precision.
///
/// # Safety
/// They lie at `at`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn halves(at: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(at.cast()) })
}
