//! `margay quantize`: a model into a smaller GGUF file, each weight as its recipe says.

use super::calibrate::{calibrated, is_stopped};
use crate::{
    Outcome, hub,
    interrupt::{Interrupt, Late},
    model, output,
    progress::Meter,
    questions::QuestionArgs,
    written,
};
use clap::Args;
use margay::{Cancel, ModelSource, PromptInputs, rooms::file::write_file};
use margay_pack::{
    Calibration, Choice, Method, QuantizeOptions, QuantizeReport, Recipe, WalkProgress, parse_size, quantize,
};
use std::{ops::ControlFlow, path::PathBuf};

/// Rows of each input that are kept where the model is calibrated on the way.
const SAMPLE_ROWS: usize = 256;

fn after_help() -> String {
    let mut text = "\
EXAMPLES:
  margay quantize llava.gguf -o small.gguf --recipe mobile-int4
  margay quantize llava.gguf -o small.gguf --recipe q4_k --method imatrix --calibration llava.stats.safetensors
  margay quantize ./llava-1.5-7b -o small.gguf --recipe tiny --method awq+gptq --calibration S --images photos

RECIPES:
"
    .to_owned();
    for recipe in Recipe::shipped() {
        text += &format!("  {:<13} {}\n", recipe.id, recipe.about);
    }
    text += "  a type        as `margay convert --type`, for instance q4_k\n";
    text += "  FILE.toml     rules of your own; see docs/quantization.md\n\nMETHODS:\n";
    for (id, about) in Method::all() {
        text += &format!("  {id:<13} {about}\n");
    }
    text += "  A+B           the scaling A (or outlier), then the rounding B\n\n";
    text += "Ctrl-C stops it; no file is left behind. Where it was killed instead, the same command goes on behind\n\
             the last whole tensor. What comes out is a standard GGUF file, whatever the method; with outlier alone it is\n\
             Margay's own, which other runtimes do not read.";
    text
}

/// Make a model smaller: a recipe of formats, and a method that finds good values for them
#[derive(Debug, Args)]
#[command(after_help = after_help())]
pub(crate) struct Quantize {
    /// A GGUF file or a Hugging Face folder; the built-in model unless given
    #[arg(value_name = "SRC")]
    source: Option<PathBuf>,
    /// The vision file of a GGUF source, where it does not lie beside it
    #[arg(long, value_name = "FILE")]
    mmproj: Option<PathBuf>,
    /// The file to write; a vision side goes to mmproj-FILE beside it
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// Which format each weight takes: a recipe below, a type, or a TOML file
    #[arg(long, value_name = "R", default_value = "mobile-int4")]
    recipe: String,
    /// Choose a format for each weight so that all fit into so much, as in 1.5GiB; needs a calibration, or questions
    #[arg(long, value_name = "SIZE", conflicts_with = "recipe")]
    fit: Option<String>,
    /// Choose formats as small as keep the mean divergence of the logits below so many nats; needs questions
    #[arg(long, value_name = "NATS", conflicts_with_all = ["recipe", "fit"])]
    max_kl: Option<f64>,
    /// How values are found for the formats; see below
    #[arg(long, value_name = "M", default_value = "rtn")]
    method: String,
    /// What `margay calibrate` wrote, or an importance matrix of llama.cpp's tools
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    #[command(flatten)]
    questions: QuestionArgs,
    /// Write one file, with the vision side inside
    #[arg(long)]
    single: bool,
    /// Write a page with every tensor's error, bits and size
    #[arg(long, value_name = "FILE.html")]
    html: Option<PathBuf>,
    /// Print the report as JSON, every tensor's error included
    #[arg(long)]
    json: bool,
}

impl Quantize {
    pub(crate) fn run(mut self, interrupt: &Interrupt) -> anyhow::Result<Outcome> {
        if let Some(path) = &self.source {
            self.source = Some(hub::local(path)?.into_owned());
        }
        written::keep_the_source(self.source.as_deref(), self.mmproj.as_deref(), &self.out)?;
        let usage = |e: margay_pack::PackError| crate::Usage(e.to_string());
        let wanted = self.wanted()?;
        let method: Method = self.method.parse().map_err(usage)?;
        if method.outliers && !matches!(wanted, Wanted::Recipe(_)) {
            let what = "the method outlier stores more than the formats that --fit and --max-kl choose; give --recipe";
            return Err(crate::Usage(what.to_owned()).into());
        }
        let source = model::source(self.source.as_deref(), self.mmproj.as_deref())?;
        // Waited for rather than left: the unfinished files have to go.
        let cancel = Cancel::new();
        let watch = interrupt.watch(cancel.clone(), Late::Wait);
        let done = match self.quantized(&source, wanted, method, &cancel) {
            Err(e) if watch.pressed() && is_stopped(&e) => {
                output::aside("stopped; no file was written");
                return Ok(Outcome::Interrupted);
            }
            done => done?,
        };
        let Done { report, recipe, choice, kl } = done;
        if report.resumed > 0 {
            let tensors = report.resumed;
            output::aside(&format!("went on behind {tensors} tensors of a run that was killed"));
        }
        if let Some(path) = &self.html {
            let title = format!("{} as {} by {}", source.config.name, recipe.id, method.id());
            let page = margay_pack::page(&title, &recipe, method, &report, choice.as_ref());
            write_file(path, page.as_bytes())?;
        }
        if self.json {
            let mut value = written::with_tensors(&report);
            value["recipe"] = recipe.id.clone().into();
            value["method"] = method.id().into();
            value["choice"] = choice.as_ref().map(|choice| written::choice_as_json(choice, kl)).into();
            output::json(&value)?;
        } else {
            output::text(&format!("{}: {}\n", recipe.id, recipe.about))?;
            output::text(&choice.as_ref().map_or_else(String::new, |choice| written::explain(choice, kl)))?;
            output::text(&written::describe(&report))?;
        }
        Ok(Outcome::Done)
    }

    fn wanted(&self) -> anyhow::Result<Wanted> {
        let usage = |e: margay_pack::PackError| crate::Usage(e.to_string());
        match (&self.fit, self.max_kl) {
            (Some(size), _) => Ok(Wanted::Fit(parse_size(size).map_err(usage)?)),
            (None, Some(kl)) if kl > 0.0 && self.questions.given() => Ok(Wanted::MaxKl(kl)),
            (None, Some(kl)) if kl > 0.0 => {
                Err(crate::Usage("--max-kl needs questions: give --images, --text or both".to_owned()).into())
            }
            (None, Some(kl)) => Err(crate::Usage(format!("--max-kl: {kl} is no positive number")).into()),
            (None, None) => Ok(Wanted::Recipe(Recipe::named(&self.recipe).map_err(usage)?)),
        }
    }

    fn quantized(
        &self,
        source: &ModelSource,
        wanted: Wanted,
        method: Method,
        cancel: &Cancel,
    ) -> anyhow::Result<Done> {
        let needs = method.needs();
        let questions = match self.questions.given() {
            true => self.questions.read(source, cancel, self.json)?,
            false => vec![],
        };
        // Only what a walk over questions can give is asked of them.
        let chooses = !matches!(wanted, Wanted::Recipe(_));
        let on_the_way = self.calibration.is_none()
            && !questions.is_empty()
            && (chooses
                || method.scaling.is_some()
                || method.outliers
                || (needs.activations || needs.sample) && !needs.hessian);
        let calibration = match &self.calibration {
            Some(path) => Some(Calibration::open(path, source)?),
            None if on_the_way => {
                let made_from = self.questions.describe(&questions);
                let gradients = needs.gradients;
                Some(calibrated(source, &questions, &made_from, SAMPLE_ROWS, gradients, cancel, self.json)?)
            }
            None => None,
        };
        let walks = needs.hessian || matches!(wanted, Wanted::MaxKl(_));
        let prompts = match walks && !questions.is_empty() {
            true => margay_pack::prompts(source, &questions)?,
            false => vec![],
        };
        let (recipe, choice, kl) = match wanted {
            Wanted::Recipe(recipe) => (recipe, None, None),
            _ => {
                let calibration = calibration.as_ref().ok_or_else(|| {
                    let what = "choosing formats needs --calibration, or --images to calibrate with";
                    crate::Usage(what.to_owned())
                })?;
                let (choice, kl) = self.choose(source, calibration, &prompts, &wanted, cancel)?;
                (choice.recipe.clone(), Some(choice), kl)
            }
        };
        let options = QuantizeOptions {
            recipe: &recipe,
            method,
            single: self.single,
            calibration: calibration.as_ref(),
            prompts: &prompts,
            measure: self.json || self.html.is_some(),
        };
        let mut meter = Meter::start(self.json);
        let report = quantize(source, &self.out, &options, &mut |step| {
            if cancel.is_cancelled() {
                return ControlFlow::Break(());
            }
            meter.update(step.done_bytes, step.of_bytes, step.tensor);
            ControlFlow::Continue(())
        })?;
        Ok(Done { report, recipe, choice, kl })
    }

    fn choose(
        &self,
        source: &ModelSource,
        calibration: &Calibration,
        prompts: &[PromptInputs],
        wanted: &Wanted,
        cancel: &Cancel,
    ) -> anyhow::Result<(Choice, Option<f64>)> {
        let mut meter = if self.json { Meter::start(true) } else { Meter::counting() };
        let mut on_step = |step: &WalkProgress<'_>| {
            meter.update(step.done as u64, step.of as u64, step.doing);
            if cancel.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let costs = margay_pack::sensitivities(source, calibration, &mut on_step)?;
        match wanted {
            Wanted::MaxKl(most) => floored(source, calibration, &costs, prompts, *most, &mut on_step),
            Wanted::Fit(budget) => Ok((costs.fit(*budget)?, None)),
            Wanted::Recipe(_) => unreachable!("invariant: a recipe is not chosen"),
        }
    }
}

/// What formats there shall be.
enum Wanted {
    Recipe(Recipe),
    /// In so many bytes.
    Fit(u64),
    /// No further from the original.
    MaxKl(f64),
}

struct Done {
    report: QuantizeReport,
    recipe: Recipe,
    choice: Option<Choice>,
    kl: Option<f64>,
}

#[cfg(feature = "reference")]
fn floored(
    source: &ModelSource,
    calibration: &Calibration,
    costs: &margay_pack::Sensitivities,
    prompts: &[PromptInputs],
    most: f64,
    on_step: margay_pack::OnStep<'_>,
) -> anyhow::Result<(Choice, Option<f64>)> {
    let floored = margay_pack::keep_below(source, calibration, costs, prompts, most, on_step)?;
    Ok((floored.choice, Some(floored.kl)))
}

#[cfg(not(feature = "reference"))]
fn floored(
    _: &ModelSource,
    _: &Calibration,
    _: &margay_pack::Sensitivities,
    _: &[PromptInputs],
    _: f64,
    _: margay_pack::OnStep<'_>,
) -> anyhow::Result<(Choice, Option<f64>)> {
    anyhow::bail!("this margay was built without the feature `reference`, which walks over models")
}
