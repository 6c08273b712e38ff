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
use anyhow::Context;
use clap::Args;
use margay::{Cancel, ModelSource};
use margay_pack::{Calibration, Method, QuantizeOptions, QuantizeReport, Recipe, quantize};
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
    text += "  A+B           the scaling A, then the rounding B\n\n";
    text += "Ctrl-C stops it; no file is left behind. Where it was killed instead, the same command goes on behind\n\
             the last whole tensor. What comes out is a standard GGUF file, whatever the method.";
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
    report: Option<PathBuf>,
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
        let recipe = Recipe::named(&self.recipe).map_err(usage)?;
        let method: Method = self.method.parse().map_err(usage)?;
        let source = model::source(self.source.as_deref(), self.mmproj.as_deref())?;
        // Waited for rather than left: the unfinished files have to go.
        let cancel = Cancel::new();
        let watch = interrupt.watch(cancel.clone(), Late::Wait);
        let report = match self.quantized(&source, &recipe, method, &cancel) {
            Err(e) if watch.pressed() && is_stopped(&e) => {
                output::aside("stopped; no file was written");
                return Ok(Outcome::Interrupted);
            }
            report => report?,
        };
        if report.resumed > 0 {
            let tensors = report.resumed;
            output::aside(&format!("went on behind {tensors} tensors of a run that was killed"));
        }
        if let Some(path) = &self.report {
            let title = format!("{} as {} by {}", source.config.name, recipe.id, method.id());
            let page = margay_pack::page(&title, &recipe, method, &report);
            std::fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))?;
        }
        if self.json {
            let mut value = written::with_tensors(&report);
            value["recipe"] = recipe.id.clone().into();
            value["method"] = method.id().into();
            output::json(&value)?;
        } else {
            output::text(&format!("{}: {}\n", recipe.id, recipe.about))?;
            output::text(&written::describe(&report))?;
        }
        Ok(Outcome::Done)
    }

    fn quantized(
        &self,
        source: &ModelSource,
        recipe: &Recipe,
        method: Method,
        cancel: &Cancel,
    ) -> anyhow::Result<QuantizeReport> {
        let needs = method.needs();
        let questions = match self.questions.given() {
            true => self.questions.read(source, cancel, self.json)?,
            false => vec![],
        };
        // Only what a walk over questions can give is asked of them.
        let on_the_way = self.calibration.is_none()
            && !questions.is_empty()
            && (method.scaling.is_some() || (needs.activations || needs.sample) && !needs.hessian);
        let calibration = match &self.calibration {
            Some(path) => Some(Calibration::open(path, source)?),
            None if on_the_way => {
                let made_from = self.questions.describe(&questions);
                let gradients = needs.gradients;
                Some(calibrated(source, &questions, &made_from, SAMPLE_ROWS, gradients, cancel, self.json)?)
            }
            None => None,
        };
        let prompts = match needs.hessian && !questions.is_empty() {
            true => margay_pack::prompts(source, &questions)?,
            false => vec![],
        };
        let options = QuantizeOptions {
            recipe,
            method,
            single: self.single,
            calibration: calibration.as_ref(),
            prompts: &prompts,
            measure: self.json || self.report.is_some(),
        };
        let mut meter = Meter::start(self.json);
        Ok(quantize(source, &self.out, &options, &mut |step| {
            if cancel.is_cancelled() {
                return ControlFlow::Break(());
            }
            meter.update(step.done_bytes, step.of_bytes, step.tensor);
            ControlFlow::Continue(())
        })?)
    }
}
