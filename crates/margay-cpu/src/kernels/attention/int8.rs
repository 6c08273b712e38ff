//! What attention in 8 bits needs besides integer products: keys and values to codes, scores to weights, sums to results.
//! The same code for every instruction set, compiled once for each, and the same bits.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;

use super::{KEYS, NO_SCORE};
use crate::kernels::{
    math::{self, greater, join},
    rows::NOTHING,
};

/// Partial sums of a reduction.
const LANES: usize = 16;
/// What the largest weight of a row and block becomes: two of those times codes of 127 fit 16 bits.
pub(crate) const MOST: f32 = 127.0;

/// Scales of a block of keys and values.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct BlockScales {
    pub(crate) keys: [f32; KEYS],
    /// Sums of the codes of each key.
    pub(crate) totals: [i32; KEYS],
    pub(crate) values: [f32; KEYS],
    /// The largest scale of the values up to each one; NaN once one is.
    pub(crate) largest: [f32; KEYS],
}

/// A row of queries on its way through the blocks.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Row {
    /// What an integer score is worth.
    pub(crate) scale: f32,
    /// What the products add to every integer score.
    pub(crate) offset: i32,
    pub(crate) max: f32,
    pub(crate) sum: f32,
    /// What the result of the blocks before is to be multiplied by.
    pub(crate) keep: f32,
    /// What an integer sum of this block is worth.
    pub(crate) factor: f32,
    /// Sum of the codes of the weights.
    pub(crate) total: i32,
}

/// One function a kernel, for one instruction set.
#[allow(
    clippy::type_complexity,
    reason = "plain slices; aliases would hide what is read and what is written"
)]
pub(crate) struct Int8Kernels {
    /// Quantizes a key less `shift`, so that no code exceeds 127 and no two neighbours (2i, 2i + 1) of one sign exceed
    /// 128 together, which is what [`ChannelKernels`](crate::kernels::channel::ChannelKernels) ask for; gives the scale
    /// and the sum of codes.
    pub(crate) key: fn(&[f32], &[f32], &mut [i8]) -> (f32, i32),
    /// Puts the codes of 4 values, `[4][n]`, side by side: those of 16 columns to the beginning of every so many bytes.
    pub(crate) side_by_side: fn(&[i8], &mut [u8], usize),
    /// Takes in the integer scores of a block, of which a row sees so many from the first: codes of its weights, which
    /// are from 0 to 127, and where the row then stands.
    pub(crate) weights: fn(&[i32; KEYS], &BlockScales, usize, &mut Row, &mut [u8; KEYS]),
    /// `y = y * keep + (sum - offset) * factor`
    pub(crate) add_sums: fn(&mut [f32], &[i32], i32, f32, f32),
}

/// What a weight is moved by, in steps, before it is rounded: for each key of a block another part of -1/2..1/2, spread
/// evenly over any that follow each other (multiples of the golden ratio). Many small weights so keep their sum, where all
/// of less than half a step would be lost.
const DITHERS: [f32; KEYS] = {
    let mut to = [0f32; KEYS];
    let mut i = 0;
    while i < KEYS {
        to[i] = ((i as u32 + 1).wrapping_mul(2_654_435_769) >> 8) as f32 / 16_777_216.0 - 0.5;
        i += 1;
    }
    to
};

/// Coefficients of 2^r, that of the highest power first: the polynomial that is 1 at 0 and else the one of degree 3 that is
/// nearest on [-1/2, 1/2], by Lawson's iteration.
#[allow(clippy::approx_constant, reason = "a coefficient near ln 2, and better here")]
const EXP2: [f32; 4] = [5.500_893_3e-2, 0.242_210_97, 0.693_282_9, 1.0];

mod body {
    use super::*;

    /// 2^x for x <= 0 with a relative error below 1.1e-4, a fortieth of half a step of the greatest code; no less than
    /// 2^-126, and NaN stays NaN.
    #[inline(always)]
    fn exp2(x: f32) -> f32 {
        let x = if x < -126.0 { -126.0 } else { x };
        let shifted = x + math::ROUND;
        let r = x - (shifted - math::ROUND);
        let p = f32::mul_add(EXP2[0], r, EXP2[1]);
        let p = f32::mul_add(p, r, EXP2[2]);
        let y = f32::mul_add(p, r, EXP2[3]);
        y * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()))
    }

    #[inline(always)]
    pub(super) fn key(x: &[f32], shift: &[f32], codes: &mut [i8]) -> (f32, i32) {
        let mut top = [0u32; 16];
        let magnitude = |x: f32| x.to_bits() & 0x7fff_ffff;
        let (xs, rest) = x.as_chunks::<32>();
        let (shifts, rest_shift) = shift.as_chunks::<32>();
        for (x, shift) in xs.iter().zip(shifts) {
            for i in 0..16 {
                let (a, b) = (x[2 * i] - shift[2 * i], x[2 * i + 1] - shift[2 * i + 1]);
                // Of two of different signs the sum is smaller than the larger.
                top[i] = top[i].max(magnitude(a)).max(magnitude(b)).max(magnitude(a + b));
            }
        }
        let mut last = 0;
        for (x, shift) in rest.chunks(2).zip(rest_shift.chunks(2)) {
            let a = x[0] - shift[0];
            let b = if x.len() > 1 { x[1] - shift[1] } else { 0.0 };
            last = u32::max(last, magnitude(a).max(magnitude(b)).max(magnitude(a + b)));
        }
        let max = f32::from_bits(top.into_iter().fold(last, u32::max));
        let inverse = if max > NOTHING { 127.0 / max } else { 0.0 };
        let mut total = 0;
        for ((code, x), shift) in codes.iter_mut().zip(x).zip(shift) {
            let shifted = (x - shift) * inverse + math::ROUND;
            let whole =
                (shifted.to_bits() as i32).wrapping_sub(math::ROUND.to_bits() as i32).clamp(-127, 127);
            total += whole;
            *code = whole as i8;
        }
        (max / 127.0, total)
    }

    #[inline(always)]
    pub(super) fn side_by_side(codes: &[i8], to: &mut [u8], stride: usize) {
        let n = codes.len() / 4;
        let [a, b, c, d] = std::array::from_fn(|i| codes[i * n..][..n].as_chunks::<16>().0);
        for (i, ((a, b), (c, d))) in a.iter().zip(b).zip(c.iter().zip(d)).enumerate() {
            let to = to[i * stride..][..64].as_chunks_mut::<4>().0;
            for j in 0..16 {
                to[j] = [a[j] as u8, b[j] as u8, c[j] as u8, d[j] as u8];
            }
        }
    }

    #[inline(always)]
    pub(super) fn weights(
        sums: &[i32; KEYS],
        of: &BlockScales,
        visible: usize,
        row: &mut Row,
        codes: &mut [u8; KEYS],
    ) {
        let mut scores = [0f32; KEYS];
        for ((score, sum), scale) in scores.iter_mut().zip(sums).zip(&of.keys) {
            *score = sum.wrapping_sub(row.offset) as f32 * (scale * row.scale);
        }
        if visible < KEYS {
            scores[visible..].fill(f32::NEG_INFINITY);
        }
        let mut lanes = [NO_SCORE; LANES];
        for scores in scores.as_chunks::<LANES>().0 {
            for (lane, score) in lanes.iter_mut().zip(scores) {
                *lane = greater(*lane, *score);
            }
        }
        let max = join(lanes, greater);
        let largest = if visible > 0 { of.largest[visible - 1] } else { 0.0 };
        let inverse = if largest > NOTHING { MOST / largest } else { 0.0 };
        let (mut lanes, mut totals) = ([0f32; LANES], [0i32; LANES]);
        let parts = scores.as_chunks::<LANES>().0.iter().zip(of.values.as_chunks::<LANES>().0);
        for (((scores, values), codes), dither) in
            parts.zip(codes.as_chunks_mut::<LANES>().0).zip(DITHERS.as_chunks::<LANES>().0)
        {
            let mut whole = [0i32; LANES];
            for i in 0..LANES {
                let weight = exp2(scores[i] - max);
                lanes[i] += weight;
                let shifted = weight * (values[i] * inverse) + dither[i] + math::ROUND;
                // Of what is no number any code will do: the sum tells.
                whole[i] = shifted.to_bits() as i32 & 127;
                totals[i] += whole[i];
            }
            for i in 0..LANES {
                codes[i] = whole[i] as u8;
            }
        }
        let mut total: i32 = totals.iter().sum();
        // What a row does not see may be no number.
        for code in &mut codes[visible..] {
            total -= i32::from(std::mem::take(code));
        }
        let new = greater(row.max, max);
        let (keep, take) = (exp2(row.max - new), exp2(max - new));
        row.max = new;
        row.sum = row.sum * keep + join(lanes, |a, b| a + b) * take;
        row.keep = keep;
        row.factor = take * (largest / MOST);
        row.total = total;
    }

    #[inline(always)]
    pub(super) fn add_sums(y: &mut [f32], sums: &[i32], offset: i32, keep: f32, factor: f32) {
        for (y, sum) in y.iter_mut().zip(sums) {
            *y = *y * keep + sum.wrapping_sub(offset) as f32 * factor;
        }
    }
}

macro_rules! compiled {
    ($module:ident, [$($feature:tt)*]) => {
        mod $module {
            use super::*;
            compiled!(@function [$($feature)*] weights(sums: &[i32; KEYS], of: &BlockScales, visible: usize, row: &mut Row,
                codes: &mut [u8; KEYS]) -> ());
            compiled!(@others [$($feature)*]);
        }
    };
    ($module:ident, [$($feature:tt)*], $weights_of:ident) => {
        mod $module {
            use super::{*, $weights_of::weights};
            compiled!(@others [$($feature)*]);
        }
    };
    (@others [$($feature:tt)*]) => {
        compiled!(@function [$($feature)*] key(x: &[f32], shift: &[f32], codes: &mut [i8]) -> (f32, i32));
        compiled!(@function [$($feature)*] side_by_side(codes: &[i8], to: &mut [u8], stride: usize) -> ());
        compiled!(@function [$($feature)*] add_sums(y: &mut [f32], sums: &[i32], offset: i32, keep: f32, factor: f32)
            -> ());
        pub(super) static TABLE: Int8Kernels = Int8Kernels { key, side_by_side, weights, add_sums };
    };
    (@function [$($feature:tt)*] $name:ident($($arg:ident: $type:ty),*) -> $ret:ty) => {
        fn $name($($arg: $type),*) -> $ret {
            $($feature)*
            fn inner($($arg: $type),*) -> $ret {
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
compiled!(by_compiler, [#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]], avx512);

/// The kernels of `isa`, which the processor must have.
pub(super) fn table(isa: crate::Isa) -> &'static Int8Kernels {
    match isa {
        #[cfg(target_arch = "x86_64")]
        crate::Isa::Avx2 | crate::Isa::AvxVnni => &avx2::TABLE,
        #[cfg(target_arch = "x86_64")]
        crate::Isa::Avx512 => &by_compiler::TABLE,
        _ => &portable::TABLE,
    }
}
