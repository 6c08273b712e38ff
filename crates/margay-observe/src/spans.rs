//! What ran when: spans named by the stages of the answer flow.

use crate::Clock;
use serde::{Serialize, Serializer, ser::SerializeMap};
use std::time::Duration;

/// A stage of the answer flow, as a clock sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// Model file to packed weights.
    Load,
    /// Picture file to pixel values.
    Preprocess,
    /// Pixels to patch features.
    Encode,
    /// Patch features to visual tokens.
    Project,
    /// Prompt tokens into the KV cache, up to the first logits.
    Prefill,
    /// One token after the other.
    Decode,
}

impl Stage {
    /// Every stage, in the order of the flow.
    pub const ALL: [Stage; 6] =
        [Stage::Load, Stage::Preprocess, Stage::Encode, Stage::Project, Stage::Prefill, Stage::Decode];

    /// Lower-case name: `load`, `preprocess`, `encode`, `project`, `prefill`, `decode`.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Load => "load",
            Stage::Preprocess => "preprocess",
            Stage::Encode => "encode",
            Stage::Project => "project",
            Stage::Prefill => "prefill",
            Stage::Decode => "decode",
        }
    }

    /// What studies of on-device VLMs call the stage: load, slice-encode, prompt-eval, token-eval. Encoding covers
    /// preprocessing, encoder and projector there.
    pub fn field_name(self) -> &'static str {
        match self {
            Stage::Load => "load",
            Stage::Preprocess | Stage::Encode | Stage::Project => "slice-encode",
            Stage::Prefill => "prompt-eval",
            Stage::Decode => "token-eval",
        }
    }

    /// Key of the stage's milliseconds in JSON.
    fn key(self) -> &'static str {
        match self {
            Stage::Load => "load_ms",
            Stage::Preprocess => "preprocess_ms",
            Stage::Encode => "encode_ms",
            Stage::Project => "project_ms",
            Stage::Prefill => "prefill_ms",
            Stage::Decode => "decode_ms",
        }
    }
}

/// Which part of a stage a span is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// Prefill of a picture's visual tokens.
    Image,
    /// Prefill of text.
    Text,
    /// Prefill of tokens of both, computed together: whose time is whose cannot be told.
    Mixed,
    /// One token of decode, counted from 0.
    Token(u32),
}

impl Part {
    /// Lower-case name: `image`, `text`, `token`.
    pub fn name(self) -> &'static str {
        match self {
            Part::Image => "image",
            Part::Text => "text",
            Part::Mixed => "mixed",
            Part::Token(_) => "token",
        }
    }
}

/// One stretch of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// What was done.
    pub stage: Stage,
    /// Which part of it; `None` where the span is the whole stage, or nobody knows.
    pub part: Option<Part>,
    /// When it began, since the recorder's start.
    pub start: Duration,
    /// How long it took.
    pub duration: Duration,
}

impl Span {
    /// When it ended, since the recorder's start.
    pub fn end(&self) -> Duration {
        self.start + self.duration
    }
}

/// One op of a program within a stage, where somebody asked for that much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpSpan {
    /// Name of the op, such as `matmul blk.3.ffn_down`.
    pub name: String,
    /// When it began, since the recorder's start.
    pub start: Duration,
    /// How long it took.
    pub duration: Duration,
}

/// Ops that are kept: a minute of decode has about a million, and no viewer shows more.
const MOST_OPS: usize = 1 << 18;

/// A span that has begun; hand it to [`Recorder::end`]. Dropping it records nothing.
#[derive(Debug)]
#[must_use = "a span is recorded by Recorder::end"]
pub struct OpenSpan {
    stage: Stage,
    part: Option<Part>,
    start: Duration,
}

/// Collects spans: two clock readings and one push each.
#[derive(Clone, Debug)]
pub struct Recorder {
    clock: Clock,
    spans: Vec<Span>,
    ops: Vec<OpSpan>,
    ops_dropped: usize,
}

impl Recorder {
    /// An empty recorder whose clock starts now.
    pub fn new() -> Self {
        Self::with_clock(Clock::start())
    }

    /// An empty recorder that shares a clock, so that its spans compare with others.
    pub fn with_clock(clock: Clock) -> Self {
        // Room for a question's stages and a short answer: decode then allocates nothing here.
        Recorder { clock, spans: Vec::with_capacity(256), ops: Vec::new(), ops_dropped: 0 }
    }

    /// Begins a span.
    pub fn begin(&self, stage: Stage) -> OpenSpan {
        OpenSpan { stage, part: None, start: self.clock.now() }
    }

    /// Begins a span of a part of a stage.
    pub fn begin_part(&self, stage: Stage, part: Part) -> OpenSpan {
        OpenSpan { stage, part: Some(part), start: self.clock.now() }
    }

    /// Ends a span, records it and tells how long it took.
    pub fn end(&mut self, open: OpenSpan) -> Duration {
        let duration = self.clock.now().saturating_sub(open.start);
        self.spans.push(Span { stage: open.stage, part: open.part, start: open.start, duration });
        duration
    }

    /// Records the time of `work`.
    pub fn time<T>(&mut self, stage: Stage, work: impl FnOnce() -> T) -> T {
        let open = self.begin(stage);
        let result = work();
        self.end(open);
        result
    }

    /// Records a span measured elsewhere.
    pub fn push(&mut self, span: Span) {
        self.spans.push(span);
    }

    /// Records an op; beyond 262144 of them they are only counted.
    pub fn push_op(&mut self, op: OpSpan) {
        if self.ops.len() < MOST_OPS { self.ops.push(op) } else { self.ops_dropped += 1 }
    }

    /// The ops so far, and how many more there were.
    pub fn ops(&self) -> (&[OpSpan], usize) {
        (&self.ops, self.ops_dropped)
    }

    /// The clock the spans count on.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The spans so far, in the order in which they ended.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Forgets the spans and ops, and keeps the clock.
    pub fn clear(&mut self) {
        self.spans.clear();
        self.ops.clear();
        self.ops_dropped = 0;
    }

    /// Time and number of spans of each stage.
    pub fn totals(&self) -> StageTimes {
        let mut times = StageTimes::default();
        for span in &self.spans {
            times.add(span.stage, span.duration);
        }
        times
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

/// Sum of a stage's spans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// How long, in sum.
    pub duration: Duration,
    /// How many spans.
    pub count: usize,
}

/// Time of each stage; one that did not run is unknown. Serializes as milliseconds: `{"load_ms": 12.5, ...}`, `null`
/// where unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageTimes([Option<Total>; Stage::ALL.len()]);

impl StageTimes {
    /// Adds one span's time.
    pub fn add(&mut self, stage: Stage, duration: Duration) {
        let total = self.0[stage as usize].get_or_insert_default();
        total.duration += duration;
        total.count += 1;
    }

    /// Sum of a stage's spans; `None` where it did not run.
    pub fn get(&self, stage: Stage) -> Option<Total> {
        self.0[stage as usize]
    }

    /// Milliseconds of a stage; `None` where it did not run.
    pub fn millis(&self, stage: Stage) -> Option<f64> {
        self.get(stage).map(|t| t.duration.as_secs_f64() * 1e3)
    }
}

impl Serialize for StageTimes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(Stage::ALL.len()))?;
        for stage in Stage::ALL {
            map.serialize_entry(stage.key(), &self.millis(stage))?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_nest_in_the_recorders_time_and_add_up() {
        let mut recorder = Recorder::new();
        recorder.time(Stage::Prefill, || std::thread::sleep(Duration::from_millis(1)));
        for start in [10, 20] {
            let [start, duration] = [start, 4].map(Duration::from_millis);
            recorder.push(Span { stage: Stage::Decode, part: None, start, duration });
        }
        let end = recorder.clock().now();
        let prefill = recorder.spans()[0];
        assert!(prefill.duration >= Duration::from_millis(1) && prefill.start + prefill.duration <= end);
        let times = recorder.totals();
        assert_eq!(times.get(Stage::Decode), Some(Total { duration: Duration::from_millis(8), count: 2 }));
        assert_eq!(times.millis(Stage::Decode), Some(8.0));
        assert_eq!(times.get(Stage::Load), None);
        recorder.clear();
        assert!(recorder.spans().is_empty());
    }

    #[test]
    fn json_names_the_unit_and_keeps_unknown_apart_from_zero() {
        let mut times = StageTimes::default();
        times.add(Stage::Load, Duration::from_micros(12_500));
        times.add(Stage::Project, Duration::ZERO);
        assert_eq!(
            serde_json::to_string(&times).unwrap(),
            r#"{"load_ms":12.5,"preprocess_ms":null,"encode_ms":null,"project_ms":0.0,"prefill_ms":null,"decode_ms":null}"#
        );
    }
}
