//! A model asked the questions of a benchmark: what `margay eval` and `margay compare` share.

use crate::{
    Usage,
    interrupt::{Interrupt, Late},
    model::{LoadArgs, kept},
    output,
    progress::{Meter, Spinner},
};
use clap::{Args, builder::PossibleValuesParser};
use margay::{
    Model, ModelSource, Pruning,
    rooms::observe::{Stopwatch, report::table},
};
use margay_eval::{
    Figure, Header, Interval, Record, SUITES, Score, Suite, SuiteEntry, ask, choose, suite_digest,
    suite_entry,
};
use serde_json::{Value, json};
use std::{
    num::NonZeroUsize,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Duration,
};

/// Which benchmark.
#[derive(Clone, Debug, Args)]
pub(crate) struct SuiteArgs {
    /// A benchmark, scored as published
    #[arg(long, value_name = "NAME", requires = "data",
        value_parser = PossibleValuesParser::new(SUITES.iter().map(|suite| suite.id)))]
    pub suite: Option<String>,
    /// The folder that holds its files
    #[arg(long, value_name = "DIR", requires = "suite")]
    pub data: Option<PathBuf>,
    /// About so many questions, evenly spaced over the benchmark; all unless given
    #[arg(long, value_name = "N", requires = "suite")]
    pub limit: Option<NonZeroUsize>,
}

/// A benchmark, opened, and the questions chosen of it.
pub(crate) struct Judging {
    pub entry: &'static SuiteEntry,
    pub suite: Box<dyn Suite>,
    pub chosen: Vec<usize>,
    digest: String,
}

/// What asking took.
pub(crate) struct Took {
    /// False where Ctrl-C stopped it.
    pub whole: bool,
    /// Questions asked now, not those of an earlier run.
    pub asked: usize,
    pub time: Duration,
}

impl SuiteArgs {
    /// Opens it; `None` where none is asked for.
    pub(crate) fn open(&self) -> anyhow::Result<Option<Judging>> {
        let (Some(name), Some(data)) = (&self.suite, &self.data) else { return Ok(None) };
        let entry = suite_entry(name).ok_or_else(|| Usage(format!("there is no benchmark {name:?}")))?;
        let spinner = Spinner::start("reading the questions");
        let suite = (entry.open)(data)
            .map_err(|e| anyhow::Error::new(e).context(format!("{name} needs {}", entry.files)))?;
        let chosen = choose(suite.items(), self.limit.map(NonZeroUsize::get));
        let digest = suite_digest(entry.id, suite.as_ref());
        drop(spinner);
        Ok(Some(Judging { entry, suite, chosen, digest }))
    }
}

impl Judging {
    /// What a record of this model's answers begins with.
    pub(crate) fn header(&self, source: &ModelSource, load: &LoadArgs) -> anyhow::Result<Header> {
        let spinner = Spinner::start("reading the weights");
        let model_digest = margay::model_digest(source)?;
        drop(spinner);
        Ok(Header {
            suite: self.entry.id.to_owned(),
            suite_digest: self.digest.clone(),
            model: source.config.name.clone(),
            model_digest,
            options: settings(load),
            max_tokens: self.entry.max_tokens,
        })
    }

    /// Opens a record to go on with, or holds answers in memory.
    pub(crate) fn record(&self, path: Option<&Path>, header: &Header) -> anyhow::Result<Record> {
        let Some(path) = path else { return Ok(Record::in_memory()) };
        let record = Record::open(path, header)?;
        let held = self.chosen.iter().filter(|at| record.get(&self.suite.items()[**at].id).is_some()).count();
        if held > 0 {
            output::aside(&format!("going on behind {held} answers of {}", path.display()));
        }
        Ok(record)
    }

    /// Asks what the record does not hold.
    pub(crate) fn ask(
        &self,
        model: &Model,
        record: &mut Record,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Took> {
        let mut session = model.session()?;
        // Waited for rather than left: the answer that is being written to the record is to be whole.
        let watch = interrupt.watch(session.cancel(), Late::Wait);
        let mut meter = Meter::counting();
        let clock = Stopwatch::start();
        let mut asked = 0;
        let max_tokens = self.entry.max_tokens;
        let whole = ask(&mut session, self.suite.as_ref(), &self.chosen, max_tokens, record, &mut |step| {
            asked = step.done - step.before;
            let right = 100.0 * step.worth.0 / step.worth.1.max(1) as f64;
            let what = format!("{right:.1}% right so far");
            meter.update(asked as u64, (step.of - step.before) as u64, &what);
            if watch.pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(Took { whole, asked, time: clock.elapsed() })
    }

    /// Questions chosen, and a word where these are not all.
    pub(crate) fn chosen_words(&self) -> String {
        let (chosen, of) = (self.chosen.len(), self.suite.items().len());
        if chosen < of {
            format!("{chosen} of {of}: a SUBSET, not comparable with published figures")
        } else {
            format!("all {of}")
        }
    }
}

/// What is loaded in another way than the files say, where that changes what is computed.
fn settings(load: &LoadArgs) -> String {
    let mut words =
        vec![format!("backend {}", load.backend), format!("kv {}", load.kv.unwrap_or_default().name())];
    if load.int8_encoder {
        words.push("int8 encoder".to_owned());
    }
    if load.bf16_encoder {
        words.push("bf16 encoder".to_owned());
    }
    let numbers = [("context", load.context), ("image tokens", load.max_image_tokens)];
    words.extend(numbers.into_iter().filter_map(|(name, number)| Some(format!("{name} {}", number?))));
    if let Some(reduction) = load.reduction() {
        words.push(format!("{} of image tokens, {}", kept(reduction.keep), reduction.method));
    }
    if let Some(Pruning { method, keep, layer }) = load.pruning() {
        words.push(format!("{keep} of image tokens behind layer {layer}, {method}"));
    }
    if let Some(levels) = load.skip_repeated_patches {
        words.push(format!("patches that repeat within {levels} levels left out"));
    }
    if let Some(kind) = load.kv_image {
        words.push(format!("kv of pictures {}", kind.name()));
    }
    if let Some(eviction) = load.eviction() {
        words.push(format!("{eviction:?}"));
    }
    let types = [("type", load.dtype), ("vision type", load.vision_type)];
    words.extend(types.into_iter().filter_map(|(name, dtype)| Some(format!("{name} {}", dtype?.name()))));
    words.join(", ")
}

/// A figure with its interval, for people.
pub(crate) fn figure_words(figure: &Figure) -> String {
    let digits = if figure.headline.of > 100.0 { 1 } else { 2 };
    let unit = if figure.headline.of > 100.0 { "" } else { "%" };
    let value = figure.value.map_or("undefined".to_owned(), |value| format!("{value:.digits$}{unit}"));
    let interval = figure.interval.map_or(String::new(), |Interval { low, high, how }| {
        format!(", 95% within {low:.digits$} to {high:.digits$} ({how})")
    });
    format!("{value}{interval}")
}

/// Task by task, for people.
pub(crate) fn task_table(score: &Score) -> Option<String> {
    let (first, _) = score.rows.first()?;
    let with_interval = score.rows.iter().any(|(_, interval)| interval.is_some());
    let mut header = vec!["task"];
    let names: Vec<&str> = first.cells.iter().map(|cell| cell.name).collect();
    header.push(names[0]);
    if with_interval {
        header.push("95% interval");
    }
    header.extend(&names[1..]);
    header.push("n");
    let shown = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1}"));
    let rows: Vec<Vec<String>> = score
        .rows
        .iter()
        .map(|(row, interval)| {
            let mut cells = vec![output::harmless(&row.task).into_owned(), shown(row.cells[0].value)];
            if with_interval {
                let ends = |i: &Interval| format!("{:.1} - {:.1}", i.low, i.high);
                cells.push(interval.as_ref().map_or(String::new(), ends));
            }
            cells.extend(row.cells[1..].iter().map(|cell| shown(cell.value)));
            cells.push(row.n.to_string());
            cells
        })
        .collect();
    Some(table(&header, &rows))
}

/// A score for programs.
pub(crate) fn as_json(judging: &Judging, header: &Header, score: &Score, took: &Took) -> Value {
    let tasks: Vec<Value> = score
        .rows
        .iter()
        .map(|(row, interval)| {
            let cells: serde_json::Map<String, Value> =
                row.cells.iter().map(|cell| (cell.name.to_owned(), json!(cell.value))).collect();
            json!({ "task": row.task, "n": row.n, "figures": cells, "interval": interval })
        })
        .collect();
    let (chosen, of) = (judging.chosen.len(), judging.suite.items().len());
    json!({
        "suite": header.suite,
        "suite_digest": header.suite_digest,
        "prompt": judging.suite.prompt(),
        "model": header.model,
        "model_digest": header.model_digest,
        "settings": header.options,
        "max_tokens": header.max_tokens,
        "questions": chosen,
        "questions_of_suite": of,
        "is_subset": chosen < of,
        "headline": score.headline,
        "tasks": tasks,
        "notes": score.notes,
        "asked_now": took.asked,
        "asking_seconds": took.time.as_secs_f64(),
    })
}
