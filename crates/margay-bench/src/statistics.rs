//! Numbers to figures: pure functions.

use serde::Serialize;

/// What is told of several values of one quantity.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// How many values.
    pub count: usize,
    /// Their mean.
    pub mean: f64,
    /// Standard deviation of the sample (divisor n - 1); `None` of one value.
    pub deviation: Option<f64>,
    /// Median.
    pub p50: f64,
    /// 95th percentile, as [`percentile`] defines it.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Least value.
    pub least: f64,
    /// Greatest value.
    pub greatest: f64,
}

/// The figures of values; `None` without a value, or where one is not finite.
pub fn summary(values: &[f64]) -> Option<Summary> {
    let sorted = sorted(values)?;
    let count = sorted.len();
    let mean = sorted.iter().sum::<f64>() / count as f64;
    let squares: f64 = sorted.iter().map(|value| (value - mean).powi(2)).sum();
    let at = |share| of_sorted(&sorted, share);
    Some(Summary {
        count,
        mean,
        deviation: (count > 1).then(|| (squares / (count - 1) as f64).sqrt()),
        p50: at(0.5),
        p95: at(0.95),
        p99: at(0.99),
        least: sorted[0],
        greatest: sorted[count - 1],
    })
}

/// The value below which a `share` (0 to 1) of the values lies: sorted x[0..n], the value at place share x (n - 1), on a
/// straight line between its neighbours. It is numpy's `percentile` with its default method `linear` (type 7 of Hyndman and
/// Fan, "Sample Quantiles in Statistical Packages", 1996). `None` without a value, or where one is not finite.
pub fn percentile(values: &[f64], share: f64) -> Option<f64> {
    sorted(values).map(|sorted| of_sorted(&sorted, share))
}

/// The middle value, or the mean of the two in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    percentile(values, 0.5)
}

/// Position of the value that is nearest to the median, the first of several; `None` where there is none.
pub fn nearest_to_median(values: &[f64]) -> Option<usize> {
    let middle = median(values)?;
    let distance = |at: &usize| (values[*at] - middle).abs();
    (0..values.len()).min_by(|a, b| distance(a).total_cmp(&distance(b)))
}

fn sorted(values: &[f64]) -> Option<Vec<f64>> {
    if values.is_empty() || !values.iter().all(|value| value.is_finite()) {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    Some(sorted)
}

fn of_sorted(sorted: &[f64], share: f64) -> f64 {
    let place = share.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VALUES: [f64; 7] = [12.5, 3.25, 8.0, 41.0, 8.5, 9.75, 10.0];

    #[test]
    fn figures_are_those_of_numpy() {
        // numpy 2.4.6: np.mean, np.std(ddof=1), np.percentile(x, [50, 95, 99]).
        let figures = summary(&VALUES).unwrap();
        let expected = [
            (figures.mean, 13.285_714_285_714_286),
            (figures.deviation.unwrap(), 12.540_292_204_387_766),
            (figures.p50, 9.75),
            (figures.p95, 32.449_999_999_999_99),
            (figures.p99, 39.289_999_999_999_99),
            (percentile(&VALUES, 0.1).unwrap(), 6.1),
        ];
        for (at, (found, numpy)) in expected.into_iter().enumerate() {
            assert!((found - numpy).abs() < 1e-9, "{at}: {found} {numpy}");
        }
    }

    #[test]
    fn one_value_has_no_deviation_and_none_has_no_figures() {
        let one = summary(&[4.0]).unwrap();
        assert_eq!((one.mean, one.deviation, one.p99), (4.0, None, 4.0));
        assert_eq!(summary(&[]), None);
        assert_eq!(summary(&[1.0, f64::NAN]), None);
        assert_eq!(percentile(&[1.0, f64::INFINITY], 0.5), None);
        assert_eq!(nearest_to_median(&[9.0, 1.0, 2.0]), Some(2));
    }

    proptest! {
        #[test]
        fn percentiles_rise_and_stay_within_the_values(
            values in prop::collection::vec(-1e6..1e6f64, 1..60), a in 0.0..=1.0f64, b in 0.0..=1.0f64,
        ) {
            let (low, high) = (a.min(b), a.max(b));
            let (p, q) = (percentile(&values, low).unwrap(), percentile(&values, high).unwrap());
            let figures = summary(&values).unwrap();
            prop_assert!(p <= q + 1e-9);
            prop_assert!(figures.least <= p + 1e-9 && q <= figures.greatest + 1e-9);
            prop_assert!(figures.least <= figures.mean + 1e-6 && figures.mean <= figures.greatest + 1e-6);
            // Order does not matter, and a shift shifts.
            let mut turned = values.clone();
            turned.reverse();
            prop_assert_eq!(summary(&turned).unwrap().p50, figures.p50);
            let shifted: Vec<f64> = values.iter().map(|v| v + 10.0).collect();
            prop_assert!((percentile(&shifted, low).unwrap() - p - 10.0).abs() < 1e-6);
        }
    }
}
