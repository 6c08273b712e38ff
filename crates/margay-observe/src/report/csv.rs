//! One row a sample, for spreadsheets. An empty cell is unknown.

use super::Writer;
use crate::{Timeline, tracks};
use std::time::Duration;

#[derive(Debug)]
pub(super) struct Csv;

impl Writer for Csv {
    fn id(&self) -> &'static str {
        "csv"
    }

    fn summary(&self) -> &'static str {
        "one row a sample, one column a curve"
    }

    fn write(&self, timeline: &Timeline) -> std::io::Result<String> {
        let tracks: Vec<_> =
            tracks(&timeline.series).into_iter().filter(|track| track.why.is_none()).collect();
        let mut csv = csv::Writer::from_writer(Vec::new());
        let keys = tracks.iter().map(|track| track.key.as_str());
        csv.write_record(["at_seconds", "over_seconds", "stage"].into_iter().chain(keys))?;
        for (position, sample) in timeline.series.samples.iter().enumerate() {
            let seconds = |time: Duration| format!("{:.6}", time.as_secs_f64());
            let head = [seconds(sample.at), seconds(sample.over), stage_at(timeline, sample.at).to_owned()];
            let cell = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
            let cells = tracks.iter().map(|track| cell(track.values[position]));
            csv.write_record(head.into_iter().chain(cells))?;
        }
        let bytes = csv.into_inner().map_err(|e| e.into_error())?;
        String::from_utf8(bytes).map_err(std::io::Error::other)
    }
}

/// Name of the stage that ran at a time, empty where none did.
fn stage_at(timeline: &Timeline, at: Duration) -> &'static str {
    let span = timeline.spans.iter().find(|span| span.start < at && at <= span.end());
    span.map_or("", |span| span.stage.name())
}
