//! The online softmax, the same code for every instruction set, compiled once for each; but a block by hand for AVX-512.
//!
//! Scores are logarithms to the base 2: whoever computes them multiplies the queries by log2(e) besides the scale. Sums
//! run over [`LANES`] partial sums in a fixed order, so every instruction set gives the same bits.

#[cfg(target_arch = "x86_64")]
mod by_hand;

use super::KEYS;
use crate::kernels::math::{exp2, greater, join};

/// Partial sums of a reduction.
const LANES: usize = 16;
/// The maximum of a row that has seen no key: below every score, and finite, so that differences are numbers.
pub(crate) const NO_SCORE: f32 = -1e30;

/// One function a kernel, for one instruction set.
#[allow(
    clippy::type_complexity,
    reason = "plain slices; aliases would hide what is read and what is written"
)]
pub(crate) struct SoftmaxKernels {
    /// Takes in the scores of a block of keys, for each of some rows, [`KEYS`] a row: replaces them by `2^(score - max)`,
    /// where max is the greater of `max[row]` and theirs, and which is the new `max[row]`. What was summed up before has
    /// to be multiplied by `2^(old max - max)`: so is `sum[row]`, to which the new weights are then added, and so has
    /// the result to be, by the `keep[row]` returned. A score of -inf gives a weight of 0.
    pub(crate) block: fn(&mut [f32], &mut [f32], &mut [f32], &mut [f32]),
    /// Adds the part of further keys to a row: results, and each with its (maximum, sum).
    pub(crate) merge: fn(&mut [f32], &mut (f32, f32), &[f32], (f32, f32)),
    /// Integers to floats.
    pub(crate) widen: fn(&[i8], &mut [f32]),
}

mod body {
    use super::{KEYS, LANES, exp2, greater, join};

    #[inline(always)]
    pub(super) fn block(scores: &mut [f32], max: &mut [f32], sum: &mut [f32], keep: &mut [f32]) {
        let rows = scores.as_chunks_mut::<KEYS>().0.iter_mut();
        for (((scores, max), sum), keep) in rows.zip(max).zip(sum).zip(keep) {
            let scores = scores.as_chunks_mut::<LANES>().0;
            let mut lanes = scores[0];
            for scores in &scores[1..] {
                for (lane, score) in lanes.iter_mut().zip(scores) {
                    *lane = greater(*lane, *score);
                }
            }
            let new = greater(*max, join(lanes, greater));
            let mut sums = [0.0; LANES];
            for scores in scores {
                for (score, sum) in scores.iter_mut().zip(&mut sums) {
                    *score = exp2(*score - new);
                    *sum += *score;
                }
            }
            *keep = exp2(*max - new);
            *max = new;
            *sum = *sum * *keep + join(sums, |a, b| a + b);
        }
    }

    #[inline(always)]
    pub(super) fn merge(result: &mut [f32], of: &mut (f32, f32), part: &[f32], of_part: (f32, f32)) {
        let max = greater(of.0, of_part.0);
        let (keep, take) = (exp2(of.0 - max), exp2(of_part.0 - max));
        for (result, part) in result.iter_mut().zip(part) {
            *result = *result * keep + part * take;
        }
        *of = (max, of.1 * keep + of_part.1 * take);
    }

    #[inline(always)]
    pub(super) fn widen(from: &[i8], to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = f32::from(*from);
        }
    }
}

macro_rules! compiled {
    ($module:ident, [$($feature:tt)*]) => {
        mod $module {
            use super::{SoftmaxKernels, body};
            compiled!(@function [$($feature)*] block(scores: &mut [f32], max: &mut [f32], sum: &mut [f32], keep: &mut [f32]));
            compiled!(@others [$($feature)*]);
        }
    };
    ($module:ident, [$($feature:tt)*], $block_of:ident) => {
        mod $module {
            use super::{SoftmaxKernels, body, $block_of::block};
            compiled!(@others [$($feature)*]);
        }
    };
    (@others [$($feature:tt)*]) => {
        compiled!(@function [$($feature)*] merge(result: &mut [f32], of: &mut (f32, f32), part: &[f32], of_part: (f32, f32)));
        compiled!(@function [$($feature)*] widen(from: &[i8], to: &mut [f32]));
        pub(super) static TABLE: SoftmaxKernels = SoftmaxKernels { block, merge, widen };
    };
    (@function [$($feature:tt)*] $name:ident($($arg:ident: $type:ty),*)) => {
        fn $name($($arg: $type),*) {
            $($feature)*
            fn inner($($arg: $type),*) {
                body::$name($($arg),*)
            }
            #[allow(unused_unsafe, reason = "the portable module enables no features")]
            // SAFETY: `table` hands a module out only for an instruction set the processor was found to have.
            unsafe {
                inner($($arg),*)
            }
        }
    };
}

compiled!(portable, []);
#[cfg(target_arch = "x86_64")]
compiled!(avx2, [#[target_feature(enable = "avx2,fma,f16c")]]);
#[cfg(target_arch = "x86_64")]
compiled!(avx512, [#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]], by_hand);

/// The kernels of `isa`, which the processor must have.
pub(super) fn table(isa: crate::Isa) -> &'static SoftmaxKernels {
    match isa {
        #[cfg(target_arch = "x86_64")]
        crate::Isa::Avx2 | crate::Isa::AvxVnni => &avx2::TABLE,
        #[cfg(target_arch = "x86_64")]
        crate::Isa::Avx512 => &avx512::TABLE,
        _ => &portable::TABLE,
    }
}
