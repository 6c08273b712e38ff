//! `margay simulate`: an answer on a device that is not here.

mod answer;
mod beside;
mod govern;
mod govern_page;
mod study;

use crate::{
    Outcome, Usage, output, recorded,
    sketch::{Sizes, Sketch},
};
use clap::{Args, builder::PossibleValuesParser};
use margay::{KvType, rooms::file::read_file};
use margay_bench::Record;
use margay_device::{Changed, Device, Engine, WhatIf};
use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

const AFTER_HELP: &str = "\
EXAMPLES:
  margay simulate --device oneplus-13r --model llava-1.5-7b:q4_0
  margay simulate --device oneplus-13r --model llava-1.5-7b:q4_0 --engine llama.cpp \\
      --what-if gpu-encode,npu-int8-output,kv-int4,overlap
  margay simulate --device a17-pro --model qwen2-vl-2b:mobile-int4 --picture 1024x768 --every 60
  margay simulate --model phi-2 --device a17-pro --speculate 4,0.8,0.1
  margay simulate --device flagship-phone --model mobilevlm-v2-1.7b --govern 30m --ambient 35 --html page.html
                                       half an hour of questions: a governor beside a race to throttle
  margay doctor --profile -o me.toml; margay bench --image street.png --out run.json
  margay simulate --device me.toml --model margay-nano --beside run.json    this machine, simulated and measured
  margay simulate --study              the published study beside the simulator, cell by cell
  margay simulate --list               devices, engines, models, changes
  margay simulate --device tensor-g4 --numbers   every number of a profile, with its source

  A device is a name of --list or a .toml file like those in crates/margay-device/profiles; a model is a
  shape with a type or recipe behind a colon (q4_0 unless given), a file, or margay-nano, the one inside the program.

WHAT IT IS:
  Arithmetic on virtual time: operations and bytes of the model's programs over the rates of the profile,
  heat through a chain of resistances. Nothing is measured. docs/simulation.md has the equations, and how
  far they are from a published study.";

/// Largest profile that is read.
const MOST_BYTES: u64 = 1 << 20;
/// Most tokens of a prompt or an answer.
const MOST_TOKENS: usize = 1 << 20;

/// Simulate an answer on a device: time, joules and heat by stage, and what would change them
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Simulate {
    /// The device: a name of --list or a .toml file
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// The model: SHAPE[:TYPE or recipe], or a file
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Whose efficiency is assumed
    #[arg(long, default_value = "margay", value_parser = PossibleValuesParser::new(Engine::ids()))]
    engine: String,
    /// Changes, each alone and all together, with commas between
    #[arg(long, value_name = "CHANGES")]
    what_if: Option<String>,
    #[command(flatten)]
    question: QuestionArgs,
    /// How keys and values are kept
    #[arg(long, value_name = "TYPE", default_value = KvType::default().name(),
        value_parser = PossibleValuesParser::new(KvType::ALL.map(KvType::name)))]
    kv: String,
    /// Tokens of context that memory is counted for; those of the question and answer unless given
    #[arg(long, value_name = "TOKENS")]
    context: Option<NonZeroUsize>,
    /// Say how long the battery lasts at a question every so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    every: f64,
    /// Speculative decoding: drafted tokens, the part of them that is accepted, and what a drafted one costs of a target's
    #[arg(long, value_name = "DRAFTS,ACCEPTED,COST")]
    speculate: Option<String>,
    #[command(flatten)]
    govern: govern::GovernArgs,
    /// Set the stages that this record of margay bench measured beside the simulated ones; its question is taken
    #[arg(long, value_name = "RUN.json", conflicts_with = "what_if")]
    beside: Option<PathBuf>,
    /// Set the published study (arXiv 2507.08505) beside the simulator, and list where it contradicts itself
    #[arg(long, conflicts_with_all = ["model", "what_if"])]
    study: bool,
    /// List devices, engines, models and changes
    #[arg(long)]
    list: bool,
    /// Print every number of the device's profile with its source
    #[arg(long)]
    numbers: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What is asked.
#[derive(Clone, Debug, Args)]
pub(crate) struct QuestionArgs {
    /// Pixels of the picture
    #[arg(long, value_name = "WIDTHxHEIGHT", default_value = "640x480")]
    pub picture: String,
    /// Tokens of text in the prompt
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub prompt_tokens: usize,
    /// Those of them that stand before the picture
    #[arg(long, value_name = "N", default_value_t = 35)]
    pub prefix_tokens: usize,
    /// Tokens of the answer
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub answer_tokens: usize,
}

impl QuestionArgs {
    pub(crate) fn sizes(&self) -> anyhow::Result<Sizes> {
        let picture =
            self.picture.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
        let wrong = || Usage(format!("{:?} is no size of a picture; write it as 640x480", self.picture));
        let picture = picture.filter(|(w, h)| *w > 0 && *h > 0).ok_or_else(wrong)?;
        let counts = [self.prompt_tokens, self.answer_tokens];
        if !counts.iter().all(|tokens| (1..=MOST_TOKENS).contains(tokens)) {
            return Err(Usage(format!("a prompt and an answer have 1 to {MOST_TOKENS} tokens")).into());
        }
        let (prefix, prompt, answer) = (self.prefix_tokens, self.prompt_tokens, self.answer_tokens);
        Ok(Sizes { picture, prefix, prompt, answer })
    }
}

/// A shipped profile, or a file.
pub(crate) fn device(name: &str) -> anyhow::Result<Device> {
    if !name.ends_with(".toml") {
        return Device::named(name).map_err(|e| Usage(e.to_string()).into());
    }
    let text = read_file(Path::new(name), MOST_BYTES)?;
    let text = String::from_utf8(text).map_err(|_| anyhow::anyhow!("{name} is no UTF-8 text"))?;
    Ok(Device::parse(name, &text)?)
}

impl Simulate {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        if self.list {
            return list();
        }
        if self.study {
            return study::print(self.json);
        }
        let needed =
            |what: &str| Usage(format!("{what} is needed; `margay simulate --list` says which there are"));
        let device = device(self.device.as_deref().ok_or_else(|| needed("--device"))?)?;
        if self.numbers {
            return numbers(&device);
        }
        if !(self.every.is_finite() && self.every > 0.0) {
            return Err(
                Usage(format!("--every {}: a number of seconds above 0 is needed", self.every)).into()
            );
        }
        let sketch = Sketch::named(self.model.as_deref().ok_or_else(|| needed("--model"))?)?;
        let engine = Engine::named(&self.engine)?;
        let changes = self.what_if.as_deref().map(WhatIf::list).transpose();
        let changes = changes.map_err(|e| Usage(e.to_string()))?.unwrap_or_default();
        let kv = KvType::from_name(&self.kv).unwrap_or_default();
        let shrinks = changes.iter().any(|change| matches!(change, WhatIf::KvInt8 | WhatIf::KvInt4));
        if shrinks && kv != KvType::F16 {
            return Err(Usage("kv-int8 and kv-int4 are changes of --kv f16".to_owned()).into());
        }
        let record = self.beside.as_deref().map(Record::read).transpose()?;
        let sizes = match &record {
            Some(record) => recorded::sizes(record, &sketch)?,
            None => self.question.sizes()?,
        };
        let workload = sketch.workload(kv, sizes)?;
        if let Some(time) = self.govern.time()? {
            return self.govern.run(time, &device, &engine, &workload, self.json);
        }
        if let Some(record) = &record {
            let run = &Changed::new(&engine, &workload, &[])?.run(&device)?;
            let beside =
                beside::Beside { record, device: &device, engine: &engine, workload: &workload, run };
            if self.json {
                output::json(&beside.json())?
            } else {
                output::text(&beside.describe())?
            }
            return Ok(Outcome::Done);
        }
        let speculate = self.speculate.as_deref().map(speculation).transpose()?;
        let base = Changed::new(&engine, &workload, &[])?;
        let mut rows = vec![("base".to_owned(), base.run(&device)?, base)];
        let mut sets: Vec<Vec<WhatIf>> = changes.iter().map(|change| vec![*change]).collect();
        if changes.len() > 1 {
            sets.push(changes.clone());
        }
        for set in sets {
            let changed = Changed::new(&engine, &workload, &set)?;
            let name = if set.len() > 1 { "all together" } else { set[0].name() };
            rows.push((name.to_owned(), changed.run(&device)?, changed));
        }
        let context = self.context.map_or_else(|| workload.context_tokens(), NonZeroUsize::get);
        let report = answer::Report {
            device: &device,
            engine: &engine,
            workload: &workload,
            rows: &rows,
            context,
            every: self.every,
            speculate,
        };
        if self.json {
            output::json(&report.json())?
        } else {
            output::text(&report.describe()?)?
        }
        Ok(Outcome::Done)
    }
}

/// Drafts, accepted part, cost.
fn speculation(text: &str) -> anyhow::Result<(u32, f64, f64)> {
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    let read = || {
        let [drafts, accepted, cost] = parts[..] else { return None };
        Some((drafts.parse().ok()?, accepted.parse().ok()?, cost.parse().ok()?))
    };
    let good = |(drafts, accepted, cost): &(u32, f64, f64)| {
        (1..=64).contains(drafts) && (0.0..=1.0).contains(accepted) && (0.0..=10.0).contains(cost)
    };
    let what = format!(
        "--speculate {text:?}: write drafts (1 to 64), accepted part (0 to 1) and cost, as in 4,0.8,0.1"
    );
    read().filter(good).ok_or_else(|| Usage(what).into())
}

fn list() -> anyhow::Result<Outcome> {
    let mut rows = vec![];
    for id in Device::ids() {
        let device = Device::named(id)?;
        rows.push(vec![id.to_owned(), device.chip, device.about]);
    }
    let mut text = format!("{}\n", output::table_of_words(&["device", "chip", "about"], rows));
    let mut rows = vec![];
    for id in Engine::ids() {
        rows.push(vec![id.to_owned(), Engine::named(id)?.about]);
    }
    text += &format!("{}\n", output::table_of_words(&["engine", "about"], rows));
    let shapes: Vec<_> = margay::rooms::model::shapes::SHAPES.iter().map(|shape| shape.name).collect();
    text += &format!("models   {}\n", shapes.join(", "));
    text += &format!("changes  {}\n", WhatIf::ALL.map(WhatIf::name).join(", "));
    output::text(&text)?;
    Ok(Outcome::Done)
}

fn numbers(device: &Device) -> anyhow::Result<Outcome> {
    let rows = device.numbers().into_iter().map(|(name, stated)| {
        let (kind, why) = match &stated.origin {
            margay_device::Origin::Source(text) => ("source", text),
            margay_device::Origin::Assumed(text) => ("assumed", text),
        };
        vec![name, format!("{}", stated.value), format!("{kind}: {why}")]
    });
    output::text(&output::table_of_words(&["number", "value", "from"], rows.collect()))?;
    Ok(Outcome::Done)
}
