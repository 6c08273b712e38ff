//! `margay calibrate`: what the inputs of a model's layers look like, for `margay quantize`.
#![cfg_attr(not(feature = "reference"), allow(unused_imports, reason = "what only a walk uses"))]

use crate::{
    Outcome, hub,
    interrupt::{Interrupt, Late},
    model, output,
    progress::Meter,
    questions::QuestionArgs,
};
use clap::Args;
use margay::{
    Cancel, ModelSource,
    rooms::observe::{Root, process::peak_rss_bytes},
};
use margay_pack::{Calibration, PackError, Question};
use serde_json::json;
use std::{num::NonZeroUsize, ops::ControlFlow, path::PathBuf};

const AFTER_HELP: &str = "\
EXAMPLES:
  margay calibrate llava.gguf --images photos -o llava.stats.safetensors
  margay calibrate llava.gguf --images photos --text questions.txt --gradients -o llava.stats.safetensors
  margay calibrate llava.gguf --images photos -o llava.imatrix.gguf      an importance matrix for llama.cpp's tools

The model is walked layer by layer, all pictures at once: the memory is that of the numbers between two
layers and of one layer's weights. Text and visual tokens are kept apart.";

/// Look at what the layers of a model are given, for `margay quantize`
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Calibrate {
    /// A GGUF file or a Hugging Face folder; the built-in model unless given
    #[arg(value_name = "MODEL")]
    source: Option<PathBuf>,
    /// The model's vision file, where it does not lie beside the model
    #[arg(long, value_name = "FILE")]
    mmproj: Option<PathBuf>,
    /// The file to write; an importance matrix where it ends in .gguf
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    questions: QuestionArgs,
    /// Rows of each layer's input that are kept whole
    #[arg(long, value_name = "N", default_value = "256")]
    rows: NonZeroUsize,
    /// Find out by a backward pass how much errors at each token matter (small models)
    #[arg(long)]
    gradients: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

impl Calibrate {
    pub(crate) fn run(mut self, interrupt: &Interrupt) -> anyhow::Result<Outcome> {
        if !self.questions.given() {
            return Err(crate::Usage("say with --images or --text what to calibrate with".to_owned()).into());
        }
        if let Some(path) = &self.source {
            self.source = Some(hub::local(path)?.into_owned());
        }
        let source = model::source(self.source.as_deref(), self.mmproj.as_deref())?;
        let cancel = Cancel::new();
        let watch = interrupt.watch(cancel.clone(), Late::Wait);
        let found = self.calibrated(&source, &cancel);
        let found = match found {
            Err(e) if watch.pressed() && is_stopped(&e) => {
                output::aside("stopped; no file was written");
                return Ok(Outcome::Interrupted);
            }
            found => found?,
        };
        found.write(&self.out)?;
        drop(watch);
        let weights = found.weights().count();
        let most = found.weights().filter_map(|name| found.tokens(name)).max().unwrap_or_default();
        if self.json {
            output::json(&json!({
                "file": self.out, "bytes": std::fs::metadata(&self.out)?.len(), "made_from": found.made_from(),
                "weights": weights, "text_tokens": most.0, "visual_tokens": most.1,
                "gradients": found.has_gradients(), "peak_rss_bytes": peak_rss_bytes(&Root::system()),
            }))?;
        } else {
            output::text(&format!(
                "{}\n{}\n{weights} weights, up to {} text and {} visual tokens at an input\n",
                self.out.display(),
                found.made_from(),
                most.0,
                most.1
            ))?;
        }
        Ok(Outcome::Done)
    }

    fn calibrated(&self, source: &ModelSource, cancel: &Cancel) -> anyhow::Result<Calibration> {
        let questions = self.questions.read(source, cancel, self.json)?;
        let made_from = self.questions.describe(&questions);
        calibrated(source, &questions, &made_from, self.rows.get(), self.gradients, cancel, self.json)
    }
}

/// Whether a caller's own stop is behind it.
pub(crate) fn is_stopped(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<PackError>(), Some(PackError::Stopped))
}

/// Walks the model over the questions.
#[cfg(feature = "reference")]
pub(crate) fn calibrated(
    source: &ModelSource,
    questions: &[Question],
    made_from: &str,
    sample_rows: usize,
    gradients: bool,
    cancel: &Cancel,
    quiet: bool,
) -> anyhow::Result<Calibration> {
    let prompts = margay_pack::prompts(source, questions)?;
    let options = margay_pack::CalibrateOptions { sample_rows, gradients };
    let mut meter = if quiet { Meter::start(true) } else { Meter::counting() };
    Ok(margay_pack::calibrate(source, &prompts, made_from, &options, &mut |step| {
        meter.update(step.done as u64, step.of as u64, step.doing);
        if cancel.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?)
}

#[cfg(not(feature = "reference"))]
pub(crate) fn calibrated(
    _: &ModelSource,
    _: &[Question],
    _: &str,
    _: usize,
    _: bool,
    _: &Cancel,
    _: bool,
) -> anyhow::Result<Calibration> {
    anyhow::bail!("this margay was built without the feature `reference`, which walks over models")
}
