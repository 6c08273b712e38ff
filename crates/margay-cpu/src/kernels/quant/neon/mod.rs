//! NEON integer kernels: `smull` and `smlal` on any aarch64, `sdot` and `smmla` where the processor has them.
//!
//! On cores that add and multiply with the same pipes, every instruction that is no product costs as much as one. So
//! products of many rows (`gemm`) leave out what can be left out (`docs/bench-notes-arm.md` counts it):
//!
//! * Codes are unpacked once for all rows, less their zero point, in the order in which tiles read them.
//! * Integer sums start at the bits of the float [`MAGIC`], so that they end as the float `MAGIC + sum`, and
//!   `fma(MAGIC + sum, s, -MAGIC * s)` is `sum * s`: a scale has at most 19 bits, `MAGIC` two, so that `MAGIC * s` is
//!   exact. One instruction replaces a conversion and a product, with the same bits. The exceptions: a zero is always
//!   positive, which the next addition forgets, and infinite scales give NaN.
//! * Registers that instructions overwrite are loaded anew ([`start_sum`]) instead of copied: loads have their own pipes.
//!
//! `sdot` and `smmla` are inline assembly because their intrinsics are unstable in Rust 1.95.

mod sdot;
mod smmla;
mod smull;

use super::{Product, QuantKernels, RowCopy};
use crate::pack::{Codes, Kind, Offset, PANEL, Scaling};
use std::{
    arch::{aarch64::*, asm},
    mem::MaybeUninit,
};

/// Outputs a register holds.
const NR: usize = 4;
/// Registers a panel takes.
const REGISTERS: usize = PANEL / NR;
/// Bytes of 4 columns of a panel.
const CHUNK: usize = 4 * PANEL;
/// Bytes of a group of 32 columns of half a panel, unpacked.
const HALF_PANEL: usize = 32 * PANEL / 2;
/// Groups whose scales a product lays out at a time: 512 columns.
const BLOCK: usize = 16;
/// 1.5 * 2^23: floats from 2^23 to 2^24 are the integers, one apart, and so are their bits.
const MAGIC: f32 = 12_582_912.0;
/// Where integer sums start.
static START: [i32; 4] = [MAGIC.to_bits() as i32; 4];
/// How far ahead of its loads decode asks for weights, bytes.
const PREFETCH_BYTES: i32 = 1024;

pub(super) static NEON: QuantKernels = QuantKernels {
    name: "smull and smlal of NEON",
    copies: &[],
    panels: 1,
    unpacked_bytes: |_| 32 * PANEL,
    gemv_reads_packed,
    unpack: unpack_chunks,
    scales: unpack_scales,
    gemm: smull::gemm,
    gemv: smull::gemv,
};

pub(super) static DOTPROD: QuantKernels =
    QuantKernels { name: "sdot of NEON", gemm: sdot::gemm, gemv: sdot::gemv, ..NEON };

pub(super) static I8MM: QuantKernels = QuantKernels {
    name: "smmla of NEON, sdot for single rows",
    copies: &[RowCopy { serves: |_| true, bytes: 2 * 32, make: smmla::pair_rows }],
    panels: 1,
    unpack: unpack_pairs,
    gemm: smmla::gemm,
    ..DOTPROD
};

fn gemv_reads_packed(_: Kind, scaling: Scaling) -> bool {
    scaling == Scaling::Plain
}

fn unpack_scales(kind: Kind, scaling: Scaling, packed: &[u8], s: &mut [f32], m: &mut [f32]) {
    let (s, m) = (s.as_chunks_mut::<PANEL>().0, m.as_chunks_mut::<PANEL>().0);
    match (scaling, kind.offset == Offset::Min) {
        (Scaling::Plain, false) => {
            for (s, packed) in s.iter_mut().zip(packed.as_chunks::<{ 2 * PANEL }>().0) {
                put(s, halves16(packed));
            }
        }
        (Scaling::Plain, true) => {
            for ((s, m), packed) in s.iter_mut().zip(m).zip(packed.as_chunks::<{ 4 * PANEL }>().0) {
                let [scales, mins] = packed.as_chunks().0 else { unreachable!("4 n bytes are twice 2 n") };
                put(s, halves16(scales));
                put(m, halves16(mins));
            }
        }
        (Scaling::Super { signed: false }, false) => super_scales::<false, false>(kind, packed, s, m),
        (Scaling::Super { signed: true }, false) => super_scales::<true, false>(kind, packed, s, m),
        (Scaling::Super { .. }, true) => super_scales::<false, true>(kind, packed, s, m),
    }
}

/// [`unpack_scales`] where they are bytes times a scale of 256 columns.
#[inline(never)]
fn super_scales<const SIGNED: bool, const MIN: bool>(
    kind: Kind,
    packed: &[u8],
    s: &mut [[f32; PANEL]],
    m: &mut [[f32; PANEL]],
) {
    let groups = 8 * kind.halves;
    // Of each kind of number, and of both in the order of the file.
    let each = (2 + groups) * PANEL;
    let mut at = 0;
    for block in packed.chunks_exact(if MIN { 2 * each } else { each }) {
        let (factors, codes) = block.split_at(if MIN { 4 * PANEL } else { 2 * PANEL });
        let factor =
            |bytes: &[u8]| halves16(bytes.first_chunk().expect("invariant: a scale for each output"));
        let d = factor(factors);
        let dmin = if MIN { factor(&factors[2 * PANEL..]).map(negate) } else { d };
        for codes in codes.chunks_exact(if MIN { 2 * PANEL } else { PANEL }) {
            put(&mut s[at], times::<SIGNED>(codes, d));
            if MIN {
                put(&mut m[at], times::<false>(&codes[PANEL..], dmin));
            }
            at += 1;
        }
    }
}

/// 16 bytes as numbers times `factors`.
#[inline(always)]
fn times<const SIGNED: bool>(bytes: &[u8], factors: [float32x4_t; REGISTERS]) -> [float32x4_t; REGISTERS] {
    /// 2^23: the last byte of its bits is the number it is more than that.
    const MAGIC: f32 = 8_388_608.0;
    let bytes: &[u8; PANEL] = bytes.first_chunk().expect("invariant: a byte for each output");
    // SAFETY: NEON is part of aarch64; 16 bytes are read.
    unsafe {
        let codes = vld1q_u8(bytes.as_ptr());
        // Signed bytes by 128 higher.
        let codes = if SIGNED { veorq_u8(codes, vdupq_n_u8(128)) } else { codes };
        let magic = splat(if SIGNED { MAGIC + 128.0 } else { MAGIC });
        // Bytes 0 and 3 of each float are a code and the exponent of MAGIC; the index beyond the table means 0.
        let table = uint8x16x2_t(codes, vdupq_n_u8((MAGIC.to_bits() >> 24) as u8));
        let mut out = factors;
        for (n, out) in out.iter_mut().enumerate() {
            let first = 0x10ff_ff00 + 4 * n as u32;
            let index = [first, first + 1, first + 2, first + 3];
            let index = vreinterpretq_u8_u32(vld1q_u32(index.as_ptr()));
            *out = vmulq_f32(vsubq_f32(vreinterpretq_f32_u8(vqtbl2q_u8(table, index)), magic), factors[n]);
        }
        out
    }
}

#[inline(always)]
fn negate(x: float32x4_t) -> float32x4_t {
    // SAFETY: NEON is part of aarch64.
    unsafe { vnegq_f32(x) }
}

#[inline(always)]
fn put(to: &mut [f32; PANEL], from: [float32x4_t; REGISTERS]) {
    for (to, from) in to.as_chunks_mut::<NR>().0.iter_mut().zip(from) {
        // SAFETY: 4 floats are written.
        unsafe { vst1q_f32(to.as_mut_ptr(), from) }
    }
}

/// The codes of 4 columns of 4 outputs, less the zero point.
///
/// # Safety
/// The chunk lies within the panel.
#[inline(always)]
unsafe fn signed_codes(kind: Kind, packed: *const u8, chunk: usize, part: usize) -> int8x16_t {
    let zero = match kind.offset {
        Offset::Zero(zero) => zero,
        _ => 0,
    };
    // SAFETY: the caller's promise.
    unsafe {
        let line = |i: usize| vld1q_u8(packed.add(i * CHUNK + part * 16));
        let codes = match kind.codes {
            Codes::U4 if chunk.is_multiple_of(2) => low(line(chunk / 2)),
            Codes::U4 => high(line(chunk / 2)),
            Codes::U5 => {
                let (first, i) = (chunk / 8 * 5, chunk % 4);
                match chunk % 8 {
                    0..4 => low_five(line(first + i)),
                    _ => high_five(line(first + i), line(first + 4), i),
                }
            }
            Codes::U6 => {
                let first = chunk / 4 * 3;
                match chunk % 4 {
                    3 => last_six([line(first), line(first + 1), line(first + 2)]),
                    i => low_six(line(first + i)),
                }
            }
            Codes::I8 => line(chunk),
        };
        vreinterpretq_s8_u8(vsubq_u8(codes, vdupq_n_u8(zero)))
    }
}

#[inline(always)]
fn low(both: uint8x16_t) -> uint8x16_t {
    // SAFETY: NEON is part of aarch64.
    unsafe { vandq_u8(both, vdupq_n_u8(15)) }
}

#[inline(always)]
fn high(both: uint8x16_t) -> uint8x16_t {
    // SAFETY: NEON is part of aarch64.
    unsafe { vshrq_n_u8::<4>(both) }
}

/// 5-bit codes of chunk i of a group, of its line i.
#[inline(always)]
fn low_five(line: uint8x16_t) -> uint8x16_t {
    // SAFETY: NEON is part of aarch64.
    unsafe { vandq_u8(line, vdupq_n_u8(0b1_1111)) }
}

/// Those of chunk 4 + i, of its line i and the last.
#[inline(always)]
fn high_five(line: uint8x16_t, last: uint8x16_t, i: usize) -> uint8x16_t {
    // SAFETY: NEON is part of aarch64.
    unsafe {
        let low = match i {
            0 => last,
            1 => vshlq_n_u8::<2>(last),
            2 => vshlq_n_u8::<4>(last),
            _ => vshlq_n_u8::<6>(last),
        };
        vshrq_n_u8::<3>(vsriq_n_u8::<3>(line, low))
    }
}

/// 6-bit codes of chunk i < 3 of half a group, of its line i.
#[inline(always)]
fn low_six(line: uint8x16_t) -> uint8x16_t {
    // SAFETY: NEON is part of aarch64.
    unsafe { vandq_u8(line, vdupq_n_u8(0b11_1111)) }
}

/// Those of chunk 3, of all three lines.
#[inline(always)]
fn last_six([a, b, c]: [uint8x16_t; 3]) -> uint8x16_t {
    // SAFETY: NEON is part of aarch64.
    unsafe { vshrq_n_u8::<2>(vsriq_n_u8::<4>(vsriq_n_u8::<2>(a, b), c)) }
}

/// `[k/32][2][8][8][4]` signed codes: groups, halves of the panel, chunks, outputs, columns.
///
/// # Safety
/// As [`QuantKernels::unpack`].
unsafe fn unpack_chunks(kind: Kind, packed: *const u8, k: usize, out: *mut u8) {
    for chunk in 0..k / 4 {
        for part in 0..REGISTERS {
            let at = (chunk / 8 * 2 + part / 2) * HALF_PANEL + (chunk % 8 * 2 + part % 2) * 16;
            // SAFETY: every code is read and written once.
            unsafe { vst1q_s8(out.add(at).cast(), signed_codes(kind, packed, chunk, part)) }
        }
    }
}

/// `[k/32][2][4][4][2][8]` signed codes: groups, halves of the panel, steps of 8 columns, pairs of outputs, outputs,
/// columns.
///
/// # Safety
/// As [`QuantKernels::unpack`].
unsafe fn unpack_pairs(kind: Kind, packed: *const u8, k: usize, out: *mut u8) {
    for step in 0..k / 8 {
        for part in 0..REGISTERS {
            let at = (step / 4 * 2 + part / 2) * HALF_PANEL + (step % 4 * 2 + part % 2) * 32;
            // SAFETY: every code is read and written once.
            unsafe {
                let low = vreinterpretq_s32_s8(signed_codes(kind, packed, 2 * step, part));
                let high = vreinterpretq_s32_s8(signed_codes(kind, packed, 2 * step + 1, part));
                let out = out.add(at).cast::<i32>();
                vst1q_s32(out, vzip1q_s32(low, high));
                vst1q_s32(out.add(4), vzip2q_s32(low, high));
            }
        }
    }
}

/// Scales, `-MAGIC` times the scales, and minima of up to [`BLOCK`] groups in the order in which tiles read them;
/// `W` registers of each for half a panel: 2 where a register holds 4 outputs, 4 where it holds 2 outputs twice.
#[repr(align(64))]
struct Table<const W: usize>([MaybeUninit<[[[float32x4_t; W]; 3]; 2]>; 2 * BLOCK]);

impl<const W: usize> Table<W> {
    fn new() -> Self {
        Table([MaybeUninit::uninit(); 2 * BLOCK])
    }

    /// # Safety
    /// `p` is valid and `group + groups <= p.groups`, `groups <= BLOCK`.
    unsafe fn fill(&mut self, p: &Product, group: usize, groups: usize) {
        let min = p.kind.offset == Offset::Min;
        let halves = p.kind.halves;
        for (i, entry) in self.0[..groups * halves].iter_mut().enumerate() {
            let at = (group * halves + i) * PANEL;
            let mut panel = [[[splat(0.0); W]; 3]; 2];
            for (half, [s, negative, m]) in panel.iter_mut().enumerate() {
                for w in 0..W {
                    // SAFETY: scales and, where there are any, minima of every group and output are readable.
                    unsafe {
                        let at = at + half * (PANEL / 2) + w * (PANEL / 2 / W);
                        s[w] = Self::load(p.scales.add(at));
                        negative[w] = vmulq_n_f32(s[w], -MAGIC);
                        if min {
                            m[w] = Self::load(p.mins.add(at));
                        }
                    }
                }
            }
            entry.write(panel);
        }
    }

    /// # Safety
    /// 8 / W floats are readable.
    #[inline(always)]
    unsafe fn load(at: *const f32) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe {
            if W == 2 {
                vld1q_f32(at)
            } else {
                let two = vld1_f32(at);
                vcombine_f32(two, two)
            }
        }
    }

    /// `[3][W][4]` floats of half a panel; the next group or half of one lies [`Self::STRIDE`] floats on.
    fn half(&self, half: usize) -> *const f32 {
        self.0.as_ptr().cast::<f32>().wrapping_add(half * 3 * W * NR)
    }

    const STRIDE: usize = 2 * 3 * W * NR;
}

/// Up to [`BLOCK`] groups of a product.
#[derive(Clone, Copy)]
struct Span {
    group: usize,
    groups: usize,
    /// True where c is to be set, false where it is to be added to.
    first: bool,
}

impl Span {
    fn of(p: &Product) -> impl Iterator<Item = Span> {
        (0..p.groups).step_by(BLOCK).map(|group| Span {
            group,
            groups: BLOCK.min(p.groups - group),
            first: p.first && group == 0,
        })
    }
}

/// Where an integer sum starts, loaded here and nowhere else: the compiler would load once and copy, and a copy takes
/// the pipe of a product. (`ld1` is one micro-operation where `ldr` with an offset is two, on Neoverse N1.)
#[inline(always)]
fn start_sum() -> int32x4_t {
    let sum;
    // SAFETY: START holds 4 numbers. Not `pure`, so that no two become one.
    unsafe {
        asm!("ld1 {{{0:v}.4s}}, [{1}]", out(vreg) sum, in(reg) START.as_ptr(),
            options(nostack, preserves_flags, readonly));
    }
    sum
}

/// `sums * s` of two registers that hold [`MAGIC`] `+ sums`: `fma(MAGIC + sum, s, negative)`, with `negative` loaded
/// each time, as in [`start_sum`].
///
/// # Safety
/// 4 floats each are readable at `negative`.
#[inline(always)]
unsafe fn scaled2(sums: [int32x4_t; 2], s: [float32x4_t; 2], negative: [*const f32; 2]) -> [float32x4_t; 2] {
    let (t0, t1);
    // SAFETY: reads what the caller promises.
    unsafe {
        asm!("ld1 {{{0:v}.4s}}, [{6}]", "ld1 {{{1:v}.4s}}, [{7}]",
            "fmla {0:v}.4s, {2:v}.4s, {4:v}.4s", "fmla {1:v}.4s, {3:v}.4s, {5:v}.4s",
            out(vreg) t0, out(vreg) t1, in(vreg) sums[0], in(vreg) sums[1], in(vreg) s[0], in(vreg) s[1],
            in(reg) negative[0], in(reg) negative[1], options(nostack, preserves_flags, readonly));
    }
    [t0, t1]
}

/// A line of codes.
///
/// # Safety
/// It is readable.
#[inline(always)]
unsafe fn line(at: *const u8) -> [uint8x16_t; REGISTERS] {
    // SAFETY: the caller's promise.
    let line = unsafe { vld1q_u8_x4(at) };
    [line.0, line.1, line.2, line.3]
}

/// Asks for so many lines (at most 8) [`PREFETCH_BYTES`] behind `from`; they need not be readable.
#[inline(always)]
fn prefetch(from: *const u8, lines: i32) {
    macro_rules! ask {
        ($($i:literal)*) => {
            $(if $i < lines {
                // SAFETY: a hint, which never faults.
                unsafe {
                    asm!("prfm pldl1strm, [{0}, #{1}]", in(reg) from, const PREFETCH_BYTES + 64 * $i,
                        options(nostack, preserves_flags, readonly))
                }
            })*
        };
    }
    ask!(0 1 2 3 4 5 6 7);
}

/// 16 scales of a group, one panel, as packed.
#[inline(always)]
fn halves16(bytes: &[u8; 2 * PANEL]) -> [float32x4_t; REGISTERS] {
    // SAFETY: NEON is part of aarch64; 32 bytes are read.
    unsafe { [0, 8, 16, 24].map(|i| vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(bytes.as_ptr().add(i))))) }
}

/// Scales and minima of single rows, one group after the other.
struct RowScales {
    s: *const f32,
    m: *const f32,
    packed: *const u8,
}

impl RowScales {
    fn of(p: &Product) -> Self {
        RowScales { s: p.scales, m: p.mins, packed: p.packed_scales }
    }

    /// The next scales and minima; `PACKED` where they are halves in the order of the file.
    ///
    /// # Safety
    /// The product has another group or half of one.
    #[inline(always)]
    unsafe fn next<const PACKED: bool, const MIN: bool>(&mut self) -> [[float32x4_t; REGISTERS]; 2] {
        let mut m = [splat(0.0); REGISTERS];
        // SAFETY: the caller's promise.
        unsafe {
            if PACKED {
                let s = halves16(&*self.packed.cast());
                if MIN {
                    m = halves16(&*self.packed.add(2 * PANEL).cast());
                }
                self.packed = self.packed.add(if MIN { 4 * PANEL } else { 2 * PANEL });
                [s, m]
            } else {
                let at = [0, 4, 8, 12];
                let s = at.map(|i| vld1q_f32(self.s.add(i)));
                self.s = self.s.add(PANEL);
                if MIN {
                    m = at.map(|i| vld1q_f32(self.m.add(i)));
                    self.m = self.m.add(PANEL);
                }
                [s, m]
            }
        }
    }
}

/// The result of a single row so far.
///
/// # Safety
/// As [`QuantKernels::gemv`].
#[inline(always)]
unsafe fn start_row(p: &Product) -> [float32x4_t; REGISTERS] {
    if p.first {
        return [splat(0.0); REGISTERS];
    }
    // SAFETY: the caller's promise.
    unsafe { [0, 4, 8, 12].map(|n| vld1q_f32(p.c.add(n))) }
}

/// # Safety
/// As [`QuantKernels::gemv`].
#[inline(always)]
unsafe fn store_row(p: &Product, y: [float32x4_t; REGISTERS]) {
    for (n, y) in y.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { vst1q_f32(p.c.add(n * NR), y) }
    }
}

/// The zero point in every lane.
#[inline(always)]
fn zero_point(p: &Product) -> float32x4_t {
    match p.kind.offset {
        Offset::Zero(zero) => splat(f32::from(zero)),
        _ => splat(0.0),
    }
}

/// A number in every lane.
#[inline(always)]
fn splat(number: f32) -> float32x4_t {
    // SAFETY: NEON is part of aarch64.
    unsafe { vdupq_n_f32(number) }
}
