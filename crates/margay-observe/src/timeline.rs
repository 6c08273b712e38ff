//! Stages and samples on one clock, and what each stage took of the device.

use crate::{OpSpan, Part, Recorder, Sample, Series, Span, Stage};
use serde::{Serialize, Serializer, ser::SerializeStruct};
use std::time::Duration;

/// Share of a stage's time for which power must be known for its energy to be told.
const KNOWN_ENOUGH: f64 = 0.95;

/// What ran when, and what the sensors said meanwhile.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Timeline {
    /// What it is of, for people.
    pub title: String,
    /// Stages, in the order in which they ended.
    pub spans: Vec<Span>,
    /// Ops within them, where they were recorded.
    pub ops: Vec<OpSpan>,
    /// Ops that were too many to keep.
    pub ops_dropped: usize,
    /// Samples on the clock of the spans.
    pub series: Series,
    /// Power of the device while it did nothing, measured before; `None` where nobody measured it.
    pub idle_watts: Option<f64>,
}

/// Mean and greatest value.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MeanMax {
    /// Mean over time.
    pub mean: f64,
    /// Greatest value of a sample that lies mostly in the time.
    pub max: f64,
}

/// What a stage took. Everything is over the stage's spans; what no sensor told is `None`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageStatistics {
    /// The stage; `None` is all spans together.
    pub stage: Option<&'static str>,
    /// Part of the stage, where spans say it: `image`, `text`, `token`.
    pub part: Option<&'static str>,
    /// How many spans.
    pub spans: usize,
    /// How long, in sum.
    pub seconds: f64,
    /// Samples that touch it; a rate over few of them is rough.
    pub samples: usize,
    /// All cores: 100 is one core.
    pub cpu_percent: Option<MeanMax>,
    /// The watched process: 100 is one core.
    pub process_cpu_percent: Option<MeanMax>,
    /// GPU, 0 to 100.
    pub gpu_percent: Option<MeanMax>,
    /// NPU, 0 to 100.
    pub npu_percent: Option<MeanMax>,
    /// Power by the source that the series names, idle included.
    pub power_watts: Option<MeanMax>,
    /// Energy, idle included.
    pub gross_joules: Option<f64>,
    /// Energy beyond what the device would have taken idle; `None` where no idle power was measured.
    pub net_joules: Option<f64>,
    /// Hottest zone.
    pub peak_celsius: Option<f64>,
    /// Most resident memory of the process in a sample.
    pub peak_rss_bytes: Option<u64>,
    /// Most memory of the process that no file backs.
    pub peak_anonymous_bytes: Option<u64>,
}

impl Timeline {
    /// This one, and the stages and ops of another behind its end: for what was recorded on another clock.
    #[must_use]
    pub fn followed_by(&self, next: &Timeline) -> Timeline {
        let sampled = self.series.range().map(|(_, last)| last);
        let end = self.spans.iter().map(Span::end).chain(sampled).max().unwrap_or_default();
        let mut both = self.clone();
        both.spans.extend(next.spans.iter().map(|span| Span { start: end + span.start, ..*span }));
        both.ops.extend(next.ops.iter().map(|op| OpSpan { start: end + op.start, ..op.clone() }));
        both.ops_dropped += next.ops_dropped;
        both
    }

    /// A timeline of what a recorder recorded and a sampler sampled, on the same clock.
    pub fn new(title: impl Into<String>, recorder: &Recorder, series: Series) -> Self {
        let (ops, ops_dropped) = recorder.ops();
        let spans = recorder.spans().to_vec();
        Timeline { title: title.into(), spans, ops: ops.to_vec(), ops_dropped, series, idle_watts: None }
    }

    /// A timeline of samples alone.
    pub fn of_samples(title: impl Into<String>, series: Series) -> Self {
        Timeline { title: title.into(), series, ..Timeline::default() }
    }

    /// From the first thing that happened to the last; `None` where nothing did.
    pub fn range(&self) -> Option<(Duration, Duration)> {
        let spans = self.spans.iter().map(|span| (span.start, span.end()));
        let all = spans.chain(self.series.range());
        all.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
    }

    /// Energy from one time to another, first with idle, then beyond it: the latter `None` where nobody measured idle.
    /// `None` where power is known for less than 95 % of the time.
    pub fn energy(&self, from: Duration, to: Duration) -> Option<(f64, Option<f64>)> {
        let seconds = to.saturating_sub(from).as_secs_f64();
        let energy = self.series.energy(from, to)?;
        let gross = whole(energy.joules, energy.known * seconds, seconds)?;
        Some((gross, self.net(gross, seconds)))
    }

    fn net(&self, gross: f64, seconds: f64) -> Option<f64> {
        self.idle_watts.map(|idle| gross - idle * seconds)
    }

    /// Statistics of each stage that ran, in the order of the flow, image before text, and of all of them together.
    pub fn stage_statistics(&self) -> Vec<StageStatistics> {
        // Tokens are one group, whatever their number.
        let kind = |span: &Span| (span.stage, span.part.map(Part::name));
        let mut kinds: Vec<_> = self.spans.iter().map(kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let of = |wanted: &(Stage, Option<&'static str>)| {
            let spans: Vec<&Span> = self.spans.iter().filter(|span| kind(span) == *wanted).collect();
            self.statistics(Some(wanted.0.name()), wanted.1, &spans)
        };
        let mut statistics: Vec<StageStatistics> = kinds.iter().map(of).collect();
        if !self.spans.is_empty() {
            statistics.push(self.statistics(None, None, &self.spans.iter().collect::<Vec<_>>()));
        }
        statistics
    }

    fn statistics(
        &self,
        stage: Option<&'static str>,
        part: Option<&'static str>,
        spans: &[&Span],
    ) -> StageStatistics {
        let samples = &self.series.samples;
        // Seconds of each sample within the spans; samples are in order, so each span looks at its own only.
        let mut within = vec![0.0; samples.len()];
        for span in spans {
            let first = samples.partition_point(|sample| sample.at <= span.start);
            for (sample, within) in samples.iter().zip(&mut within).skip(first) {
                if sample.at.saturating_sub(sample.over) >= span.end() {
                    break;
                }
                *within += sample.overlap(span.start, span.end());
            }
        }
        let touched = || samples.iter().zip(&within).filter(|(_, within)| **within > 0.0);
        let rate = |value: fn(&Sample) -> Option<f64>| {
            mean_max(touched().filter_map(|(s, within)| Some((value(s)?, *within, s.over.as_secs_f64()))))
        };
        let most =
            |value: fn(&Sample) -> Option<u64>| touched().filter_map(|(sample, _)| value(sample)).max();
        let seconds: f64 = spans.iter().map(|span| span.duration.as_secs_f64()).sum();
        let known = touched().filter_map(|(sample, within)| Some((sample.power_watts?, *within)));
        let (joules, known) = known.fold((0.0, 0.0), |(j, k), (watts, s)| (j + watts * s, k + s));
        let gross_joules = whole(joules, known, seconds);
        StageStatistics {
            stage,
            part,
            spans: spans.len(),
            seconds,
            samples: touched().count(),
            cpu_percent: rate(|sample| sample.cpu_percent),
            process_cpu_percent: rate(|sample| sample.process_cpu_percent),
            gpu_percent: rate(|sample| sample.gpu_percent),
            npu_percent: rate(|sample| sample.npu_percent),
            power_watts: rate(|sample| sample.power_watts),
            gross_joules,
            net_joules: gross_joules.and_then(|gross| self.net(gross, seconds)),
            peak_celsius: touched().filter_map(|(sample, _)| sample.temperature_celsius).reduce(f64::max),
            peak_rss_bytes: most(|sample| sample.rss_bytes),
            peak_anonymous_bytes: most(|sample| sample.anonymous_bytes),
        }
    }
}

/// Energy of `seconds`, of which the samples know `joules` of `known` seconds. The few percent that they miss are taken to be
/// like the rest.
fn whole(joules: f64, known: f64, seconds: f64) -> Option<f64> {
    (seconds > 0.0 && known >= KNOWN_ENOUGH * seconds).then(|| joules / known * seconds)
}

/// Mean of values weighted by their seconds within, and the greatest of those that lie at least half within; of short
/// stages, which no sample lies in, the one that lies in most.
fn mean_max(values: impl Iterator<Item = (f64, f64, f64)> + Clone) -> Option<MeanMax> {
    let (sum, weight) =
        values.clone().fold((0.0, 0.0), |(s, w), (value, within, _)| (s + value * within, w + within));
    let mostly = values.clone().filter(|(_, within, over)| within * 2.0 >= *over).map(|(value, ..)| value);
    let best = values.max_by(|a, b| (a.1 / a.2).total_cmp(&(b.1 / b.2))).map(|(value, ..)| value);
    let max = mostly.reduce(f64::max).or(best)?;
    (weight > 0.0).then(|| MeanMax { mean: sum / weight, max })
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut span = serializer.serialize_struct("Span", 5)?;
        span.serialize_field("stage", self.stage.name())?;
        span.serialize_field("part", &self.part.map(Part::name))?;
        let token = match self.part {
            Some(Part::Token(number)) => Some(number),
            _ => None,
        };
        span.serialize_field("token", &token)?;
        span.serialize_field("start_seconds", &self.start.as_secs_f64())?;
        span.serialize_field("duration_seconds", &self.duration.as_secs_f64())?;
        span.end()
    }
}

impl Serialize for OpSpan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut op = serializer.serialize_struct("OpSpan", 3)?;
        op.serialize_field("name", &self.name)?;
        op.serialize_field("start_seconds", &self.start.as_secs_f64())?;
        op.serialize_field("duration_seconds", &self.duration.as_secs_f64())?;
        op.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn span(stage: Stage, part: Option<Part>, start: u64, duration: u64) -> Span {
        Span { stage, part, start: millis(start), duration: millis(duration) }
    }

    /// One sample each 100 ms: processor time 100 % in the first half second, then 400 %; 2 W, then 10 W.
    fn timeline() -> Timeline {
        let sample = |tick: u64| Sample {
            at: millis(100 * tick),
            over: millis(if tick == 0 { 0 } else { 100 }),
            cpu_percent: Some(if tick <= 5 { 100.0 } else { 400.0 }),
            power_watts: (tick > 0).then_some(if tick <= 5 { 2.0 } else { 10.0 }),
            temperature_celsius: Some(40.0 + tick as f64),
            rss_bytes: Some(1000 * tick),
            ..Sample::default()
        };
        let mut timeline = Timeline::of_samples("test", Series::new(millis(100)));
        timeline.series.samples = (0..=10).map(sample).collect();
        timeline
    }

    #[test]
    fn what_follows_begins_behind_the_last_span_and_sample() {
        let op = OpSpan { name: "linear".to_owned(), start: millis(12), duration: millis(3) };
        let spans = vec![span(Stage::Prefill, None, 10, 20)];
        let next = Timeline { spans, ops: vec![op], ..Timeline::default() };
        let mut first = timeline();
        let both = first.followed_by(&next);
        assert_eq!(
            (both.spans[0].start, both.ops[0].start),
            (millis(1010), millis(1012)),
            "a second of samples"
        );
        first.spans = vec![span(Stage::Decode, None, 900, 300)];
        let both = first.followed_by(&next);
        assert_eq!(
            (both.spans.len(), both.spans[1].start, both.ops[0].duration),
            (2, millis(1210), millis(3))
        );
    }

    #[test]
    fn each_stage_gets_its_own_part_of_the_samples() {
        let mut timeline = timeline();
        timeline.spans = vec![
            span(Stage::Encode, None, 0, 450),
            span(Stage::Prefill, Some(Part::Image), 450, 250),
            span(Stage::Decode, Some(Part::Token(0)), 700, 100),
            span(Stage::Decode, Some(Part::Token(1)), 800, 100),
        ];
        timeline.idle_watts = Some(1.0);
        let statistics = timeline.stage_statistics();
        let names: Vec<_> = statistics.iter().map(|s| (s.stage, s.part)).collect();
        let expected = [
            (Some("encode"), None),
            (Some("prefill"), Some("image")),
            (Some("decode"), Some("token")),
            (None, None),
        ];
        assert_eq!(names, expected);
        let [encode, prefill, decode, all] = &statistics[..] else { unreachable!() };
        assert_eq!(encode.cpu_percent, Some(MeanMax { mean: 100.0, max: 100.0 }));
        assert!((encode.gross_joules.unwrap() - 0.9).abs() < 1e-9);
        assert!((encode.net_joules.unwrap() - 0.45).abs() < 1e-9);
        // 50 ms at 100 %, 200 ms at 400 %.
        let cpu = prefill.cpu_percent.unwrap();
        assert!((cpu.mean - 340.0).abs() < 1e-6 && cpu.max == 400.0, "{cpu:?}");
        assert!((prefill.gross_joules.unwrap() - 2.1).abs() < 1e-9);
        assert_eq!((decode.spans, decode.peak_celsius, decode.peak_rss_bytes), (2, Some(49.0), Some(9000)));
        assert!((all.seconds - 0.9).abs() < 1e-9 && (all.gross_joules.unwrap() - 5.0).abs() < 1e-9);
        assert_eq!(all.gpu_percent, None);
    }

    #[test]
    fn unknown_power_or_baseline_leaves_energy_unknown() {
        let mut timeline = timeline();
        timeline.spans = vec![span(Stage::Decode, None, 0, 1000)];
        let all = timeline.stage_statistics().pop().unwrap();
        assert!(all.gross_joules.is_some());
        assert_eq!(all.net_joules, None, "nobody measured what idle takes");
        let (gross, net) = timeline.energy(millis(100), millis(600)).unwrap();
        assert!((gross - (4.0 * 0.2 + 0.1 * 10.0)).abs() < 1e-9 && net.is_none(), "{gross}");
        timeline.idle_watts = Some(1.0);
        let (gross, net) = timeline.energy(millis(0), millis(1000)).unwrap();
        assert!((gross - 6.0).abs() < 1e-9 && (net.unwrap() - 5.0).abs() < 1e-9, "{gross}");
        timeline.series.samples[4].power_watts = None;
        assert_eq!(timeline.energy(millis(0), millis(1000)), None);
        assert!(timeline.energy(millis(500), millis(1000)).is_some());
        let all = timeline.stage_statistics().pop().unwrap();
        assert_eq!(all.gross_joules, None, "a tenth of the time is missing");
        assert!(all.power_watts.is_some());
    }

    #[test]
    fn a_stage_shorter_than_a_sample_is_told_by_the_sample_it_lies_in() {
        let mut timeline = timeline();
        timeline.spans = vec![span(Stage::Project, None, 610, 10)];
        let project = &timeline.stage_statistics()[0];
        assert_eq!(project.cpu_percent, Some(MeanMax { mean: 400.0, max: 400.0 }));
        assert_eq!(project.samples, 1);
        timeline.spans = vec![span(Stage::Project, None, 5000, 10)];
        let beyond = &timeline.stage_statistics()[0];
        assert_eq!((beyond.cpu_percent, beyond.gross_joules, beyond.samples), (None, None, 0));
    }
}
