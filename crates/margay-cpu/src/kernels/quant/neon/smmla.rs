//! `smmla`: a 2 x 8 matrix of activations times an 8 x 2 matrix of codes.
//!
//! A register holds two rows by two outputs, `[r0 c0, r0 c1, r1 c0, r1 c1]`, and so do the float sums: taking them apart
//! once a group would cost a quarter of the products. Rows come in pairs, made where they are quantized.

use super::*;
use crate::kernels::quant::Rows;

/// Bytes that a group of a pair takes in either part.
const GROUP: usize = 64;

/// Makes the copy of rows that [`gemm`] reads, for each pair of rows `[columns/8][2][8]` codes, and then for each group
/// `[4][2][2]` floats, every number twice: scales, sums of codes of the group, of its first and of its second half.
///
/// # Safety
/// As [`RowCopy::make`].
pub(super) unsafe fn pair_rows(rows: usize, columns: usize, from: &Rows, to: *mut u8) {
    for row in (0..rows / 2 * 2).step_by(2) {
        // SAFETY: both rows are written, and each has 2 bytes a column in the copy.
        unsafe {
            let codes = to.add(2 * row * columns).cast::<i8>();
            pair(from, row, 1, columns / 32, codes, codes.add(2 * columns).cast());
        }
    }
}

/// Pairs `row` with the one `next` rows on, over groups from the beginning.
///
/// # Safety
/// Both rows have so many groups; `codes` and `floats` have room for [`GROUP`] bytes of each.
unsafe fn pair(from: &Rows, row: usize, next: usize, groups: usize, codes: *mut i8, floats: *mut f32) {
    let k = from.k;
    let (q, twin) = (from.q.wrapping_add(row * k), from.q.wrapping_add((row + next) * k));
    for group in 0..groups {
        // SAFETY: the caller's promise.
        unsafe {
            for i in [0, 16] {
                let a = vreinterpretq_s64_s8(vld1q_s8(q.add(group * 32 + i)));
                let b = vreinterpretq_s64_s8(vld1q_s8(twin.add(group * 32 + i)));
                let codes = codes.add(group * GROUP + 2 * i).cast::<i64>();
                vst1q_s64(codes, vzip1q_s64(a, b));
                vst1q_s64(codes.add(2), vzip2q_s64(a, b));
            }
            let scale = |row: usize| *from.scale.add(row * k / 32 + group);
            let sum = |row: usize, halves, half| from.code_sum(row, group, halves, half);
            for (i, number) in
                [&scale as &dyn Fn(usize) -> f32, &|row| sum(row, 1, 0), &|row| sum(row, 2, 0), &|row| {
                    sum(row, 2, 1)
                }]
                .into_iter()
                .enumerate()
            {
                let both = vcombine_f32(vdup_n_f32(number(row)), vdup_n_f32(number(row + next)));
                vst1q_f32(floats.add(group * GROUP / 4 + i * 4), both);
            }
        }
    }
}

/// Rows as [`pair_rows`] or [`pair`] left them, from some pair and group on.
#[derive(Clone, Copy)]
struct Pairs {
    codes: *const i8,
    floats: *const f32,
    /// Columns of a row: pairs lie 4 times as many bytes apart.
    k: usize,
}

/// # Safety
/// As [`QuantKernels::gemm`]; the processor has `smmla`.
pub(super) unsafe fn gemm(p: &Product) {
    let mut table = Table::<4>::new();
    for span in Span::of(p) {
        // SAFETY: the caller's promise.
        unsafe {
            table.fill(p, span.group, span.groups);
            match (p.kind.halves, p.kind.offset == Offset::Min) {
                (1, false) => rows::<3, 1, false>(p, span, &table),
                (1, true) => rows::<3, 1, true>(p, span, &table),
                (_, false) => rows::<2, 2, false>(p, span, &table),
                (_, true) => rows::<2, 2, true>(p, span, &table),
            }
        }
    }
}

/// # Safety
/// As [`gemm`], with the span's scales in the table.
unsafe fn rows<const PAIRS: usize, const HALVES: usize, const MIN: bool>(
    p: &Product,
    span: Span,
    table: &Table<4>,
) {
    // The copy holds just the columns of this product.
    let k = 32 * p.groups;
    let mut row = 0;
    // SAFETY: the caller's promise; tiles end at the last row.
    unsafe {
        let codes = p.a.copy.cast::<i8>().wrapping_add(span.group * GROUP);
        let pairs = |row: usize| {
            let codes = codes.wrapping_add(row * 2 * k);
            Pairs { codes, floats: codes.wrapping_add(2 * k).cast(), k }
        };
        while p.rows - row >= 2 * PAIRS {
            tile::<PAIRS, HALVES, MIN>(p, span, table, row, pairs(row));
            row += 2 * PAIRS;
        }
        while p.rows - row >= 2 {
            tile::<1, HALVES, MIN>(p, span, table, row, pairs(row));
            row += 2;
        }
        if p.rows > row {
            last_row::<HALVES, MIN>(p, span, table, row);
        }
    }
}

/// The last of an odd number of rows, paired with itself.
///
/// # Safety
/// As [`rows`], with `row` the last row.
unsafe fn last_row<const HALVES: usize, const MIN: bool>(
    p: &Product,
    span: Span,
    table: &Table<4>,
    row: usize,
) {
    let mut codes = [0i8; BLOCK * GROUP];
    let mut floats = [0.0f32; BLOCK * GROUP / 4];
    let mut c = [0.0f32; 2 * PANEL];
    // SAFETY: the buffers hold a span of a pair, and the product of a pair.
    unsafe {
        let at = row * p.a.k / 32 + span.group;
        let from = Rows {
            q: p.a.q.add(at * 32),
            copy: std::ptr::null(),
            scale: p.a.scale.add(at),
            sum16: p.a.sum16.add(at * 2),
            sum32: p.a.sum32.add(at),
            starts16: p.a.starts16.add(at * 2),
            starts32: p.a.starts32.add(at),
            k: p.a.k,
        };
        pair(&from, 0, 0, span.groups, codes.as_mut_ptr(), floats.as_mut_ptr());
        let target = std::slice::from_raw_parts_mut(p.c.add(row * p.ldc), PANEL);
        if !span.first {
            c[..PANEL].copy_from_slice(target);
        }
        let alone = Product { rows: 2, c: c.as_mut_ptr(), ldc: PANEL, ..*p };
        let pairs = Pairs { codes: codes.as_ptr(), floats: floats.as_ptr(), k: 0 };
        tile::<1, HALVES, MIN>(&alone, span, table, 0, pairs);
        target.copy_from_slice(&c[..PANEL]);
    }
}

/// Adds the products of 8 columns: of each pair from its `$q` and of codes from `$w` on with 8 outputs. One block, so that
/// the compiler cannot load ahead into registers that are not there: 24 sums, 3 pairs and 4 of codes are 31 of 32.
macro_rules! add8 {
    ($at:expr, $w:expr; $($a:ident $q:ident $s0:ident $s1:ident $s2:ident $s3:ident),*) => {
        asm!(
            $(concat!("ldr {", stringify!($a), ":q}, [{", stringify!($q), "}, {at}]"),)*
            "ldr {w0:q}, [{w}]", "ldr {w1:q}, [{w}, #16]",
            "ldr {w2:q}, [{w}, #32]", "ldr {w3:q}, [{w}, #48]",
            $(add8!(@product $a $s0 w0), add8!(@product $a $s1 w1),)*
            $(add8!(@product $a $s2 w2), add8!(@product $a $s3 w3),)*
            $($a = out(vreg) _, $q = in(reg) $q,
                $s0 = inout(vreg) $s0, $s1 = inout(vreg) $s1, $s2 = inout(vreg) $s2, $s3 = inout(vreg) $s3,)*
            at = in(reg) $at, w = in(reg) $w,
            w0 = out(vreg) _, w1 = out(vreg) _, w2 = out(vreg) _, w3 = out(vreg) _,
            options(nostack, preserves_flags, readonly, pure),
        )
    };
    (@product $a:ident $s:ident $w:ident) => {
        concat!("smmla {", stringify!($s), ":v}.4s, {", stringify!($a), ":v}.16b, {", stringify!($w), ":v}.16b")
    };
}

/// [`add8`] twice for a number of pairs known when compiled.
macro_rules! add16_pairs {
    ($sums:ident, $q:ident, $at:expr, $w:expr) => {{
        let (at, w) = ($at, $w);
        for step in 0..2 {
            let (at, w) = (at + 16 * step, w.add(64 * step));
            match PAIRS {
                3 => add16_pairs!(@pairs $sums $q at w;
                    0 a0 q0 s00 s01 s02 s03, 1 a1 q1 s10 s11 s12 s13, 2 a2 q2 s20 s21 s22 s23),
                2 => add16_pairs!(@pairs $sums $q at w; 0 a0 q0 s00 s01 s02 s03, 1 a1 q1 s10 s11 s12 s13),
                _ => add16_pairs!(@pairs $sums $q at w; 0 a0 q0 s00 s01 s02 s03),
            }
        }
    }};
    (@pairs $sums:ident $q:ident $at:ident $w:ident;
        $($r:literal $a:ident $pair:ident $s0:ident $s1:ident $s2:ident $s3:ident),*) => {{
        $(let ($pair, [mut $s0, mut $s1, mut $s2, mut $s3]) = ($q[$r % PAIRS], $sums[$r % PAIRS]);)*
        add8!($at, $w; $($a $pair $s0 $s1 $s2 $s3),*);
        $($sums[$r % PAIRS] = [$s0, $s1, $s2, $s3];)*
    }};
}

/// # Safety
/// As [`rows`], for `row..row + 2 * PAIRS`, which `pairs` holds.
#[inline(never)]
#[target_feature(enable = "neon,i8mm")]
unsafe fn tile<const PAIRS: usize, const HALVES: usize, const MIN: bool>(
    p: &Product,
    span: Span,
    table: &Table<4>,
    row: usize,
    pairs: Pairs,
) {
    for half in 0..2 {
        // SAFETY: the caller's promise; all offsets lie within what the fields of `Product` describe.
        unsafe {
            let c = p.c.add(row * p.ldc + half * PANEL / 2);
            let mut y = [[vdupq_n_f32(0.0); 4]; PAIRS];
            if !span.first {
                for (r, y) in y.iter_mut().enumerate() {
                    let c = c.add(2 * r * p.ldc);
                    for (n, y) in y.iter_mut().enumerate() {
                        *y = vcombine_f32(vld1_f32(c.add(2 * n)), vld1_f32(c.add(p.ldc + 2 * n)));
                    }
                }
            }
            let mut q = [pairs.codes; PAIRS];
            for (r, q) in q.iter_mut().enumerate() {
                *q = q.add(r * 4 * pairs.k);
            }
            for i in 0..span.groups {
                let w = p.codes.add(((span.group + i) * 2 + half) * HALF_PANEL).cast::<i8>();
                let at = i * GROUP;
                let floats = pairs.floats.add(i * GROUP / 4);
                let scales = table.half(half).add(i * HALVES * Table::<4>::STRIDE);
                let mut sums = [[vdupq_n_s32(0); 4]; PAIRS];
                start(&mut sums);
                add16_pairs!(sums, q, at, w);
                if HALVES == 1 {
                    add16_pairs!(sums, q, at + GROUP / 2, w.add(HALF_PANEL / 2));
                }
                let mut t = y;
                for r in 0..PAIRS {
                    for n in [0, 2] {
                        let at = scales.add(n * NR);
                        let s = [vld1q_f32(at), vld1q_f32(at.add(NR))];
                        let negative = [at.add(4 * NR), at.add(5 * NR)];
                        [t[r][n], t[r][n + 1]] = scaled2([sums[r][n], sums[r][n + 1]], s, negative);
                    }
                }
                if HALVES == 2 {
                    let scales = scales.add(Table::<4>::STRIDE);
                    start(&mut sums);
                    add16_pairs!(sums, q, at + GROUP / 2, w.add(HALF_PANEL / 2));
                    for r in 0..PAIRS {
                        for n in 0..4 {
                            let sum = vsubq_f32(vreinterpretq_f32_s32(sums[r][n]), splat(MAGIC));
                            t[r][n] = vfmaq_f32(t[r][n], sum, vld1q_f32(scales.add(n * NR)));
                        }
                    }
                }
                for r in 0..PAIRS {
                    if MIN {
                        for h in 0..HALVES {
                            let m = scales.add(h * Table::<4>::STRIDE + 2 * 4 * NR);
                            let u = vld1q_f32(floats.add(r * pairs.k + 4 * (HALVES + h)));
                            for n in 0..4 {
                                t[r][n] = vfmaq_f32(t[r][n], vld1q_f32(m.add(n * NR)), u);
                            }
                        }
                    }
                    let a = vld1q_f32(floats.add(r * pairs.k));
                    for n in 0..4 {
                        y[r][n] = vfmaq_f32(y[r][n], t[r][n], a);
                    }
                }
            }
            for (r, y) in y.into_iter().enumerate() {
                let c = c.add(2 * r * p.ldc);
                for (n, y) in y.into_iter().enumerate() {
                    vst1_f32(c.add(2 * n), vget_low_f32(y));
                    vst1_f32(c.add(p.ldc + 2 * n), vget_high_f32(y));
                }
            }
        }
    }
}

/// [`MAGIC`] in all sums.
#[inline(always)]
fn start<const PAIRS: usize>(sums: &mut [[int32x4_t; 4]; PAIRS]) {
    for sum in sums.as_flattened_mut() {
        *sum = start_sum();
    }
}
