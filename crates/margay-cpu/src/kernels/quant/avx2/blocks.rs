//! Products of many rows: four rows at a time, side by side, times a panel of 16 outputs.
//!
//! Activations are made unsigned by 128, so that codes can be signed: `vpmaddubsw` takes the one as its first and the
//! other as its second operand. The 16-bit sums begin at what those 128 add to them, which is a matter of the weights
//! alone and is found where they are unpacked. Sums wrap, and what is left in the end fits: for 4 bits less their zero
//! point 16 * 8 * 127 = 16256, for 4 bits without one 16 * 15 * 127 = 30480; for 5 bits less 16, and 6 bits less 32 in
//! 16 columns, 32512. Each product of a pair is at most 2 * 32 * 255 = 16320. Codes of 5 bits that have no zero point
//! are taken less 16 all the same, and 16 times the sum of the activations is added to their sums.
//!
//! By hand because the compiler puts each addition behind its product, keeps pointers for every row and spills.

use crate::{
    kernels::quant::{COPY_ROWS, Product, RowCopy, Rows},
    pack::{Codes, Kind, Offset, PANEL},
};
use std::arch::{asm, x86_64::*};

/// Rows of a block.
const ROWS: usize = COPY_ROWS;
/// Bytes of 4 columns of a panel.
const CHUNK: usize = 4 * PANEL;
/// Bytes of 32 columns of a block: `[8][4 rows][4]` codes, then for each row a float of each: scale, sum of codes, sums
/// of the two halves.
const BLOCK: usize = ROWS * 48;
/// Bytes of the start of 16-bit sums.
const START: usize = 2 * 2 * PANEL;

pub(super) const COPY: RowCopy = RowCopy {
    bytes: BLOCK / ROWS,
    make: |rows, columns, from, to| {
        // SAFETY: the caller's promise, and AVX2 was detected.
        unsafe { copy(rows, columns, from, to) }
    },
};

/// # Safety
/// As [`RowCopy::make`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn copy(rows: usize, columns: usize, from: &Rows, to: *mut u8) {
    // What stands for rows that are not there.
    let zeros = [0.0f32; 4];
    let (halves, groups) = (columns / 16, columns / 32);
    for first in (0..rows).step_by(ROWS) {
        // SAFETY: the caller's promise: rows below `rows` are valid, and the copy has room for whole blocks.
        unsafe {
            let to = to.add(first * groups * (BLOCK / ROWS));
            let row = |r: usize| if first + r < rows { Some(first + r) } else { None };
            for half in 0..halves {
                let quad = |r: usize| match row(r) {
                    Some(row) => _mm_loadu_ps(from.q.add(row * from.k + half * 16).cast()),
                    None => _mm_setzero_ps(),
                };
                let [mut a, mut b, mut c, mut d] = [quad(0), quad(1), quad(2), quad(3)];
                _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut d);
                let at = to.add(half / 2 * BLOCK + half % 2 * 16 * ROWS);
                for (i, quad) in [a, b, c, d].into_iter().enumerate() {
                    let unsigned = _mm_xor_si128(_mm_castps_si128(quad), _mm_set1_epi8(-128));
                    _mm_storeu_si128(at.add(i * 4 * ROWS).cast(), unsigned);
                }
            }
            for group in 0..groups {
                let numbers = to.add(group * BLOCK + 32 * ROWS).cast::<f32>();
                for r in 0..ROWS {
                    let [scale, sum, first, second] = match row(r) {
                        Some(row) => {
                            let at = row * from.k / 32 + group;
                            let halves = from.sum16.add(2 * at);
                            [*from.scale.add(at), *from.sum32.add(at), *halves, *halves.add(1)]
                        }
                        None => zeros,
                    };
                    *numbers.add(r) = scale;
                    *numbers.add(ROWS + r) = sum;
                    *numbers.add(2 * ROWS + r) = first;
                    *numbers.add(3 * ROWS + r) = second;
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

/// Of 32 columns, for each of `kind.halves` parts: where 16-bit sums start, then `[columns/4][16][4]` codes, signed. Of
/// bytes: first what they are without their signs.
///
/// # Safety
/// As [`QuantKernels::unpack`].
///
/// [`QuantKernels::unpack`]: crate::kernels::quant::QuantKernels::unpack
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn unpack(kind: Kind, packed: *const u8, k: usize, out: *mut u8) {
    if kind.codes == Codes::I8 {
        for at in (0..k * PANEL).step_by(32) {
            // SAFETY: the caller's promise.
            unsafe {
                let codes = _mm256_loadu_si256(packed.add(at).cast());
                let group = 32 * PANEL;
                let out = out.add(at / group * 2 * group + at % group);
                _mm256_storeu_si256(out.cast(), _mm256_abs_epi8(codes));
                _mm256_storeu_si256(out.add(group).cast(), codes);
            }
        }
        return;
    }
    let zero = _mm256_set1_epi8(match (kind.offset, kind.codes) {
        (Offset::Zero(zero), _) => zero as i8,
        (_, Codes::U5) => ADDED,
        _ => 0,
    });
    let (mask, offset) = (_mm256_set1_epi8(15), _mm256_set1_epi8(-128));
    let chunks = 8 / kind.halves;
    for part in 0..k / 32 * kind.halves {
        for w in [0, 32] {
            // SAFETY: the caller's promise.
            unsafe {
                let out = out.add(part * (START + chunks * CHUNK) + w);
                let mut start = _mm256_setzero_si256();
                for pair in 0..chunks / 2 {
                    let at = part * chunks / 2 + pair;
                    let [low, high] = if kind.codes == Codes::U4 {
                        let both = _mm256_loadu_si256(packed.add(at * CHUNK + w).cast());
                        [_mm256_and_si256(both, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(both), mask)]
                    } else {
                        let at = packed.add(2 * at * CHUNK + w);
                        [_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(CHUNK).cast())]
                    };
                    for (i, codes) in [low, high].into_iter().enumerate() {
                        let codes = _mm256_sub_epi8(codes, zero);
                        _mm256_storeu_si256(out.add(START + (2 * pair + i) * CHUNK).cast(), codes);
                        start = _mm256_sub_epi16(start, _mm256_maddubs_epi16(offset, codes));
                    }
                }
                _mm256_storeu_si256(out.cast(), start);
            }
        }
    }
}

/// What is taken from 5-bit codes without a zero point, and added to their sums again: a power of two.
const ADDED: i8 = 16;

/// # Safety
/// As [`QuantKernels::gemm`].
///
/// [`QuantKernels::gemm`]: crate::kernels::quant::QuantKernels::gemm
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn gemm(p: &Product) {
    let Kind { codes, halves, offset } = p.kind;
    let min = offset == Offset::Min;
    let block = match (codes, halves, min) {
        (Codes::I8, ..) => bytes,
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
            block(p, p.a.copy.add(first / ROWS * p.groups * BLOCK), c);
        }
    }
}

/// Two 16-bit units, by which `vpmaddwd` adds neighbours, and what makes activations signed again.
static CONSTANTS: [u32; 2] = [0x1_0001, 0x8080_8080];

/// The sums of row `r` take registers 2 r and 2 r + 1, codes 8 and 9; 10 to 15 are for products, two of a row. Products of
/// row `$r`, whose first register is `$a`.
macro_rules! products {
    ($chunk:literal, $r:literal, $a:literal, $b:literal) => {
        concat!(
            "vpbroadcastd ",
            $b,
            ", dword ptr [{q} + 16*",
            $chunk,
            " + 4*",
            $r,
            "]\n",
            "vpmaddubsw ",
            $a,
            ", ",
            $b,
            ", ymm8\n",
            "vpmaddubsw ",
            $b,
            ", ",
            $b,
            ", ymm9\n",
        )
    };
}

/// Adds them to the sums of the row, or begins those.
macro_rules! add {
    (start $at:literal, $a:literal, $b:literal, $low:literal, $high:literal) => {
        concat!(
            "vpaddw ",
            $low,
            ", ",
            $a,
            ", ymmword ptr [{w} + ",
            $at,
            "]\n",
            "vpaddw ",
            $high,
            ", ",
            $b,
            ", ymmword ptr [{w} + ",
            $at,
            " + 32]\n",
        )
    };
    (more $at:literal, $a:literal, $b:literal, $low:literal, $high:literal) => {
        concat!("vpaddw ", $low, ", ", $low, ", ", $a, "\n", "vpaddw ", $high, ", ", $high, ", ", $b, "\n")
    };
}

/// Chunk `$chunk` of a group for four rows. `$at` is where its part begins and `$i` the number of the chunk in it. Sums are
/// added two rows later: what Zen 3 does best of all orders tried (the ladder in `docs/bench-notes.md`).
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
macro_rules! scaled {
    ($low:literal, $high:literal) => {
        concat!(sums!($low, $high), times_scales!($low, $high))
    };
}
macro_rules! sums {
    ($low:literal, $high:literal) => {
        concat!("vpmaddwd ", $low, ", ", $low, ", ymm10\n", "vpmaddwd ", $high, ", ", $high, ", ymm10\n",)
    };
}
macro_rules! floats {
    ($low:literal, $high:literal) => {
        concat!("vcvtdq2ps ", $low, ", ", $low, "\n", "vcvtdq2ps ", $high, ", ", $high, "\n")
    };
}
macro_rules! times_scales {
    ($low:literal, $high:literal) => {
        concat!(
            floats!($low, $high),
            "vmulps ",
            $low,
            ", ",
            $low,
            ", ymm8\n",
            "vmulps ",
            $high,
            ", ",
            $high,
            ", ymm9\n",
        )
    };
}

/// Adds to a row what its sum of codes (the `$number`th of its numbers) gives with the minima at `$at`.
macro_rules! minima {
    ($r:literal, $number:literal, $at:literal, $low:literal, $high:literal) => {
        concat!(
            "vbroadcastss ymm12, dword ptr [{q} + 128 + 16*",
            $number,
            " + 4*",
            $r,
            "]\n",
            "vfmadd231ps ",
            $low,
            ", ymm12, ymmword ptr [{m} + ",
            $at,
            "]\n",
            "vfmadd231ps ",
            $high,
            ", ymm12, ymmword ptr [{m} + ",
            $at,
            " + 32]\n",
        )
    };
}

/// Times the activations' scale, added to the result.
macro_rules! finish {
    ($r:literal, $c:literal, $low:literal, $high:literal) => {
        concat!(
            "vbroadcastss ymm11, dword ptr [{q} + 128 + 4*",
            $r,
            "]\n",
            "vfmadd213ps ",
            $low,
            ", ymm11, ymmword ptr [",
            $c,
            "]\n",
            "vfmadd213ps ",
            $high,
            ", ymm11, ymmword ptr [",
            $c,
            " + 32]\n",
            "vmovups ymmword ptr [",
            $c,
            "], ",
            $low,
            "\n",
            "vmovups ymmword ptr [",
            $c,
            " + 32], ",
            $high,
            "\n",
        )
    };
}

/// `$row!(row, address of its results, registers of its sums)` for all four rows.
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
macro_rules! scales {
    ($at:literal) => {
        concat!(
            "vmovups ymm8, ymmword ptr [{s} + ",
            $at,
            "]\n",
            "vmovups ymm9, ymmword ptr [{s} + ",
            $at,
            " + 32]\n",
        )
    };
}

/// A function that multiplies a block of rows by a panel; `$body` is what it does in a group, which takes `$bytes` of
/// codes and `$scales` of scales.
macro_rules! block {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $scales:literal, $body:expr) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The product is valid; at `q` lies a block of `p.groups` groups and at `c` are four rows of results.
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn $name(p: &Product, q: *const u8, c: *mut f32) {
            // Room for the first halves of four rows.
            let mut t = [0.0f32; 2 * 8 * ROWS];
            // SAFETY: the caller's promise: every offset lies within a group.
            unsafe {
                asm!(
                    "test {n}, {n}",
                    "jz 3f",
                    "2:",
                    $body,
                    "add {q}, 192",
                    concat!("add {w}, ", $bytes),
                    concat!("add {s}, ", $scales),
                    concat!("add {m}, ", $scales),
                    "dec {n}",
                    "jnz 2b",
                    "3:",
                    "/* {ones} {t} */",
                    q = inout(reg) q => _,
                    w = inout(reg) p.codes => _,
                    s = inout(reg) p.scales => _,
                    m = inout(reg) p.mins => _,
                    n = inout(reg) p.groups => _,
                    c = in(reg) c,
                    c3 = in(reg) c.wrapping_add(3 * p.ldc),
                    ldc = in(reg) 4 * p.ldc,
                    ones = in(reg) &CONSTANTS,
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
macro_rules! whole_sums {
    () => {
        concat!(
            chunk!(start 0, 0, 0), chunk!(more 0, 1, 1), chunk!(more 0, 2, 2), chunk!(more 0, 3, 3),
            chunk!(more 0, 4, 4), chunk!(more 0, 5, 5), chunk!(more 0, 6, 6), chunk!(more 0, 7, 7),
            scales!(0), "vpbroadcastd ymm10, dword ptr [{ones}]\n",
        )
    };
}

macro_rules! whole_row {
    ($r:literal, $c:literal, $low:literal, $high:literal) => {
        concat!(scaled!($low, $high), finish!($r, $c, $low, $high))
    };
}
block! {
    /// Codes of 4 or 5 bits with a zero point, one scale a group.
    whole, 576, 64, concat!(whole_sums!(), rows!(whole_row))
}

macro_rules! whole_min_row {
    ($r:literal, $c:literal, $low:literal, $high:literal) => {
        concat!(scaled!($low, $high), minima!($r, 1, 0, $low, $high), finish!($r, $c, $low, $high))
    };
}
block! {
    /// Codes of 4 bits, one scale and minimum a group.
    whole_min, 576, 64, concat!(whole_sums!(), rows!(whole_min_row))
}

macro_rules! whole_less_16_min_row {
    ($r:literal, $c:literal, $low:literal, $high:literal) => {
        concat!(
            "vbroadcastss ymm12, dword ptr [{q} + 128 + 16 + 4*",
            $r,
            "]\n",
            "vcvtps2dq ymm12, ymm12\n",
            "vpslld ymm12, ymm12, 4\n",
            sums!($low, $high),
            "vpaddd ",
            $low,
            ", ",
            $low,
            ", ymm12\n",
            "vpaddd ",
            $high,
            ", ",
            $high,
            ", ymm12\n",
            times_scales!($low, $high),
            minima!($r, 1, 0, $low, $high),
            finish!($r, $c, $low, $high),
        )
    };
}
block! {
    /// Codes of 5 bits less 16, one scale and minimum a group.
    whole_less_16_min, 576, 64, concat!(whole_sums!(), rows!(whole_less_16_min_row))
}

macro_rules! first_half_row {
    ($r:literal, $c:literal, $low:literal, $high:literal) => {
        concat!(
            scaled!($low, $high),
            "vmovups ymmword ptr [{t} + 64*",
            $r,
            "], ",
            $low,
            "\n",
            "vmovups ymmword ptr [{t} + 64*",
            $r,
            " + 32], ",
            $high,
            "\n",
        )
    };
}
/// The sums of a group whose halves have scales of their own.
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
macro_rules! second_half {
    ($r:literal, $low:literal, $high:literal) => {
        concat!(
            sums!($low, $high),
            floats!($low, $high),
            "vfmadd213ps ",
            $low,
            ", ymm8, ymmword ptr [{t} + 64*",
            $r,
            "]\n",
            "vfmadd213ps ",
            $high,
            ", ymm9, ymmword ptr [{t} + 64*",
            $r,
            " + 32]\n",
        )
    };
}

macro_rules! halved_row {
    ($r:literal, $c:literal, $low:literal, $high:literal) => {
        concat!(second_half!($r, $low, $high), finish!($r, $c, $low, $high))
    };
}
block! {
    /// Codes of 4 or 6 bits with a zero point, two scales a group.
    halved, 640, 128, concat!(halved_sums!(), rows!(halved_row))
}

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
    halved_min, 640, 128, concat!(halved_sums!(), rows!(halved_min_row))
}

/// Chunk `$i` of bytes for row `$r`: the activation, signed again, with the signs of the codes, times the codes without.
/// Neither is -128 where it would matter: |-128| is 128 as an unsigned byte, and activations stop at -127.
macro_rules! byte_products {
    ($i:literal, $r:literal, $a:literal, $b:literal) => {
        concat!(
            "vpbroadcastd ",
            $b,
            ", dword ptr [{q} + 16*",
            $i,
            " + 4*",
            $r,
            "]\n",
            "vpxor ",
            $b,
            ", ",
            $b,
            ", ymm15\n",
            "vpsignb ",
            $a,
            ", ",
            $b,
            ", ymmword ptr [{w} + 512 + 64*",
            $i,
            "]\n",
            "vpsignb ",
            $b,
            ", ",
            $b,
            ", ymmword ptr [{w} + 544 + 64*",
            $i,
            "]\n",
            "vpmaddubsw ",
            $a,
            ", ymm8, ",
            $a,
            "\n",
            "vpmaddubsw ",
            $b,
            ", ymm9, ",
            $b,
            "\n",
        )
    };
}
macro_rules! add_bytes {
    ($a:literal, $b:literal, $low:literal, $high:literal) => {
        concat!(
            sums!($a, $b),
            "vpaddd ",
            $low,
            ", ",
            $low,
            ", ",
            $a,
            "\n",
            "vpaddd ",
            $high,
            ", ",
            $high,
            ", ",
            $b,
            "\n",
        )
    };
}
macro_rules! byte_chunk {
    ($i:literal) => {
        concat!(
            "vmovdqu ymm8, ymmword ptr [{w} + 64*",
            $i,
            "]\n",
            "vmovdqu ymm9, ymmword ptr [{w} + 32 + 64*",
            $i,
            "]\n",
            byte_products!($i, 0, "ymm11", "ymm12"),
            byte_products!($i, 1, "ymm13", "ymm14"),
            add_bytes!("ymm11", "ymm12", "ymm0", "ymm1"),
            byte_products!($i, 2, "ymm11", "ymm12"),
            add_bytes!("ymm13", "ymm14", "ymm2", "ymm3"),
            byte_products!($i, 3, "ymm13", "ymm14"),
            add_bytes!("ymm11", "ymm12", "ymm4", "ymm5"),
            add_bytes!("ymm13", "ymm14", "ymm6", "ymm7"),
        )
    };
}
macro_rules! zero {
    ($r:literal, $c:literal, $low:literal, $high:literal) => {
        concat!("vpxor ", $low, ", ", $low, ", ", $low, "\n", "vpxor ", $high, ", ", $high, ", ", $high, "\n")
    };
}
macro_rules! bytes_row {
    ($r:literal, $c:literal, $low:literal, $high:literal) => {
        concat!(times_scales!($low, $high), finish!($r, $c, $low, $high))
    };
}
block! {
    /// Signed bytes, one scale a group.
    bytes, 1024, 64, concat!(
        "vpbroadcastd ymm10, dword ptr [{ones}]\n",
        "vpbroadcastd ymm15, dword ptr [{ones} + 4]\n",
        rows!(zero),
        byte_chunk!(0), byte_chunk!(1), byte_chunk!(2), byte_chunk!(3),
        byte_chunk!(4), byte_chunk!(5), byte_chunk!(6), byte_chunk!(7),
        scales!(0), rows!(bytes_row),
    )
}
