//! `margay plan`: how a model should run on a device, under limits.

mod html;
mod report;
mod variants;

use super::simulate::{QuestionArgs, device};
use crate::{Outcome, Usage, output};
use clap::{Args, ValueEnum};
use margay::rooms::file::write_file;
use margay_device::{Engine, Kind, Limit, Metric, Outcome as Decision, Prefer, Space, front, plan};
use std::{num::NonZeroUsize, path::PathBuf};

const AFTER_HELP: &str = "\
EXAMPLES:
  margay plan --device oneplus-13r --model mobilevlm-v2-1.7b \\
      --limits 'ttft<=12s, memory<=2GiB, temperature<=70C, quality>=98%'
  margay plan --device budget-phone --model mobilevlm --limits 'memory<=1.5GiB' --prefer speed
  margay plan --device tablet --model qwen2-vl-2b --picture 1024x768 --limits 'ttft<=5s' --prefer quality
  margay plan --device oneplus-13r --model llava-1.5-7b:q4_0 --backends cpu,gpu

LIMITS, with commas between:
  ttft, time (s, ms, min)   power (W, mW)   energy (J, kJ, Wh)   memory (B, KB, MB, GB, KiB, MiB, GiB)
  temperature (C)           speed (tok/s)   quality (%)

  Memory is what Margay allocates, to the byte: weights as kernels hold them, keys and values, buffers, a
  picture. Times, watts and degrees are simulated (margay simulate). Quality is the part of right answers
  that margay-nano kept at so many bits and of so many visual tokens (docs/quantization.md, docs/sessions.md):
  of no other model is there a table, and of smaller pictures there is none; what is unknown keeps no limit.
  Without a limit of quality, visual tokens are left out only as far as 95 % are kept.

EXIT CODE:
  3 where no plan keeps every limit; the tightest one is named";

/// Choose model variant, bits, pictures, cache, cores and units for a device, so that limits are kept
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Plan {
    /// The device: a name of `margay simulate --list` or a .toml file
    #[arg(long, value_name = "DEVICE")]
    device: String,
    /// The model: a shape, the beginning of several, or with a type or recipe behind a colon that one alone
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// What must be kept, as in 'ttft<=2s, power<=3W, memory<=1.5GiB, temperature<=45C, quality>=98%'
    #[arg(long, value_name = "LIMITS", default_value = "")]
    limits: String,
    /// What is best among plans that keep them
    #[arg(long, value_enum, default_value_t = Best::Energy)]
    prefer: Best,
    /// Where stages may run. Margay computes on the CPU; gpu says what a GPU at MLC-Imp's efficiency would change, npu what a
    /// neural unit at llm.npu's would, which decodes on the CPU
    #[arg(long, value_name = "UNITS", default_value = "cpu", value_delimiter = ',', value_parser = ["cpu", "gpu", "npu"])]
    backends: Vec<String>,
    #[command(flatten)]
    question: QuestionArgs,
    /// Tokens of context that memory holds
    #[arg(long, value_name = "TOKENS", default_value = "2048")]
    context: NonZeroUsize,
    /// Write the alternatives as a page with a picture: joules by seconds
    #[arg(long, value_name = "FILE.html")]
    html: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Best {
    /// Least joules of an answer
    Energy,
    /// Least time of an answer
    Speed,
    /// Highest quality, then least joules
    Quality,
}

impl Plan {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        let device = device(&self.device)?;
        let limits = Limit::list(&self.limits).map_err(|e| Usage(e.to_string()))?;
        let prefer = match self.prefer {
            Best::Energy => Prefer::Energy,
            Best::Speed => Prefer::Speed,
            Best::Quality => Prefer::Quality,
        };
        let quality = limits.iter().find(|limit| limit.metric == Metric::Quality).map(|limit| limit.value);
        let made = variants::all(&self.model, self.question.sizes()?, self.context, quality)?;
        let engines = engines(&self.backends)?;
        let space = Space { device: &device, engines: &engines, variants: &made };
        let decision = plan(&space, &limits, prefer)?;
        let alternatives = front(&space, &limits)?;
        let mut costs = vec![];
        if let Decision::Plan { .. } = decision {
            for (at, limit) in limits.iter().enumerate() {
                let others: Vec<Limit> =
                    limits.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, limit)| *limit).collect();
                if let Decision::Plan { best, .. } = plan(&space, &others, prefer)? {
                    costs.push((*limit, *best));
                }
            }
        }
        let report = report::Report { space: &space, limits: &limits, decision, alternatives, costs };
        if let Some(path) = &self.html {
            write_file(path, html::page(&report).as_bytes())?;
        }
        if self.json {
            output::json(&report.json())?
        } else {
            output::text(&report.describe()?)?
        }
        let found = matches!(report.decision, Decision::Plan { .. });
        Ok(if found { Outcome::Done } else { Outcome::LimitBroken })
    }
}

/// Margay on the CPU, and each way to have stages on another unit.
fn engines(backends: &[String]) -> anyhow::Result<Vec<Engine>> {
    let (cpu, gpu, npu) = (Engine::named("margay")?, Engine::named("mlc-imp")?, Engine::named("llm.npu")?);
    let allowed = |kind: Kind| backends.iter().any(|name| name == kind.name());
    let units = |kinds: &'static [Kind]| kinds.iter().copied().filter(|kind| allowed(*kind));
    let mut all = vec![];
    for encode in units(&[Kind::Cpu, Kind::Gpu, Kind::Npu]) {
        for prefill in units(&[Kind::Cpu, Kind::Gpu, Kind::Npu]) {
            // On a neural unit alone there is nobody who decodes.
            for decode in units(&[Kind::Cpu, Kind::Gpu]) {
                let mut engine = cpu.clone();
                for (kind, slot) in [(encode, &mut engine.encode), (prefill, &mut engine.prefill)] {
                    match kind {
                        Kind::Cpu => {}
                        // The rate of products that its prompt evaluation reached; its encoding was 55 times slower.
                        Kind::Gpu => *slot = gpu.prefill.clone(),
                        Kind::Npu => *slot = npu.prefill.clone(),
                    }
                }
                if decode == Kind::Gpu {
                    engine.decode = gpu.decode.clone();
                }
                let used = [encode, prefill, decode];
                for (kind, words) in [(Kind::Gpu, ON_GPU), (Kind::Npu, ON_NPU)] {
                    if used.contains(&kind) {
                        engine.about += words;
                    }
                }
                all.push(engine);
            }
        }
    }
    if all.is_empty() {
        return Err(
            Usage("a neural unit decodes nothing here: add cpu or gpu to --backends".to_owned()).into()
        );
    }
    Ok(all)
}

const ON_GPU: &str = " Margay has no GPU backend: stages on the GPU are at the efficiency of MLC-Imp's prompt evaluation in that paper.";
const ON_NPU: &str = " Margay has no NPU backend: stages on the NPU are at the efficiency of llm.npu's prompt evaluation (arXiv 2407.05858).";
