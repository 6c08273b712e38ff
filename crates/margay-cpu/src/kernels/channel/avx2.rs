//! AVX2: `vpmaddwd` of widened codes, exact.

use super::{ChannelKernels, ChannelProduct};
use crate::kernels::quant::avx2::{broadcast4, widen_bytes};
use std::arch::x86_64::*;

pub(super) static TABLE: ChannelKernels = ChannelKernels {
    name: "vpmaddwd of AVX2",
    wants_q16: true,
    unpack: Some(|packed, k, out| {
        // SAFETY: the caller's promise, and AVX2 was detected.
        unsafe { widen_bytes(packed, k, out) }
    }),
    zero: 0,
    gemm: |p| {
        // SAFETY: the caller's promise, and AVX2 was detected.
        unsafe { gemm(p) }
    },
};

/// # Safety
/// As [`ChannelKernels::gemm`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn gemm(p: &ChannelProduct) {
    let mut row = 0;
    // SAFETY: the caller's promise; rows stay below `p.rows`.
    unsafe {
        while p.rows - row >= 6 {
            six(p, row);
            row += 6;
        }
        while p.rows - row >= 2 {
            tile::<2>(p, row);
            row += 2;
        }
        if p.rows > row {
            tile::<1>(p, row);
        }
    }
}

/// The two products of row `$r` with chunk `$i` of a step, and their sums.
macro_rules! products {
    ($i:literal, $pointer:literal, $times:literal, $low:literal, $high:literal) => {
        concat!(
            "vpbroadcastd {a}, dword ptr [{",
            $pointer,
            "} + ",
            $times,
            " + 4*",
            $i,
            "]\n",
            "vpmaddwd {t}, {a}, {w0}\n",
            "vpmaddwd {a}, {a}, {w1}\n",
            "vpaddd {",
            $low,
            "}, {",
            $low,
            "}, {t}\n",
            "vpaddd {",
            $high,
            "}, {",
            $high,
            "}, {a}\n",
        )
    };
}

/// Two columns of k for six rows.
macro_rules! chunk {
    ($i:literal) => {
        concat!(
            "vmovdqu {w0}, ymmword ptr [{w} + 64*",
            $i,
            "]\n",
            "vmovdqu {w1}, ymmword ptr [{w} + 64*",
            $i,
            " + 32]\n",
            products!($i, "q", "0", "s0", "s1"),
            products!($i, "q", "{lda}", "s2", "s3"),
            products!($i, "q", "2*{lda}", "s4", "s5"),
            products!($i, "q3", "0", "s6", "s7"),
            products!($i, "q3", "{lda}", "s8", "s9"),
            products!($i, "q3", "2*{lda}", "s10", "s11"),
        )
    };
}

/// Six rows, by hand: the compiler computes pointers between the products and adds each product at once. Of the 4
/// products and additions a cycle that Zen 3 could do this order does 3.2, and no other order more than 3.4 (the ladder
/// in `docs/bench-notes.md`).
///
/// # Safety
/// As [`gemm`], and `row + 6 <= p.rows`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn six(p: &ChannelProduct, row: usize) {
    let mut sums = [[_mm256_setzero_si256(); 2]; 6];
    // SAFETY: all offsets lie within what the fields of the product describe: `p.k` is a multiple of 8, and each step
    // reads 8 numbers of each row and 8 columns of the panel.
    unsafe {
        let out = p.sums.add(row * p.ldc);
        if !p.first {
            for (r, sums) in sums.iter_mut().enumerate() {
                let at = out.add(r * p.ldc);
                *sums = [_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(8).cast())];
            }
        }
        let q = p.q16.add(row * p.lda);
        let [s0, s1, s2, s3, s4, s5] = &mut sums;
        std::arch::asm!(
            "test {steps}, {steps}",
            "jz 3f",
            "2:",
            chunk!(0),
            chunk!(1),
            chunk!(2),
            chunk!(3),
            "add {q}, 16",
            "add {q3}, 16",
            "add {w}, 256",
            "dec {steps}",
            "jnz 2b",
            "3:",
            steps = inout(reg) p.k / 8 => _,
            q = inout(reg) q => _,
            q3 = inout(reg) q.wrapping_add(3 * p.lda) => _,
            lda = in(reg) 2 * p.lda,
            w = inout(reg) p.codes => _,
            s0 = inout(ymm_reg) s0[0],
            s1 = inout(ymm_reg) s0[1],
            s2 = inout(ymm_reg) s1[0],
            s3 = inout(ymm_reg) s1[1],
            s4 = inout(ymm_reg) s2[0],
            s5 = inout(ymm_reg) s2[1],
            s6 = inout(ymm_reg) s3[0],
            s7 = inout(ymm_reg) s3[1],
            s8 = inout(ymm_reg) s4[0],
            s9 = inout(ymm_reg) s4[1],
            s10 = inout(ymm_reg) s5[0],
            s11 = inout(ymm_reg) s5[1],
            w0 = out(ymm_reg) _,
            w1 = out(ymm_reg) _,
            a = out(ymm_reg) _,
            t = out(ymm_reg) _,
            options(nostack, readonly),
        );
        for (r, [low, high]) in sums.into_iter().enumerate() {
            let at = out.add(r * p.ldc);
            _mm256_storeu_si256(at.cast(), low);
            _mm256_storeu_si256(at.add(8).cast(), high);
        }
    }
}

/// # Safety
/// As [`gemm`], and `row + ROWS <= p.rows`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const ROWS: usize>(p: &ChannelProduct, row: usize) {
    let mut sums = [[_mm256_setzero_si256(); 2]; ROWS];
    // SAFETY: all offsets lie within what the fields of the product describe.
    unsafe {
        let out = p.sums.add(row * p.ldc);
        if !p.first {
            for (r, sums) in sums.iter_mut().enumerate() {
                let at = out.add(r * p.ldc);
                *sums = [_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(8).cast())];
            }
        }
        let q = p.q16.add(row * p.lda);
        for pair in 0..p.k / 2 {
            let codes = p.codes.add(pair * 64);
            let w = [_mm256_loadu_si256(codes.cast()), _mm256_loadu_si256(codes.add(32).cast())];
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = broadcast4(q.add(r * p.lda + pair * 2));
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(w, a));
                }
            }
        }
        for (r, [low, high]) in sums.into_iter().enumerate() {
            let at = out.add(r * p.ldc);
            _mm256_storeu_si256(at.cast(), low);
            _mm256_storeu_si256(at.add(8).cast(), high);
        }
    }
}
