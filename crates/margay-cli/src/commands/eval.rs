//! `margay eval`: a published benchmark, or the perplexity of a text.

use crate::{
    Outcome, Usage,
    interrupt::{Interrupt, Late},
    judging::{self, Judging, SuiteArgs},
    model::LoadArgs,
    output,
    progress::Meter,
};
use clap::Args;
use margay::{
    Cancel, Tracer,
    rooms::{observe::report::table, prompt::text::Tokenizer},
};
use margay_eval::{Definition, Perplexity, SUITES, perplexity, score, text_file};
use serde_json::json;
use std::{
    num::NonZeroUsize,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

const AFTER_HELP: &str = "\
EXAMPLES:
  margay eval llava.gguf --suite pope --data ./pope --out pope.jsonl
      Every answer is in pope.jsonl as soon as it is there; the same command goes on after Ctrl-C or a kill.
  margay eval --suite nano --data ./nano-suite --limit 2000     the built-in model, a subset
  margay eval model.gguf --perplexity wiki.test.raw             in both definitions of the field
  margay eval --list                                            the benchmarks and the files they need

Questions are put and scored as published, greedily, with the published limit of tokens; the output says which
prompt was used. Intervals are of 95%: Wilson's for shares, a bootstrap for F1 and for sums.";

/// Judge a model by a published benchmark, or by the perplexity of a text
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Eval {
    /// A GGUF file or a Hugging Face folder; the built-in model unless given
    model: Option<PathBuf>,
    #[command(flatten)]
    suite: SuiteArgs,
    /// Keep the answers in this file, and go on with those that it holds
    #[arg(long, short, value_name = "FILE.jsonl", requires = "suite")]
    out: Option<PathBuf>,
    /// Instead of a benchmark: how well the model predicts this text
    #[arg(long, value_name = "FILE", conflicts_with = "suite")]
    perplexity: Option<PathBuf>,
    /// Tokens of a window (transformers' definition); 2048 unless the model's context is shorter
    #[arg(long, value_name = "TOKENS", requires = "perplexity")]
    window: Option<NonZeroUsize>,
    /// Tokens of a chunk (llama.cpp's definition); 512 unless the model's context is shorter
    #[arg(long, value_name = "TOKENS", requires = "perplexity")]
    chunk: Option<NonZeroUsize>,
    /// List the benchmarks and the files they need
    #[arg(long, conflicts_with_all = ["suite", "perplexity"])]
    list: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    load: LoadArgs,
}

impl Eval {
    pub(crate) fn run(self, interrupt: &Interrupt) -> anyhow::Result<Outcome> {
        if self.list {
            return self.list();
        }
        match (self.suite.open()?, &self.perplexity) {
            (Some(judging), _) => self.judge(&judging, interrupt),
            (None, Some(text)) => self.predict(text, interrupt),
            (None, None) => {
                let what = "say by what to judge: --suite NAME --data DIR, or --perplexity FILE (--list shows the suites)";
                Err(Usage(what.to_owned()).into())
            }
        }
    }

    fn list(&self) -> anyhow::Result<Outcome> {
        if self.json {
            let all: Vec<_> = SUITES
                .iter()
                .map(|s| json!({ "suite": s.id, "about": s.about, "files": s.files, "max_tokens": s.max_tokens }))
                .collect();
            output::json(&all)?;
            return Ok(Outcome::Done);
        }
        for suite in SUITES {
            output::line(&format!("{:10} {}\n{:10} files: {}", suite.id, suite.about, "", suite.files))?;
        }
        Ok(Outcome::Done)
    }

    fn judge(&self, judging: &Judging, interrupt: &Interrupt) -> anyhow::Result<Outcome> {
        let model = self.load.load(self.model.as_deref())?;
        let header = judging.header(model.source(), &self.load)?;
        let mut record = judging.record(self.out.as_deref(), &header)?;
        let took = judging.ask(&model, &mut record, interrupt)?;
        if !took.whole {
            output::aside(&match &self.out {
                Some(out) => {
                    format!("stopped; the same command goes on with the answers in {}", out.display())
                }
                None => "stopped; --out FILE keeps answers, so that a run can go on".to_owned(),
            });
            return Ok(Outcome::Interrupted);
        }
        let score = score(judging.suite.as_ref(), &judging.chosen, &record);
        if self.json {
            output::json(&judging::as_json(judging, &header, &score, &took))?;
            return Ok(Outcome::Done);
        }
        let mut text = format!("suite      {}: {}\n", judging.entry.id, judging.entry.about);
        text += &format!("model      {} ({})\n", output::harmless(&header.model), header.options);
        text += &format!("questions  {}\n", judging.chosen_words());
        text += &format!("prompt     {}\n\n", judging.suite.prompt());
        if let Some(tasks) = judging::task_table(&score) {
            text += &format!("{tasks}\n");
        }
        text += &format!("{}  {}\n", score.headline.headline.name, judging::figure_words(&score.headline));
        output::text(&text)?;
        score.notes.iter().for_each(|note| output::aside(note));
        if took.asked > 0 {
            let each = took.time.as_secs_f64() / took.asked as f64;
            output::aside(&format!(
                "{} questions in {:.1} s, {:.1} ms each",
                took.asked,
                took.time.as_secs_f64(),
                each * 1000.0
            ));
        }
        Ok(Outcome::Done)
    }

    fn predict(&self, path: &Path, interrupt: &Interrupt) -> anyhow::Result<Outcome> {
        let text = text_file(path, Tokenizer::MAX_TEXT_BYTES as u64)?;
        let source = self.load.source(self.model.as_deref())?;
        let mut tracer = Tracer::of_logits(&source, &self.load.options())?;
        let cancel = Cancel::new();
        let watch = interrupt.watch(cancel.clone(), Late::Leave);
        let mut found: Vec<Perplexity> = vec![];
        for definition in Definition::ALL {
            let asked = match definition {
                Definition::Windows => self.window,
                Definition::Chunks => self.chunk,
            };
            let window = asked.map_or(definition.published_window().min(tracer.context()), NonZeroUsize::get);
            let mut meter = Meter::counting();
            let one = perplexity(&mut tracer, &text, definition, window, &mut |done, of, so_far| {
                meter.update(done as u64, of as u64, &format!("{so_far:.3} so far"));
                if cancel.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            match one {
                Some(one) => found.push(one),
                None => return Ok(Outcome::Interrupted),
            }
        }
        drop(watch);
        if self.json {
            output::json(&json!({
                "model": source.config.name, "text": path, "kv": tracer.kv().name(), "perplexity": found,
            }))?;
            return Ok(Outcome::Done);
        }
        let rows: Vec<Vec<String>> = found
            .iter()
            .map(|p| {
                let counts = [p.window, p.windows, p.scored, p.left_out].map(|count| count.to_string());
                let figures = [format!("{:.4}", p.perplexity), format!("{:.4}", p.standard_error)];
                [vec![p.definition.name().to_owned()], figures.to_vec(), counts.to_vec()].concat()
            })
            .collect();
        let header =
            ["definition", "perplexity", "+- error", "window", "windows", "tokens scored", "tokens left out"];
        output::text(&table(&header, &rows))?;
        for one in found.iter().filter(|one| one.window != one.definition.published_window()) {
            output::aside(&format!(
                "{}: windows of {} tokens; published figures have {}",
                one.definition.name(),
                one.window,
                one.definition.published_window()
            ));
        }
        output::aside(&format!("keys and values in {}", tracer.kv().name()));
        Ok(Outcome::Done)
    }
}
