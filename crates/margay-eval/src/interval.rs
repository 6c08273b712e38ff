//! How sure a figure is.

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::Serialize;

/// Two-sided 95 % of the normal distribution, as evaluations of the field round it.
const Z: f64 = 1.96;

/// Resamples of a bootstrap: the ends of an interval then move by a fiftieth of its width from seed to seed.
const RESAMPLES: usize = 2000;

/// 95 % of where a figure lies.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// Lower end, in the unit of its figure.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// `wilson` or `bootstrap`.
    pub how: &'static str,
}

/// Wilson's 95 % interval of a share, from 0 to 1; `None` of nothing. Source: E. B. Wilson 1927; training/nano/evaluate.py.
pub fn wilson(right: f64, n: f64) -> Option<(f64, f64)> {
    if n <= 0.0 {
        return None;
    }
    let p = right / n;
    let mid = p + Z * Z / (2.0 * n);
    let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    Some((((mid - half) / scale).max(0.0), ((mid + half) / scale).min(1.0)))
}

/// Sums of one group of questions that are drawn together, and the stratum within which it is drawn.
pub(crate) struct Unit {
    pub stratum: usize,
    pub sums: Vec<f64>,
}

/// The 95 % percentile interval of a statistic of sums: groups are drawn with replacement, as many of each stratum as it
/// has. The seed is fixed, so that the same answers give the same interval.
pub(crate) fn bootstrap(units: &[Unit], statistic: &dyn Fn(&[f64]) -> Option<f64>) -> Option<(f64, f64)> {
    let width = units.first()?.sums.len();
    let strata = 1 + units.iter().map(|unit| unit.stratum).max()?;
    let mut members: Vec<Vec<&[f64]>> = vec![vec![]; strata];
    for unit in units {
        members[unit.stratum].push(&unit.sums);
    }
    members.retain(|stratum| !stratum.is_empty());
    let mut rng = StdRng::seed_from_u64(0);
    let mut values = Vec::with_capacity(RESAMPLES);
    let mut sums = vec![0.0; width];
    for _ in 0..RESAMPLES {
        sums.fill(0.0);
        for stratum in &members {
            for _ in 0..stratum.len() {
                let drawn = stratum[rng.random_range(0..stratum.len())];
                sums.iter_mut().zip(drawn).for_each(|(sum, value)| *sum += value);
            }
        }
        values.extend(statistic(&sums));
    }
    values.sort_unstable_by(f64::total_cmp);
    Some((quantile(&values, 0.025)?, quantile(&values, 0.975)?))
}

/// A quantile of sorted values, between neighbours where it falls between them, as numpy's default does.
pub(crate) fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let at = q * (sorted.len().checked_sub(1)?) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    Some(below + (above - below) * at.fract())
}

/// McNemar's exact two-sided p: how likely two equally good models disagree at least so unevenly, where one alone is right
/// on `only_first` questions and the other alone on `only_second`. Source: Q. McNemar 1947, the binomial form.
pub fn mcnemar(only_first: usize, only_second: usize) -> f64 {
    let n = only_first + only_second;
    // ln C(n, k) 2^-n by its recurrence; sums from the small terms up.
    let mut term = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = term.exp();
    for k in 1..=only_first.min(only_second) {
        term += ((n - k + 1) as f64 / k as f64).ln();
        tail += term.exp();
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_gives_the_figures_of_the_model_card() {
        let shown =
            |right, n| wilson(right, n).map(|(low, high)| (format!("{low:.3}"), format!("{high:.3}")));
        // training/nano/MODEL_CARD.md: colour 1.000 of 207, where 0.994 of 157 (156 right).
        assert_eq!(shown(207.0, 207.0), Some(("0.982".into(), "1.000".into())));
        assert_eq!(shown(156.0, 157.0), Some(("0.965".into(), "0.999".into())));
        assert_eq!(wilson(0.0, 0.0), None);
    }

    #[test]
    fn mcnemar_is_the_sign_test() {
        assert_eq!(mcnemar(0, 0), 1.0);
        // 2 * (1 + 10) / 1024 and 2 * 1 / 32.
        assert!((mcnemar(1, 9) - 22.0 / 1024.0).abs() < 1e-12);
        assert!((mcnemar(5, 0) - 2.0 / 32.0).abs() < 1e-12);
        assert_eq!(mcnemar(7, 7), 1.0);
        assert!(mcnemar(3000, 2000) < 1e-40);
    }

    #[test]
    fn the_bootstrap_of_a_mean_is_as_wide_as_its_standard_error_says() {
        let unit =
            |at: usize| Unit { stratum: 0, sums: vec![f64::from(u8::from(at.is_multiple_of(4))), 1.0] };
        let units: Vec<Unit> = (0..400).map(unit).collect();
        let (low, high) = bootstrap(&units, &|sums| Some(sums[0] / sums[1])).unwrap();
        let expected = 1.96 * (0.25f64 * 0.75 / 400.0).sqrt();
        // Ends of 2000 resamples scatter by about 4 % of the width.
        assert!((0.25 - low - expected).abs() < 0.2 * expected, "{low}");
        assert!((high - 0.25 - expected).abs() < 0.2 * expected, "{high}");
        // Strata that never vary within leave nothing to vary.
        let strata: Vec<Unit> = (0..40).map(|at| Unit { stratum: at % 4, ..unit(at) }).collect();
        let (low, high) = bootstrap(&strata, &|sums| Some(sums[0] / sums[1])).unwrap();
        assert_eq!((low, high), (0.25, 0.25));
        assert_eq!(bootstrap(&[], &|_| Some(1.0)), None);
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.75), Some(3.0));
        assert_eq!(quantile(&[5.0], 0.99), Some(5.0));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
