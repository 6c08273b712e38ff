//! Products of many rows: four rows at a time, side by side, times a panel of 16 outputs.
//!
//! Activations are made unsigned by 128, so that codes can be signed: `vpmaddubsw` takes the one as its first and the
//! other as its second operand. The 16-bit sums begin at what those 128 add to them, which is a matter of the weights
//! alone and is found where they are unpacked. Sums wrap, and what is left in the end fits: for 4 bits less their zero
//! point 16 * 8 * 127 = 16256, for 4 bits without one 16 * 15 * 127 = 30480; for 5 bits less 16, and 6 bits less 32 in
//! 16 columns, 32512. Each product of a pair is at most 2 * 32 * 255 = 16320. Codes of 5 bits that have no zero point
//! are taken less 16 all the same, and 16 times the sum of the activations is added to their sums.
//!
//! Signed bytes are multiplied by `vpmaddwd`, both sides widened, which is exact. Whichever way they are split, 32 products
//! take four operations.
//!
//! By hand because the compiler puts each addition behind its product, keeps pointers for every row and spills.

use super::{ADDED, group_of, side_by_side, widen_bytes};
use crate::{
    kernels::quant::{COPY_ROWS, Product, RowCopy, Rows},
    pack::{Codes, Kind, Offset, PANEL},
};
use std::{
    arch::{asm, x86_64::*},
    mem::MaybeUninit,
};

/// Rows of a block.
const ROWS: usize = COPY_ROWS;
/// Bytes of 4 columns of a panel.
const CHUNK: usize = 4 * PANEL;
/// Bytes of 32 columns of a block: `[8][4 rows][4]` codes, then for each row a float of each: scale, sum of codes, sums
/// of the two halves.
const BLOCK: usize = ROWS * 48;
/// The same for products with bytes: `[16][4 rows][2]` codes in 16 bits, then the scales.
const WIDE_BLOCK: usize = ROWS * 68;
/// Bytes of the start of 16-bit sums.
const START: usize = 2 * 2 * PANEL;

/// Four rows side by side, unsigned, of 32 columns [`BLOCK`] bytes.
pub(in super::super) const UNSIGNED: RowCopy = RowCopy {
    serves: |codes| codes != Codes::I8,
    bytes: COPY_BYTES,
    make: |rows, columns, from, to| {
        // SAFETY: the caller's promise, and AVX2 was detected.
        unsafe { copy::<false>(rows, columns, from, to) }
    },
};
/// Bytes of 32 columns of one of its rows.
pub(in super::super) const COPY_BYTES: usize = BLOCK / ROWS;

pub(super) const COPIES: [RowCopy; 2] = [
    UNSIGNED,
    RowCopy {
        serves: |codes| codes == Codes::I8,
        bytes: WIDE_BLOCK / ROWS,
        make: |rows, columns, from, to| {
            // SAFETY: the caller's promise, and AVX2 was detected.
            unsafe { copy::<true>(rows, columns, from, to) }
        },
    },
];

/// # Safety
/// As [`RowCopy::make`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn copy<const WIDE: bool>(rows: usize, columns: usize, from: &Rows, to: *mut u8) {
    let (block, each) = if WIDE { (WIDE_BLOCK, 2) } else { (BLOCK, 1) };
    // Of each row the first two of its four columns, then the other two.
    let order = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    for first in (0..rows).step_by(ROWS) {
        // SAFETY: the caller's promise: rows below `rows` are valid, and the copy has room for whole blocks.
        unsafe {
            let to = to.add(first / ROWS * (columns / 32) * block);
            // Rows that are not there are zero.
            let row = |r: usize| (first + r < rows).then_some(first + r);
            for half in 0..columns / 16 {
                let quads = side_by_side(std::array::from_fn(|r| {
                    row(r).map(|row| from.q.add(row * from.k + half * 16))
                }));
                let at = to.add(half / 2 * block + half % 2 * 16 * ROWS * each);
                for (i, quad) in quads.into_iter().enumerate() {
                    let at = at.add(i * 4 * ROWS * each);
                    if WIDE {
                        let wide = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(quad, order));
                        _mm256_storeu_si256(at.cast(), wide);
                    } else {
                        _mm_storeu_si128(at.cast(), _mm_xor_si128(quad, _mm_set1_epi8(-128)));
                    }
                }
            }
            for group in 0..columns / 32 {
                let numbers = to.add(group * block + 32 * ROWS * each).cast::<f32>();
                for r in 0..ROWS {
                    let at = row(r).map(|row| row * from.k / 32 + group);
                    *numbers.add(r) = at.map_or(0.0, |at| *from.scale.add(at));
                    if !WIDE {
                        *numbers.add(ROWS + r) = at.map_or(0.0, |at| *from.sum32.add(at));
                        *numbers.add(2 * ROWS + r) = at.map_or(0.0, |at| *from.sum16.add(2 * at));
                        *numbers.add(3 * ROWS + r) = at.map_or(0.0, |at| *from.sum16.add(2 * at + 1));
                    }
                }
            }
        }
    }
}

/// See [`QuantKernels::unpacked_bytes`].
///
/// [`QuantKernels::unpacked_bytes`]: crate::kernels::quant::QuantKernels::unpacked_bytes
pub(super) fn unpacked_bytes(kind: Kind) -> usize {
    match kind.codes {
        Codes::I8 => 2 * 32 * PANEL,
        _ => 32 * PANEL + kind.halves * START,
    }
}

/// Bytes in 16 bits, `[columns/2][16][2]`. Of others, of 32 columns, for each of `kind.halves` parts: where 16-bit sums start, then `[columns/4][16][4]` codes, signed.
///
/// # Safety
/// As [`QuantKernels::unpack`].
///
/// [`QuantKernels::unpack`]: crate::kernels::quant::QuantKernels::unpack
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn unpack(kind: Kind, packed: *const u8, k: usize, out: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        match (kind.codes, kind.halves) {
            (Codes::I8, _) => widen_bytes(packed, k, out),
            (Codes::U4, 1) => unpack_parts::<4, 1>(kind, packed, k, out),
            (Codes::U4, _) => unpack_parts::<4, 2>(kind, packed, k, out),
            (Codes::U5, _) => unpack_parts::<5, 1>(kind, packed, k, out),
            (Codes::U6, _) => unpack_parts::<6, 2>(kind, packed, k, out),
        }
    }
}

/// # Safety
/// As [`unpack`], of codes of `BITS` bits.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack_parts<const BITS: usize, const HALVES: usize>(
    kind: Kind,
    packed: *const u8,
    k: usize,
    out: *mut u8,
) {
    let zero = _mm256_set1_epi8(match kind.offset {
        Offset::Zero(zero) => zero as i8,
        _ if BITS == 5 => ADDED,
        _ => 0,
    });
    let offset = _mm256_set1_epi8(-128);
    let chunks = 8 / HALVES;
    for group in 0..k / 32 {
        for w in [0, 32] {
            // SAFETY: the caller's promise.
            unsafe {
                let codes = group_of::<BITS>(packed.add(group * BITS * CHUNK + w));
                for half in 0..HALVES {
                    let out = out.add((group * HALVES + half) * (START + chunks * CHUNK) + w);
                    let mut start = _mm256_setzero_si256();
                    for i in 0..chunks {
                        let codes = _mm256_sub_epi8(codes[half * chunks + i], zero);
                        _mm256_storeu_si256(out.add(START + i * CHUNK).cast(), codes);
                        start = _mm256_sub_epi16(start, _mm256_maddubs_epi16(offset, codes));
                    }
                    _mm256_storeu_si256(out.cast(), start);
                }
            }
        }
    }
}

/// # Safety
/// As [`QuantKernels::gemm`].
///
/// [`QuantKernels::gemm`]: crate::kernels::quant::QuantKernels::gemm
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn gemm(p: &Product) {
    let Kind { codes, halves, offset } = p.kind;
    let min = offset == Offset::Min;
    let bytes = if codes == Codes::I8 { WIDE_BLOCK } else { BLOCK };
    let block = match (codes, halves, min) {
        (Codes::I8, ..) => wide,
        (Codes::U5, _, true) => whole_less_16_min,
        (_, 1, false) => whole,
        (_, 1, true) => whole_min,
        (_, _, false) => halved,
        (_, _, true) => halved_min,
    };
    for first in (0..p.rows).step_by(ROWS) {
        // SAFETY: the caller's promise: rows of blocks have room in `c`, and the copy holds whole blocks of `p.groups`.
        unsafe {
            let c = p.c.add(first * p.ldc);
            if p.first {
                for r in 0..ROWS {
                    std::slice::from_raw_parts_mut(c.add(r * p.ldc), PANEL).fill(0.0);
                }
            }
            block(p, p.a.copy.add(first / ROWS * p.groups * bytes), c);
        }
    }
}

/// Two 16-bit units: `vpmaddwd` by them adds neighbours.
static ONES: u32 = 0x1_0001;

/// The sums of row `r` take registers 2 r and 2 r + 1, codes 8 and 9; 10 to 15 are for products, two of a row. Products of
/// row `$r`, whose first register is `$a`.
#[rustfmt::skip]
macro_rules! products {
    ($chunk:literal, $r:literal, $a:literal, $b:literal) => {
        concat!(
            "vpbroadcastd ", $b, ", dword ptr [{q} + 16*", $chunk, " + 4*", $r, "]\n",
            "vpmaddubsw ", $a, ", ", $b, ", ymm8\n",
            "vpmaddubsw ", $b, ", ", $b, ", ymm9\n",
        )
    };
}

/// Adds them to the sums of the row, or begins those.
#[rustfmt::skip]
macro_rules! add {
    (start $at:literal, $a:literal, $b:literal, $low:literal, $high:literal) => {
        concat!(
            "vpaddw ", $low, ", ", $a, ", ymmword ptr [{w} + ", $at, "]\n",
            "vpaddw ", $high, ", ", $b, ", ymmword ptr [{w} + ", $at, " + 32]\n",
        )
    };
    (more $at:literal, $a:literal, $b:literal, $low:literal, $high:literal) => {
        concat!("vpaddw ", $low, ", ", $low, ", ", $a, "\n", "vpaddw ", $high, ", ", $high, ", ", $b, "\n")
    };
}

/// Chunk `$chunk` of a group for four rows. `$at` is where its part begins and `$i` the number of the chunk in it. Sums are
/// added two rows later: what Zen 3 does best of all orders tried (the ladder in `docs/bench-notes.md`).
#[rustfmt::skip]
macro_rules! chunk {
    ($how:tt $at:literal, $i:literal, $chunk:literal) => {
        concat!(
            "vmovdqu ymm8, ymmword ptr [{w} + ", $at, " + 64 + 64*", $i, "]\n",
            "vmovdqu ymm9, ymmword ptr [{w} + ", $at, " + 96 + 64*", $i, "]\n",
            products!($chunk, 0, "ymm10", "ymm11"),
            products!($chunk, 1, "ymm12", "ymm13"),
            products!($chunk, 2, "ymm14", "ymm15"),
            add!($how $at, "ymm10", "ymm11", "ymm0", "ymm1"),
            products!($chunk, 3, "ymm10", "ymm11"),
            add!($how $at, "ymm12", "ymm13", "ymm2", "ymm3"),
            add!($how $at, "ymm14", "ymm15", "ymm4", "ymm5"),
            add!($how $at, "ymm10", "ymm11", "ymm6", "ymm7"),
        )
    };
}

/// 16-bit sums of a row to floats: neighbours added, times the scales in 8 and 9. Units are in 10.
#[rustfmt::skip]
macro_rules! scaled {
    ($low:literal, $high:literal) => {
        concat!(sums!($low, $high), times_scales!($low, $high))
    };
}
#[rustfmt::skip]
macro_rules! sums {
    ($low:literal, $high:literal) => {
        concat!("vpmaddwd ", $low, ", ", $low, ", ymm10\n", "vpmaddwd ", $high, ", ", $high, ", ymm10\n",)
    };
}
#[rustfmt::skip]
macro_rules! floats {
    ($low:literal, $high:literal) => {
        concat!("vcvtdq2ps ", $low, ", ", $low, "\n", "vcvtdq2ps ", $high, ", ", $high, "\n")
    };
}
#[rustfmt::skip]
macro_rules! times_scales {
    ($low:literal, $high:literal) => {
        concat!(
            floats!($low, $high),
            "vmulps ", $low, ", ", $low, ", ymm8\n",
            "vmulps ", $high, ", ", $high, ", ymm9\n",
        )
    };
}

/// Adds to a row what its sum of codes (the `$number`th of its numbers) gives with the minima at `$at`.
#[rustfmt::skip]
macro_rules! minima {
    ($r:literal, $number:literal, $at:literal, $low:literal, $high:literal) => {
        concat!(
            "vbroadcastss ymm12, dword ptr [{q} + 128 + 16*", $number, " + 4*", $r, "]\n",
            "vfmadd231ps ", $low, ", ymm12, ymmword ptr [{m} + ", $at, "]\n",
            "vfmadd231ps ", $high, ", ymm12, ymmword ptr [{m} + ", $at, " + 32]\n",
        )
    };
}

/// Times the activations' scale, which lies behind the codes, added to the result.
#[rustfmt::skip]
macro_rules! finish {
    ($r:literal, $c:literal, $low:literal, $high:literal) => {
        finish!(128, $r, $c, $low, $high)
    };
    ($at:literal, $r:literal, $c:literal, $low:literal, $high:literal) => {
        concat!(
            "vbroadcastss ymm11, dword ptr [{q} + ", $at, " + 4*", $r, "]\n",
            "vfmadd213ps ", $low, ", ymm11, ymmword ptr [", $c, "]\n",
            "vfmadd213ps ", $high, ", ymm11, ymmword ptr [", $c, " + 32]\n",
            "vmovups ymmword ptr [", $c, "], ", $low, "\n",
            "vmovups ymmword ptr [", $c, " + 32], ", $high, "\n",
        )
    };
}

/// `$row!(row, address of its results, registers of its sums)` for all four rows.
#[rustfmt::skip]
macro_rules! rows {
    ($row:ident) => {
        concat!(
            $row!(0, "{c}", "ymm0", "ymm1"),
            $row!(1, "{c} + {ldc}", "ymm2", "ymm3"),
            $row!(2, "{c} + 2*{ldc}", "ymm4", "ymm5"),
            $row!(3, "{c3}", "ymm6", "ymm7"),
        )
    };
}

/// Loads the scales at `$at`.
#[rustfmt::skip]
macro_rules! scales {
    ($at:literal) => {
        concat!(
            "vmovups ymm8, ymmword ptr [{s} + ", $at, "]\n",
            "vmovups ymm9, ymmword ptr [{s} + ", $at, " + 32]\n",
        )
    };
}

/// A function that multiplies a block of rows by a panel; `$body` is what it does in a group, which takes `$rows` bytes of
/// the block, `$codes` of codes and `$scales` of scales.
macro_rules! block {
    ($(#[$doc:meta])* $name:ident, $rows:literal, $codes:literal, $scales:literal, $body:expr) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The product is valid; at `q` lies a block of `p.groups` groups and at `c` are four rows of results.
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn $name(p: &Product, q: *const u8, c: *mut f32) {
            // Room for the first halves of four rows.
            let mut t = MaybeUninit::<[f32; 2 * 8 * ROWS]>::uninit();
            // SAFETY: the caller's promise: every offset lies within a group.
            unsafe {
                asm!(
                    "test {n}, {n}", "jz 3f",
                    "2:",
                    $body,
                    concat!("add {q}, ", $rows),
                    concat!("add {w}, ", $codes),
                    concat!("add {s}, ", $scales),
                    concat!("add {m}, ", $scales),
                    "dec {n}", "jnz 2b",
                    "3:",
                    // Not every body uses these.
                    "/* {ones} {t} */",
                    q = inout(reg) q => _,
                    w = inout(reg) p.codes => _,
                    s = inout(reg) p.scales => _,
                    m = inout(reg) p.mins => _,
                    n = inout(reg) p.groups => _,
                    c = in(reg) c,
                    c3 = in(reg) c.wrapping_add(3 * p.ldc),
                    ldc = in(reg) 4 * p.ldc,
                    ones = in(reg) &ONES,
                    t = in(reg) t.as_mut_ptr(),
                    out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
                    out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
                    out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
                    out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                    options(nostack),
                );
            }
        }
    };
}

/// The sums of a group with one scale.
#[rustfmt::skip]
macro_rules! whole_sums {
    () => {
        concat!(
            chunk!(start 0, 0, 0), chunk!(more 0, 1, 1), chunk!(more 0, 2, 2), chunk!(more 0, 3, 3),
            chunk!(more 0, 4, 4), chunk!(more 0, 5, 5), chunk!(more 0, 6, 6), chunk!(more 0, 7, 7),
            scales!(0), "vpbroadcastd ymm10, dword ptr [{ones}]\n",
        )
    };
}

#[rustfmt::skip]
macro_rules! whole_row {
    ($r:literal, $c:literal, $low:literal, $high:literal) => {
        concat!(scaled!($low, $high), finish!($r, $c, $low, $high))
    };
}
block! {
    /// Codes of 4 or 5 bits with a zero point, one scale a group.
    whole, 192, 576, 64, concat!(whole_sums!(), rows!(whole_row))
}

#[rustfmt::skip]
macro_rules! whole_min_row {
    ($r:literal, $c:literal, $low:literal, $high:literal) => {
        concat!(scaled!($low, $high), minima!($r, 1, 0, $low, $high), finish!($r, $c, $low, $high))
    };
}
block! {
    /// Codes of 4 bits, one scale and minimum a group.
    whole_min, 192, 576, 64, concat!(whole_sums!(), rows!(whole_min_row))
}

#[rustfmt::skip]
macro_rules! whole_less_16_min_row {
    ($r:literal, $c:literal, $low:literal, $high:literal) => {
        concat!(
            "vbroadcastss ymm12, dword ptr [{q} + 128 + 16 + 4*", $r, "]\n",
            "vcvtps2dq ymm12, ymm12\n",
            "vpslld ymm12, ymm12, 4\n",
            sums!($low, $high),
            "vpaddd ", $low, ", ", $low, ", ymm12\n",
            "vpaddd ", $high, ", ", $high, ", ymm12\n",
            times_scales!($low, $high),
            minima!($r, 1, 0, $low, $high),
            finish!($r, $c, $low, $high),
        )
    };
}
block! {
    /// Codes of 5 bits less 16, one scale and minimum a group.
    whole_less_16_min, 192, 576, 64, concat!(whole_sums!(), rows!(whole_less_16_min_row))
}

#[rustfmt::skip]
macro_rules! first_half_row {
    ($r:literal, $c:literal, $low:literal, $high:literal) => {
        concat!(
            scaled!($low, $high),
            "vmovups ymmword ptr [{t} + 64*", $r, "], ", $low, "\n",
            "vmovups ymmword ptr [{t} + 64*", $r, " + 32], ", $high, "\n",
        )
    };
}
/// The sums of a group whose halves have scales of their own.
#[rustfmt::skip]
macro_rules! halved_sums {
    () => {
        concat!(
            chunk!(start 0, 0, 0), chunk!(more 0, 1, 1), chunk!(more 0, 2, 2), chunk!(more 0, 3, 3),
            scales!(0), "vpbroadcastd ymm10, dword ptr [{ones}]\n", rows!(first_half_row),
            chunk!(start 320, 0, 4), chunk!(more 320, 1, 5), chunk!(more 320, 2, 6), chunk!(more 320, 3, 7),
            scales!(64), "vpbroadcastd ymm10, dword ptr [{ones}]\n",
        )
    };
}
#[rustfmt::skip]
macro_rules! second_half {
    ($r:literal, $low:literal, $high:literal) => {
        concat!(
            sums!($low, $high),
            floats!($low, $high),
            "vfmadd213ps ", $low, ", ymm8, ymmword ptr [{t} + 64*", $r, "]\n",
            "vfmadd213ps ", $high, ", ymm9, ymmword ptr [{t} + 64*", $r, " + 32]\n",
        )
    };
}

#[rustfmt::skip]
macro_rules! halved_row {
    ($r:literal, $c:literal, $low:literal, $high:literal) => {
        concat!(second_half!($r, $low, $high), finish!($r, $c, $low, $high))
    };
}
block! {
    /// Codes of 4 or 6 bits with a zero point, two scales a group.
    halved, 192, 640, 128, concat!(halved_sums!(), rows!(halved_row))
}

#[rustfmt::skip]
macro_rules! halved_min_row {
    ($r:literal, $c:literal, $low:literal, $high:literal) => {
        concat!(
            second_half!($r, $low, $high),
            minima!($r, 2, 0, $low, $high),
            minima!($r, 3, 64, $low, $high),
            finish!($r, $c, $low, $high),
        )
    };
}
block! {
    /// Codes of 4 bits, two scales and minima a group.
    halved_min, 192, 640, 128, concat!(halved_sums!(), rows!(halved_min_row))
}

/// The products of row `$r` with chunk `$i` of two columns in 16 bits.
#[rustfmt::skip]
macro_rules! wide_products {
    ($i:literal, $r:literal, $a:literal, $b:literal) => {
        concat!(
            "vpbroadcastd ", $b, ", dword ptr [{q} + 16*", $i, " + 4*", $r, "]\n",
            "vpmaddwd ", $a, ", ", $b, ", ymm8\n",
            "vpmaddwd ", $b, ", ", $b, ", ymm9\n",
        )
    };
}
/// Adds them to the sums of the row.
#[rustfmt::skip]
macro_rules! add_wide {
    ($a:literal, $b:literal, $low:literal, $high:literal) => {
        concat!("vpaddd ", $low, ", ", $low, ", ", $a, "\n", "vpaddd ", $high, ", ", $high, ", ", $b, "\n")
    };
}
#[rustfmt::skip]
macro_rules! wide_chunk {
    ($i:literal) => {
        concat!(
            "vmovdqu ymm8, ymmword ptr [{w} + 64*", $i, "]\n",
            "vmovdqu ymm9, ymmword ptr [{w} + 32 + 64*", $i, "]\n",
            wide_products!($i, 0, "ymm10", "ymm11"),
            wide_products!($i, 1, "ymm12", "ymm13"),
            wide_products!($i, 2, "ymm14", "ymm15"),
            add_wide!("ymm10", "ymm11", "ymm0", "ymm1"),
            wide_products!($i, 3, "ymm10", "ymm11"),
            add_wide!("ymm12", "ymm13", "ymm2", "ymm3"),
            add_wide!("ymm14", "ymm15", "ymm4", "ymm5"),
            add_wide!("ymm10", "ymm11", "ymm6", "ymm7"),
        )
    };
}
#[rustfmt::skip]
macro_rules! zero {
    ($r:literal, $c:literal, $low:literal, $high:literal) => {
        concat!("vpxor ", $low, ", ", $low, ", ", $low, "\n", "vpxor ", $high, ", ", $high, ", ", $high, "\n")
    };
}
#[rustfmt::skip]
macro_rules! wide_row {
    ($r:literal, $c:literal, $low:literal, $high:literal) => {
        concat!(times_scales!($low, $high), finish!(256, $r, $c, $low, $high))
    };
}
block! {
    /// Signed bytes in 16 bits, one scale a group.
    wide, 272, 1024, 64, concat!(
        rows!(zero),
        wide_chunk!(0), wide_chunk!(1), wide_chunk!(2), wide_chunk!(3),
        wide_chunk!(4), wide_chunk!(5), wide_chunk!(6), wide_chunk!(7),
        wide_chunk!(8), wide_chunk!(9), wide_chunk!(10), wide_chunk!(11),
        wide_chunk!(12), wide_chunk!(13), wide_chunk!(14), wide_chunk!(15),
        scales!(0), rows!(wide_row),
    )
}
