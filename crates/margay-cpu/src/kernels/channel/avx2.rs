//! AVX2: four rows at a time, side by side.
//!
//! Activations that are signed are made unsigned by 128, and `vpmaddubsw` multiplies them with signed codes: no pair of those that could
//! overflow 16 bits is left by the packing. `vpmaddwd` by ones adds the pairs. Sums begin at what the 128 add to them.
//! Three operations for 32 products, where both sides widened take four.

use super::{COPY_ROWS, ChannelKernels, ChannelProduct};
use crate::{kernels::quant::avx2::side_by_side, pack::PANEL};
use std::arch::{asm, x86_64::*};

pub(super) static TABLE: ChannelKernels = ChannelKernels {
    name: "vpmaddubsw of AVX2",
    copy: Some(|rows, columns, q, lda, to, signed| {
        // SAFETY: the caller's promise, and AVX2 was detected.
        unsafe { copy(rows, columns, q, lda, to, signed) }
    }),
    panels: 1,
    zero: 0,
    gemm: |p| {
        // SAFETY: the caller's promise, and AVX2 was detected.
        unsafe { gemm(p) }
    },
};

/// Codes made unsigned, `[columns/4][COPY_ROWS][4]`.
///
/// # Safety
/// As [`ChannelKernels::copy`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn copy(rows: usize, columns: usize, q: *const i8, lda: usize, to: *mut u8, signed: bool) {
    let top_bit = _mm_set1_epi8(if signed { -128 } else { 0 });
    for first in (0..rows).step_by(COPY_ROWS) {
        for at in (0..columns).step_by(16) {
            // SAFETY: the caller's promise: rows below `rows` are valid, and the copy has room for whole blocks.
            unsafe {
                let mut from = [None; COPY_ROWS];
                for (r, from) in from.iter_mut().enumerate().take(rows - first) {
                    *from = Some(q.add((first + r) * lda + at));
                }
                for (i, quad) in side_by_side(from).into_iter().enumerate() {
                    let unsigned = _mm_xor_si128(quad, top_bit);
                    _mm_storeu_si128(to.add(first * columns + (at + 4 * i) * COPY_ROWS).cast(), unsigned);
                }
            }
        }
    }
}

/// The two products of row `$r` with chunk `$i`, their pairs added.
#[rustfmt::skip]
macro_rules! products {
    ($i:literal, $r:literal, $a:literal, $b:literal) => {
        concat!(
            "vpbroadcastd ", $b, ", dword ptr [{q} + 16*", $i, " + 4*", $r, "]\n",
            "vpmaddubsw ", $a, ", ", $b, ", ymm8\n",
            "vpmaddubsw ", $b, ", ", $b, ", ymm9\n",
            "vpmaddwd ", $a, ", ", $a, ", ymm10\n",
            "vpmaddwd ", $b, ", ", $b, ", ymm10\n",
        )
    };
}

/// Adds them to the sums of the row.
#[rustfmt::skip]
macro_rules! add {
    ($a:literal, $b:literal, $low:literal, $high:literal) => {
        concat!("vpaddd ", $low, ", ", $low, ", ", $a, "\n", "vpaddd ", $high, ", ", $high, ", ", $b, "\n")
    };
}

/// Four columns for four rows. Of the two products a cycle that Zen 3 could do this does 1.95, in the first-level cache.
#[rustfmt::skip]
macro_rules! chunk {
    ($i:literal) => {
        concat!(
            "vmovdqu ymm8, ymmword ptr [{w} + 64*", $i, "]\n",
            "vmovdqu ymm9, ymmword ptr [{w} + 64*", $i, " + 32]\n",
            products!($i, 0, "ymm11", "ymm12"),
            products!($i, 1, "ymm13", "ymm14"),
            add!("ymm11", "ymm12", "ymm0", "ymm1"),
            products!($i, 2, "ymm11", "ymm12"),
            add!("ymm13", "ymm14", "ymm2", "ymm3"),
            products!($i, 3, "ymm13", "ymm14"),
            add!("ymm11", "ymm12", "ymm4", "ymm5"),
            add!("ymm13", "ymm14", "ymm6", "ymm7"),
        )
    };
}

/// # Safety
/// As [`ChannelKernels::gemm`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn gemm(p: &ChannelProduct) {
    for first in (0..p.rows).step_by(COPY_ROWS) {
        // SAFETY: the caller's promise: the sums have room for whole blocks of rows, and the copy holds such. `p.k` is a
        // multiple of 16, and each step reads 16 columns.
        unsafe {
            let mut sums = [[_mm256_setzero_si256(); 2]; COPY_ROWS];
            let out = p.sums.add(first * p.ldc);
            for (r, sums) in sums.iter_mut().enumerate() {
                let at = if p.first { p.totals } else { out.add(r * p.ldc).cast_const() };
                *sums = [_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(PANEL / 2).cast())];
                if p.first {
                    *sums = sums
                        .map(|total| _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32::<7>(total)));
                }
            }
            let [[s0, s1], [s2, s3], [s4, s5], [s6, s7]] = &mut sums;
            asm!(
                "vpcmpeqw ymm10, ymm10, ymm10",
                "vpsrlw ymm10, ymm10, 15",
                "test {steps}, {steps}",
                "jz 3f",
                "2:",
                chunk!(0), chunk!(1), chunk!(2), chunk!(3),
                "add {q}, 64",
                "add {w}, 256",
                "dec {steps}",
                "jnz 2b",
                "3:",
                steps = inout(reg) p.k / 16 => _,
                q = inout(reg) p.copy.add(first * p.k) => _,
                w = inout(reg) p.codes => _,
                inout("ymm0") *s0, inout("ymm1") *s1, inout("ymm2") *s2, inout("ymm3") *s3,
                inout("ymm4") *s4, inout("ymm5") *s5, inout("ymm6") *s6, inout("ymm7") *s7,
                out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
                out("ymm12") _, out("ymm13") _, out("ymm14") _,
                options(nostack, readonly),
            );
            for (r, [low, high]) in sums.into_iter().enumerate() {
                let at = out.add(r * p.ldc);
                _mm256_storeu_si256(at.cast(), low);
                _mm256_storeu_si256(at.add(PANEL / 2).cast(), high);
            }
        }
    }
}
