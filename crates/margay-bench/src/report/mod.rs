//! Records and comparisons in words and as a page.

mod dots;
mod html;
mod terminal;

pub use html::page;
pub use terminal::{comparison_text, record_text};

use margay_observe::{Timeline, report::bytes};

use crate::{
    Begin, Engine, METRICS, Record,
    record::{MARGAY, Run},
    statistics::median,
};

/// A row of the table of engines: medians of its runs, milliseconds unless named otherwise.
pub(crate) struct EngineRow {
    pub name: String,
    pub runs: usize,
    pub load: Option<f64>,
    /// Preprocess, encode and project together, as peers tell it.
    pub encode: Option<f64>,
    pub prefill: Option<f64>,
    pub image_prefill: Option<f64>,
    pub decode: Option<f64>,
    pub without_load: Option<f64>,
    pub with_load: Option<f64>,
    pub tokens_per_second: Option<f64>,
    pub cpu_percent: Option<f64>,
    pub peak_rss_bytes: Option<f64>,
}

/// Margay cold and warm, then its peers.
pub(crate) fn engine_rows(record: &Record) -> Vec<EngineRow> {
    let mut rows = Vec::new();
    for engine in &record.engines {
        for (begin, word) in [(Begin::Cold, "cold"), (Begin::Warm, "warm")] {
            let runs: Vec<&Run> = engine.runs.iter().filter(|run| run.begin == begin).collect();
            if !runs.is_empty() {
                let own = engine.name == MARGAY;
                let name = if own { format!("{}, {word}", engine.name) } else { engine.name.clone() };
                rows.push(engine_row(name, &runs));
            }
        }
    }
    rows
}

/// A column of that table: its name, and a cell where it is known.
pub(crate) type Column = (&'static str, fn(&EngineRow) -> Option<String>);

const COLUMNS: [Column; 10] = [
    ("load", |row| row.load.map(ms)),
    ("slice-encode", |row| row.encode.map(ms)),
    ("prompt-eval", |row| row.prefill.map(ms)),
    ("of it, image", |row| row.image_prefill.map(ms)),
    ("token-eval", |row| row.decode.map(ms)),
    ("without load", |row| row.without_load.map(ms)),
    ("with load", |row| row.with_load.map(ms)),
    ("tokens/s", |row| row.tokens_per_second.map(ms)),
    ("CPU %", |row| row.cpu_percent.map(|cpu| format!("{cpu:.0}"))),
    ("peak RSS", |row| row.peak_rss_bytes.map(|peak| bytes(peak as u64))),
];

/// The columns that a row knows.
pub(crate) fn columns(rows: &[EngineRow]) -> Vec<Column> {
    COLUMNS.into_iter().filter(|(_, cell)| rows.iter().any(|row| cell(row).is_some())).collect()
}

fn engine_row(name: String, runs: &[&Run]) -> EngineRow {
    let of = |value: &dyn Fn(&Run) -> Option<f64>| {
        median(&runs.iter().filter_map(|run| value(run)).collect::<Vec<_>>())
    };
    let slice = |run: &Run| {
        let s = &run.stages;
        s.encode.map(|encode| encode + s.preprocess.unwrap_or(0.0) + s.project.unwrap_or(0.0))
    };
    EngineRow {
        name,
        runs: runs.len(),
        load: of(&|run| run.stages.load),
        encode: of(&slice),
        prefill: of(&|run| run.stages.prefill),
        image_prefill: of(&|run| run.stages.image_prefill),
        decode: of(&|run| run.stages.decode),
        without_load: of(&|run| run.without_load_ms),
        with_load: of(&|run| run.with_load_ms),
        tokens_per_second: of(&Run::tokens_per_second),
        cpu_percent: of(&|run| run.process_cpu_percent),
        peak_rss_bytes: of(&|run| run.peak_rss_bytes.map(|bytes| bytes as f64)),
    }
}

/// What nests in what, for readers of tables with totals.
pub(crate) const NESTING: &str = "load comes before the question; preprocess, encode and project follow one another before \
prefill and are no part of it; without load = preprocess + encode + project + prefill + decode + other, with load adds \
loading. In llama.cpp's own lines prompt eval contains the picture's decoding (of it, image); encoding, where it lies in prompt eval too, is taken out; \
its total without load is encode + prompt eval + eval. Of a command only the whole process is known.";

/// Times of all tokens behind the first of all warm runs.
pub(crate) fn token_times(engine: &Engine) -> Vec<f64> {
    let warm = engine.runs.iter().filter(|run| run.begin == Begin::Warm);
    warm.flat_map(|run| run.token_ms.iter().copied()).collect()
}

/// Position of the warm run (else of any) whose whole time is nearest to the median.
pub(crate) fn median_run(engine: &Engine) -> Option<usize> {
    let whole = METRICS.iter().filter(|metric| ["without_load_ms", "first_answer_ms"].contains(&metric.key));
    whole.into_iter().find_map(|metric| {
        let (positions, values): (Vec<usize>, Vec<f64>) = metric.runs(engine).unzip();
        Some(positions[crate::nearest_to_median(&values)?])
    })
}

/// Of the timelines of Margay's runs, by position, that of the run nearest to the median; `None` where none was complete.
pub fn median_timeline<'t>(record: &Record, timelines: &'t [Timeline]) -> Option<&'t Timeline> {
    timelines.get(median_run(record.engine(MARGAY)?)?)
}

/// Header of [`work_rows`].
pub(crate) const WORK_HEADER: [&str; 6] =
    ["work of a question", "tokens", "Gop", "MiB read", "Gop/s", "GB/s"];

/// Work of each stage, and the rates that the median of the warm runs means.
pub(crate) fn work_rows(record: &Record) -> Vec<Vec<String>> {
    let Some(engine) = record.engine(MARGAY) else { return vec![] };
    let row = |work: &crate::StageWork| {
        let metric = METRICS.iter().find(|metric| metric.key == format!("{}_ms", work.stage));
        let taken = metric.and_then(|metric| median(&metric.values(engine))).filter(|ms| *ms > 0.0);
        let rate = |of: f64| taken.map_or_else(|| "unknown".to_owned(), |taken| ms(of / taken / 1e6));
        vec![
            work.stage.clone(),
            work.tokens.map_or_else(|| "-".to_owned(), |tokens| tokens.to_string()),
            format!("{:.3}", work.operations as f64 / 1e9),
            format!("{:.1}", work.bytes as f64 / f64::from(1 << 20)),
            rate(work.operations as f64),
            rate(work.bytes as f64),
        ]
    };
    record.work.iter().map(row).collect()
}

/// Header of [`op_rows`].
pub(crate) const OPS_HEADER: [&str; 5] = ["op", "calls", "ms", "% of the stage", "Gop/s"];

/// What a table of ops is of.
pub(crate) fn ops_title(stage: &crate::StageOps) -> String {
    match (stage.stage.as_str(), stage.tokens) {
        ("decode", Some(tokens)) => format!("decode of {tokens} tokens, op by op"),
        (name, Some(tokens)) => format!("{name} of {tokens} tokens, op by op"),
        (name, None) => format!("{name} of a picture, op by op"),
    }
}

/// Ops of a stage, most time first.
pub(crate) fn op_rows(stage: &crate::StageOps) -> Vec<Vec<String>> {
    let whole: f64 = stage.ops.iter().map(|op| op.ms).sum();
    let row = |op: &crate::OpMs| {
        let rate = op.operations as f64 / op.ms.max(f64::MIN_POSITIVE) / 1e6;
        vec![
            op.op.clone(),
            op.calls.to_string(),
            ms(op.ms),
            format!("{:.1}", 100.0 * op.ms / whole.max(f64::MIN_POSITIVE)),
            if op.operations > 0 && op.ms > 0.0 { format!("{rate:.1}") } else { "-".to_owned() },
        ]
    };
    stage.ops.iter().map(row).collect()
}

/// A number of milliseconds with the digits that it deserves.
pub(crate) fn ms(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.095 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// A time of a long run: `45 s`, `10 min`, `12.5 min`.
pub(crate) fn moment(seconds: f64) -> String {
    match seconds {
        s if s < 60.0 => format!("{s:.0} s"),
        s if (s / 60.0).fract() < 0.05 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} min", s / 60.0),
    }
}

/// As [`ms`], of what may be unknown.
pub(crate) fn ms_or_unknown(value: Option<f64>) -> String {
    value.map_or_else(|| "unknown".to_owned(), ms)
}
