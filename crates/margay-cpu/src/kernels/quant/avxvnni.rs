//! AVX-VNNI integer kernels: `vpdpbusd` of 32 bytes on processors without AVX-512.

use super::{
    Product, QuantKernels,
    avx2::{self, broadcast4},
    vnni::{self, CHUNK, GROUPS, MAGIC, PREFETCH_BYTES},
};
use crate::pack::{Codes, Kind, Offset, PANEL, Scaling};
use std::{arch::x86_64::*, mem::MaybeUninit};

/// Outputs a register holds.
const NR: usize = 8;
/// Registers a panel takes.
const PANELS: usize = PANEL / NR;
/// Rows a tile keeps in registers. Of 5 and 6 more is spilled than they save.
const TILE_ROWS: usize = 4;
/// Numbers of a row, one for each group or half group.
const NUMBERS: usize = 2 * GROUPS;

pub(super) static TABLE: QuantKernels = QuantKernels {
    name: "vpdpbusd of AVX-VNNI",
    copies: &[],
    panels: 1,
    unpacked_bytes: |_| 32 * PANEL,
    gemv_reads_packed: |kind, scaling| kind.halves == 1 && scaling == Scaling::Plain,
    unpack,
    scales: |kind, scaling, packed, s, m| {
        // SAFETY: AVX-VNNI is used only together with AVX2, FMA and F16C.
        unsafe { avx2::unpack_scales(kind, scaling, packed, s, m) }
    },
    gemm: |p| {
        // SAFETY: the caller's promise, and AVX-VNNI was detected.
        unsafe { gemm(p) }
    },
    gemv: |p| {
        // SAFETY: the caller's promise, and AVX-VNNI was detected.
        unsafe { gemv(p) }
    },
};

/// Makes unsigned bytes of codes.
///
/// # Safety
/// As [`QuantKernels::unpack`]; the processor has AVX2.
unsafe fn unpack(kind: Kind, packed: *const u8, k: usize, out: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        match kind.codes {
            Codes::I8 => flip_top_bits(packed, k, out),
            codes => avx2::unpack_codes(codes, packed, k, out),
        }
    }
}

/// # Safety
/// `packed` holds `k * 16` bytes, `out` room for as many.
#[target_feature(enable = "avx2")]
unsafe fn flip_top_bits(packed: *const u8, k: usize, out: *mut u8) {
    let top_bit = _mm256_set1_epi8(-128);
    for at in (0..k * PANEL).step_by(32) {
        // SAFETY: 32 of these bytes; k is a multiple of 4.
        unsafe {
            let codes = _mm256_loadu_si256(packed.add(at).cast());
            _mm256_storeu_si256(out.add(at).cast(), _mm256_xor_si256(codes, top_bit));
        }
    }
}

/// What a tile reads of its rows once a group. Here the rows lie at fixed distances, so that one register addresses all
/// of them, and the starts of the sums are ready to be loaded.
struct RowFacts<const ROWS: usize> {
    starts: [[i32; NUMBERS]; ROWS],
    sums: [[f32; NUMBERS]; ROWS],
    scales: [[f32; GROUPS]; ROWS],
}

impl<const ROWS: usize> RowFacts<ROWS> {
    /// Fills `facts` with those of `ROWS` rows from `row` on: sums where there are minima, else starts, which are
    /// `base` less the zero point times the sum of the activations. What lies behind the last group is 0 or `base`.
    ///
    /// # Safety
    /// As [`QuantKernels::gemm`], `row + ROWS <= p.rows` and `p.groups <= GROUPS`.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn fill<const HALVES: usize, const MIN: bool>(
        facts: &mut MaybeUninit<Self>,
        p: &Product,
        row: usize,
        base: i32,
    ) -> *const Self {
        let facts = facts.as_mut_ptr();
        let zeros = _mm256_set1_epi16(vnni::zero(p.kind));
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let ldg = p.a.k / 32;
        for r in 0..ROWS {
            let at = (row + r) * ldg;
            for i in (0..GROUPS * HALVES).step_by(8) {
                let mask =
                    _mm256_cmpgt_epi32(_mm256_set1_epi32((p.groups * HALVES) as i32 - i as i32), lanes);
                // SAFETY: only what the mask names is read, which lies within the row.
                unsafe {
                    if MIN {
                        let sums = if HALVES == 1 { p.a.sum32.add(at) } else { p.a.sum16.add(2 * at) };
                        let sums = _mm256_maskload_ps(sums.wrapping_add(i), mask);
                        _mm256_storeu_ps((&raw mut (*facts).sums[r]).cast::<f32>().add(i), sums);
                    } else {
                        let pairs = if HALVES == 1 { p.a.starts32.add(at) } else { p.a.starts16.add(2 * at) };
                        let pairs = _mm256_maskload_epi32(pairs.wrapping_add(i).cast(), mask);
                        let starts =
                            _mm256_add_epi32(_mm256_set1_epi32(base), _mm256_madd_epi16(pairs, zeros));
                        _mm256_storeu_si256(
                            (&raw mut (*facts).starts[r]).cast::<i32>().add(i).cast(),
                            starts,
                        );
                    }
                }
            }
            for i in (0..GROUPS).step_by(8) {
                let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(p.groups as i32 - i as i32), lanes);
                // SAFETY: as above.
                unsafe {
                    let scales = _mm256_maskload_ps(p.a.scale.wrapping_add(at + i), mask);
                    _mm256_storeu_ps((&raw mut (*facts).scales[r]).cast::<f32>().add(i), scales);
                }
            }
        }
        facts
    }

    /// Where the sums of row `r` begin in the group or half group `i`.
    ///
    /// # Safety
    /// `facts` was filled, without minima; `r < ROWS`, `i` is less than the number of them.
    #[inline(always)]
    unsafe fn start(facts: *const Self, r: usize, i: usize) -> i32 {
        // SAFETY: the caller's promise.
        unsafe { *(&raw const (*facts).starts).cast::<i32>().add(r * NUMBERS + i) }
    }

    /// The sum of the activations of row `r` in the group or half group `i`.
    ///
    /// # Safety
    /// `facts` was filled, with minima; the rest as `start`.
    #[inline(always)]
    unsafe fn sum(facts: *const Self, r: usize, i: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *(&raw const (*facts).sums).cast::<f32>().add(r * NUMBERS + i) }
    }

    /// The scale of row `r` in `group`.
    ///
    /// # Safety
    /// `facts` was filled; `r < ROWS`, `group < GROUPS`.
    #[inline(always)]
    unsafe fn scale(facts: *const Self, r: usize, group: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *(&raw const (*facts).scales).cast::<f32>().add(r * GROUPS + group) }
    }
}

/// # Safety
/// As [`QuantKernels::gemm`].
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
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
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn tiles<const HALVES: usize, const MIN: bool>(p: &Product) {
    let mut row = 0;
    // SAFETY: the caller's promise; rows stay below `p.rows`.
    unsafe {
        while p.rows - row >= TILE_ROWS {
            tile::<HALVES, MIN, TILE_ROWS>(p, row);
            row += TILE_ROWS;
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
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn tile<const HALVES: usize, const MIN: bool, const ROWS: usize>(p: &Product, row: usize) {
    let magic = _mm256_set1_ps(MAGIC);
    let mut facts = MaybeUninit::uninit();
    let mut acc = [[_mm256_setzero_ps(); PANELS]; ROWS];
    // SAFETY: all offsets lie within what the fields of `Product` describe.
    unsafe {
        let facts = RowFacts::<ROWS>::fill::<HALVES, MIN>(&mut facts, p, row, MAGIC.to_bits() as i32);
        let c = p.c.add(row * p.ldc);
        if !p.first {
            for r in 0..ROWS {
                for w in 0..PANELS {
                    acc[r][w] = _mm256_loadu_ps(c.add(r * p.ldc + w * NR));
                }
            }
        }
        let lda = p.a.k;
        let q: [*const i8; ROWS] = std::array::from_fn(|r| p.a.q.add((row + r) * lda));
        let (mut codes, mut scales, mut mins) = (p.codes, p.scales, p.mins);
        for group in 0..p.groups {
            let mut t = [[_mm256_setzero_ps(); PANELS]; ROWS];
            // No loop: the compiler keeps it, and a branch within.
            macro_rules! half {
                ($half:literal) => {
                    let mut products = [[_mm256_castps_si256(magic); PANELS]; ROWS];
                    if !MIN {
                        for (r, products) in products.iter_mut().enumerate() {
                            let start = RowFacts::start(facts, r, group * HALVES + $half);
                            *products = [_mm256_set1_epi32(start); PANELS];
                        }
                    }
                    for i in 0..8 / HALVES {
                        let at = codes.add(i * CHUNK);
                        let w = [_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(32).cast())];
                        for (r, products) in products.iter_mut().enumerate() {
                            let a = broadcast4(q[r].add(group * 32 + $half * 16 + 4 * i));
                            for (product, w) in products.iter_mut().zip(w) {
                                *product = _mm256_dpbusd_avx_epi32(*product, w, a);
                            }
                        }
                    }
                    codes = codes.add(8 / HALVES * CHUNK);
                    for w in 0..PANELS {
                        let s = _mm256_loadu_ps(scales.add(w * NR));
                        for (t, products) in t.iter_mut().zip(products) {
                            let product = _mm256_sub_ps(_mm256_castsi256_ps(products[w]), magic);
                            t[w] = if $half == 0 {
                                _mm256_mul_ps(product, s)
                            } else {
                                _mm256_fmadd_ps(product, s, t[w])
                            };
                        }
                    }
                    scales = scales.add(PANEL);
                };
            }
            half!(0);
            if HALVES == 2 {
                half!(1);
            }
            if MIN {
                for half in 0..HALVES {
                    for w in 0..PANELS {
                        let m = _mm256_loadu_ps(mins.add(w * NR));
                        for (r, t) in t.iter_mut().enumerate() {
                            let sum = RowFacts::sum(facts, r, group * HALVES + half);
                            t[w] = _mm256_fmadd_ps(m, _mm256_set1_ps(sum), t[w]);
                        }
                    }
                    mins = mins.add(PANEL);
                }
            }
            for (r, (acc, t)) in acc.iter_mut().zip(t).enumerate() {
                let a = _mm256_set1_ps(RowFacts::scale(facts, r, group));
                for (acc, t) in acc.iter_mut().zip(t) {
                    *acc = _mm256_fmadd_ps(t, a, *acc);
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            for (w, acc) in acc.into_iter().enumerate() {
                _mm256_storeu_ps(c.add(r * p.ldc + w * NR), acc);
            }
        }
    }
}

/// # Safety
/// As [`QuantKernels::gemv`].
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn gemv(p: &Product) {
    // SAFETY: the caller's promise.
    unsafe { one_row_of_kind!(p) }
}

/// One row times a panel of codes of `BITS` bits, with `PACKED` scales or those that were unpacked.
///
/// # Safety
/// As [`QuantKernels::gemv`].
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn one_row<const BITS: usize, const PACKED: bool, const HALVES: usize, const MIN: bool>(p: &Product) {
    let zeros = _mm256_set1_epi16(vnni::zero(p.kind));
    // SAFETY: all offsets lie within what the fields of `Product` describe; prefetches may point anywhere.
    unsafe {
        let mut acc = [_mm256_setzero_ps(); PANELS];
        if !p.first {
            acc = [_mm256_loadu_ps(p.c), _mm256_loadu_ps(p.c.add(NR))];
        }
        let mut codes = p.codes;
        for group in 0..p.groups {
            _mm_prefetch::<_MM_HINT_T0>(p.ahead.wrapping_add(group * p.ahead_step).cast());
            let mut t = [_mm256_setzero_ps(); PANELS];
            for half in 0..HALVES {
                let i = group * HALVES + half;
                let mut products = [_mm256_setzero_si256(); PANELS];
                if !MIN {
                    let pair = if HALVES == 1 { p.a.starts32.add(i) } else { p.a.starts16.add(i) };
                    products = [_mm256_madd_epi16(broadcast4(pair), zeros); PANELS];
                }
                let q = p.a.q.add(i * 32 / HALVES);
                add_codes::<BITS, HALVES>(&mut products, codes, q);
                codes = codes.add(BITS * CHUNK / HALVES);
                for w in 0..PANELS {
                    let product = _mm256_cvtepi32_ps(products[w]);
                    let s = if PACKED {
                        halves(p.packed_scales.add(i * if MIN { 64 } else { 32 } + w * 16))
                    } else {
                        _mm256_loadu_ps(p.scales.add(i * PANEL + w * NR))
                    };
                    t[w] =
                        if half == 0 { _mm256_mul_ps(product, s) } else { _mm256_fmadd_ps(product, s, t[w]) };
                }
            }
            if MIN {
                for half in 0..HALVES {
                    let i = group * HALVES + half;
                    let sum = _mm256_set1_ps(if HALVES == 1 { *p.a.sum32.add(i) } else { *p.a.sum16.add(i) });
                    for w in 0..PANELS {
                        let m = if PACKED {
                            halves(p.packed_scales.add(i * 64 + 32 + w * 16))
                        } else {
                            _mm256_loadu_ps(p.mins.add(i * PANEL + w * NR))
                        };
                        t[w] = _mm256_fmadd_ps(m, sum, t[w]);
                    }
                }
            }
            let a = _mm256_set1_ps(*p.a.scale.add(group));
            for (acc, t) in acc.iter_mut().zip(t) {
                *acc = _mm256_fmadd_ps(t, a, *acc);
            }
        }
        _mm256_storeu_ps(p.c, acc[0]);
        _mm256_storeu_ps(p.c.add(NR), acc[1]);
    }
}

/// Adds the products of a group or half of one to sums.
///
/// # Safety
/// The codes lie at `at` and the activations at `q`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn add_codes<const BITS: usize, const HALVES: usize>(
    sums: &mut [__m256i; PANELS],
    at: *const u8,
    q: *const i8,
) {
    // SAFETY: the caller's promise; prefetches may point anywhere.
    let line = |i: usize| unsafe {
        let at = at.add(i * CHUNK);
        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH_BYTES).cast());
        [_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(32).cast())]
    };
    // SAFETY: the caller's promise.
    let activations = |chunk: usize| unsafe { broadcast4(q.add(4 * chunk)) };
    match BITS {
        4 => {
            for i in 0..4 / HALVES {
                let a = [activations(2 * i), activations(2 * i + 1)];
                for (sum, line) in sums.iter_mut().zip(line(i)) {
                    for (codes, a) in avx2::fours(line).into_iter().zip(a) {
                        *sum = _mm256_dpbusd_avx_epi32(*sum, codes, a);
                    }
                }
            }
        }
        5 => {
            let last = line(4);
            for i in 0..4 {
                let a = [activations(i), activations(4 + i)];
                for ((sum, line), last) in sums.iter_mut().zip(line(i)).zip(last) {
                    for (codes, a) in avx2::fives(line, last, i).into_iter().zip(a) {
                        *sum = _mm256_dpbusd_avx_epi32(*sum, codes, a);
                    }
                }
            }
        }
        6 => {
            let (first, second, third) = (line(0), line(1), line(2));
            let a = [0, 1, 2, 3].map(activations);
            for (w, sum) in sums.iter_mut().enumerate() {
                for (codes, a) in avx2::sixes([first[w], second[w], third[w]]).into_iter().zip(a) {
                    *sum = _mm256_dpbusd_avx_epi32(*sum, codes, a);
                }
            }
        }
        _ => {
            for i in 0..8 / HALVES {
                let a = activations(i);
                for (sum, codes) in sums.iter_mut().zip(line(i)) {
                    let codes = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
                    *sum = _mm256_dpbusd_avx_epi32(*sum, codes, a);
                }
            }
        }
    }
}

/// 8 numbers of half precision.
///
/// # Safety
/// They lie at `at`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn halves(at: *const u8) -> __m256 {
    // SAFETY: the caller's promise.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(at.cast()) })
}
