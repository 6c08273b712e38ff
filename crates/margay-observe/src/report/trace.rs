//! A trace for <https://ui.perfetto.dev> and Chrome's `about:tracing`: stages and ops as slices, curves as counters.
//!
//! Source: "Trace Event Format", the Chromium project: `X` complete events and `C` counters, times in microseconds.

use super::Writer;
use crate::{Part, Timeline, tracks};
use serde_json::{Value, json};
use std::time::Duration;

#[derive(Debug)]
pub(super) struct Trace;

/// The one process of the trace.
const PID: u32 = 1;
const STAGES: u32 = 1;
const OPS: u32 = 2;

impl Writer for Trace {
    fn id(&self) -> &'static str {
        "trace"
    }

    fn summary(&self) -> &'static str {
        "a trace for ui.perfetto.dev"
    }

    fn write(&self, timeline: &Timeline) -> std::io::Result<String> {
        let named = |kind: &str, tid: u32, name: &str| json!({ "ph": "M", "name": kind, "pid": PID, "tid": tid, "args": { "name": name } });
        let title = if timeline.title.is_empty() { "margay" } else { &timeline.title };
        let mut events = vec![named("process_name", 0, title), named("thread_name", STAGES, "stages")];
        if !timeline.ops.is_empty() {
            events.push(named("thread_name", OPS, "ops"));
        }
        events.extend(timeline.spans.iter().map(|span| {
            let name = match span.part {
                None => span.stage.name().to_owned(),
                Some(Part::Token(number)) => format!("{} token {number}", span.stage.name()),
                Some(part) => format!("{} {}", span.stage.name(), part.name()),
            };
            slice(&name, "stage", STAGES, span.start, span.duration)
        }));
        events.extend(timeline.ops.iter().map(|op| slice(&op.name, "op", OPS, op.start, op.duration)));
        for track in tracks(&timeline.series) {
            let name = format!("{} ({})", track.name, track.unit);
            let samples = timeline.series.samples.iter().zip(&track.values);
            // A counter holds its value until the next event: an unknown one cannot be drawn, and is left out.
            events.extend(samples.filter_map(|(sample, value)| {
                let value = (*value)?;
                // A rate is of the time before the sample: the step begins there.
                let of_interval = ["%", "W"].contains(&track.unit);
                let at = if of_interval { sample.at.saturating_sub(sample.over) } else { sample.at };
                Some(json!({ "ph": "C", "name": name, "pid": PID, "ts": micros(at), "args": { "value": value } }))
            }));
        }
        let trace = json!({ "traceEvents": events, "displayTimeUnit": "ms" });
        Ok(trace.to_string() + "\n")
    }
}

fn slice(name: &str, category: &str, tid: u32, start: Duration, duration: Duration) -> Value {
    json!({
        "ph": "X", "name": name, "cat": category, "pid": PID, "tid": tid,
        "ts": micros(start), "dur": micros(duration),
    })
}

fn micros(time: Duration) -> f64 {
    // Nanoseconds are as fine as the clock is.
    time.as_nanos() as f64 / 1e3
}
