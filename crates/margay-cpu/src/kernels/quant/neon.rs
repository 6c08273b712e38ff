//! NEON integer kernels: `smull` and `sadalp` on any aarch64, `sdot` and `smmla` where the processor has them.
//!
//! All codes fit signed bytes, so the three differ only in how they add up products; `tiles!` writes the rest once for
//! each. `sdot` and `smmla` are inline assembly because their intrinsics are unstable in Rust 1.95.

use super::{Product, QuantKernels, scales};
use crate::pack::{Codes, Kind, Offset, PANEL};
use std::arch::{aarch64::*, asm};

/// Outputs a register holds.
const NR: usize = 4;
/// Registers a panel takes.
const REGISTERS: usize = PANEL / NR;
/// Bytes of 4 columns of a panel.
const CHUNK: usize = 4 * PANEL;

/// Sums of one row for the outputs of a panel.
type Sums = [int32x4_t; REGISTERS];

pub(super) static NEON: QuantKernels = table("smull and sadalp of NEON", base::gemm, base::gemv);
pub(super) static DOTPROD: QuantKernels = table("sdot of NEON", dotprod::gemm, dotprod::gemv);
pub(super) static I8MM: QuantKernels =
    table("smmla of NEON, sdot for single rows", i8mm::gemm, dotprod::gemv);

const fn table(name: &'static str, gemm: unsafe fn(&Product), gemv: unsafe fn(&Product)) -> QuantKernels {
    QuantKernels {
        name,
        wants_q16: |_| false,
        unpacked_bytes: |codes| match codes {
            Codes::U4 => 1,
            _ => 0,
        },
        gemv_reads_packed: |_, _| false,
        unpack,
        scales: |kind, scaling, packed, s, m| scales::unpack::<PANEL>(kind, scaling, packed, s, m),
        gemm,
        gemv,
    }
}

/// # Safety
/// As [`QuantKernels::unpack`].
unsafe fn unpack(_: Codes, packed: *const u8, k: usize, out: *mut u8) {
    for i in 0..k / 8 {
        for part in 0..REGISTERS {
            // SAFETY: 64 packed bytes become 128.
            unsafe {
                let both = vld1q_u8(packed.add(i * CHUNK + part * 16));
                let out = out.add(i * 2 * CHUNK + part * 16);
                vst1q_u8(out, vandq_u8(both, vdupq_n_u8(15)));
                vst1q_u8(out.add(CHUNK), vshrq_n_u8::<4>(both));
            }
        }
    }
}

/// 4 columns of a panel: a chunk of bytes, or the low or high nibbles of one.
///
/// # Safety
/// The chunk lies within the panel.
#[inline(always)]
unsafe fn codes<const NIBBLES: bool>(panel: *const u8, chunk: usize, part: usize) -> int8x16_t {
    // SAFETY: the caller's promise.
    unsafe {
        if NIBBLES {
            let both = vld1q_u8(panel.add(chunk / 2 * CHUNK + part * 16));
            let half = if chunk % 2 == 0 { vandq_u8(both, vdupq_n_u8(15)) } else { vshrq_n_u8::<4>(both) };
            vreinterpretq_s8_u8(half)
        } else {
            vld1q_s8(panel.add(chunk * CHUNK + part * 16).cast())
        }
    }
}

/// 4 activations in every lane.
///
/// # Safety
/// 4 bytes are readable at `at`.
#[inline(always)]
unsafe fn broadcast4(at: *const i8) -> int8x16_t {
    // SAFETY: the caller's promise.
    unsafe { vreinterpretq_s8_s32(vdupq_n_s32(at.cast::<i32>().read_unaligned())) }
}

macro_rules! tiles {
    ($module:ident, $features:literal, $rows:literal, $least:literal, $sums:ident $(, $gemv:ident)?) => {
        mod $module {
            use super::*;

            /// # Safety
            /// As [`QuantKernels::gemm`].
            pub(super) unsafe fn gemm(p: &Product) {
                let mut row = 0;
                // SAFETY: the caller's promise, and the processor was found to have the features.
                unsafe {
                    while p.rows - row >= $rows {
                        tile::<false, $rows>(p, row);
                        row += $rows;
                    }
                    while p.rows - row >= $least {
                        tile::<false, $least>(p, row);
                        row += $least;
                    }
                    if p.rows > row {
                        // An odd last row: matrix instructions take two.
                        super::gemm_last(p, row);
                    }
                }
            }

            $(
                /// # Safety
                /// As [`QuantKernels::gemv`].
                pub(super) unsafe fn $gemv(p: &Product) {
                    // SAFETY: the caller's promise, and the processor was found to have the features.
                    unsafe {
                        if p.kind.codes == Codes::U4 {
                            tile::<true, 1>(p, 0);
                        } else {
                            tile::<false, 1>(p, 0);
                        }
                    }
                }
            )?

            /// # Safety
            /// As [`QuantKernels::gemm`], and `row + ROWS <= p.rows`.
            #[target_feature(enable = $features)]
            unsafe fn tile<const NIBBLES: bool, const ROWS: usize>(p: &Product, row: usize) {
                // SAFETY: the caller's promise; all offsets lie within what the fields of `Product` describe.
                unsafe {
                    let mut acc = Accumulators::<ROWS>::start(p, row);
                    let halves = p.kind.halves;
                    for group in 0..p.groups {
                        for half in 0..halves {
                            let first = (group * halves + half) * (8 / halves);
                            let q = p.a.q.add(row * p.a.k + first * 4);
                            let sums = if halves == 1 {
                                $sums::<NIBBLES, 8, ROWS>(p.codes, first, q, p.a.k)
                            } else {
                                $sums::<NIBBLES, 4, ROWS>(p.codes, first, q, p.a.k)
                            };
                            acc.scale(p, row, group, half, sums);
                        }
                        acc.close(p, row, group);
                    }
                    acc.store(p, row);
                }
            }
        }
    };
}

tiles!(base, "neon", 2, 1, sums_base, gemv);
tiles!(dotprod, "neon,dotprod", 4, 1, sums_dotprod, gemv);
tiles!(i8mm, "neon,dotprod,i8mm", 4, 2, sums_i8mm);

/// The last row of an odd number; the processor has `sdot` where tiles take two rows.
///
/// # Safety
/// As [`QuantKernels::gemm`], with `row` the last row.
unsafe fn gemm_last(p: &Product, row: usize) {
    let a = &p.a;
    // SAFETY: the pointers move to the last row of the product.
    unsafe {
        let last = Product {
            rows: 1,
            a: super::Rows {
                q: a.q.add(row * a.k),
                q16: a.q16,
                scale: a.scale.add(row * a.k / 32),
                sum16: a.sum16.add(row * a.k / 16),
                sum32: a.sum32.add(row * a.k / 32),
                k: a.k,
            },
            c: p.c.add(row * p.ldc),
            ..*p
        };
        dotprod::gemm(&last);
    }
}

/// The float side of a tile.
struct Accumulators<const ROWS: usize> {
    acc: [[float32x4_t; REGISTERS]; ROWS],
    t: [[float32x4_t; REGISTERS]; ROWS],
}

impl<const ROWS: usize> Accumulators<ROWS> {
    /// # Safety
    /// As [`QuantKernels::gemm`], and `row + ROWS <= p.rows`; so for all others.
    #[inline(always)]
    unsafe fn start(p: &Product, row: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let mut acc = [[vdupq_n_f32(0.0); REGISTERS]; ROWS];
            if !p.first {
                for (r, acc) in acc.iter_mut().enumerate() {
                    for (w, acc) in acc.iter_mut().enumerate() {
                        *acc = vld1q_f32(p.c.add((row + r) * p.ldc + w * NR));
                    }
                }
            }
            Accumulators { acc, t: acc }
        }
    }

    /// Sums of activation codes of a group or of half of it.
    ///
    /// # Safety
    /// As [`Self::start`].
    #[inline(always)]
    unsafe fn code_sum(p: &Product, row: usize, group: usize, half: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe {
            if p.kind.halves == 1 {
                *p.a.sum32.add(row * p.a.k / 32 + group)
            } else {
                *p.a.sum16.add(row * p.a.k / 16 + group * 2 + half)
            }
        }
    }

    /// # Safety
    /// As [`Self::start`].
    #[inline(always)]
    unsafe fn scale(&mut self, p: &Product, row: usize, group: usize, half: usize, sums: [Sums; ROWS]) {
        // SAFETY: the caller's promise.
        unsafe {
            for (r, sums) in sums.into_iter().enumerate() {
                for (w, sum) in sums.into_iter().enumerate() {
                    let s = vld1q_f32(p.scales.add((group * p.kind.halves + half) * PANEL + w * NR));
                    let mut sum = vcvtq_f32_s32(sum);
                    if let Kind { offset: Offset::Zero(zero), .. } = p.kind {
                        // Exact: all three are integers below 2^24.
                        let u = Self::code_sum(p, row + r, group, half);
                        sum = vfmsq_n_f32(sum, vdupq_n_f32(u), f32::from(zero));
                    }
                    let t = &mut self.t[r][w];
                    *t = if half == 0 { vmulq_f32(sum, s) } else { vfmaq_f32(*t, sum, s) };
                }
            }
        }
    }

    /// # Safety
    /// As [`Self::start`].
    #[inline(always)]
    unsafe fn close(&mut self, p: &Product, row: usize, group: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            for r in 0..ROWS {
                let a = *p.a.scale.add((row + r) * p.a.k / 32 + group);
                for w in 0..REGISTERS {
                    let mut t = self.t[r][w];
                    if p.kind.offset == Offset::Min {
                        for half in 0..p.kind.halves {
                            let at = (group * p.kind.halves + half) * PANEL + w * NR;
                            let u = Self::code_sum(p, row + r, group, half);
                            t = vfmaq_n_f32(t, vld1q_f32(p.mins.add(at)), u);
                        }
                    }
                    self.acc[r][w] = vfmaq_n_f32(self.acc[r][w], t, a);
                }
            }
        }
    }

    /// # Safety
    /// As [`Self::start`].
    #[inline(always)]
    unsafe fn store(self, p: &Product, row: usize) {
        for (r, acc) in self.acc.into_iter().enumerate() {
            for (w, acc) in acc.into_iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe { vst1q_f32(p.c.add((row + r) * p.ldc + w * NR), acc) }
            }
        }
    }
}

/// Products of `CHUNKS` chunks from `first` on with `ROWS` rows from `q` on.
///
/// # Safety
/// The chunks lie within the panel; the rows, `lda` apart, hold as many columns.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn sums_base<const NIBBLES: bool, const CHUNKS: usize, const ROWS: usize>(
    panel: *const u8,
    first: usize,
    q: *const i8,
    lda: usize,
) -> [Sums; ROWS] {
    // SAFETY: the caller's promise.
    unsafe {
        // Two outputs a register, each as two partial sums.
        let mut low = [[vdupq_n_s32(0); REGISTERS]; ROWS];
        let mut high = low;
        for chunk in 0..CHUNKS {
            for part in 0..REGISTERS {
                let w = codes::<NIBBLES>(panel, first + chunk, part);
                for r in 0..ROWS {
                    let a = broadcast4(q.add(r * lda + chunk * 4));
                    let products = vmull_s8(vget_low_s8(w), vget_low_s8(a));
                    low[r][part] = vpadalq_s16(low[r][part], products);
                    high[r][part] = vpadalq_s16(high[r][part], vmull_high_s8(w, a));
                }
            }
        }
        let mut sums = low;
        for r in 0..ROWS {
            for part in 0..REGISTERS {
                sums[r][part] = vpaddq_s32(low[r][part], high[r][part]);
            }
        }
        sums
    }
}

/// As [`sums_base`].
///
/// # Safety
/// As [`sums_base`].
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn sums_dotprod<const NIBBLES: bool, const CHUNKS: usize, const ROWS: usize>(
    panel: *const u8,
    first: usize,
    q: *const i8,
    lda: usize,
) -> [Sums; ROWS] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[vdupq_n_s32(0); REGISTERS]; ROWS];
        for chunk in 0..CHUNKS {
            let mut w = [vdupq_n_s8(0); REGISTERS];
            for (part, w) in w.iter_mut().enumerate() {
                *w = codes::<NIBBLES>(panel, first + chunk, part);
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = broadcast4(q.add(r * lda + chunk * 4));
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = sdot(*sum, w, a);
                }
            }
        }
        sums
    }
}

/// As [`sums_base`], for an even number of rows.
///
/// # Safety
/// As [`sums_base`].
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
unsafe fn sums_i8mm<const NIBBLES: bool, const CHUNKS: usize, const ROWS: usize>(
    panel: *const u8,
    first: usize,
    q: *const i8,
    lda: usize,
) -> [Sums; ROWS] {
    // SAFETY: the caller's promise.
    unsafe {
        // Of each pair of rows and each register of 4 outputs: the 2 x 2 products with the first and last two.
        let mut low = [[vdupq_n_s32(0); REGISTERS]; ROWS];
        let mut high = low;
        for chunk in (0..CHUNKS).step_by(2) {
            for part in 0..REGISTERS {
                let w0 = vreinterpretq_s32_s8(codes::<NIBBLES>(panel, first + chunk, part));
                let w1 = vreinterpretq_s32_s8(codes::<NIBBLES>(panel, first + chunk + 1, part));
                // 8 columns of two outputs each.
                let outputs01 = vreinterpretq_s8_s32(vzip1q_s32(w0, w1));
                let outputs23 = vreinterpretq_s8_s32(vzip2q_s32(w0, w1));
                for pair in 0..ROWS / 2 {
                    let a = q.add(2 * pair * lda + chunk * 4);
                    let a = vcombine_s8(vld1_s8(a), vld1_s8(a.add(lda)));
                    low[pair][part] = smmla(low[pair][part], a, outputs01);
                    high[pair][part] = smmla(high[pair][part], a, outputs23);
                }
            }
        }
        let mut sums = low;
        for pair in 0..ROWS / 2 {
            for part in 0..REGISTERS {
                let l = vreinterpretq_s64_s32(low[pair][part]);
                let h = vreinterpretq_s64_s32(high[pair][part]);
                sums[2 * pair][part] = vreinterpretq_s32_s64(vzip1q_s64(l, h));
                sums[2 * pair + 1][part] = vreinterpretq_s32_s64(vzip2q_s64(l, h));
            }
        }
        sums
    }
}

/// Adds the products of each 4 bytes.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: one instruction on registers; the feature is enabled.
    unsafe {
        asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sum, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// Adds the product of a 2 x 8 and an 8 x 2 matrix, the second given by its columns.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn smmla(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: one instruction on registers; the feature is enabled.
    unsafe {
        asm!("smmla {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sum, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}
