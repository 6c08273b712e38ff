//! AVX512_BF16: tiles of eight rows, side by side by fours, times two panels: 16 products on 10 loads.

use super::{Bf16Kernels, Bf16Product};
use crate::{kernels::quant::COPY_ROWS, pack::PANEL};
use std::arch::x86_64::*;

/// Panels of a tile.
const PANELS: usize = 2;

pub(super) static TABLE: Bf16Kernels = Bf16Kernels {
    name: "vdpbf16ps of AVX-512 BF16",
    side_by_side: COPY_ROWS,
    panels: PANELS,
    round: |x, apart, k, to| {
        // SAFETY: `table` hands this out only where AVX512_BF16 was found.
        unsafe { round(x, apart, k, to) }
    },
    gemm: |p| {
        // SAFETY: the caller's promise, and `table` hands this out only where AVX512_BF16 was found.
        unsafe {
            match p.panels {
                PANELS => tiles::<PANELS>(p),
                _ => tiles::<1>(p),
            }
        }
    },
};

/// See [`Bf16Kernels::round`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn round(x: &[f32], apart: usize, k: usize, to: &mut [u16]) {
    const { assert!(COPY_ROWS == 4 && PANEL == 16) };
    assert!(k.is_multiple_of(PANEL) && x.len() >= (COPY_ROWS - 1) * apart + k && to.len() >= COPY_ROWS * k);
    // Of two registers that have 8 pairs of two rows each: four pairs of all rows.
    let low = _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
    let high = _mm512_add_epi32(low, _mm512_set1_epi32(4));
    for column in (0..k).step_by(PANEL) {
        // SAFETY: asserted above; a register of bfloat16 holds any bits.
        unsafe {
            let row = |r: usize| _mm512_loadu_ps(x.as_ptr().add(r * apart + column));
            let two =
                |r: usize| std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(row(r + 1), row(r)));
            let (front, back) = (two(0), two(2));
            let to = to.as_mut_ptr().add(column * COPY_ROWS);
            _mm512_storeu_si512(to.cast(), _mm512_permutex2var_epi32(front, low, back));
            _mm512_storeu_si512(to.add(2 * PANEL).cast(), _mm512_permutex2var_epi32(front, high, back));
        }
    }
}

/// # Safety
/// As [`Bf16Kernels::gemm`], of `NP` panels.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn tiles<const NP: usize>(p: &Bf16Product) {
    let mut row = 0;
    // SAFETY: the caller's promise; there is room for whole blocks of rows.
    unsafe {
        while row < p.rows {
            if p.rows - row > COPY_ROWS {
                tile::<{ 2 * COPY_ROWS }, NP>(p, row);
                row += 2 * COPY_ROWS;
            } else {
                tile::<COPY_ROWS, NP>(p, row);
                row += COPY_ROWS;
            }
        }
    }
}

/// # Safety
/// As [`tiles`]; the activations and the sums have `ROWS` rows from `row` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn tile<const ROWS: usize, const NP: usize>(p: &Bf16Product, row: usize) {
    let mut sums = [[_mm512_setzero_ps(); NP]; ROWS];
    // SAFETY: all offsets lie within what the fields of the product describe; a register of integers holds any bits.
    unsafe {
        let pairs = |x: __m512i| std::mem::transmute::<__m512i, __m512bh>(x);
        let out = p.c.add(row * p.ldc);
        if !p.first {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (x, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_loadu_ps(out.add(r * p.ldc + x * PANEL));
                }
            }
        }
        // Blocks of rows lie as far apart as one of them is long.
        let apart = COPY_ROWS * p.k;
        let (mut a, mut b) = (p.a.add(row * p.k), p.b);
        // Two pairs a step, so that moving the pointers costs half.
        for _ in 0..p.k / 4 {
            for i in 0..2 {
                let w: [_; NP] = std::array::from_fn(|x| {
                    pairs(_mm512_loadu_si512(b.add(x * p.b_panel + i * 2 * PANEL).cast()))
                });
                for (r, sums) in sums.iter_mut().enumerate() {
                    let at = r / COPY_ROWS * apart + 2 * (i * COPY_ROWS + r % COPY_ROWS);
                    let a = pairs(_mm512_set1_epi32(a.add(at).cast::<i32>().read_unaligned()));
                    for (sum, w) in sums.iter_mut().zip(w) {
                        *sum = _mm512_dpbf16_ps(*sum, w, a);
                    }
                }
            }
            b = b.add(4 * PANEL);
            a = a.add(4 * COPY_ROWS);
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (x, sum) in sums.into_iter().enumerate() {
                _mm512_storeu_ps(out.add(r * p.ldc + x * PANEL), sum);
            }
        }
    }
}
