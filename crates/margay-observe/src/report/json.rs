//! Everything, for programs. Names carry their units and stay as they are; `null` is unknown.

use super::Writer;
use crate::{StageStatistics, Timeline, notes::notes};
use serde::Serialize;

#[derive(Debug)]
pub(super) struct Json;

#[derive(Serialize)]
struct Report<'t> {
    /// Version of the form.
    margay_timeline: u32,
    #[serde(flatten)]
    timeline: &'t Timeline,
    stages: Vec<StageStatistics>,
    notes: Vec<String>,
}

impl Writer for Json {
    fn id(&self) -> &'static str {
        "json"
    }

    fn summary(&self) -> &'static str {
        "one JSON object: samples, spans, statistics of stages, what was looked for"
    }

    fn write(&self, timeline: &Timeline) -> std::io::Result<String> {
        let (stages, notes) = (timeline.stage_statistics(), notes(&timeline.series));
        let report = Report { margay_timeline: 1, timeline, stages, notes };
        Ok(serde_json::to_string(&report).map_err(std::io::Error::other)? + "\n")
    }
}
