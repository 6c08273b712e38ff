//! Whether two sets of runs differ by more than chance gives. Everything is seeded or exact: the same runs give the same
//! verdict everywhere.

use crate::statistics::{median, percentile};
use margay_device::Random;
use serde::Serialize;

/// Resamples of a bootstrap: the bounds of its interval then vary by about a hundredth of its width with the seed.
const RESAMPLES: usize = 4000;

/// Seed of every bootstrap.
const SEED: u64 = 0x6d61_7267_6179;

/// Most runs of a side for which the rank test is exact.
const MOST_EXACT: usize = 40;

/// Least chance at which a difference is taken for one.
const SIGNIFICANCE: f64 = 0.05;

/// How far a quantity of B is from that of A.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Shift {
    /// Median of A.
    pub a: f64,
    /// Median of B.
    pub b: f64,
    /// Ratio of the medians, B over A.
    pub ratio: f64,
    /// Lower and upper bound of the ratio: percentile bootstrap, 95 %.
    pub interval: (f64, f64),
    /// Chance that runs of one kind differ in rank as much as these: Mann and Whitney, two-sided.
    pub chance: f64,
    /// What is said of it.
    pub verdict: Verdict,
}

/// What is said of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// B is less, beyond noise.
    Less,
    /// B is more, beyond noise.
    More,
    /// No difference shown, which is not the same as none.
    NotShown,
    /// So few runs that no difference could be shown: with three a side even the clearest has a chance of one in ten.
    TooFew,
}

/// Compares; `None` where a side has no value, or no positive median.
///
/// A difference counts where both the interval of the ratio leaves 1 out and the ranks say so with a chance of at most
/// 5 %: of few runs the bootstrap alone finds differences that are none.
pub fn shift(a: &[f64], b: &[f64]) -> Option<Shift> {
    let (of_a, of_b) = (median(a)?, median(b)?);
    if of_a <= 0.0 || of_b <= 0.0 {
        return None;
    }
    let interval = ratio_interval(a, b)?;
    let chance = rank_chance(a, b);
    let verdict = match interval {
        _ if least_chance(a.len(), b.len()) > SIGNIFICANCE => Verdict::TooFew,
        (low, _) if low > 1.0 && chance <= SIGNIFICANCE => Verdict::More,
        (_, high) if high < 1.0 && chance <= SIGNIFICANCE => Verdict::Less,
        _ => Verdict::NotShown,
    };
    Some(Shift { a: of_a, b: of_b, ratio: of_b / of_a, interval, chance, verdict })
}

/// The 2.5 and 97.5 % percentiles of the ratio of medians over resamples. Source: Efron and Tibshirani, "An Introduction to
/// the Bootstrap", chapter 13.
fn ratio_interval(a: &[f64], b: &[f64]) -> Option<(f64, f64)> {
    let mut random = Random::new(SEED);
    let mut drawn = |values: &[f64]| {
        let values: Vec<f64> = (0..values.len()).map(|_| values[random.below(values.len())]).collect();
        median(&values)
    };
    let mut ratios = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        let (of_a, of_b) = (drawn(a)?, drawn(b)?);
        if of_a > 0.0 {
            ratios.push(of_b / of_a);
        }
    }
    Some((percentile(&ratios, 0.025)?, percentile(&ratios, 0.975)?))
}

/// Two-sided chance of the sum of ranks of `a`, ties at their mean rank: exact for up to 40 values a side, by the normal
/// distribution with the correction for ties beyond. Source: Mann and Whitney, "On a Test of Whether one of Two Random
/// Variables is Stochastically Larger than the Other", 1947.
fn rank_chance(a: &[f64], b: &[f64]) -> f64 {
    let mut all: Vec<(f64, bool)> =
        a.iter().map(|v| (*v, true)).chain(b.iter().map(|v| (*v, false))).collect();
    all.sort_by(|x, y| x.0.total_cmp(&y.0));
    // Doubled, mean ranks of ties are whole numbers.
    let mut ranks = vec![0usize; all.len()];
    let (mut at, mut ties) = (0, 0.0);
    while at < all.len() {
        let end = at + all[at..].iter().take_while(|(value, _)| *value == all[at].0).count();
        ranks[at..end].fill(at + 1 + end);
        ties += ((end - at) as f64).powi(3) - (end - at) as f64;
        at = end;
    }
    let observed: usize = all.iter().zip(&ranks).filter(|((_, of_a), _)| *of_a).map(|(_, rank)| rank).sum();
    let (m, n) = (a.len(), b.len());
    let mean = m * (m + n + 1);
    let distance = observed.abs_diff(mean);
    if m.max(n) <= MOST_EXACT {
        return exact(&ranks, m, mean, distance);
    }
    let (m, n) = (m as f64, n as f64);
    let variance = m * n / 12.0 * (m + n + 1.0 - ties / ((m + n) * (m + n - 1.0)));
    if variance <= 0.0 { 1.0 } else { two_sided(distance as f64 / 2.0 / variance.sqrt()) }
}

/// Share of all choices of `m` ranks whose sum is at least `distance` from `mean`.
fn exact(ranks: &[usize], m: usize, mean: usize, distance: usize) -> f64 {
    let most: usize = ranks.iter().sum();
    // Ways to choose so many ranks with such a sum; as shares of what is chosen they would underflow, as counts they are
    // at most 80 over 40, which a float holds to 16 digits.
    let mut ways = vec![vec![0.0f64; most + 1]; m + 1];
    ways[0][0] = 1.0;
    for rank in ranks {
        for chosen in (1..=m).rev() {
            let (fewer, these) = ways.split_at_mut(chosen);
            for sum in (*rank..=most).rev() {
                these[0][sum] += fewer[chosen - 1][sum - rank];
            }
        }
    }
    let all: f64 = ways[m].iter().sum();
    let far: f64 =
        ways[m].iter().enumerate().filter(|(sum, _)| sum.abs_diff(mean) >= distance).map(|(_, w)| w).sum();
    if all > 0.0 { (far / all).min(1.0) } else { 1.0 }
}

/// The least chance that so many runs can give: that of sides which do not overlap, 2 in (m + n) over m.
fn least_chance(m: usize, n: usize) -> f64 {
    let choose = (1..=m).fold(1.0, |product, k| product * (n + k) as f64 / k as f64);
    2.0 / choose
}

/// Chance of a normal value at least so far from its mean: 2 (1 - Phi(z)). Source: Abramowitz and Stegun, 7.1.26, good to
/// 1.5e-7.
fn two_sided(z: f64) -> f64 {
    let x = z.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let terms = [0.254_829_592, -0.284_496_736, 1.421_413_741, -1.453_152_027, 1.061_405_429];
    let sum = terms.iter().rev().fold(0.0, |sum, term| (sum + term) * t);
    (sum * (-x * x).exp()).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn chances_of_ranks_are_those_of_the_tables() {
        // Sides that do not overlap: 2 in 10 over 5 = 2 / 252, 2 in 8 over 4 = 2 / 70, 2 in 6 over 3 = 2 / 20.
        assert!(
            (rank_chance(&[1.0, 2.0, 3.0, 4.0, 5.0], &[6.0, 7.0, 8.0, 9.0, 10.0]) - 2.0 / 252.0).abs()
                < 1e-12
        );
        assert!((least_chance(5, 5) - 2.0 / 252.0).abs() < 1e-12);
        assert!((least_chance(3, 3) - 0.1).abs() < 1e-12);
        // One exchange at the border: sums 15 and 16 on both sides, 4 in 252.
        assert!(
            (rank_chance(&[1.0, 2.0, 3.0, 4.0, 6.0], &[5.0, 7.0, 8.0, 9.0, 10.0]) - 4.0 / 252.0).abs()
                < 1e-12
        );
        assert_eq!(rank_chance(&[1.0, 1.0], &[1.0, 1.0]), 1.0, "all tied");
        // 1.959964 standard deviations leave 5 % out.
        assert!((two_sided(1.959_963_985) - 0.05).abs() < 1e-6);
    }

    #[test]
    fn the_exact_chance_is_that_of_counting_every_choice() {
        let (a, b) = ([3.0, 1.0, 2.0, 2.0], [2.0, 5.0, 4.0]);
        // Doubled mean ranks of 1 2 2 2 3 4 5, and every choice of 4 of the 7.
        let ranks = [2usize, 6, 6, 6, 10, 12, 14];
        let observed = 10 + 2 + 6 + 6;
        let mean = 4 * 8;
        let (mut far, mut all) = (0, 0);
        for choice in 0u32..128 {
            if choice.count_ones() == 4 {
                let sum: usize = (0..7).filter(|at| choice >> at & 1 == 1).map(|at| ranks[at]).sum();
                all += 1;
                far += usize::from(sum.abs_diff(mean) >= usize::abs_diff(observed, mean));
            }
        }
        assert!((rank_chance(&a, &b) - f64::from(far as u32) / f64::from(all)).abs() < 1e-12);
    }

    #[test]
    fn a_clear_shift_is_found_and_three_runs_are_too_few() {
        let a = [10.0, 10.2, 9.9, 10.1, 10.3];
        let slower: Vec<f64> = a.iter().map(|v| v * 1.3).collect();
        let found = shift(&a, &slower).unwrap();
        assert_eq!(found.verdict, Verdict::More);
        assert!((found.ratio - 1.3).abs() < 1e-9 && found.interval.0 > 1.2, "{found:?}");
        assert_eq!(shift(&slower, &a).unwrap().verdict, Verdict::Less);
        assert_eq!(shift(&a, &a).unwrap().verdict, Verdict::NotShown);
        assert_eq!(shift(&a[..3], &slower[..3]).unwrap().verdict, Verdict::TooFew);
        assert_eq!(shift(&a, &[]), None);
        assert_eq!(shift(&[0.0; 5], &a), None, "nothing is a ratio to 0");
    }

    #[test]
    fn runs_of_one_kind_seldom_differ() {
        // 400 pairs of five runs of the same noise: at most 5 % may be called different.
        let mut random = Random::new(7);
        let mut side = || -> Vec<f64> { (0..5).map(|_| 100.0 + random.below(1000) as f64 / 50.0).collect() };
        let wrong =
            (0..400).filter(|_| shift(&side(), &side()).unwrap().verdict != Verdict::NotShown).count();
        assert!(wrong <= 20, "{wrong} of 400");
    }

    proptest! {
        #[test]
        fn the_same_runs_give_the_same_verdict_and_scale_does_not_matter(
            a in prop::collection::vec(1.0..100.0f64, 4..9), b in prop::collection::vec(1.0..100.0f64, 4..9),
        ) {
            let one = shift(&a, &b).unwrap();
            prop_assert_eq!(one, shift(&a, &b).unwrap());
            prop_assert!(one.interval.0 <= one.interval.1 && (0.0..=1.0).contains(&one.chance));
            let scaled = |values: &[f64]| values.iter().map(|v| v * 4.0).collect::<Vec<_>>();
            let other = shift(&scaled(&a), &scaled(&b)).unwrap();
            prop_assert!((other.ratio - one.ratio).abs() < 1e-9);
            prop_assert_eq!(other.verdict, one.verdict);
            prop_assert!((rank_chance(&a, &b) - rank_chance(&b, &a)).abs() < 1e-9);
        }
    }
}
