//! A block of scores by hand for AVX-512: the steps of [`super::body`], and the same bits. The 64 scores of a row stay in
//! four registers, and partial maxima and sums are joined in registers, where the compiler went through memory.

use super::{KEYS, LANES};
use crate::kernels::{
    attention::int8::avx512::join,
    math::{self, greater},
};
use std::arch::x86_64::*;

const _: () = assert!(LANES == 16 && KEYS == 64);

/// See [`super::SoftmaxKernels::block`]; the processor must have AVX-512.
pub(super) fn block(scores: &mut [f32], max: &mut [f32], sum: &mut [f32], keep: &mut [f32]) {
    // SAFETY: `table` hands this out only where AVX-512 was found.
    unsafe { inner(scores, max, sum, keep) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
fn inner(scores: &mut [f32], max: &mut [f32], sum: &mut [f32], keep: &mut [f32]) {
    let rows = scores.as_chunks_mut::<KEYS>().0.iter_mut();
    for (((row, max), sum), keep) in rows.zip(max).zip(sum).zip(keep) {
        let at = row.as_mut_ptr();
        // SAFETY: a row is 64 numbers.
        let scores: [__m512; 4] = unsafe { std::array::from_fn(|i| _mm512_loadu_ps(at.add(i * LANES))) };
        let mut lanes = scores[0];
        for score in &scores[1..] {
            // The second where one is no number, as `math::greater`.
            lanes = _mm512_max_ps(*score, lanes);
        }
        let largest = join(lanes, |a, b| _mm256_max_ps(b, a), |a, b| _mm_max_ps(b, a));
        let new = greater(*max, largest);
        let mut sums = _mm512_setzero_ps();
        for (i, score) in scores.into_iter().enumerate() {
            let weight = exp2(_mm512_sub_ps(score, _mm512_set1_ps(new)));
            sums = _mm512_add_ps(sums, weight);
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(at.add(i * LANES), weight) }
        }
        *keep = math::exp2(*max - new);
        *max = new;
        *sum = *sum * *keep + join(sums, |a, b| _mm256_add_ps(a, b), |a, b| _mm_add_ps(a, b));
    }
}

/// As [`math::exp2`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
fn exp2(x: __m512) -> __m512 {
    let round = _mm512_set1_ps(math::ROUND);
    let shifted = _mm512_add_ps(x, round);
    let r = _mm512_sub_ps(x, _mm512_sub_ps(shifted, round));
    let [first, rest @ ..] = math::EXP2;
    let mut y = _mm512_set1_ps(first);
    for coefficient in rest {
        y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(coefficient));
    }
    let power = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
    let power = _mm512_add_epi32(power, _mm512_set1_epi32(1.0f32.to_bits() as i32));
    // What is no number stays none.
    let used = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(-126.0));
    _mm512_maskz_mul_ps(used, y, _mm512_castsi512_ps(power))
}
