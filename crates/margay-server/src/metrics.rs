//! What was served so far: counters and histograms, and means of what answers took.

use margay::{Report, Stop};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Upper bounds of the histograms' buckets, seconds.
pub(crate) const BOUNDS: [f64; 13] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

/// Weight of the newest value in a mean: the last ten or so count.
const NEWEST: f64 = 0.2;

/// What was served so far.
#[derive(Debug, Default)]
pub(crate) struct Metrics(Mutex<Served>);

/// What was served so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Served {
    /// By route and status.
    pub(crate) requests: BTreeMap<(&'static str, u16), u64>,
    /// By why they ended; `error` of those that failed.
    pub(crate) answers: BTreeMap<&'static str, u64>,
    pub(crate) prompt_tokens: u64,
    /// Of them, those that were not computed again.
    pub(crate) reused_tokens: u64,
    pub(crate) visual_tokens: u64,
    pub(crate) completion_tokens: u64,
    /// By stage.
    pub(crate) stages: BTreeMap<&'static str, Histogram>,
    pub(crate) first_text: Histogram,
    pub(crate) answer: Histogram,
    pub(crate) rates: Rates,
}

/// Means of what was measured; `None` until something was.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rates {
    /// Seconds of an answer from its first stage to its end.
    pub(crate) service: Option<f64>,
    /// Milliseconds of preprocessing, encoding and projecting, for each visual token.
    pub(crate) encode_ms: Option<f64>,
    /// Milliseconds for each token of a prompt that is computed.
    pub(crate) prefill_ms: Option<f64>,
    /// Milliseconds for each token of an answer behind the first.
    pub(crate) decode_ms: Option<f64>,
}

/// How many values were at most so large.
#[derive(Clone, Debug, Default)]
pub(crate) struct Histogram {
    /// Values of each bucket alone; those above all bounds are in `count` only.
    pub(crate) buckets: [u64; BOUNDS.len()],
    pub(crate) count: u64,
    pub(crate) sum: f64,
}

impl Histogram {
    fn add(&mut self, seconds: f64) {
        if let Some(bucket) = BOUNDS.iter().position(|bound| seconds <= *bound) {
            self.buckets[bucket] += 1;
        }
        self.count += 1;
        self.sum += seconds;
    }
}

impl Metrics {
    pub(crate) fn served(&self) -> Served {
        self.lock().clone()
    }

    /// How long an answer took lately; `None` before the first.
    pub(crate) fn service_time(&self) -> Option<Duration> {
        self.lock().rates.service.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    }

    pub(crate) fn requested(&self, route: &'static str, status: u16) {
        *self.lock().requests.entry((route, status)).or_default() += 1;
    }

    /// The first text of an answer came so long after its request.
    pub(crate) fn first_text(&self, after: Duration) {
        self.lock().first_text.add(after.as_secs_f64());
    }

    /// An answer ended: so long after its request, so long after its first stage.
    pub(crate) fn answered(&self, report: &Report, whole: Duration, service: Duration) {
        let mut served = self.lock();
        let stages = &report.stages;
        *served.answers.entry(stop_name(report.stop)).or_default() += 1;
        served.prompt_tokens += (stages.prefill_tokens + stages.reused_tokens) as u64;
        served.reused_tokens += stages.reused_tokens as u64;
        served.visual_tokens += stages.visual_tokens as u64;
        served.completion_tokens += report.tokens.len() as u64;
        served.answer.add(whole.as_secs_f64());
        for (stage, ms) in [
            ("preprocess", stages.preprocess_ms),
            ("encode", stages.encode_ms),
            ("project", stages.project_ms),
            ("prefill", stages.prefill_ms),
            ("decode", stages.decode_ms),
        ] {
            if let Some(ms) = ms {
                served.stages.entry(stage).or_default().add(ms / 1000.0);
            }
        }
        if report.stop == Stop::Cancelled {
            return;
        }
        let rates = &mut served.rates;
        learn(&mut rates.service, service.as_secs_f64());
        let pictures = [stages.preprocess_ms, stages.encode_ms, stages.project_ms];
        if stages.encode_ms.is_some() && stages.visual_tokens > 0 {
            let ms: f64 = pictures.into_iter().flatten().sum();
            learn(&mut rates.encode_ms, ms / stages.visual_tokens as f64);
        }
        if let Some(rate) = stages.prefill_rate() {
            learn(&mut rates.prefill_ms, 1000.0 / rate);
        }
        if let Some(rate) = stages.decode_rate() {
            learn(&mut rates.decode_ms, 1000.0 / rate);
        }
    }

    pub(crate) fn failed(&self) {
        *self.lock().answers.entry("error").or_default() += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Served> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn learn(mean: &mut Option<f64>, value: f64) {
    *mean = Some(mean.map_or(value, |mean| mean + NEWEST * (value - mean)));
}

fn stop_name(stop: Stop) -> &'static str {
    match stop {
        Stop::End => "end",
        Stop::StopText => "stop_text",
        Stop::Length => "length",
        Stop::Context => "context",
        Stop::Cancelled => "cancelled",
    }
}
