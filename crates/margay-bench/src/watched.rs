//! What the sensors say of a run.

use crate::record::Run;
use margay_observe::{Sample, Timeline};
use std::time::Duration;

/// Adds to a run what the samples say; energies are of the stretch from the question to the end.
pub(crate) fn watch(run: &mut Run, timeline: &Timeline, (from, to): (Duration, Duration)) {
    let samples = &timeline.series.samples;
    (run.gross_joules, run.net_joules) =
        timeline.energy(from, to).map_or((None, None), |(gross, net)| (Some(gross), net));
    let stages = timeline.stage_statistics();
    let net = |names: &[&str]| {
        let of = stages.iter().filter(|stage| stage.stage.is_some_and(|name| names.contains(&name)));
        let joules: Option<Vec<f64>> = of.map(|stage| stage.net_joules).collect();
        joules.filter(|joules| !joules.is_empty()).map(|joules| joules.iter().sum())
    };
    run.pictures_net_joules = net(&["preprocess", "encode", "project"]);
    run.decode_net_joules = net(&["decode"]);
    run.peak_rss_bytes = samples.iter().filter_map(|sample| sample.rss_bytes).max();
    run.peak_anonymous_bytes = samples.iter().filter_map(|sample| sample.anonymous_bytes).max();
    run.process_cpu_percent = mean(samples, |sample| sample.process_cpu_percent);
    run.cpu_pressure_percent = mean(samples, |sample| sample.cpu_pressure_percent);
    run.memory_pressure_percent = mean(samples, |sample| sample.memory_pressure_percent);
    run.start_celsius = samples.first().and_then(|sample| sample.temperature_celsius);
    run.peak_celsius = samples.iter().filter_map(|sample| sample.temperature_celsius).reduce(f64::max);
}

/// Mean over time of a rate; `None` where no sample knows it.
pub(crate) fn mean(samples: &[Sample], value: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
    let known = samples.iter().filter_map(|sample| Some((value(sample)?, sample.over.as_secs_f64())));
    let (sum, seconds) =
        known.fold((0.0, 0.0), |(sum, seconds), (value, over)| (sum + value * over, seconds + over));
    (seconds > 0.0).then(|| sum / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay_observe::{Series, Span, Stage};

    fn timeline(watts: Option<f64>) -> Timeline {
        let sample = |tick: u64| Sample {
            at: Duration::from_millis(100 * tick),
            over: Duration::from_millis(if tick == 0 { 0 } else { 100 }),
            power_watts: watts.filter(|_| tick > 0),
            process_cpu_percent: (tick > 0).then_some(100.0 * tick as f64),
            rss_bytes: Some(1000 * tick),
            temperature_celsius: Some(40.0 + tick as f64),
            ..Sample::default()
        };
        let mut timeline = Timeline::of_samples("x", Series::new(Duration::from_millis(100)));
        timeline.series.samples = (0..=10).map(sample).collect();
        let span = |stage, start, duration| Span {
            stage,
            part: None,
            start: Duration::from_millis(start),
            duration: Duration::from_millis(duration),
        };
        timeline.spans = vec![span(Stage::Encode, 200, 300), span(Stage::Decode, 600, 400)];
        timeline
    }

    #[test]
    fn energy_is_that_of_the_answer_and_idle_comes_off_where_it_is_known() {
        let of = |timeline: &Timeline| {
            let mut run = Run::default();
            watch(&mut run, timeline, (Duration::from_millis(200), Duration::from_millis(1000)));
            run
        };
        let mut known = timeline(Some(5.0));
        let run = of(&known);
        assert!((run.gross_joules.unwrap() - 4.0).abs() < 1e-9);
        assert_eq!((run.net_joules, run.decode_net_joules), (None, None), "nobody measured idle");
        known.idle_watts = Some(2.0);
        let run = of(&known);
        let joules = [run.net_joules, run.pictures_net_joules, run.decode_net_joules].map(Option::unwrap);
        for (found, expected) in joules.into_iter().zip([2.4, 0.9, 1.2]) {
            assert!((found - expected).abs() < 1e-9, "{joules:?}");
        }
        assert_eq!(
            (run.peak_rss_bytes, run.start_celsius, run.peak_celsius),
            (Some(10_000), Some(40.0), Some(50.0))
        );
        assert!((run.process_cpu_percent.unwrap() - 550.0).abs() < 1e-9);
        assert_eq!(run.cpu_pressure_percent, None);
        let unknown = of(&timeline(None));
        assert_eq!((unknown.gross_joules, unknown.net_joules), (None, None));
    }
}
