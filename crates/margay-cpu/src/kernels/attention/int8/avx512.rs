//! Scores to weights by hand for AVX-512: the steps of [`super::body`], and the same bits. A row of 64 keys stays in four
//! registers from its sums to its codes, where the compiler went through memory: a third of the instructions.

use super::{BlockScales, DITHERS, EXP2, LANES, MOST, Row};
use crate::kernels::{
    attention::{KEYS, NO_SCORE},
    math,
    rows::NOTHING,
};
use std::arch::x86_64::*;

const _: () = assert!(LANES == 16 && KEYS == 64);

/// See [`super::Int8Kernels::weights`]; the processor must have AVX-512.
pub(super) fn weights(
    sums: &[i32; KEYS],
    of: &BlockScales,
    visible: usize,
    row: &mut Row,
    codes: &mut [u8; KEYS],
) {
    // SAFETY: `table` hands this out only where AVX-512 was found.
    unsafe { inner(sums, of, visible, row, codes) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
fn inner(sums: &[i32; KEYS], of: &BlockScales, visible: usize, row: &mut Row, codes: &mut [u8; KEYS]) {
    let seen = if visible < KEYS { (1u64 << visible) - 1 } else { u64::MAX };
    let seen = |i: usize| (seen >> (i * LANES)) as u16;
    // SAFETY: all arrays are of `KEYS` numbers.
    let floats = |of: &[f32; KEYS], i: usize| unsafe { _mm512_loadu_ps(of[i * LANES..].as_ptr()) };
    let (offset, scale) = (_mm512_set1_epi32(row.offset), _mm512_set1_ps(row.scale));
    let score = |i: usize| {
        // SAFETY: as above.
        let sums = unsafe { _mm512_loadu_si512(sums[i * LANES..].as_ptr().cast()) };
        let sums = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums, offset));
        let score = _mm512_mul_ps(sums, _mm512_mul_ps(floats(&of.keys, i), scale));
        _mm512_mask_blend_ps(seen(i), _mm512_set1_ps(f32::NEG_INFINITY), score)
    };
    let scores = [score(0), score(1), score(2), score(3)];
    // The second where one is no number, as `math::greater`.
    let mut lanes = _mm512_set1_ps(NO_SCORE);
    for score in scores {
        lanes = _mm512_max_ps(score, lanes);
    }
    let max = join(lanes, |a, b| _mm256_max_ps(b, a), |a, b| _mm_max_ps(b, a));
    let largest = if visible > 0 { of.largest[visible - 1] } else { 0.0 };
    let inverse = _mm512_set1_ps(if largest > NOTHING { MOST / largest } else { 0.0 });
    let (mut lanes, mut totals) = (_mm512_setzero_ps(), _mm512_setzero_si512());
    for (i, score) in scores.into_iter().enumerate() {
        let weight = exp2(_mm512_sub_ps(score, _mm512_set1_ps(max)));
        lanes = _mm512_add_ps(lanes, weight);
        let shifted = _mm512_mul_ps(weight, _mm512_mul_ps(floats(&of.values, i), inverse));
        let shifted = _mm512_add_ps(_mm512_add_ps(shifted, floats(&DITHERS, i)), _mm512_set1_ps(math::ROUND));
        let whole = _mm512_maskz_and_epi32(seen(i), _mm512_castps_si512(shifted), _mm512_set1_epi32(127));
        totals = _mm512_add_epi32(totals, whole);
        // SAFETY: as above.
        unsafe { _mm_storeu_si128(codes[i * LANES..].as_mut_ptr().cast(), _mm512_cvtepi32_epi8(whole)) }
    }
    let sum = join(lanes, |a, b| _mm256_add_ps(a, b), |a, b| _mm_add_ps(a, b));
    let new = math::greater(row.max, max);
    let changes = exp2(_mm512_castps128_ps512(_mm_setr_ps(row.max - new, max - new, 0.0, 0.0)));
    let changes = _mm512_castps512_ps128(changes);
    let (keep, take) = (_mm_cvtss_f32(changes), _mm_cvtss_f32(_mm_movehdup_ps(changes)));
    row.max = new;
    row.sum = row.sum * keep + sum * take;
    row.keep = keep;
    row.factor = take * (largest / MOST);
    row.total = _mm512_reduce_add_epi32(totals);
}

/// As [`math::join`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
pub(in crate::kernels::attention) fn join(
    lanes: __m512,
    eight: impl Fn(__m256, __m256) -> __m256,
    four: impl Fn(__m128, __m128) -> __m128,
) -> f32 {
    let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(lanes)));
    let lanes = eight(_mm512_castps512_ps256(lanes), high);
    let lanes = four(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
    let lanes = four(lanes, _mm_movehl_ps(lanes, lanes));
    _mm_cvtss_f32(four(lanes, _mm_movehdup_ps(lanes)))
}

/// As that of [`super::body`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
fn exp2(x: __m512) -> __m512 {
    let round = _mm512_set1_ps(math::ROUND);
    // The second where it is no number.
    let x = _mm512_max_ps(_mm512_set1_ps(-126.0), x);
    let shifted = _mm512_add_ps(x, round);
    let r = _mm512_sub_ps(x, _mm512_sub_ps(shifted, round));
    let p = _mm512_fmadd_ps(_mm512_set1_ps(EXP2[0]), r, _mm512_set1_ps(EXP2[1]));
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP2[2]));
    let y = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP2[3]));
    let power = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
    let power = _mm512_add_epi32(power, _mm512_set1_epi32(1.0f32.to_bits() as i32));
    _mm512_mul_ps(y, _mm512_castsi512_ps(power))
}
