//! `margay compare`: how far a model is from another, and whether that is too far.

use crate::{
    Outcome, Usage,
    interrupt::{Interrupt, Late},
    judging::{Judging, SuiteArgs, figure_words},
    model::LoadArgs,
    output,
    progress::Meter,
    questions::{lines, pictures},
};
use clap::{Args, builder::PossibleValuesParser};
use margay::{
    BACKENDS, Cancel, Image, Model, ModelSource, TraceOptions, Tracer,
    rooms::{file::write_file, observe::report::table},
};
use margay_eval::{
    Comparison, Difference, Gate, KlFigures, Limits, Paired, Question, choose, html::Page, open_picture,
    paired,
};
use serde_json::json;
use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

const AFTER_HELP: &str = "\
EXAMPLES:
  margay compare llava-f16.gguf llava-q4_k.gguf --images photos --html report.html
  margay compare ./llava llava.gguf --images photos --text questions.txt --max-kl 0.05
      fails with exit code 3 where the mean divergence is above 0.05
  margay compare f16.gguf q4.gguf --suite pope --data ./pope --max-drop 2% --ref-answers f16.jsonl --answers q4.jsonl
      both models answer the benchmark; the reference's answers are kept, and used again for the next candidate
  margay compare m.gguf m.gguf --kv q4_0 --kv-image kivi2 --suite nano --data ./suite
      what other types of keys and values cost
  margay compare m.gguf m.gguf --ref-backend reference --int8-encoder --images photos --samples 8
      the same weights in float32 beside a faster way to compute them

WHAT IS MEASURED:
  stages      cosine and relative error of pixels, encode, project, every hidden state, logits
  next token  KL(reference || candidate) in nats and the same likeliest token, at every position from the first visual
              token on: visual tokens, words of the prompt, and the answer (the reference's, given to both)
  answers     greedy answers that are equal; with --suite the change of its headline on the same questions

Keys and values are kept in float32 for stages and next tokens, unless --kv says how the candidate keeps its own; the
reference's answers to a benchmark keep them in f16. --kv-window, --evict and --prune-image-tokens
change answers only.";

/// Pictures whose stages are compared, unless said.
const SAMPLES: &str = "32";

/// Asked about pictures where nobody says what to ask, in turn.
const QUESTIONS: [&str; 3] =
    ["What is in this picture?", "Describe the picture.", "How many objects are there?"];

/// Compare a model with a reference: stages, next tokens, answers; fail where it is too far
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Compare {
    /// The reference: a GGUF file or a Hugging Face folder
    reference: PathBuf,
    /// The model that is compared with it; how it is loaded is said by the options below
    candidate: PathBuf,
    /// A folder of pictures, or one picture
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Questions, one a line, in turn for the pictures; what stands behind a tab is left out
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Pictures (or, of a benchmark, questions) whose stages are compared at most, evenly spread over all there are
    #[arg(long, value_name = "N", default_value = SAMPLES)]
    samples: NonZeroUsize,
    /// Tokens of an answer that are compared
    #[arg(long, value_name = "N", default_value = "32", value_parser = clap::value_parser!(u8).range(1..=64))]
    answer_tokens: u8,
    #[command(flatten)]
    suite: SuiteArgs,
    /// Keep the reference's answers to the benchmark in this file, and use those that it holds
    #[arg(long, value_name = "FILE.jsonl", requires = "suite")]
    ref_answers: Option<PathBuf>,
    /// The same for the candidate's
    #[arg(long, value_name = "FILE.jsonl", requires = "suite")]
    answers: Option<PathBuf>,
    /// Take pictures and questions of the benchmark, and do not let the models answer it
    #[arg(long, requires = "suite", conflicts_with_all = ["ref_answers", "answers", "max_drop"])]
    stages_only: bool,
    /// What computes the reference
    #[arg(long, value_name = "BACKEND", default_value = "cpu",
        value_parser = PossibleValuesParser::new(BACKENDS.iter().map(|b| b.id)))]
    ref_backend: String,
    /// The reference's vision file, where it does not lie beside it
    #[arg(long, value_name = "FILE")]
    ref_mmproj: Option<PathBuf>,
    /// Fail where the mean divergence over all positions is above this, nats
    #[arg(long, value_name = "KL", value_parser = limit)]
    max_kl: Option<f64>,
    /// Fail where the benchmark's headline falls by more than this, percentage points of its best value
    #[arg(long, value_name = "POINTS", requires = "suite", value_parser = limit)]
    max_drop: Option<f64>,
    /// Write a report with charts
    #[arg(long, value_name = "FILE.html")]
    html: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    load: LoadArgs,
}

/// Both models on a benchmark.
struct OfSuite {
    name: &'static str,
    chosen: String,
    paired: Paired,
}

impl Compare {
    pub(crate) fn run(self, interrupt: &Interrupt) -> anyhow::Result<Outcome> {
        let judging = self.suite.open()?;
        if judging.is_none() && self.images.is_none() {
            let what = "say what to ask: --images DIR, or --suite NAME --data DIR, or both";
            return Err(Usage(what.to_owned()).into());
        }
        let ref_load = LoadArgs {
            mmproj: self.ref_mmproj.clone(),
            backend: self.ref_backend.clone(),
            decode_threads: None,
            int8_encoder: false,
            bf16_encoder: false,
            kv: None,
            kv_image: None,
            evict: None,
            kv_budget: None,
            kv_window: None,
            prune_image_tokens: None,
            dtype: None,
            vision_type: None,
            ..self.load.clone()
        };
        let reference = ref_load.source(Some(&self.reference))?;
        let candidate = self.load.source(Some(&self.candidate))?;
        let questions = self.questions(judging.as_ref())?;
        let Some(difference) =
            self.stages(&questions, (&reference, &ref_load), (&candidate, &self.load), interrupt)?
        else {
            return Ok(Outcome::Interrupted);
        };
        let mut of_suite = None;
        if let Some(judging) = judging.as_ref().filter(|_| !self.stages_only) {
            let sides = [
                (&self.reference, &reference, &ref_load, &self.ref_answers),
                (&self.candidate, &candidate, &self.load, &self.answers),
            ];
            let mut records = vec![];
            for (path, source, load, kept) in sides {
                let header = judging.header(source, load)?;
                let mut record = judging.record(kept.as_deref(), &header)?;
                let model: Model = load.load(Some(path))?;
                if !judging.ask(&model, &mut record, interrupt)?.whole {
                    output::aside(
                        "stopped; --ref-answers and --answers keep answers, so that a run can go on",
                    );
                    return Ok(Outcome::Interrupted);
                }
                records.push(record);
            }
            let paired = paired(judging.suite.as_ref(), &judging.chosen, &records[0], &records[1]);
            of_suite = Some(OfSuite { name: judging.entry.id, chosen: judging.chosen_words(), paired });
        }
        self.report(&difference, of_suite.as_ref(), &reference, &candidate)
    }

    /// What both models are asked while their stages are compared.
    fn questions(&self, judging: Option<&Judging>) -> anyhow::Result<Vec<Question>> {
        if let Some(images) = &self.images {
            let asked = match &self.text {
                // What stands behind a tab is an answer, for `margay calibrate`.
                Some(path) => lines(path)?
                    .iter()
                    .map(|line| line.split('\t').next().unwrap_or_default().trim().to_owned())
                    .collect(),
                None => QUESTIONS.map(str::to_owned).to_vec(),
            };
            let pictures = pictures(images)?;
            let taken = self.samples.get().min(pictures.len());
            let spread = (0..taken).map(|at| at * pictures.len() / taken);
            return spread
                .zip(asked.iter().cycle())
                .map(|(at, prompt)| {
                    let images = vec![Image::open(&pictures[at])?];
                    Ok(Question { images, prompt: prompt.clone() })
                })
                .collect();
        }
        let Some(judging) = judging else { return Ok(vec![]) };
        let items = judging.suite.items();
        let mut taken = choose(items, Some(self.samples.get()));
        taken.truncate(self.samples.get());
        taken
            .into_iter()
            .map(|at| {
                let images = items[at].picture.iter().map(|picture| open_picture(picture, &items[at].id));
                Ok(Question { images: images.collect::<Result<_, _>>()?, prompt: items[at].prompt.clone() })
            })
            .collect()
    }

    /// `None` where Ctrl-C stopped it.
    fn stages(
        &self,
        questions: &[Question],
        reference: (&ModelSource, &LoadArgs),
        candidate: (&ModelSource, &LoadArgs),
        interrupt: &Interrupt,
    ) -> anyhow::Result<Option<Difference>> {
        let options =
            |load: &LoadArgs| TraceOptions { load: load.options(), kv: load.kv, ..TraceOptions::default() };
        let mut first = Tracer::new(reference.0, &options(reference.1))?;
        let mut second = Tracer::new(candidate.0, &options(candidate.1))?;
        let cancel = Cancel::new();
        let watch = interrupt.watch(cancel.clone(), Late::Leave);
        let mut meter = Meter::counting();
        let mut comparison = Comparison::default();
        for (at, question) in questions.iter().enumerate() {
            comparison.measure(&mut first, &mut second, question, self.answer_tokens.into())?;
            meter.update(at as u64 + 1, questions.len() as u64, "comparing stages");
            if cancel.is_cancelled() {
                return Ok(None);
            }
        }
        drop(watch);
        Ok(Some(comparison.difference()))
    }

    fn report(
        &self,
        difference: &Difference,
        of_suite: Option<&OfSuite>,
        reference: &ModelSource,
        candidate: &ModelSource,
    ) -> anyhow::Result<Outcome> {
        let limits = Limits { max_kl: self.max_kl, max_drop: self.max_drop };
        let paired = of_suite.map(|of| &of.paired);
        let broken = limits.broken(Some(difference), paired);
        let words =
            |path: &Path, source: &ModelSource| format!("{} ({})", path.display(), source.config.name);
        let (first, second) = (words(&self.reference, reference), words(&self.candidate, candidate));
        if let Some(path) = &self.html {
            let suite = of_suite.map(|of| (of.name, of.chosen.as_str(), &of.paired));
            let (reference, candidate, difference) = (first.as_str(), second.as_str(), Some(difference));
            let page = Page { reference, candidate, difference, suite, limits, broken: &broken };
            write_file(path, page.html().as_bytes())?;
        }
        if self.json {
            output::json(&json!({
                "reference": self.reference, "candidate": self.candidate, "difference": difference,
                "suite": of_suite.map(|of| json!({ "suite": of.name, "questions": of.chosen, "paired": of.paired })),
                "limits": { "max_kl": limits.max_kl, "max_drop": limits.max_drop }, "broken": broken,
            }))?;
        } else {
            let mut text = format!("reference  {}\n", output::harmless(&first));
            text += &format!("candidate  {}\n\n{}", output::harmless(&second), of_stages(difference));
            if let Some(of) = of_suite {
                text += &format!("\n{}", of_answers(of));
            }
            output::text(&text)?;
        }
        if let Some(path) = &self.html {
            output::aside(&format!("charts in {}", path.display()));
        }
        for gate in &broken {
            output::note(&broken_words(gate));
        }
        Ok(if broken.is_empty() { Outcome::Done } else { Outcome::LimitBroken })
    }
}

fn of_stages(difference: &Difference) -> String {
    let number = |value: Option<f64>, digits: usize, unit: &str| {
        value.map_or("unknown".to_owned(), |value| format!("{value:.digits$}{unit}"))
    };
    let rows: Vec<Vec<String>> = difference
        .stages
        .iter()
        .map(|stage| {
            let error = stage.relative_error.map(|error| 100.0 * error);
            vec![stage.stage.clone(), number(stage.cosine, 6, ""), number(error, 3, "%")]
        })
        .collect();
    let mut text = table(&["stage", "cosine", "relative error"], &rows);
    let row = |name: &str, kl: &KlFigures| {
        let values = [kl.mean, kl.median, kl.p99, kl.greatest].map(|value| format!("{value:.2e}"));
        let same = format!("{:.2}%", 100.0 * kl.same_top1);
        [vec![name.to_owned()], values.to_vec(), vec![same, kl.positions.to_string()]].concat()
    };
    let mut rows: Vec<Vec<String>> = difference.all.iter().map(|all| row("all", all)).collect();
    rows.extend(difference.kinds.iter().map(|(kind, kl)| row(kind.name(), kl)));
    let header = ["next token", "mean KL", "median", "99%", "greatest", "same likeliest", "positions"];
    text += &format!("\n{}", table(&header, &rows));
    text +=
        &format!("\n{} of {} greedy answers are the same\n", difference.same_answers, difference.questions);
    text
}

fn of_answers(of: &OfSuite) -> String {
    let paired = &of.paired;
    let mut text = format!("{}: {} (questions: {})\n", of.name, paired.reference.headline.name, of.chosen);
    text += &format!("reference  {}\n", figure_words(&paired.reference));
    text += &format!("candidate  {}\n", figure_words(&paired.candidate));
    if let (Some(drop), Some(interval)) = (paired.drop, paired.drop_interval) {
        text +=
            &format!("drop       {drop:.2} points, 95% within {:.2} to {:.2}", interval.low, interval.high);
        text += &paired.mcnemar_words().map_or(String::new(), |words| format!(", {words}"));
        text += "\n";
    }
    let Paired { both, only_reference, only_candidate, neither, same_answers, .. } = paired;
    text += &format!(
        "right      both {both}, only the reference {only_reference}, only the candidate {only_candidate}, neither \
         {neither}; the same words {same_answers}\n"
    );
    text
}

fn broken_words(gate: &Gate) -> String {
    let found =
        gate.found.map_or("nothing was measured".to_owned(), |found| format!("{found:.4} was measured"));
    format!("margay: {} {} is broken: {found}", gate.limit, gate.allowed)
}

/// A number of at least 0, with or without a percent sign.
fn limit(text: &str) -> Result<f64, String> {
    let number = text.trim().trim_end_matches('%').trim().parse::<f64>();
    match number {
        Ok(number) if number >= 0.0 && number.is_finite() => Ok(number),
        _ => Err("a number of 0 or more is expected, as in 2% or 0.05".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_number_with_or_without_a_percent_sign() {
        assert_eq!((limit("2%"), limit(" 0.05 "), limit("0")), (Ok(2.0), Ok(0.05), Ok(0.0)));
        for text in ["", "-1", "x%", "nan", "inf"] {
            assert!(limit(text).is_err(), "{text}");
        }
    }
}
