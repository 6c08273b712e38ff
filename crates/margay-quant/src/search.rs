//! How encoders pick a scale: the field's small searches, step for step.
//!
//! Encoded bytes equal the reference only where every float32 operation happens in the same order, so sums run left to
//! right, products are left-associative and nothing is fused. Do not "simplify" the arithmetic.
//! Source: `make_qkx2_quants`, `make_q3_quants`, `make_qx_quants` and `nearest_int` in `ggml-quants.c`.

/// Below this largest magnitude a group counts as zero (`GROUP_MAX_EPS` in `ggml-quants.c`).
pub(crate) const ZERO_BELOW: f32 = 1e-15;

/// Nearest integer, halves to even, as adding 1.5 x 2^23 rounds the mantissa. Anything that is not a small number
/// (NaN, infinities) gives some integer of 23 bits.
#[inline]
pub(crate) fn nearest_int(x: f32) -> i32 {
    ((x + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// 1/x, or 0 where x is 0.
#[inline]
pub(crate) fn inverse(x: f32) -> f32 {
    if x != 0.0 { 1.0 / x } else { 0.0 }
}

/// The value of largest magnitude, with its sign; the first of equals.
#[inline]
pub(crate) fn extreme(values: &[f32]) -> f32 {
    let (mut largest, mut signed) = (0.0, 0.0);
    for &x in values {
        if x.abs() > largest {
            (largest, signed) = (x.abs(), x);
        }
    }
    signed
}

/// Smallest and largest value.
#[inline]
pub(crate) fn bounds(values: &[f32]) -> (f32, f32) {
    let (mut min, mut max) = (f32::MAX, -f32::MAX);
    for &x in values {
        if x < min {
            min = x;
        }
        if x > max {
            max = x;
        }
    }
    (min, max)
}

/// What [`affine`] tries: codes 0 to `top`, and `steps` + 1 inverse scales of `top + first + delta * step` codes a range.
pub(crate) struct AffineTrials {
    pub(crate) top: i32,
    pub(crate) first: f32,
    pub(crate) delta: f32,
    pub(crate) steps: i32,
    /// Judge by weighted absolute error rather than squared.
    pub(crate) absolute: bool,
}

/// Scale and minimum with `x ≈ scale * code - minimum`, both usually positive, and the codes: a start at the range, then
/// a weighted least-squares fit for each trial, kept where its error is smaller.
pub(crate) fn affine<const N: usize>(
    x: &[f32; N],
    weights: &[f32; N],
    codes: &mut [u8; N],
    t: &AffineTrials,
) -> (f32, f32) {
    let (mut min, max) = bounds(x);
    let (mut sum_w, mut sum_x) = (0.0, 0.0);
    for (x, w) in x.iter().zip(weights) {
        sum_w += w;
        sum_x += w * x;
    }
    min = min.min(0.0);
    if max == min {
        codes.fill(0);
        return (0.0, -min);
    }
    let top = t.top as f32;
    let error = |scale: f32, min: f32, codes: &[u8; N]| {
        let mut sum = 0.0;
        for i in 0..N {
            let diff = scale * f32::from(codes[i]) + min - x[i];
            sum += weights[i] * if t.absolute { diff.abs() } else { diff * diff };
        }
        sum
    };
    let assign = |iscale: f32, min: f32, codes: &mut [u8; N]| {
        for i in 0..N {
            codes[i] = nearest_int(iscale * (x[i] - min)).clamp(0, t.top) as u8;
        }
    };

    let iscale = top / (max - min);
    let mut scale = 1.0 / iscale;
    assign(iscale, min, codes);
    let mut best = error(scale, min, codes);
    let mut trial = [0; N];
    for step in 0..=t.steps {
        // `min` is the best one so far, not the smallest value: so the reference does it.
        assign((t.first + t.delta * step as f32 + top) / (max - min), min, &mut trial);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0, 0.0, 0.0);
        for i in 0..N {
            let (w, l) = (weights[i], f32::from(trial[i]));
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * x[i];
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if this_min > 0.0 {
                (this_min, this_scale) = (0.0, sum_xl / sum_l2);
            }
            let this_error = error(this_scale, this_min, &trial);
            if this_error < best {
                (best, scale, min) = (this_error, this_scale, this_min);
                *codes = trial;
            }
        }
    }
    (scale, -min)
}

/// Scale with `x ≈ scale * (code - half)` and the codes 0 to `2 * half - 1`: the extreme value at an end of the range,
/// then 18 trials around it, judged by the x²-weighted fit.
pub(crate) fn symmetric<const N: usize>(x: &[f32; N], codes: &mut [u8; N], half: i32) -> f32 {
    let max = extreme(x);
    if max.abs() < ZERO_BELOW {
        codes.fill(0);
        return 0.0;
    }
    let assign = |iscale: f32, codes: &mut [u8; N]| {
        let (mut sum_lx, mut sum_l2) = (0.0, 0.0);
        for i in 0..N {
            let level = nearest_int(iscale * x[i]).clamp(-half, half - 1);
            codes[i] = (level + half) as u8;
            let (w, l) = (x[i] * x[i], level as f32);
            sum_lx += w * x[i] * l;
            sum_l2 += w * l * l;
        }
        (sum_lx, sum_l2)
    };
    let (sum_lx, sum_l2) = assign(-(half as f32) / max, codes);
    let mut scale = if sum_l2 != 0.0 { sum_lx / sum_l2 } else { 0.0 };
    let mut best = scale * sum_lx;
    let mut trial = [0; N];
    for step in (-9..=9).filter(|&step| step != 0) {
        let (sum_lx, sum_l2) = assign(-(half as f32 + 0.1 * step as f32) / max, &mut trial);
        if sum_l2 > 0.0 && sum_lx * sum_lx > best * sum_l2 {
            scale = sum_lx / sum_l2;
            best = scale * sum_lx;
            *codes = trial;
        }
    }
    scale
}

/// As [`symmetric`] for few codes: the extreme value at an end of the range, then at most five rounds in which each code
/// in turn moves to where the others want it.
pub(crate) fn symmetric_by_descent<const N: usize>(x: &[f32; N], codes: &mut [u8; N], half: i32) -> f32 {
    let max = extreme(x);
    if max.abs() < ZERO_BELOW {
        codes.fill(0);
        return 0.0;
    }
    let iscale = -(half as f32) / max;
    let mut levels = [0; N];
    let (mut sum_lx, mut sum_l2) = (0.0, 0.0);
    for i in 0..N {
        levels[i] = nearest_int(iscale * x[i]).clamp(-half, half - 1);
        let (w, l) = (x[i] * x[i], levels[i] as f32);
        sum_lx += w * x[i] * l;
        sum_l2 += w * l * l;
    }
    for _round in 0..5 {
        let mut changed = false;
        for i in 0..N {
            let (w, l) = (x[i] * x[i], levels[i] as f32);
            let mut others_lx = sum_lx - w * x[i] * l;
            if others_lx > 0.0 {
                let mut others_l2 = sum_l2 - w * l * l;
                let wanted = nearest_int(x[i] * others_l2 / others_lx).clamp(-half, half - 1);
                if wanted != levels[i] {
                    let l = wanted as f32;
                    others_lx += w * x[i] * l;
                    others_l2 += w * l * l;
                    if others_l2 > 0.0 && others_lx * others_lx * sum_l2 > sum_lx * sum_lx * others_l2 {
                        levels[i] = wanted;
                        (sum_lx, sum_l2) = (others_lx, others_l2);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    for (code, level) in codes.iter_mut().zip(levels) {
        *code = (level + half) as u8;
    }
    if sum_l2 > 0.0 { sum_lx / sum_l2 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_int_rounds_halves_to_even_and_survives_anything() {
        for (x, n) in [(0.5, 0), (1.5, 2), (-0.5, 0), (-1.5, -2), (2.4999, 2), (1e6, 1_000_000)] {
            assert_eq!(nearest_int(x), n, "{x}");
        }
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE] {
            assert!(nearest_int(x).abs() <= 1 << 23);
        }
    }

    #[test]
    fn extreme_keeps_the_sign_of_the_first_of_equals() {
        assert_eq!(extreme(&[1.0, -3.0, 3.0]), -3.0);
        assert_eq!(extreme(&[]), 0.0);
    }
}
