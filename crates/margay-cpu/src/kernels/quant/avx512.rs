//! AVX-512 VNNI integer kernels: a register holds 4 columns of all 16 outputs of a panel.
//!
//! Of many rows, six at a time times two panels. `vpdpbusd` multiplies unsigned bytes with signed ones: here activations
//! are made unsigned by 128, so that codes can be less their zero point and need nothing more than what those 128 add,
//! which is a matter of the weights alone and where sums begin. They begin at the bits of [`MAGIC`] besides, and so end as
//! those of the float that is greater than the sum by it. Its product with the scale then is one `vfmadd`, which adds the
//! scale times minus that number: exact, because that has 21 bits at most, and so rounded once, as the product alone.

use super::{
    COPY_ROWS, Product, QuantKernels, RowCopy, avx2,
    vnni::{self, CHUNK, GROUPS, MAGIC, PREFETCH_BYTES},
};
use crate::pack::{Codes, Kind, Offset, PANEL, Scaling};
use std::{arch::x86_64::*, mem::MaybeUninit};

/// Rows of a tile where a group has one scale: with two panels 12 products follow on 8 loads, none waits for the one
/// before it, and sums and results fill 24 of 32 registers. With eight rows they fill all, and what is kept on the stack
/// lies across cache lines. Where groups have two scales [`COPY_ROWS`]: what the first gave has to be kept.
const TILE_ROWS: usize = 6;
/// Rows of whole tiles and whole blocks of the copy.
const TILES_ROWS: usize = 2 * TILE_ROWS;
/// Panels of a tile.
const PANELS: usize = 2;
/// Bytes of 32 columns of [`COPY_ROWS`] rows.
const BLOCK: usize = COPY_ROWS * avx2::COPY_BYTES;
/// Bytes of the sums' start, before the codes they are for.
const START: usize = 4 * PANEL;

pub(super) static TABLE: QuantKernels = QuantKernels {
    name: "vpdpbusd of AVX-512 VNNI",
    copies: &[RowCopy { serves: |_| true, ..avx2::UNSIGNED_COPY }],
    panels: PANELS,
    unpacked_bytes: |kind| 32 * PANEL + kind.halves * START,
    gemv_reads_packed: |kind, scaling| kind.halves == 1 && scaling == Scaling::Plain,
    unpack: |kind, packed, k, out| {
        // SAFETY: the caller's promise, and AVX-512 was detected.
        unsafe { unpack(kind, packed, k, out) }
    },
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

/// For each group, or each half of it: where sums start, then signed codes less their zero point, `[columns/4][16][4]`.
///
/// # Safety
/// As [`QuantKernels::unpack`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn unpack(kind: Kind, packed: *const u8, k: usize, out: *mut u8) {
    let zero = _mm512_set1_epi8(if let Offset::Zero(zero) = kind.offset { zero as i8 } else { 0 });
    let added = _mm512_set1_epi8(-128);
    let start = _mm512_set1_epi32(MAGIC.to_bits() as i32);
    let group_bytes = 4 * PANEL * kind.codes.bits();
    let chunks = 8 / kind.halves;
    for i in 0..k / 32 * kind.halves {
        // SAFETY: the caller's promise.
        unsafe {
            let codes = packed.add(i * group_bytes / kind.halves);
            let out = out.add(i * (START + chunks * CHUNK));
            let mut sum = _mm512_setzero_si512();
            let take = |chunk: usize, codes: __m512i| {
                let codes = _mm512_sub_epi8(codes, zero);
                _mm512_storeu_si512(out.add(START + chunk * CHUNK).cast(), codes);
                sum = _mm512_dpbusd_epi32(sum, added, codes);
            };
            match (kind.codes, kind.halves) {
                (Codes::U4, 1) => each_chunk::<4, 1, false>(codes, take),
                (Codes::U4, _) => each_chunk::<4, 2, false>(codes, take),
                (Codes::U5, _) => each_chunk::<5, 1, false>(codes, take),
                (Codes::U6, _) => each_chunk::<6, 2, false>(codes, take),
                (Codes::I8, _) => each_chunk::<8, 1, false>(codes, take),
            }
            _mm512_storeu_si512(out.cast(), _mm512_sub_epi32(start, sum));
        }
    }
}

/// Scales times minus [`MAGIC`], as the scales lie.
#[repr(align(64))]
struct Minus([[MaybeUninit<[f32; PANEL]>; 2 * GROUPS]; PANELS]);

/// # Safety
/// As [`QuantKernels::gemm`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn gemm(p: &Product) {
    assert!(p.groups <= GROUPS && p.panels <= PANELS);
    let mut minus = Minus([[MaybeUninit::uninit(); 2 * GROUPS]; PANELS]);
    let magic = _mm512_set1_ps(-MAGIC);
    for (panel, minus) in minus.0[..p.panels].iter_mut().enumerate() {
        for (i, minus) in minus[..p.groups * p.kind.halves].iter_mut().enumerate() {
            // SAFETY: so many scales lie there.
            unsafe {
                let scales = _mm512_loadu_ps(p.scales.add(panel * p.scales_panel + i * PANEL));
                _mm512_storeu_ps(minus.as_mut_ptr().cast(), _mm512_mul_ps(scales, magic));
            }
        }
    }
    let minus = minus.0.as_ptr().cast::<f32>();
    // SAFETY: the caller's promise.
    unsafe {
        match (p.kind.halves, p.kind.offset == Offset::Min, p.panels) {
            (1, false, PANELS) => tiles::<1, false, PANELS>(p, minus),
            (1, true, PANELS) => tiles::<1, true, PANELS>(p, minus),
            (_, false, PANELS) => tiles::<2, false, PANELS>(p, minus),
            (_, true, PANELS) => tiles::<2, true, PANELS>(p, minus),
            (1, false, _) => tiles::<1, false, 1>(p, minus),
            (1, true, _) => tiles::<1, true, 1>(p, minus),
            (_, false, _) => tiles::<2, false, 1>(p, minus),
            (_, true, _) => tiles::<2, true, 1>(p, minus),
        }
    }
}

/// # Safety
/// As [`gemm`]; `minus` is what it made, of `NP` panels.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn tiles<const HALVES: usize, const MIN: bool, const NP: usize>(p: &Product, minus: *const f32) {
    let mut row = 0;
    // SAFETY: the caller's promise; there is room for whole blocks of rows.
    unsafe {
        while HALVES == 1 && p.rows - row >= TILES_ROWS {
            tile::<HALVES, MIN, TILE_ROWS, 0, NP>(p, row, minus);
            tile::<HALVES, MIN, TILE_ROWS, { TILE_ROWS % COPY_ROWS }, NP>(p, row + TILE_ROWS, minus);
            row += TILES_ROWS;
        }
        while row < p.rows {
            tile::<HALVES, MIN, COPY_ROWS, 0, NP>(p, row, minus);
            row += COPY_ROWS;
        }
    }
}

/// `ROWS` rows from `row` on, which is `FROM` rows into a block of the copy, times `NP` panels.
///
/// # Safety
/// As [`tiles`]; the copy and the results have so many rows.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn tile<
    const HALVES: usize,
    const MIN: bool,
    const ROWS: usize,
    const FROM: usize,
    const NP: usize,
>(
    p: &Product,
    row: usize,
    mut minus: *const f32,
) {
    let magic = _mm512_set1_ps(MAGIC);
    let mut acc = [[_mm512_setzero_ps(); NP]; ROWS];
    // SAFETY: all offsets lie within what the fields of `Product` and the constants of the copy describe.
    unsafe {
        let c = p.c.add(row * p.ldc);
        if !p.first {
            for (r, acc) in acc.iter_mut().enumerate() {
                for (x, acc) in acc.iter_mut().enumerate() {
                    *acc = _mm512_loadu_ps(c.add(r * p.ldc + x * PANEL));
                }
            }
        }
        // The blocks of a tile lie as far apart as one of them is long.
        let apart = p.groups * BLOCK;
        let mut q = p.a.copy.add(row / COPY_ROWS * apart);
        let (mut w, mut scales, mut mins) = (p.codes, p.scales, p.mins);
        for _ in 0..p.groups {
            // Number `i` of the row, behind the codes.
            let number = |r: usize, i: usize| {
                let r = FROM + r;
                let at = r / COPY_ROWS * apart + (32 + 4 * i) * COPY_ROWS + r % COPY_ROWS * 4;
                _mm512_set1_ps(q.add(at).cast::<f32>().read_unaligned())
            };
            // The products of a group, or of one half. No loop over halves: the compiler keeps it, and a branch within.
            macro_rules! sums {
                ($half:literal) => {{
                    let start = |x: usize| _mm512_loadu_si512(w.add(x * p.codes_panel).cast());
                    let mut sums: [[__m512i; NP]; ROWS] = [std::array::from_fn(start); ROWS];
                    for i in 0..8 / HALVES {
                        let codes: [__m512i; NP] = std::array::from_fn(|x| {
                            _mm512_loadu_si512(w.add(x * p.codes_panel + START + i * CHUNK).cast())
                        });
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let (r, chunk) = (FROM + r, $half * (8 / HALVES) + i);
                            let at = r / COPY_ROWS * apart + 4 * (chunk * COPY_ROWS + r % COPY_ROWS);
                            let a = _mm512_set1_epi32(q.add(at).cast::<i32>().read_unaligned());
                            for (sum, codes) in sums.iter_mut().zip(codes) {
                                *sum = _mm512_dpbusd_epi32(*sum, a, codes);
                            }
                        }
                    }
                    w = w.add(START + 8 / HALVES * CHUNK);
                    sums
                }};
            }
            // Of panel `x` and one half.
            let scale =
                |x: usize, half: usize| _mm512_loadu_ps(scales.add(x * p.scales_panel + half * PANEL));
            let less = |x: usize, half: usize| _mm512_loadu_ps(minus.add((x * 2 * GROUPS + half) * PANEL));
            let min = |x: usize, half: usize| _mm512_loadu_ps(mins.add(x * p.scales_panel + half * PANEL));
            let mut first = [[_mm512_setzero_ps(); NP]; ROWS];
            let mut sums = sums!(0);
            if HALVES == 2 {
                for x in 0..NP {
                    for (first, sums) in first.iter_mut().zip(&sums) {
                        first[x] = _mm512_fmadd_ps(_mm512_castsi512_ps(sums[x]), scale(x, 0), less(x, 0));
                    }
                }
                sums = sums!(1);
            }
            for x in 0..NP {
                for (r, acc) in acc.iter_mut().enumerate() {
                    let sum = _mm512_castsi512_ps(sums[r][x]);
                    let mut t = if HALVES == 1 {
                        _mm512_fmadd_ps(sum, scale(x, 0), less(x, 0))
                    } else {
                        _mm512_fmadd_ps(_mm512_sub_ps(sum, magic), scale(x, 1), first[r][x])
                    };
                    if MIN {
                        t = _mm512_fmadd_ps(min(x, 0), number(r, if HALVES == 1 { 1 } else { 2 }), t);
                    }
                    if MIN && HALVES == 2 {
                        t = _mm512_fmadd_ps(min(x, 1), number(r, 3), t);
                    }
                    acc[x] = _mm512_fmadd_ps(t, number(r, 0), acc[x]);
                }
            }
            scales = scales.add(HALVES * PANEL);
            minus = minus.add(HALVES * PANEL);
            mins = mins.add(HALVES * PANEL);
            q = q.add(BLOCK);
        }
        for (r, acc) in acc.into_iter().enumerate() {
            for (x, acc) in acc.into_iter().enumerate() {
                _mm512_storeu_ps(c.add(r * p.ldc + x * PANEL), acc);
            }
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
    let add = |chunk: usize, codes: __m512i| {
        // SAFETY: the caller's promise.
        let a = unsafe { q.add(4 * chunk).cast::<i32>().read_unaligned() };
        let codes = if BITS == 8 { _mm512_xor_si512(codes, _mm512_set1_epi8(-128)) } else { codes };
        sums = _mm512_dpbusd_epi32(sums, codes, _mm512_set1_epi32(a));
    };
    // SAFETY: the caller's promise.
    unsafe { each_chunk::<BITS, HALVES, true>(at, add) }
    sums
}

/// Gives the codes of each 4 columns of a group, or of half of one, a byte each.
///
/// # Safety
/// The codes lie at `at`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn each_chunk<const BITS: usize, const HALVES: usize, const AHEAD: bool>(
    at: *const u8,
    mut take: impl FnMut(usize, __m512i),
) {
    // SAFETY: the caller's promise; prefetches may point anywhere.
    let line = |i: usize| unsafe {
        let at = at.add(i * CHUNK);
        if AHEAD {
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH_BYTES).cast());
        }
        _mm512_loadu_si512(at.cast())
    };
    match BITS {
        4 => {
            let mask = _mm512_set1_epi8(15);
            for i in 0..4 / HALVES {
                let line = line(i);
                take(2 * i, _mm512_and_si512(line, mask));
                take(2 * i + 1, _mm512_and_si512(_mm512_srli_epi16::<4>(line), mask));
            }
        }
        5 => {
            let last = line(4);
            for i in 0..4 {
                let line = line(i);
                take(i, _mm512_and_si512(line, _mm512_set1_epi8(0b1_1111)));
                let low = match i {
                    0 => _mm512_srli_epi16::<6>(last),
                    1 => _mm512_srli_epi16::<4>(last),
                    2 => _mm512_srli_epi16::<2>(last),
                    _ => last,
                };
                let low = _mm512_and_si512(low, _mm512_set1_epi8(0b11));
                take(4 + i, and_or(_mm512_srli_epi16::<3>(line), _mm512_set1_epi8(0b11100), low));
            }
        }
        6 => {
            let (a, b, c) = (line(0), line(1), line(2));
            for (i, line) in [a, b, c].into_iter().enumerate() {
                take(i, _mm512_and_si512(line, _mm512_set1_epi8(0b11_1111)));
            }
            let low = _mm512_and_si512(_mm512_srli_epi16::<6>(c), _mm512_set1_epi8(0b11));
            let low = and_or(_mm512_srli_epi16::<4>(b), _mm512_set1_epi8(0b1100), low);
            take(3, and_or(_mm512_srli_epi16::<2>(a), _mm512_set1_epi8(0b11_0000), low));
        }
        _ => {
            for i in 0..8 / HALVES {
                take(i, line(i));
            }
        }
    }
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
