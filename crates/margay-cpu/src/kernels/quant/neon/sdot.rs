//! `sdot`: each of 4 lanes adds the products of 4 bytes; the activations come from one lane of a register.

use super::*;

/// # Safety
/// As [`QuantKernels::gemm`]; the processor has `sdot`.
pub(super) unsafe fn gemm(p: &Product) {
    let mut table = Table::<2>::new();
    for span in Span::of(p) {
        // SAFETY: the caller's promise.
        unsafe {
            table.fill(p, span.group, span.groups);
            // 6 rows by 8 outputs, integer and float sums, take 24 of 32 registers. Two scales a group need a third
            // set of sums, so 4 rows.
            match (p.kind.halves, p.kind.offset == Offset::Min) {
                (1, false) => rows::<6, 1, false>(p, span, &table),
                (1, true) => rows::<6, 1, true>(p, span, &table),
                (_, false) => rows::<4, 2, false>(p, span, &table),
                (_, true) => rows::<4, 2, true>(p, span, &table),
            }
        }
    }
}

/// # Safety
/// As [`gemm`], with the span's scales in the table.
unsafe fn rows<const ROWS: usize, const HALVES: usize, const MIN: bool>(
    p: &Product,
    span: Span,
    table: &Table<2>,
) {
    let mut row = 0;
    // SAFETY: the caller's promise; tiles end at the last row.
    unsafe {
        while p.rows - row >= ROWS {
            tile::<ROWS, HALVES, MIN>(p, span, table, row);
            row += ROWS;
        }
        while p.rows - row >= 2 {
            tile::<2, HALVES, MIN>(p, span, table, row);
            row += 2;
        }
        if p.rows > row {
            tile::<1, HALVES, MIN>(p, span, table, row);
        }
    }
}

/// Adds the products of 16 columns: of each row from its `$q` and of codes from `$w` on with 8 outputs. One block, so that
/// the compiler cannot load ahead into registers that are not there: 24 sums, 6 rows and 2 of codes are all 32.
macro_rules! add16 {
    ($at:expr, $w:expr; $($a:ident $q:ident $s0:ident $s1:ident),*) => {
        asm!(
            $(concat!("ldr {", stringify!($a), ":q}, [{", stringify!($q), "}, {at}]"),)*
            "ldr {w0:q}, [{w}]", "ldr {w1:q}, [{w}, #16]",
            $(add16!(@lane "0" $a $s0 w0), add16!(@lane "0" $a $s1 w1),)*
            "ldr {w0:q}, [{w}, #32]", "ldr {w1:q}, [{w}, #48]",
            $(add16!(@lane "1" $a $s0 w0), add16!(@lane "1" $a $s1 w1),)*
            "ldr {w0:q}, [{w}, #64]", "ldr {w1:q}, [{w}, #80]",
            $(add16!(@lane "2" $a $s0 w0), add16!(@lane "2" $a $s1 w1),)*
            "ldr {w0:q}, [{w}, #96]", "ldr {w1:q}, [{w}, #112]",
            $(add16!(@lane "3" $a $s0 w0), add16!(@lane "3" $a $s1 w1),)*
            $($a = out(vreg) _, $q = in(reg) $q, $s0 = inout(vreg) $s0, $s1 = inout(vreg) $s1,)*
            at = in(reg) $at, w = in(reg) $w, w0 = out(vreg) _, w1 = out(vreg) _,
            options(nostack, preserves_flags, readonly, pure),
        )
    };
    (@lane $lane:literal $a:ident $s:ident $w:ident) => {
        concat!("sdot {", stringify!($s), ":v}.4s, {", stringify!($w), ":v}.16b, {", stringify!($a), ":v}.4b[", $lane, "]")
    };
}

/// [`add16`] for a number of rows known when compiled.
macro_rules! add16_rows {
    ($sums:ident, $q:ident, $at:expr, $w:expr) => {{
        let (at, w) = ($at, $w);
        match ROWS {
            6 => add16_rows!(@rows $sums $q at w;
                0 a0 q0 s00 s01, 1 a1 q1 s10 s11, 2 a2 q2 s20 s21, 3 a3 q3 s30 s31, 4 a4 q4 s40 s41, 5 a5 q5 s50 s51),
            4 => add16_rows!(@rows $sums $q at w; 0 a0 q0 s00 s01, 1 a1 q1 s10 s11, 2 a2 q2 s20 s21, 3 a3 q3 s30 s31),
            2 => add16_rows!(@rows $sums $q at w; 0 a0 q0 s00 s01, 1 a1 q1 s10 s11),
            _ => add16_rows!(@rows $sums $q at w; 0 a0 q0 s00 s01),
        }
    }};
    (@rows $sums:ident $q:ident $at:ident $w:ident; $($r:literal $a:ident $row:ident $s0:ident $s1:ident),*) => {{
        $(let ($row, mut $s0, mut $s1) = ($q[$r % ROWS], $sums[$r % ROWS][0], $sums[$r % ROWS][1]);)*
        add16!($at, $w; $($a $row $s0 $s1),*);
        $($sums[$r % ROWS] = [$s0, $s1];)*
    }};
}

/// # Safety
/// As [`rows`], and `row + ROWS <= p.rows`.
#[inline(never)]
#[target_feature(enable = "neon,dotprod")]
unsafe fn tile<const ROWS: usize, const HALVES: usize, const MIN: bool>(
    p: &Product,
    span: Span,
    table: &Table<2>,
    row: usize,
) {
    for half in 0..2 {
        // SAFETY: the caller's promise; all offsets lie within what the fields of `Product` describe.
        unsafe {
            let k = p.a.k;
            let c = p.c.add(row * p.ldc + half * PANEL / 2);
            let mut y = [[vdupq_n_f32(0.0); 2]; ROWS];
            if !span.first {
                for (r, y) in y.iter_mut().enumerate() {
                    *y = [vld1q_f32(c.add(r * p.ldc)), vld1q_f32(c.add(r * p.ldc + NR))];
                }
            }
            let mut q = [p.a.q; ROWS];
            for (r, q) in q.iter_mut().enumerate() {
                *q = q.add((row + r) * k);
            }
            for i in 0..span.groups {
                let group = span.group + i;
                let w = p.codes.add((group * 2 + half) * HALF_PANEL).cast::<i8>();
                let at = group * 32;
                let scales = table.half(half).add(i * HALVES * Table::<2>::STRIDE);
                let mut sums = [[vdupq_n_s32(0); 2]; ROWS];
                start(&mut sums);
                add16_rows!(sums, q, at, w);
                if HALVES == 1 {
                    add16_rows!(sums, q, at + 16, w.add(HALF_PANEL / 2));
                }
                let mut t = y;
                let s = [vld1q_f32(scales), vld1q_f32(scales.add(NR))];
                let negative = [scales.add(2 * NR), scales.add(3 * NR)];
                for r in 0..ROWS {
                    t[r] = scaled2(sums[r], s, negative);
                }
                if HALVES == 2 {
                    let scales = scales.add(Table::<2>::STRIDE);
                    start(&mut sums);
                    add16_rows!(sums, q, at + 16, w.add(HALF_PANEL / 2));
                    for r in 0..ROWS {
                        for n in 0..2 {
                            let sum = vsubq_f32(vreinterpretq_f32_s32(sums[r][n]), splat(MAGIC));
                            t[r][n] = vfmaq_f32(t[r][n], sum, vld1q_f32(scales.add(n * NR)));
                        }
                    }
                }
                for r in 0..ROWS {
                    if MIN {
                        for h in 0..HALVES {
                            let m = scales.add(h * Table::<2>::STRIDE + 2 * 2 * NR);
                            let u = p.a.code_sum(row + r, group, HALVES, h);
                            for n in 0..2 {
                                t[r][n] = vfmaq_n_f32(t[r][n], vld1q_f32(m.add(n * NR)), u);
                            }
                        }
                    }
                    let a = *p.a.scale.add((row + r) * k / 32 + group);
                    for n in 0..2 {
                        y[r][n] = vfmaq_n_f32(y[r][n], t[r][n], a);
                    }
                }
            }
            for (r, y) in y.into_iter().enumerate() {
                for (n, y) in y.into_iter().enumerate() {
                    vst1q_f32(c.add(r * p.ldc + n * NR), y);
                }
            }
        }
    }
}

/// [`MAGIC`] in all sums.
#[inline(always)]
fn start<const ROWS: usize>(sums: &mut [[int32x4_t; 2]; ROWS]) {
    for sums in sums {
        *sums = [start_sum(), start_sum()];
    }
}

/// Adds the products of each 4 bytes of w with the `LANE`th 4 bytes of a.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot<const LANE: i32>(mut sum: int32x4_t, w: uint8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: one instruction on registers; the feature is enabled.
    unsafe {
        asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{3}]", inout(vreg) sum, in(vreg) w, in(vreg) a, const LANE,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// # Safety
/// As [`QuantKernels::gemv`]; the processor has `sdot`.
pub(super) unsafe fn gemv(p: &Product) {
    // SAFETY: the caller's promise.
    unsafe { one_row_of_kind!(p) }
}

/// # Safety
/// As [`gemv`].
#[inline(never)]
#[target_feature(enable = "neon,dotprod")]
unsafe fn one_row<const BITS: usize, const PACKED: bool, const HALVES: usize, const MIN: bool>(p: &Product) {
    // SAFETY: the caller's promise; all offsets lie within what the fields of `Product` describe.
    unsafe {
        let mut y = start_row(p);
        let mut scales = RowScales::of(p);
        let zero = zero_point(p);
        let mut codes = p.codes;
        for group in 0..p.groups {
            let mut t = y;
            let mut u = [0.0; HALVES];
            let mut m = [[vdupq_n_f32(0.0); REGISTERS]; HALVES];
            for h in 0..HALVES {
                let mut sums = [vdupq_n_s32(0); REGISTERS];
                for sum in &mut sums {
                    *sum = start_sum();
                }
                add_codes::<BITS, HALVES>(&mut sums, codes, p.a.q.add(group * 32 + h * 16));
                prefetch(codes, (BITS / HALVES) as i32);
                codes = codes.add(BITS * CHUNK / HALVES);
                u[h] = p.a.code_sum(0, group, HALVES, h);
                let s;
                [s, m[h]] = scales.next::<PACKED, MIN>();
                // Integers below 2^24 all of them: exact, and so is the difference.
                let start = vfmaq_n_f32(vdupq_n_f32(MAGIC), zero, u[h]);
                for n in 0..REGISTERS {
                    let sum = vsubq_f32(vreinterpretq_f32_s32(sums[n]), start);
                    t[n] = if h == 0 { vmulq_f32(sum, s[n]) } else { vfmaq_f32(t[n], sum, s[n]) };
                }
            }
            let a = *p.a.scale.add(group);
            for n in 0..REGISTERS {
                if MIN {
                    for h in 0..HALVES {
                        t[n] = vfmaq_n_f32(t[n], m[h][n], u[h]);
                    }
                }
                y[n] = vfmaq_n_f32(y[n], t[n], a);
            }
        }
        store_row(p, y);
    }
}

/// Adds the products of a group or half of one to sums.
///
/// # Safety
/// The codes lie at `packed` and the activations at `q`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn add_codes<const BITS: usize, const HALVES: usize>(
    sums: &mut [int32x4_t; REGISTERS],
    packed: *const u8,
    q: *const i8,
) {
    // SAFETY: the caller's promise.
    let (line, register, activations) = unsafe {
        (
            |i: usize| line(packed.add(i * CHUNK)),
            |i: usize, n: usize| vld1q_u8(packed.add(i * CHUNK + n * 16)),
            |i: usize| vld1q_s8(q.add(16 * i)),
        )
    };
    match BITS {
        4 => {
            for i in 0..2 / HALVES {
                let (a, first, second) = (activations(i), line(2 * i), line(2 * i + 1));
                for n in 0..REGISTERS {
                    sums[n] = sdot::<0>(sums[n], low(first[n]), a);
                    sums[n] = sdot::<1>(sums[n], high(first[n]), a);
                }
                for n in 0..REGISTERS {
                    sums[n] = sdot::<2>(sums[n], low(second[n]), a);
                    sums[n] = sdot::<3>(sums[n], high(second[n]), a);
                }
            }
        }
        // A register at a time: whole lines of these would take more registers than there are.
        5 => {
            let (a0, a1) = (activations(0), activations(1));
            for n in 0..REGISTERS {
                let last = register(4, n);
                macro_rules! add {
                    ($($i:literal)*) => {
                        $({
                            let line = register($i, n);
                            sums[n] = sdot::<$i>(sums[n], low_five(line), a0);
                            sums[n] = sdot::<$i>(sums[n], high_five(line, last, $i), a1);
                        })*
                    };
                }
                add!(0 1 2 3);
            }
        }
        6 => {
            let a = activations(0);
            for n in 0..REGISTERS {
                let lines = [register(0, n), register(1, n), register(2, n)];
                sums[n] = sdot::<0>(sums[n], low_six(lines[0]), a);
                sums[n] = sdot::<1>(sums[n], low_six(lines[1]), a);
                sums[n] = sdot::<2>(sums[n], low_six(lines[2]), a);
                sums[n] = sdot::<3>(sums[n], last_six(lines), a);
            }
        }
        _ => {
            for i in 0..2 / HALVES {
                let (a, first, second) = (activations(i), line(4 * i), line(4 * i + 1));
                for n in 0..REGISTERS {
                    sums[n] = sdot::<0>(sums[n], first[n], a);
                    sums[n] = sdot::<1>(sums[n], second[n], a);
                }
                let (first, second) = (line(4 * i + 2), line(4 * i + 3));
                for n in 0..REGISTERS {
                    sums[n] = sdot::<2>(sums[n], first[n], a);
                    sums[n] = sdot::<3>(sums[n], second[n], a);
                }
            }
        }
    }
}
