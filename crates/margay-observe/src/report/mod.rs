//! Reports: text tables, and a timeline in every form that people and programs read.

mod csv;
mod html;
mod json;
mod terminal;
mod trace;

use crate::{Stage, StageTimes, Timeline};

/// A form of report.
pub trait Writer: Sync + std::fmt::Debug {
    /// Name of it, which is that of its file here.
    fn id(&self) -> &'static str;

    /// What it is for, in a few words.
    fn summary(&self) -> &'static str;

    /// The whole report.
    ///
    /// # Errors
    /// Where the timeline holds what the form cannot say; of those here, none does.
    fn write(&self, timeline: &Timeline) -> std::io::Result<String>;
}

/// Every form of report.
pub const WRITERS: &[&dyn Writer] = &[&terminal::DEFAULT, &json::Json, &csv::Csv, &html::Html, &trace::Trace];

/// The form of an id.
pub fn writer(id: &str) -> Option<&'static dyn Writer> {
    WRITERS.iter().copied().find(|writer| writer.id() == id)
}

/// The terminal's report at another width than 100 columns.
pub fn terminal_report(timeline: &Timeline, columns: usize) -> String {
    terminal::Terminal { columns }.text(timeline)
}

/// The table of stages and the figures of a timeline, as they stand in its page, for a page of somebody else whose style is
/// [`html_style`].
pub fn html_figures(timeline: &Timeline) -> String {
    html::part(timeline)
}

/// Style of such a page: light or dark as the reader's system has it.
pub fn html_style() -> &'static str {
    html::style()
}

/// Text that no page takes for markup.
pub fn html_escaped(text: &str) -> String {
    crate::plot::escaped(text)
}

/// A table of aligned columns: the first to the left, the others (numbers) to the right. A row that is too short is
/// filled with blanks; cells beyond the header are dropped.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let cell = |row: &[String], at: usize| row.get(at).cloned().unwrap_or_default();
    let width = |at: usize| {
        rows.iter()
            .map(|r| cell(r, at).chars().count())
            .chain([header[at].chars().count()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: Vec<String>| {
        let padded = cells.iter().zip(&widths).enumerate().map(|(at, (cell, &width))| {
            if at == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(header.iter().map(|h| (*h).to_owned()).collect());
    for row in rows {
        text += &line((0..header.len()).map(|at| cell(row, at)).collect());
    }
    text
}

/// Stage times for people, with the names that studies of the field use; a stage that did not run is "unknown".
pub fn stage_table(times: &StageTimes) -> String {
    let row = |stage: Stage| {
        let total = times.get(stage);
        let ms = times.millis(stage).map_or_else(|| "unknown".to_owned(), |ms| format!("{ms:.1}"));
        let count = total.map_or_else(String::new, |t| t.count.to_string());
        vec![stage.name().to_owned(), ms, count, stage.field_name().to_owned()]
    };
    table(&["stage", "ms", "spans", "also called"], &Stage::ALL.map(row))
}

/// Bytes for people, in binary units: `512 B`, `1.5 KiB`, `12.0 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would print as "1024.0".
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn stage_table_aligns_and_says_unknown() {
        let mut times = StageTimes::default();
        times.add(Stage::Load, Duration::from_millis(3));
        times.add(Stage::Decode, Duration::from_millis(100));
        times.add(Stage::Decode, Duration::from_micros(20_340));
        let expected = "\
stage            ms  spans   also called
load            3.0      1          load
preprocess  unknown         slice-encode
encode      unknown         slice-encode
project     unknown         slice-encode
prefill     unknown          prompt-eval
decode        120.3      2    token-eval
";
        assert_eq!(stage_table(&times), expected);
    }

    #[test]
    fn ragged_rows_do_not_break_a_table() {
        let rows = [vec!["é".to_owned()], vec!["x".to_owned(), "1".to_owned(), "extra".to_owned()]];
        assert_eq!(table(&["a", "bb"], &rows), "a  bb\né\nx   1\n");
    }

    #[test]
    fn bytes_change_unit_before_they_round_up() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (12 << 20, "12.0 MiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
