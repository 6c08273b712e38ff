//! Observers find what naive oracles find.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use margay_quant::observers::{
    BINS, Calibration, Entropy, Granularity, Histogram, MinMax, MovingAverage, Mse, OBSERVERS, Observer,
    Params, Percentile, dynamic, observer,
};
use proptest::prelude::*;

fn batches() -> impl Strategy<Value = Vec<Vec<f32>>> {
    prop::collection::vec((0.001f32..100.0, prop::collection::vec(-1.0f32..1.0, 1..60)), 1..6).prop_map(
        |batches| batches.into_iter().map(|(m, batch)| batch.iter().map(|x| x * m).collect()).collect(),
    )
}

fn bounds(values: &[f32]) -> (f32, f32) {
    values.iter().fold((0.0, 0.0), |(min, max), x| (min.min(*x), max.max(*x)))
}

proptest! {
    #[test]
    fn min_max_and_the_moving_average_are_as_defined(batches in batches()) {
        let (mut all, mut moving) = (MinMax::default(), MovingAverage::new(0.8));
        let mut expected: Option<(f32, f32)> = None;
        for batch in &batches {
            all.observe(batch);
            moving.observe(batch);
            let (min, max) = bounds(batch);
            expected = Some(expected.map_or((min, max), |(a, b)| (0.8 * a + 0.2 * min, 0.8 * b + 0.2 * max)));
        }
        let (min, max) = bounds(&batches.concat());
        prop_assert_eq!(all.range(false).unwrap(), (min, max));
        prop_assert_eq!(all.range(true).unwrap().1, max.max(-min));
        let (got, expected) = (moving.range(false).unwrap(), expected.unwrap());
        prop_assert!((got.0 - expected.0).abs() < 1e-4 && (got.1 - expected.1).abs() < 1e-4);
    }

    #[test]
    fn histograms_count_everything_wherever_batches_are_cut(batches in batches()) {
        let mut histogram = Histogram::default();
        batches.iter().for_each(|batch| histogram.add(batch));
        let values = batches.concat();
        prop_assert_eq!(histogram.count(), values.len() as u64);
        let width = histogram.width();
        let mut naive = vec![0u64; BINS];
        values.iter().for_each(|x| naive[((f64::from(x.abs()) / width) as usize).min(BINS - 1)] += 1);
        // Counts merged from narrower bins may round to the other side of an edge.
        let off: u64 = histogram.magnitudes().iter().zip(&naive).map(|(a, b)| a.abs_diff(*b)).sum();
        prop_assert!(off <= 2, "{off}");
    }

    #[test]
    fn percentiles_are_within_a_bin_of_the_sorted_numbers(batches in batches(), part in 0.5f64..1.0) {
        let mut percentile = Percentile::new(part);
        let mut histogram = Histogram::default();
        batches.iter().for_each(|batch| { percentile.observe(batch); histogram.add(batch) });
        let mut magnitudes: Vec<f32> = batches.concat().iter().map(|x| x.abs()).collect();
        magnitudes.sort_by(f32::total_cmp);
        let beyond = ((1.0 - part) * magnitudes.len() as f64) as usize;
        let naive = magnitudes[magnitudes.len() - 1 - beyond.min(magnitudes.len() - 1)];
        let (low, high) = percentile.range(true).unwrap();
        prop_assert_eq!(low, -high);
        prop_assert!((f64::from(high) - f64::from(naive)).abs() <= 1.01 * histogram.width(), "{high} {naive}");
    }

    #[test]
    fn no_range_of_the_grid_beats_mse_on_the_numbers_themselves(batches in batches(), symmetric: bool) {
        let values = batches.concat();
        let mut mse = Mse::new(4);
        mse.observe(&values);
        let error = |range| {
            let params = Params::of_range(range, 4, symmetric);
            values.iter().map(|x| f64::from(x - params.round(*x)).powi(2)).sum::<f64>()
        };
        let (min, max) = bounds(&values);
        let whole = if symmetric { (-max.max(-min), max.max(-min)) } else { (min, max) };
        let naive = (0..71)
            .map(|trial| 0.3 + 0.7 * trial as f32 / 70.0)
            .map(|part| error((whole.0 * part, whole.1 * part)))
            .fold(f64::INFINITY, f64::min);
        // A number lies up to half a bin from its middle: at most that much an error apart.
        let half_bin = f64::from(max.max(-min)) / BINS as f64 / 2.0;
        let slack = values.len() as f64 * half_bin.powi(2) * 4.0 + 4.0 * half_bin * (naive * values.len() as f64).sqrt();
        prop_assert!(error(mse.range(symmetric).unwrap()) <= naive + slack + 1e-9);
    }

    #[test]
    fn codes_stay_in_range_and_zero_is_exact(
        min in -100.0f32..0.0, max in 0.0f32..100.0, bits in 2u32..=8, symmetric: bool, x in -300.0f32..300.0,
    ) {
        let params = Params::of_range((min, max), bits, symmetric);
        prop_assert!((params.low..=params.high).contains(&params.code(x)));
        prop_assert_eq!(params.round(0.0), 0.0);
        prop_assert_eq!(params.high - params.low + 1 + i32::from(symmetric), 1 << bits);
        if (min..=max).contains(&x) {
            prop_assert!((params.round(x) - x).abs() <= params.scale * 1.001);
        }
    }
}

#[test]
fn every_observer_survives_anything_and_keeps_zero() {
    let names: std::collections::BTreeSet<_> = OBSERVERS.iter().map(|kind| kind.id).collect();
    assert_eq!(names.len(), OBSERVERS.len());
    for kind in OBSERVERS {
        assert_eq!(observer(kind.id).unwrap().about, kind.about);
        for bits in [0, 4, 8, 40] {
            let mut it = (kind.make)(bits);
            assert_eq!(it.range(true), None);
            it.observe(&[]);
            it.observe(&[f32::NAN, f32::INFINITY]);
            assert_eq!(it.range(false), None, "{}", kind.id);
            it.observe(&[0.0; 5]);
            assert_eq!(it.range(false), Some((0.0, 0.0)), "{}", kind.id);
            for batch in [&[1e-30, -1e-38][..], &[f32::MAX, -f32::MAX, 1.0], &[f32::from_bits(1)]] {
                it.observe(batch);
                for symmetric in [true, false] {
                    let (min, max) = it.range(symmetric).unwrap();
                    assert!(min <= 0.0 && max >= 0.0 && min.is_finite() && max.is_finite(), "{}", kind.id);
                    assert!(Params::of_range((min, max), bits, symmetric).round(1.0).is_finite());
                }
            }
        }
    }
}

#[test]
fn registry_equals_the_folder() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/observers");
    let stems = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned());
    let files: std::collections::BTreeSet<String> =
        stems.filter(|stem| stem != "mod" && stem != "histogram").collect();
    let registered: std::collections::BTreeSet<String> =
        OBSERVERS.iter().map(|kind| kind.id.to_owned()).collect();
    assert_eq!(registered, files);
}

#[test]
fn outliers_are_cut_off_where_that_serves_the_rest() {
    let mut values: Vec<f32> = (0..40_000).map(|i| ((i * 37 % 1000) as f32 / 500.0 - 1.0).powi(3)).collect();
    values[17] = 4.0;
    for (mut it, most) in [
        (Box::new(Percentile::new(0.9999)) as Box<dyn Observer>, 1.1),
        (Box::new(Entropy::new(8)), 3.9),
        (Box::new(Mse::new(4)), 2.0),
    ] {
        it.observe(&values);
        let (_, high) = it.range(true).unwrap();
        assert!((0.5..most).contains(&high), "{high}");
    }
}

#[test]
fn static_ranges_belong_to_tensors_channels_and_groups() {
    let rows = [1.0, -2.0, 3.0, 0.5, 4.0, -6.0];
    let static_of = |granularity| {
        let mut calibration = Calibration::new(observer("min_max").unwrap(), granularity, 3, 8).unwrap();
        calibration.observe(&rows).unwrap();
        assert!(calibration.observe(&rows[..2]).is_err());
        calibration.params(true).into_iter().map(|params| params.unwrap().scale * 127.0).collect::<Vec<_>>()
    };
    assert_eq!(static_of(Granularity::Tensor), [6.0]);
    assert_eq!(static_of(Granularity::Channel), [1.0, 4.0, 6.0]);
    assert_eq!(static_of(Granularity::Group(2)), [4.0, 6.0]);
    assert!(Calibration::new(observer("min_max").unwrap(), Granularity::Token, 3, 8).is_err());
}

#[test]
fn dynamic_ranges_belong_to_tokens_as_well() {
    let rows = [1.0, -2.0, 3.0, 0.5, 4.0, -6.0];
    let of = |granularity| {
        let params = dynamic(&rows, 3, granularity, 8, true).unwrap();
        params.iter().map(|params| params.scale * 127.0).collect::<Vec<_>>()
    };
    assert_eq!(of(Granularity::Tensor), [6.0]);
    assert_eq!(of(Granularity::Channel), [1.0, 4.0, 6.0]);
    assert_eq!(of(Granularity::Token), [3.0, 6.0]);
    assert_eq!(of(Granularity::Group(2)), [2.0, 3.0, 4.0, 6.0]);
    assert!(dynamic(&rows[..4], 3, Granularity::Token, 8, true).is_err());
}
