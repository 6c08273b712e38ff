//! `smull` and `smlal`: 8 products of bytes, added in 16 bits while they fit, for processors without `sdot`.
//!
//! A lane adds every fourth product of an output. Codes of up to 6 bits, less their zero point or not, let it add a
//! group's 8 (or half a group's 4): 8 * 127 * 32 < 2^15, 8 * 127 * 31, 4 * 127 * 63. Codes of 8 bits let it add two.

use super::*;

/// # Safety
/// As [`QuantKernels::gemm`].
pub(super) unsafe fn gemm(p: &Product) {
    // The float side needs no table: the pipe that multiplies bytes is the busy one, and conversions take another.
    // SAFETY: the caller's promise.
    unsafe {
        match (p.kind.codes == Codes::I8, p.kind.halves, p.kind.offset == Offset::Min) {
            (true, 1, false) => rows::<2, true, 1, false>(p),
            (true, 1, true) => rows::<2, true, 1, true>(p),
            (true, _, false) => rows::<2, true, 2, false>(p),
            (true, _, true) => rows::<2, true, 2, true>(p),
            (false, 1, false) => rows::<3, false, 1, false>(p),
            (false, 1, true) => rows::<3, false, 1, true>(p),
            (false, _, false) => rows::<3, false, 2, false>(p),
            (false, _, true) => rows::<3, false, 2, true>(p),
        }
    }
}

/// # Safety
/// As [`gemm`].
unsafe fn rows<const ROWS: usize, const BYTES: bool, const HALVES: usize, const MIN: bool>(p: &Product) {
    let mut row = 0;
    // SAFETY: the caller's promise; tiles end at the last row.
    unsafe {
        while p.rows - row >= ROWS {
            tile::<ROWS, BYTES, HALVES, MIN>(p, row);
            row += ROWS;
        }
        while p.rows > row {
            tile::<1, BYTES, HALVES, MIN>(p, row);
            row += 1;
        }
    }
}

/// # Safety
/// As [`gemm`], and `row + ROWS <= p.rows`.
#[inline(never)]
unsafe fn tile<const ROWS: usize, const BYTES: bool, const HALVES: usize, const MIN: bool>(
    p: &Product,
    row: usize,
) {
    for half in 0..2 {
        // SAFETY: the caller's promise; all offsets lie within what the fields of `Product` describe.
        unsafe {
            let k = p.a.k;
            let c = p.c.add(row * p.ldc + half * PANEL / 2);
            let mut y = [[vdupq_n_f32(0.0); 2]; ROWS];
            if !p.first {
                for (r, y) in y.iter_mut().enumerate() {
                    *y = [0, NR].map(|n| vld1q_f32(c.add(r * p.ldc + n)));
                }
            }
            for group in 0..p.groups {
                let mut t = y;
                let at = |h: usize, n: usize| (group * HALVES + h) * PANEL + half * PANEL / 2 + n * NR;
                for h in 0..HALVES {
                    let w = p.codes.add((group * 2 + half) * HALF_PANEL + h * HALF_PANEL / 2).cast::<i8>();
                    let q = p.a.q.add(row * k + group * 32 + h * 16);
                    let mut sums = [Sums::zero(); ROWS];
                    add16::<ROWS, BYTES>(&mut sums, q, k, w, 0);
                    if HALVES == 1 {
                        add16::<ROWS, BYTES>(&mut sums, q.add(16), k, w.add(HALF_PANEL / 2), 4);
                    }
                    for r in 0..ROWS {
                        let sums = sums[r].total::<BYTES>();
                        for n in 0..2 {
                            let (sum, s) = (vcvtq_f32_s32(sums[n]), vld1q_f32(p.scales.add(at(h, n))));
                            t[r][n] = if h == 0 { vmulq_f32(sum, s) } else { vfmaq_f32(t[r][n], sum, s) };
                        }
                    }
                }
                for r in 0..ROWS {
                    let a = *p.a.scale.add((row + r) * k / 32 + group);
                    for n in 0..2 {
                        if MIN {
                            for h in 0..HALVES {
                                let u = p.a.code_sum(row + r, group, HALVES, h);
                                t[r][n] = vfmaq_n_f32(t[r][n], vld1q_f32(p.mins.add(at(h, n))), u);
                            }
                        }
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

/// Sums of products of one row with 8 outputs: two outputs a register.
#[derive(Clone, Copy)]
struct Sums {
    narrow: [int16x8_t; 4],
    /// Where codes have 8 bits.
    wide: [int32x4_t; 4],
}

impl Sums {
    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: NEON is part of aarch64.
        unsafe { Sums { narrow: [vdupq_n_s16(0); 4], wide: [vdupq_n_s32(0); 4] } }
    }

    /// Adds the products of chunk `chunk` of a group or half of one: `a` holds 4 columns 4 times.
    #[inline(always)]
    fn add<const BYTES: bool>(&mut self, w: [int8x16_t; 2], a: int8x16_t, chunk: usize) {
        let first = if BYTES { chunk.is_multiple_of(2) } else { chunk == 0 };
        // SAFETY: NEON is part of aarch64.
        unsafe {
            let low = vget_low_s8(a);
            for (n, w) in w.into_iter().enumerate() {
                let sums = &mut self.narrow[2 * n..2 * n + 2];
                if first {
                    sums[0] = vmull_s8(vget_low_s8(w), low);
                    sums[1] = vmull_high_s8(w, a);
                } else {
                    sums[0] = vmlal_s8(sums[0], vget_low_s8(w), low);
                    sums[1] = vmlal_high_s8(sums[1], w, a);
                }
            }
            if BYTES && !first {
                for (wide, narrow) in self.wide.iter_mut().zip(self.narrow) {
                    *wide = vpadalq_s16(*wide, narrow);
                }
            }
        }
    }

    /// The sums of 8 outputs.
    #[inline(always)]
    fn total<const BYTES: bool>(self) -> [int32x4_t; 2] {
        // SAFETY: NEON is part of aarch64.
        unsafe {
            let [a, b, c, d] = if BYTES { self.wide } else { self.narrow.map(|sum| vpaddlq_s16(sum)) };
            [vpaddq_s32(a, b), vpaddq_s32(c, d)]
        }
    }
}

/// Adds the products of 16 columns of `ROWS` rows from `q` on, `k` apart, with 8 outputs; `chunk` were added before.
///
/// # Safety
/// Rows and codes hold 16 columns.
#[inline(always)]
unsafe fn add16<const ROWS: usize, const BYTES: bool>(
    sums: &mut [Sums; ROWS],
    q: *const i8,
    k: usize,
    w: *const i8,
    chunk: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut a = [vdupq_n_s32(0); ROWS];
        for (r, a) in a.iter_mut().enumerate() {
            *a = vreinterpretq_s32_s8(vld1q_s8(q.add(r * k)));
        }
        for i in 0..4 {
            let w = vld1q_s8_x2(w.add(i * 32));
            for (sums, a) in sums.iter_mut().zip(a) {
                let four = match i {
                    0 => vdupq_laneq_s32::<0>(a),
                    1 => vdupq_laneq_s32::<1>(a),
                    2 => vdupq_laneq_s32::<2>(a),
                    _ => vdupq_laneq_s32::<3>(a),
                };
                sums.add::<BYTES>([w.0, w.1], vreinterpretq_s8_s32(four), chunk + i);
            }
        }
    }
}

/// # Safety
/// As [`QuantKernels::gemv`].
pub(super) unsafe fn gemv(p: &Product) {
    // SAFETY: the caller's promise.
    unsafe { one_row_of_kind!(p) }
}

/// # Safety
/// As [`gemv`].
#[inline(never)]
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
                let mut sums = [Sums::zero(); 2];
                add_codes::<BITS, HALVES>(&mut sums, codes, p.a.q.add(group * 32 + h * 16));
                prefetch(codes, (BITS / HALVES) as i32);
                codes = codes.add(BITS * CHUNK / HALVES);
                u[h] = p.a.code_sum(0, group, HALVES, h);
                let s;
                [s, m[h]] = scales.next::<PACKED, MIN>();
                let zeros = vmulq_n_f32(zero, u[h]);
                for side in 0..2 {
                    let sums =
                        if BITS == 8 { sums[side].total::<true>() } else { sums[side].total::<false>() };
                    for (n, sum) in sums.into_iter().enumerate() {
                        let n = 2 * side + n;
                        // Integers below 2^24: exact.
                        let sum = vsubq_f32(vcvtq_f32_s32(sum), zeros);
                        t[n] = if h == 0 { vmulq_f32(sum, s[n]) } else { vfmaq_f32(t[n], sum, s[n]) };
                    }
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
#[inline(always)]
unsafe fn add_codes<const BITS: usize, const HALVES: usize>(
    sums: &mut [Sums; 2],
    packed: *const u8,
    q: *const i8,
) {
    // SAFETY: the caller's promise.
    let (line, register) = unsafe {
        (
            |i: usize| line(packed.add(i * CHUNK)),
            |i: usize, n: usize| vld1q_u8(packed.add(i * CHUNK + n * 16)),
        )
    };
    // How many chunks were added, in whichever order.
    let mut added = 0;
    let mut add = |chunk: usize, codes: [uint8x16_t; REGISTERS]| {
        // SAFETY: NEON is part of aarch64, and the caller's promise.
        let (a, codes) = unsafe {
            let a = vreinterpretq_s32_s8(vld1q_s8(q.add(chunk / 4 * 16)));
            let a = match chunk % 4 {
                0 => vdupq_laneq_s32::<0>(a),
                1 => vdupq_laneq_s32::<1>(a),
                2 => vdupq_laneq_s32::<2>(a),
                _ => vdupq_laneq_s32::<3>(a),
            };
            (vreinterpretq_s8_s32(a), codes.map(|codes| vreinterpretq_s8_u8(codes)))
        };
        for (sums, codes) in sums.iter_mut().zip(codes.as_chunks().0) {
            if BITS == 8 {
                sums.add::<true>(*codes, a, added);
            } else {
                sums.add::<false>(*codes, a, added);
            }
        }
        added += 1;
    };
    match BITS {
        4 => {
            for i in 0..4 / HALVES {
                let line = line(i);
                add(2 * i, line.map(low));
                add(2 * i + 1, line.map(high));
            }
        }
        5 => {
            // No loop: the compiler keeps it, and branches within.
            macro_rules! both {
                ($($i:literal)*) => {
                    $({
                        add($i, std::array::from_fn(|n| low_five(register($i, n))));
                        add(4 + $i, std::array::from_fn(|n| high_five(register($i, n), register(4, n), $i)));
                    })*
                };
            }
            both!(0 1 2 3);
        }
        6 => {
            for i in 0..3 {
                add(i, std::array::from_fn(|n| low_six(register(i, n))));
            }
            add(3, std::array::from_fn(|n| last_six([0, 1, 2].map(|i| register(i, n)))));
        }
        _ => {
            for i in 0..8 / HALVES {
                add(i, line(i));
            }
        }
    }
}
