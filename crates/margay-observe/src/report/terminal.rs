//! Tables and small curves in text.

use super::{Writer, bytes, table};
use crate::{MeanMax, StageStatistics, Timeline, Track, notes::notes, tracks};

/// Eighths of a line.
const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// What stands where nothing is known.
const UNKNOWN: char = '·';

/// Columns of a name, and of each number.
const NAME: usize = 22;
const NUMBER: usize = 10;
/// Fewest and most columns of a curve.
const CURVE: std::ops::RangeInclusive<usize> = 8..=80;

#[derive(Debug)]
pub(super) struct Terminal {
    pub columns: usize,
}

/// The width that a terminal has mostly.
pub(super) const DEFAULT: Terminal = Terminal { columns: 100 };

impl Terminal {
    pub(super) fn text(&self, timeline: &Timeline) -> String {
        let series = &timeline.series;
        let mut text = String::new();
        if !timeline.title.is_empty() {
            text += &format!("{}\n", timeline.title);
        }
        match series.range() {
            None => text += "no samples\n",
            Some((from, to)) => {
                let (count, whole) = (series.samples.len(), to.saturating_sub(from).as_secs_f64());
                let period = series.period.as_secs_f64() * 1e3;
                text += &format!("{count} samples in {whole:.1} s, one each {period:.0} ms\n");
            }
        }
        text += &format!("\n{:NAME$}{:>NUMBER$}{:>NUMBER$}  unit\n", "", "mean", "max");
        for track in tracks(series).iter().filter(|track| !track.detail || track.group == "processor") {
            text += &self.line(track, timeline);
        }
        text += "\n";
        for note in notes(series) {
            text += &format!("{note}\n");
        }
        let stages = timeline.stage_statistics();
        if !stages.is_empty() {
            text += &format!("\n{}", stage_table(&stages));
            text +=
                "CPU: 100 % is one core. J: beyond idle where idle was measured, otherwise all (marked *).\n";
        }
        text
    }

    fn line(&self, track: &Track, timeline: &Timeline) -> String {
        if let Some(why) = &track.why {
            return format!("{:NAME$}{:>NUMBER$}: {why}\n", track.name, "unknown");
        }
        let samples = timeline.series.samples.iter().zip(&track.values);
        let known = samples.filter_map(|(sample, value)| Some(((*value)?, sample.over.as_secs_f64())));
        // A sample without a length counts as nothing in a mean, unless all are such.
        let (sum, weight) =
            known.clone().fold((0.0, 0.0), |(s, w), (value, over)| (s + value * over, w + over));
        let values = known.map(|(value, _)| value);
        let max = values.clone().fold(f64::MIN, f64::max);
        let mean =
            if weight > 0.0 { sum / weight } else { values.clone().sum::<f64>() / values.count() as f64 };
        let (mean, max, unit) = shown(track.unit, mean, max);
        let room = self.columns.saturating_sub(NAME + 2 * NUMBER + 9).clamp(*CURVE.start(), *CURVE.end());
        let curve = sparkline(&track.values, room);
        format!("{:NAME$}{mean:>NUMBER$}{max:>NUMBER$}  {unit:<5}{curve}\n", shortened(&track.name))
    }
}

impl Writer for Terminal {
    fn id(&self) -> &'static str {
        "terminal"
    }

    fn summary(&self) -> &'static str {
        "tables and small curves in text"
    }

    fn write(&self, timeline: &Timeline) -> std::io::Result<String> {
        Ok(self.text(timeline))
    }
}

fn shortened(name: &str) -> String {
    if name.chars().count() < NAME {
        name.to_owned()
    } else {
        name.chars().take(NAME - 2).chain(['…']).collect()
    }
}

fn shown(unit: &'static str, mean: f64, max: f64) -> (String, String, &'static str) {
    match unit {
        "bytes" => (format!("{:.1}", mean / 1048576.0), format!("{:.1}", max / 1048576.0), "MiB"),
        "Hz" => (format!("{:.0}", mean / 1e6), format!("{:.0}", max / 1e6), "MHz"),
        "W" => (format!("{mean:.2}"), format!("{max:.2}"), unit),
        _ => (format!("{mean:.1}"), format!("{max:.1}"), unit),
    }
}

/// A curve of at most `columns` characters, from its least value to its greatest; `·` is unknown.
pub(super) fn sparkline(values: &[Option<f64>], columns: usize) -> String {
    let columns = columns.min(values.len());
    let cell = |column: usize| {
        let (from, to) = (column * values.len() / columns, (column + 1) * values.len() / columns);
        let known = values[from..to].iter().flatten();
        let count = known.clone().count();
        (count > 0).then(|| known.sum::<f64>() / count as f64)
    };
    let cells: Vec<Option<f64>> = (0..columns).map(cell).collect();
    let max = cells.iter().flatten().copied().fold(f64::MIN, f64::max);
    let min = cells.iter().flatten().copied().fold(f64::MAX, f64::min);
    let block = |value: f64| {
        // What never changes is drawn in the middle: neither high nor low.
        let height = if max > min { (value - min) / (max - min) * 7.0 } else { 3.0 };
        BLOCKS[(height.round() as usize).min(7)]
    };
    cells.into_iter().map(|value| value.map_or(UNKNOWN, block)).collect()
}

/// Statistics of stages, one row each.
pub(super) fn stage_table(stages: &[StageStatistics]) -> String {
    let header = ["stage", "spans", "ms", "CPU %", "process %", "GPU %", "W", "J", "°C", "RSS"];
    let two = |value: Option<MeanMax>, digits: usize| {
        value.map_or_else(unknown, |v| format!("{:.digits$}/{:.digits$}", v.mean, v.max))
    };
    let rows: Vec<Vec<String>> = stages
        .iter()
        .map(|s| {
            let joules = match (s.net_joules, s.gross_joules) {
                (Some(net), _) => format!("{net:.2}"),
                (None, Some(gross)) => format!("{gross:.2}*"),
                (None, None) => unknown(),
            };
            vec![
                name(s),
                s.spans.to_string(),
                format!("{:.1}", s.seconds * 1e3),
                two(s.cpu_percent, 0),
                two(s.process_cpu_percent, 0),
                two(s.gpu_percent, 0),
                two(s.power_watts, 1),
                joules,
                s.peak_celsius.map_or_else(unknown, |celsius| format!("{celsius:.1}")),
                s.peak_rss_bytes.map_or_else(unknown, bytes),
            ]
        })
        .collect();
    table(&header, &rows) + "CPU, process, GPU and W: mean/greatest.\n"
}

/// Name of a row: the stage and its part.
pub(super) fn name(statistics: &StageStatistics) -> String {
    match (statistics.stage, statistics.part) {
        (None, _) => "all".to_owned(),
        (Some(stage), None) => stage.to_owned(),
        (Some(stage), Some("token")) => format!("{stage} (tokens)"),
        (Some(stage), Some(part)) => format!("{stage} ({part})"),
    }
}

fn unknown() -> String {
    "?".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_fit_their_room_and_mark_what_is_unknown() {
        let values: Vec<Option<f64>> = (0..8).map(|value| Some(f64::from(value))).collect();
        assert_eq!(sparkline(&values, 80), "▁▂▃▄▅▆▇█");
        assert_eq!(sparkline(&values, 4).chars().count(), 4);
        assert_eq!(sparkline(&[Some(5.0), None, Some(5.0)], 80), "▄·▄");
        assert_eq!((sparkline(&[], 80), sparkline(&[None], 80)), (String::new(), "·".to_owned()));
    }
}
