//! `margay prune`: a model with zeros where weights matter least, or with fewer heads, channels and layers.

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
use margay::{Cancel, ModelSource, rooms::graph::Stage};
use margay_pack::{
    Amount, Calibration, PackError, Parts, PruneMethod, PruneOptions, PruneReport, PruneTarget, Recipe,
    parse_pattern, prune,
};
use std::{ops::ControlFlow, path::PathBuf, str::FromStr};

/// Rows of each input that are kept where the model is calibrated on the way.
const SAMPLE_ROWS: usize = 256;

fn after_help() -> String {
    let mut text = "\
EXAMPLES:
  margay prune llava.gguf -o sparse.gguf --method magnitude --pattern 2:4
  margay prune llava.gguf -o sparse.gguf --method wanda --pattern row:0.5 --calibration llava.stats.safetensors
  margay prune llava.gguf -o sparse.gguf --method sparsegpt --pattern row:0.5 --images photos
  margay prune llava.gguf -o small.gguf --channels 25% --method wanda --images photos --type q4_k
  margay prune llava.gguf -o small.gguf --heads 30% --layers 2 --images photos

METHODS:
"
    .to_owned();
    for method in PruneMethod::ALL {
        text += &format!("  {:<11} {}\n", method.id(), method.about());
    }
    text += "
PATTERNS (single weights become zero):
  0.5         half of each matrix
  row:0.5     half of each row
  2:4         all but 2 of every 4 neighbours of a row
A file with zeros is NOT smaller, and Margay runs it no faster: it gains only where something else packs or skips
zeros. Types that cannot hold a zero (q4_k, q4_1, ...) are refused; give another with --type.

PARTS (--heads, --channels, --layers) go as a whole: the file is smaller and faster, an ordinary model of other
sizes. Each layer loses as many. Heads that share keys and values go together; what stays is rounded up to whole
blocks. Layers go by how little they change what passes through them, over the questions.

Weights keep their type unless --type says another; those whose blocks change are encoded again.
Ctrl-C stops it; no file is left behind. Where it was killed instead, the same command goes on behind the last
whole tensor.";
    text
}

/// Take out of a model what it needs least: single weights, heads, channels or layers
#[derive(Debug, Args)]
#[command(after_help = after_help())]
pub(crate) struct Prune {
    /// A GGUF file or a Hugging Face folder; the built-in model unless given
    #[arg(value_name = "SRC")]
    source: Option<PathBuf>,
    /// The vision file of a GGUF source, where it does not lie beside it
    #[arg(long, value_name = "FILE")]
    mmproj: Option<PathBuf>,
    /// The file to write; a vision side goes to mmproj-FILE beside it
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// What says how much a weight or a part matters; see below
    #[arg(long, value_name = "M", default_value = "magnitude")]
    method: String,
    /// Which single weights become zero; see below
    #[arg(long, value_name = "P", conflicts_with_all = ["heads", "channels", "layers"])]
    pattern: Option<String>,
    /// Attention heads of the decoder that go, of each layer: a number, or as in 30%
    #[arg(long, value_name = "N|P%")]
    heads: Option<String>,
    /// Channels of the feed-forward layers that go, of each layer: a number, or as in 25%
    #[arg(long, value_name = "N|P%")]
    channels: Option<String>,
    /// Layers of the decoder that go; needs questions
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// What is pruned: encode, project and text, several with commas; of parts, channels alone know encode
    #[arg(long, value_name = "S", value_delimiter = ',', default_value = "text")]
    stage: Vec<String>,
    /// Store weights in another type: as `margay convert --type`, or a recipe of `margay quantize`
    #[arg(long = "type", value_name = "T")]
    recipe: Option<String>,
    /// What `margay calibrate` wrote, or an importance matrix of llama.cpp's tools
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    #[command(flatten)]
    questions: QuestionArgs,
    /// Write one file, with the vision side inside
    #[arg(long)]
    single: bool,
    /// Print the report as JSON, with every tensor's zeros and errors
    #[arg(long)]
    json: bool,
}

impl Prune {
    pub(crate) fn run(mut self, interrupt: &Interrupt) -> anyhow::Result<Outcome> {
        let method = PruneMethod::from_str(&self.method).map_err(usage)?;
        let target = self.target()?;
        let recipe = self.recipe.as_deref().map(Recipe::named).transpose().map_err(usage)?;
        if let Some(path) = &self.source {
            self.source = Some(hub::local(path)?.into_owned());
        }
        written::keep_the_source(self.source.as_deref(), self.mmproj.as_deref(), &self.out)?;
        let source = model::source(self.source.as_deref(), self.mmproj.as_deref())?;
        // Waited for rather than left: the unfinished files have to go.
        let cancel = Cancel::new();
        let watch = interrupt.watch(cancel.clone(), Late::Wait);
        let report = match self.pruned(&source, method, &target, recipe.as_ref(), &cancel) {
            Err(e) if watch.pressed() && is_stopped(&e) => {
                output::aside("stopped; no file was written");
                return Ok(Outcome::Interrupted);
            }
            report => report?,
        };
        drop(watch);
        if report.resumed > 0 {
            let tensors = report.resumed;
            output::aside(&format!("went on behind {tensors} tensors of a run that was killed"));
        }
        if self.json {
            output::json(&written::pruned_as_json(method, &report))?;
        } else {
            output::text(&written::describe_pruned(&report))?;
        }
        Ok(Outcome::Done)
    }

    /// What goes, as the options say it.
    fn target(&self) -> anyhow::Result<PruneTarget> {
        let stage = |name: &String| {
            Stage::ALL.into_iter().find(|stage| stage.name() == name).ok_or_else(|| {
                crate::Usage(format!(
                    "--stage: {name:?} is none of {}",
                    Stage::ALL.map(Stage::name).join(", ")
                ))
            })
        };
        let stages = self.stage.iter().map(stage).collect::<Result<Vec<_>, _>>()?;
        if let Some(pattern) = &self.pattern {
            return Ok(PruneTarget::Weights { pattern: parse_pattern(pattern).map_err(usage)?, stages });
        }
        let amount = |text: &Option<String>| text.as_deref().map(Amount::from_str).transpose().map_err(usage);
        let (heads, channels) = (amount(&self.heads)?, amount(&self.channels)?);
        if heads.is_none() && channels.is_none() && self.layers.is_none() {
            let what = "say what goes: --pattern, or --heads, --channels, --layers";
            return Err(crate::Usage(what.to_owned()).into());
        }
        if self.layers == Some(0) {
            return Err(crate::Usage("--layers: 0 layers are none".to_owned()).into());
        }
        let has = |stage: Stage| stages.contains(&stage);
        let decoder = heads.is_some() || self.layers.is_some();
        if has(Stage::Project) || decoder && !has(Stage::Text) || has(Stage::Encode) && channels.is_none() {
            let what = "--stage: of the vision side only the encoder's --channels can go, and of the decoder --heads, \
                        --channels and --layers";
            return Err(crate::Usage(what.to_owned()).into());
        }
        Ok(PruneTarget::Parts(Parts {
            heads,
            channels: channels.filter(|_| has(Stage::Text)),
            encoder_channels: channels.filter(|_| has(Stage::Encode)),
            layers: self.layers.unwrap_or(0),
        }))
    }

    fn pruned(
        &self,
        source: &ModelSource,
        method: PruneMethod,
        target: &PruneTarget,
        recipe: Option<&Recipe>,
        cancel: &Cancel,
    ) -> anyhow::Result<PruneReport> {
        let questions = match self.questions.given() {
            true => self.questions.read(source, cancel, self.json)?,
            false => vec![],
        };
        let parts = matches!(target, PruneTarget::Parts(parts) if *parts != Parts { layers: parts.layers, ..Parts::default() });
        let calibration = match &self.calibration {
            Some(path) => Some(Calibration::open(path, source)?),
            // Single weights are pruned on a walk of their own, behind what is pruned already.
            None if method == PruneMethod::Wanda && parts && !questions.is_empty() => {
                let made_from = self.questions.describe(&questions);
                Some(calibrated(source, &questions, &made_from, SAMPLE_ROWS, false, cancel, self.json)?)
            }
            None => None,
        };
        let prompts = match questions.is_empty() {
            true => vec![],
            false => margay_pack::prompts(source, &questions)?,
        };
        let options = PruneOptions {
            method,
            target,
            recipe,
            single: self.single,
            calibration: calibration.as_ref(),
            prompts: &prompts,
            measure: self.json || calibration.is_some() || !prompts.is_empty(),
        };
        let mut meter = Meter::start(self.json);
        Ok(prune(source, &self.out, &options, &mut |step| {
            if cancel.is_cancelled() {
                return ControlFlow::Break(());
            }
            meter.update(step.done_bytes, step.of_bytes, step.tensor);
            ControlFlow::Continue(())
        })?)
    }
}

fn usage(error: PackError) -> anyhow::Error {
    crate::Usage(error.to_string()).into()
}
