//! How encoders pick a scale: the field's small searches, step for step.
//!
//! Encoded bytes equal the reference only where every float32 operation happens in the same order, so sums run left to
//! right, products are left-associative and nothing is fused. Do not "simplify" the arithmetic. What can be had is
//! width: [`LANES`] groups are searched side by side, number i of each in one row, so that a vector register holds one
//! step of that many groups.
//! Source: `make_qkx2_quants`, `make_qkx3_quants`, `make_q3_quants`, `make_qx_quants`, `make_qp_quants` and
//! `nearest_int` in `ggml-quants.c`.

/// Below this largest magnitude a group counts as zero (`GROUP_MAX_EPS` in `ggml-quants.c`).
pub(crate) const ZERO_BELOW: f32 = 1e-15;

/// Groups searched side by side.
pub(crate) const LANES: usize = 8;

/// One number of each group.
pub(crate) type Lanes = [f32; LANES];

/// Nearest integer, halves to even, as adding 1.5 x 2^23 rounds the mantissa. Anything that is not a small number
/// (NaN, infinities) gives some integer of 23 bits.
#[inline(always)]
pub(crate) fn nearest_int(x: f32) -> i32 {
    ((x + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// The whole number that x truncates to, or the smallest one where there is none, as the conversion of the reference's
/// processors has it.
#[inline(always)]
pub(crate) fn truncate(x: f32) -> i32 {
    if x.abs() < 2_147_483_648.0 { x as i32 } else { i32::MIN }
}

/// The codes that `place` puts numbers at, cut down to whole numbers and to `top`. Places are at least 0 and below 64, or no
/// numbers at all: those get code 0, as [`truncate`] and a cut to eight bits would have it.
///
/// In steps that a vector unit without such a conversion has, several numbers at a time.
#[inline(always)]
pub(crate) fn cut_codes<const N: usize>(x: &[f32; N], top: f32, place: impl Fn(f32) -> f32) -> [u8; N] {
    // Adding and taking away 2^23 rounds to whole numbers.
    const WHOLE: f32 = 8_388_608.0;
    let mut codes = [0; N];
    // One flat loop: the compiler gives each eight numbers a vector; of a loop over eights it makes columns.
    for (code, x) in codes.iter_mut().zip(x) {
        let v = place(*x);
        let near = (v + WHOLE) - WHOLE;
        let below = near - if near > v { 1.0 } else { 0.0 };
        let cut = if below < top { below } else { top };
        let bits = (cut + WHOLE).to_bits();
        *code = if v.abs() < 64.0 { bits } else { 0 } as u8;
    }
    codes
}

/// The closure itself: a place to mark it `#[inline(always)]`, which a `let` has not.
#[inline(always)]
pub(crate) fn inlined<F>(closure: F) -> F {
    closure
}

/// 1/x, or 0 where x is 0.
#[inline(always)]
pub(crate) fn inverse(x: f32) -> f32 {
    if x != 0.0 { 1.0 / x } else { 0.0 }
}

/// The value of largest magnitude, with its sign; the first of equals. 0 of zeros, whatever their signs.
#[inline(always)]
pub(crate) fn extreme(values: &[f32]) -> f32 {
    let (min, max) = bounds(values);
    if max == -min {
        return values.iter().copied().find(|x| *x != 0.0 && x.abs() == max).unwrap_or(0.0);
    }
    if max > -min { max } else { min }
}

/// Smallest and largest value; of zeros of both signs the first.
#[inline(always)]
pub(crate) fn bounds(values: &[f32]) -> (f32, f32) {
    // As whole numbers in the order of the floats: the compiler may take those in any order, and does it in vectors.
    let key = |bits: i32| bits ^ (bits >> 31 & i32::MAX);
    let number = |key: i32| f32::from_bits((key ^ (key >> 31 & i32::MAX)) as u32);
    let (mut min, mut max) = (key(f32::MAX.to_bits() as i32), key((-f32::MAX).to_bits() as i32));
    for x in values {
        let key = key(x.to_bits() as i32);
        min = min.min(if x.is_nan() { i32::MAX } else { key });
        max = max.max(if x.is_nan() { i32::MIN } else { key });
    }
    let (min, max) = (number(min), number(max));
    // In another order than the reference's, the numbers are the same, but a zero may have another sign.
    let first_zero = |x: f32| {
        if x == 0.0 { values.iter().copied().find(|x| *x == 0.0).unwrap_or(x) } else { x }
    };
    (first_zero(min), first_zero(max))
}

/// The sum of squares, left to right.
#[inline(always)]
pub(crate) fn sum_squares(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |sum, x| sum + x * x)
}

/// Up to [`LANES`] groups side by side: number i of each in row i. Lanes without a group are zero.
#[inline(always)]
pub(crate) fn side_by_side<const N: usize>(groups: &[[f32; N]]) -> [Lanes; N] {
    let mut rows = [[0.0; LANES]; N];
    for (lane, group) in groups.iter().enumerate() {
        for (row, x) in rows.iter_mut().zip(group) {
            row[lane] = *x;
        }
    }
    rows
}

/// The codes of each lane's group, from rows of whole numbers.
#[inline(always)]
fn put_codes<const N: usize>(levels: &[Lanes; N], offset: f32, codes: &mut [[u8; N]]) {
    for (lane, codes) in codes.iter_mut().enumerate() {
        for (code, level) in codes.iter_mut().zip(levels) {
            *code = (level[lane] + offset) as u8;
        }
    }
}

/// [`extreme`] of every lane.
#[inline(always)]
pub(crate) fn extremes<const N: usize>(x: &[Lanes; N]) -> Lanes {
    let (mut largest, mut signed) = ([0.0; LANES], [0.0; LANES]);
    for x in x {
        for g in 0..LANES {
            let larger = x[g].abs() > largest[g];
            largest[g] = if larger { x[g].abs() } else { largest[g] };
            signed[g] = if larger { x[g] } else { signed[g] };
        }
    }
    signed
}

#[inline(always)]
fn nearest_level(x: f32, low: i32, high: i32) -> f32 {
    nearest_int(x).max(low).min(high) as f32
}

/// What [`affine`] tries: codes 0 to `top`, and `steps` + 1 inverse scales of `top + first + delta * step` codes a range.
pub(crate) struct AffineTrials {
    pub(crate) top: i32,
    pub(crate) first: f32,
    pub(crate) delta: f32,
    pub(crate) steps: i32,
}

impl AffineTrials {
    /// The trials of every format where an importance is given.
    /// Source: the callers of `make_qkx3_quants`.
    pub(crate) const fn weighted(top: i32) -> Self {
        Self { top, first: -0.9, delta: 0.05, steps: 36 }
    }
}

/// Scale and minimum of each group with `x ≈ scale * code - minimum`, both usually positive, and the codes: a start at the
/// range, then a weighted least-squares fit for each trial, kept where its error is smaller. `ABSOLUTE` judges by
/// weighted absolute error rather than squared.
#[inline(always)]
pub(crate) fn affine<const N: usize, const ABSOLUTE: bool>(
    x: &[Lanes; N],
    weights: &[Lanes; N],
    codes: &mut [[u8; N]],
    t: &AffineTrials,
) -> (Lanes, Lanes) {
    let (mut min, mut max) = ([f32::MAX; LANES], [-f32::MAX; LANES]);
    let (mut sum_w, mut sum_x) = ([0.0; LANES], [0.0; LANES]);
    for (x, w) in x.iter().zip(weights) {
        for g in 0..LANES {
            min[g] = if x[g] < min[g] { x[g] } else { min[g] };
            max[g] = if x[g] > max[g] { x[g] } else { max[g] };
            sum_w[g] += w[g];
            sum_x[g] += w[g] * x[g];
        }
    }
    min = min.map(|min| if min > 0.0 { 0.0 } else { min });
    let flat: [bool; LANES] = std::array::from_fn(|g| max[g] == min[g]);
    let lowest = min;
    let top = t.top as f32;

    let mut levels = [[0.0; LANES]; N];
    let assign = inlined(
        #[inline(always)]
        |iscale: &Lanes, min: &Lanes, levels: &mut [Lanes; N]| {
            for (level, x) in levels.iter_mut().zip(x) {
                for g in 0..LANES {
                    level[g] = nearest_level(iscale[g] * (x[g] - min[g]), 0, t.top);
                }
            }
        },
    );
    let errors = inlined(
        #[inline(always)]
        |scale: &Lanes, min: &Lanes, levels: &[Lanes; N]| {
            let mut sum = [0.0; LANES];
            for i in 0..N {
                for g in 0..LANES {
                    let diff = scale[g] * levels[i][g] + min[g] - x[i][g];
                    sum[g] += weights[i][g] * if ABSOLUTE { diff.abs() } else { diff * diff };
                }
            }
            sum
        },
    );

    let iscale: Lanes = std::array::from_fn(|g| top / (max[g] - min[g]));
    let mut scale = iscale.map(|iscale| 1.0 / iscale);
    assign(&iscale, &min, &mut levels);
    let mut best = errors(&scale, &min, &levels);
    // What the codes of the best trial are assigned with.
    let (mut best_iscale, mut best_offset) = (iscale, min);
    for step in 0..=t.steps {
        let wanted = t.first + t.delta * step as f32 + top;
        // `min` is the best one so far, not the smallest value: so the reference does it.
        let iscale: Lanes = std::array::from_fn(|g| wanted / (max[g] - min[g]));
        let (mut sum_l, mut sum_l2, mut sum_xl) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for i in 0..N {
            for g in 0..LANES {
                let l = nearest_level(iscale[g] * (x[i][g] - min[g]), 0, t.top);
                levels[i][g] = l;
                let wl = weights[i][g] * l;
                sum_l[g] += wl;
                sum_l2[g] += wl * l;
                sum_xl[g] += wl * x[i][g];
            }
        }
        let (mut this_scale, mut this_min, mut solved) = ([0.0; LANES], [0.0; LANES], [false; LANES]);
        for g in 0..LANES {
            let determinant = sum_w[g] * sum_l2[g] - sum_l[g] * sum_l[g];
            solved[g] = determinant > 0.0;
            let free_scale = (sum_w[g] * sum_xl[g] - sum_x[g] * sum_l[g]) / determinant;
            let free_min = (sum_l2[g] * sum_x[g] - sum_l[g] * sum_xl[g]) / determinant;
            let bound = free_min > 0.0;
            this_scale[g] = if bound { sum_xl[g] / sum_l2[g] } else { free_scale };
            this_min[g] = if bound { 0.0 } else { free_min };
        }
        let this_error = errors(&this_scale, &this_min, &levels);
        for g in 0..LANES {
            if solved[g] && this_error[g] < best[g] {
                (best_iscale[g], best_offset[g]) = (iscale[g], min[g]);
                (best[g], scale[g], min[g]) = (this_error[g], this_scale[g], this_min[g]);
            }
        }
    }
    assign(&best_iscale, &best_offset, &mut levels);
    for g in (0..LANES).filter(|&g| flat[g]) {
        (scale[g], min[g]) = (0.0, lowest[g]);
        levels.iter_mut().for_each(|level| level[g] = 0.0);
    }
    put_codes(&levels, 0.0, codes);
    (scale, min.map(|min| -min))
}

/// Scale of each group with `x ≈ scale * (code - half)` and the codes 0 to `2 * half - 1`: the extreme value at an end of
/// the range, then 18 trials around it, judged by the weighted fit. Groups of (almost) zeros have scale 0 and codes 0.
#[inline(always)]
pub(crate) fn symmetric<const N: usize>(
    x: &[Lanes; N],
    weights: &[Lanes; N],
    codes: &mut [[u8; N]],
    half: i32,
) -> Lanes {
    let max = extremes(x);
    let sums = inlined(
        #[inline(always)]
        |iscale: &Lanes| {
            let (mut sum_lx, mut sum_l2) = ([0.0; LANES], [0.0; LANES]);
            for (x, w) in x.iter().zip(weights) {
                for g in 0..LANES {
                    let l = nearest_level(iscale[g] * x[g], -half, half - 1);
                    sum_lx[g] += w[g] * x[g] * l;
                    sum_l2[g] += w[g] * l * l;
                }
            }
            (sum_lx, sum_l2)
        },
    );
    let mut best_iscale: Lanes = max.map(|max| -(half as f32) / max);
    let (sum_lx, sum_l2) = sums(&best_iscale);
    let mut scale: Lanes =
        std::array::from_fn(|g| if sum_l2[g] != 0.0 { sum_lx[g] / sum_l2[g] } else { 0.0 });
    let mut best: Lanes = std::array::from_fn(|g| scale[g] * sum_lx[g]);
    for step in (-9..=9).filter(|&step| step != 0) {
        let wanted = -(half as f32 + 0.1 * step as f32);
        let iscale: Lanes = max.map(|max| wanted / max);
        let (sum_lx, sum_l2) = sums(&iscale);
        for g in 0..LANES {
            if sum_l2[g] > 0.0 && sum_lx[g] * sum_lx[g] > best[g] * sum_l2[g] {
                scale[g] = sum_lx[g] / sum_l2[g];
                best[g] = scale[g] * sum_lx[g];
                best_iscale[g] = iscale[g];
            }
        }
    }
    let mut levels = [[0.0; LANES]; N];
    for (level, x) in levels.iter_mut().zip(x) {
        for g in 0..LANES {
            level[g] = nearest_level(best_iscale[g] * x[g], -half, half - 1);
        }
    }
    clear_zeros(&max, &mut scale, &mut levels, half);
    put_codes(&levels, half as f32, codes);
    scale
}

/// As [`symmetric`] weighted by x² for one group and few codes: the extreme value at an end of the range, then at most
/// five rounds in which each code in turn moves to where the others want it.
///
/// Few codes move, so where each would go is worked out for the whole group at once and again only behind one that moved.
#[inline(always)]
pub(crate) fn symmetric_by_descent(x: &[f32; 16], codes: &mut [u8; 16], half: i32) -> f32 {
    let max = extreme(x);
    if max.abs() < ZERO_BELOW {
        codes.fill(0);
        return 0.0;
    }
    let iscale = -(half as f32) / max;
    let (mut levels, mut w, mut wx) = ([0.0; 16], [0.0; 16], [0.0; 16]);
    let (mut sum_lx, mut sum_l2) = (0.0, 0.0);
    for i in 0..16 {
        let l = nearest_level(iscale * x[i], -half, half - 1);
        levels[i] = l;
        w[i] = x[i] * x[i];
        wx[i] = w[i] * x[i];
        sum_lx += wx[i] * l;
        sum_l2 += w[i] * l * l;
    }
    let (mut wanted, mut with_lx, mut with_l2, mut better) = ([0.0; 16], [0.0; 16], [0.0; 16], [0u32; 16]);
    for _round in 0..5 {
        let (mut next, mut changed) = (0, false);
        while next < 16 {
            for i in 0..16 {
                let l = levels[i];
                let others_lx = sum_lx - wx[i] * l;
                let others_l2 = sum_l2 - w[i] * l * l;
                let to = nearest_level(x[i] * others_l2 / others_lx, -half, half - 1);
                let (lx, l2) = (others_lx + wx[i] * to, others_l2 + w[i] * to * to);
                (wanted[i], with_lx[i], with_l2[i]) = (to, lx, l2);
                better[i] = u32::from(others_lx > 0.0)
                    & u32::from(to != l)
                    & u32::from(l2 > 0.0)
                    & u32::from(lx * lx * sum_l2 > sum_lx * sum_lx * l2);
            }
            let Some(moved) = (next..16).find(|&i| better[i] != 0) else { break };
            levels[moved] = wanted[moved];
            (sum_lx, sum_l2) = (with_lx[moved], with_l2[moved]);
            (next, changed) = (moved + 1, true);
        }
        if !changed {
            break;
        }
    }
    for (code, level) in codes.iter_mut().zip(levels) {
        *code = (level + half as f32) as u8;
    }
    if sum_l2 > 0.0 { sum_lx / sum_l2 } else { 0.0 }
}

/// Gives groups of (almost) zeros the scale 0 and, once `half` is added, the codes 0.
#[inline(always)]
fn clear_zeros<const N: usize>(max: &Lanes, scale: &mut Lanes, levels: &mut [Lanes; N], half: i32) {
    for g in (0..LANES).filter(|&g| max[g].abs() < ZERO_BELOW) {
        scale[g] = 0.0;
        levels.iter_mut().for_each(|level| level[g] = -(half as f32));
    }
}

/// Scale with `x ≈ scale * code` for numbers that are usually not negative (the scales of a block's groups) and codes 0
/// to `top`: the largest at the end of the range, eight trials around it, then at most five rounds of descent. A negative
/// number's code wraps around, as the reference's does.
#[inline(always)]
pub(crate) fn positive<const N: usize>(
    x: &[f32; N],
    weights: &[f32; N],
    codes: &mut [u8; N],
    top: i32,
) -> f32 {
    let max = x.iter().fold(0.0, |max: f32, &x| if max > x { max } else { x });
    codes.fill(0);
    if max < ZERO_BELOW {
        return 0.0;
    }
    let mut iscale = top as f32 / max;
    let scale = 1.0 / iscale;
    let mut best = 0.0;
    for i in 0..N {
        let diff = x[i] - scale * f32::from(nearest_int(iscale * x[i]) as u8);
        best += weights[i] * diff * diff;
    }
    for step in (-4..=4).filter(|&step| step != 0) {
        let this_iscale = (0.1 * step as f32 + top as f32) / max;
        let this_scale = 1.0 / this_iscale;
        let mut error = 0.0;
        for i in 0..N {
            let diff = x[i] - this_scale * nearest_int(this_iscale * x[i]).min(top) as f32;
            error += weights[i] * diff * diff;
        }
        if error < best {
            (best, iscale) = (error, this_iscale);
        }
    }
    let (mut sum_lx, mut sum_l2) = (0.0, 0.0);
    for i in 0..N {
        let level = nearest_int(iscale * x[i]).min(top);
        codes[i] = level as u8;
        let (w, l) = (weights[i], level as f32);
        sum_lx += w * x[i] * l;
        sum_l2 += w * l * l;
    }
    for _round in 0..5 {
        let mut changed = false;
        for i in 0..N {
            let (w, l) = (weights[i], f32::from(codes[i]));
            let (others_lx, others_l2) = (sum_lx - w * x[i] * l, sum_l2 - w * l * l);
            if others_lx > 0.0 && others_l2 > 0.0 {
                let wanted = nearest_int(x[i] * others_l2 / others_lx).min(top);
                if wanted != i32::from(codes[i]) {
                    let l = wanted as f32;
                    let (with_lx, with_l2) = (others_lx + w * x[i] * l, others_l2 + w * l * l);
                    if with_lx * with_lx * sum_l2 > sum_lx * sum_lx * with_l2 {
                        codes[i] = wanted as u8;
                        (sum_lx, sum_l2) = (with_lx, with_l2);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    if sum_l2 > 0.0 { sum_lx / sum_l2 } else { 0.0 }
}

/// The weight of every number where an importance is given: `importance * sqrt(spread + x²)`.
#[inline(always)]
pub(crate) fn weigh<const N: usize>(x: &[f32; N], importance: &[f32; N], spread: f32) -> [f32; N] {
    std::array::from_fn(|i| importance[i] * (spread + x[i] * x[i]).sqrt())
}

/// The sum of a group's weights, left to right.
#[inline(always)]
pub(crate) fn total<const N: usize>(weights: &[f32; N]) -> f32 {
    weights.iter().fold(0.0, |sum, w| sum + w)
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
        assert_eq!(extremes(&side_by_side(&[[1.0, -3.0, 3.0], [0.5, 0.25, -0.125]]))[..3], [-3.0, 0.5, 0.0]);
    }

    #[test]
    fn truncation_of_what_has_no_whole_number_is_the_smallest() {
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e9] {
            assert_eq!(truncate(x), i32::MIN);
        }
        assert_eq!((truncate(-1.9), truncate(15.5)), (-1, 15));
    }

    #[test]
    fn a_group_is_searched_as_if_it_were_alone() {
        let group =
            |k: usize| -> [f32; 16] { std::array::from_fn(|i| ((i * 7 + k * 13) as f32 * 0.37).sin()) };
        let groups: Vec<[f32; 16]> = (0..LANES).map(group).collect();
        let ones = [[1.0; LANES]; 16];
        let (mut together, mut alone) = ([[0; 16]; LANES], [[0; 16]; 1]);
        let scales = symmetric(&side_by_side(&groups), &ones, &mut together, 8);
        let fits =
            affine::<16, false>(&side_by_side(&groups), &ones, &mut together, &AffineTrials::weighted(15));
        for (lane, group) in groups.iter().enumerate() {
            let scale = symmetric(&side_by_side(&[*group]), &ones, &mut alone, 8);
            assert_eq!(scale[0], scales[lane]);
            let fit =
                affine::<16, false>(&side_by_side(&[*group]), &ones, &mut alone, &AffineTrials::weighted(15));
            assert_eq!((fit.0[0], fit.1[0], alone[0]), (fits.0[lane], fits.1[lane], together[lane]));
        }
    }
}
