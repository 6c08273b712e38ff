//! Quantization with AVX2: what the compiler makes of the portable code takes twice as long.

use super::NOTHING;
use std::arch::x86_64::*;

/// Groups whose scales are computed together.
const GROUPS: usize = 8;

/// As [`super::RowKernels::quantize`].
pub(super) fn quantize(
    x: &[f32],
    q: &mut [i8],
    scale: &mut [f32],
    sum16: &mut [f32],
    sum32: &mut [f32],
    starts16: &mut [[i16; 2]],
    starts32: &mut [[i16; 2]],
) {
    // SAFETY: `super::table` hands this out only where AVX2 was found.
    unsafe { groups_of_32(x, q, scale, starts16) }
    for (sum, [even, odd]) in sum16.iter_mut().zip(&*starts16) {
        *sum = -f32::from(even + odd);
    }
    for (sum, [low, high]) in sum32.iter_mut().zip(sum16.as_chunks::<2>().0) {
        *sum = low + high;
    }
    for (start, [low, high]) in starts32.iter_mut().zip(starts16.as_chunks::<2>().0) {
        *start = [low[0] + high[0], low[1] + high[1]];
    }
}

/// Codes, scales and the starts of each 16.
#[target_feature(enable = "avx2,fma,f16c")]
fn groups_of_32(x: &[f32], q: &mut [i8], scale: &mut [f32], starts16: &mut [[i16; 2]]) {
    let (x, q) = (x.as_chunks::<32>().0, q.as_chunks_mut::<32>().0);
    let starts = starts16.as_chunks_mut::<2>().0;
    let blocks = x.chunks(GROUPS).zip(q.chunks_mut(GROUPS));
    let outs = scale.chunks_mut(GROUPS).zip(starts.chunks_mut(GROUPS));
    for ((x, q), (scale, starts)) in blocks.zip(outs) {
        let mut numbers = [0f32; GROUPS];
        for (max, x) in numbers.iter_mut().zip(x) {
            *max = largest_of(x);
        }
        let (scales, inverses) = scales_of(numbers);
        scale.copy_from_slice(&scales[..scale.len()]);
        for (((x, q), starts), inverse) in x.iter().zip(q).zip(starts).zip(inverses) {
            let codes = codes_of(x, _mm256_set1_ps(inverse));
            // Sums of two codes, then of every fourth of those: at most 8 codes of 127.
            let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
            let sums = _mm256_add_epi16(pairs, _mm256_shuffle_epi32::<0x4e>(pairs));
            let sums = _mm256_add_epi16(sums, _mm256_shuffle_epi32::<0xb1>(sums));
            let sums = _mm256_sub_epi16(_mm256_setzero_si256(), sums);
            let both = _mm_unpacklo_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
            // SAFETY: 32 codes of 8 bits and 4 sums of 16 are written.
            unsafe {
                _mm256_storeu_si256(q.as_mut_ptr().cast(), codes);
                _mm_storel_epi64(starts.as_mut_ptr().cast(), both);
            }
        }
    }
}

/// As [`super::RowKernels::quantize_row`].
pub(super) fn quantize_row(x: &[f32], q: &mut [i8]) -> (f32, i32) {
    // SAFETY: `super::table` hands this out only where AVX2 was found.
    unsafe { whole_row(x, q) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn whole_row(x: &[f32], q: &mut [i8]) -> (f32, i32) {
    let (groups, rest) = x.as_chunks::<32>();
    let mut top = _mm256_setzero_si256();
    for x in groups {
        top = _mm256_max_epu32(top, magnitudes(x));
    }
    let rest_max = rest.iter().fold(0, |top, x| u32::max(top, x.to_bits() & 0x7fff_ffff));
    let max = f32::from_bits(u32::max(greatest(top), rest_max));
    let inverse = if max > NOTHING { 127.0 / max } else { 0.0 };
    let (q_groups, q_rest) = q.as_chunks_mut::<32>();
    let mut total = _mm256_setzero_si256();
    for (x, q) in groups.iter().zip(q_groups) {
        let codes = codes_of(x, _mm256_set1_ps(inverse));
        let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
        total = _mm256_add_epi32(total, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        // SAFETY: 32 codes of 8 bits are written.
        unsafe { _mm256_storeu_si256(q.as_mut_ptr().cast(), codes) }
    }
    let mut lanes = [0i32; 8];
    // SAFETY: 8 sums of 32 bits are written.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), total) }
    let mut total = lanes.iter().sum();
    for (q, x) in q_rest.iter_mut().zip(rest) {
        let code = super::body::code(*x, inverse);
        total += code;
        *q = code as i8;
    }
    (max / 127.0, total)
}

/// The bits of |x|, of each eighth the largest. Compared as integers they order like the numbers, with NaN above all.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn magnitudes(x: &[f32; 32]) -> __m256i {
    let mask = _mm256_set1_epi32(0x7fff_ffff);
    // SAFETY: 32 numbers are read.
    let [a, b, c, d] = [0, 8, 16, 24]
        .map(|i| unsafe { _mm256_and_si256(_mm256_loadu_si256(x.as_ptr().add(i).cast()), mask) });
    _mm256_max_epu32(_mm256_max_epu32(a, b), _mm256_max_epu32(c, d))
}

/// The greatest of eight integers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn greatest(x: __m256i) -> u32 {
    let x = _mm_max_epu32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
    let x = _mm_max_epu32(x, _mm_shuffle_epi32::<0x4e>(x));
    _mm_cvtsi128_si32(_mm_max_epu32(x, _mm_shuffle_epi32::<0xb1>(x))) as u32
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn largest_of(x: &[f32; 32]) -> f32 {
    f32::from_bits(greatest(magnitudes(x)))
}

/// `max / 127`, and its inverse or 0 where there is none.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn scales_of(max: [f32; GROUPS]) -> ([f32; GROUPS], [f32; GROUPS]) {
    let (mut scales, mut inverses) = ([0.0; GROUPS], [0.0; GROUPS]);
    // SAFETY: 8 numbers are read, 8 written twice.
    unsafe {
        let max = _mm256_loadu_ps(max.as_ptr());
        let codes = _mm256_set1_ps(127.0);
        let some = _mm256_cmp_ps::<_CMP_GT_OQ>(max, _mm256_set1_ps(NOTHING));
        _mm256_storeu_ps(scales.as_mut_ptr(), _mm256_div_ps(max, codes));
        _mm256_storeu_ps(inverses.as_mut_ptr(), _mm256_and_ps(some, _mm256_div_ps(codes, max)));
    }
    (scales, inverses)
}

/// The integers nearest to `x * inverse`, ties to even.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn codes_of(x: &[f32; 32], inverse: __m256) -> __m256i {
    // SAFETY: 32 numbers are read.
    let [a, b, c, d] = [0, 8, 16, 24]
        .map(|i| unsafe { _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x.as_ptr().add(i)), inverse)) });
    let codes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    // Packing works within halves of a register, twice.
    let codes = _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    // A NaN has no nearest integer; no code is below -127.
    _mm256_max_epi8(codes, _mm256_set1_epi8(-127))
}

#[cfg(test)]
mod tests {
    use super::super::{portable, table};
    use crate::Isa;

    /// Numbers of all sizes; a group of zeros; one with ties.
    fn row(columns: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        (0..columns)
            .map(|i| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let x = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
                match i / 32 % 4 {
                    0 => 0.0,
                    1 => (i % 32) as f32 * 0.5 - 7.75,
                    2 => x * [1e-30, 1e-36, 1e-38][i / 128 % 3],
                    _ => x * 50.0,
                }
            })
            .collect()
    }

    #[test]
    fn quantization_gives_the_bits_of_the_portable_kernel() {
        for isa in [Isa::Avx2, Isa::Avx512].into_iter().filter(|isa| isa.is_supported()) {
            for columns in [0, 32, 96, 256, 288, 1024, 5632] {
                let x = row(columns, columns as u32);
                let run = |quantize: super::super::Quantize| {
                    let (mut q, mut scale) = (vec![1i8; columns], vec![1f32; columns / 32]);
                    let (mut sum16, mut sum32) = (vec![1f32; columns / 16], vec![1f32; columns / 32]);
                    let mut starts16 = vec![[1i16; 2]; columns / 16];
                    let mut starts32 = vec![[1i16; 2]; columns / 32];
                    quantize(&x, &mut q, &mut scale, &mut sum16, &mut sum32, &mut starts16, &mut starts32);
                    (q, scale, sum16, sum32, starts16, starts32)
                };
                assert_eq!(run(table(isa).quantize), run(portable::TABLE.quantize), "{isa}, {columns}");
            }
            for columns in [0, 1, 31, 32, 45, 588, 1024, 4304] {
                let x = row(columns, columns as u32);
                let run = |quantize: fn(&[f32], &mut [i8]) -> (f32, i32)| {
                    let mut q = vec![1i8; columns];
                    (quantize(&x, &mut q), q)
                };
                assert_eq!(
                    run(table(isa).quantize_row),
                    run(portable::TABLE.quantize_row),
                    "{isa}, {columns}"
                );
            }
        }
    }
}
