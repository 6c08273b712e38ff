//! `margay bench` itself: an answer from picture to text, again and again.

use super::{
    gate,
    shape::{Asked, RandomModel},
};
use crate::{
    Outcome, Usage, hub,
    interrupt::{Interrupt, Late},
    model::{AskArgs, LoadArgs, kept},
    output,
    progress::Spinner,
};
use anyhow::Context;
use clap::Args;
use margay::{
    AskOptions, Cancel, LoadOptions, Model, ModelSource, default_threads,
    rooms::file::{ModelFiles, write_file},
};
use margay_bench::{CoolDown, Measured, Peer, Plan, Record, measure, report};
use margay_observe::report::writer;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

/// Asked where nobody says what to ask.
const PICTURE_QUESTION: &str = "What is in this picture?";
const TEXT_QUESTION: &str = "What is a margay?";

/// What is measured without a subcommand.
#[derive(Debug, Args)]
pub(crate) struct Pipeline {
    /// The model: a GGUF file, a Hugging Face folder, hf:OWNER/REPO; the model inside the program unless given
    #[arg(value_name = "MODEL")]
    model: Option<PathBuf>,
    /// In place of a model: random weights of this published shape, in --type or in the type or recipe behind a colon (q4_0
    /// unless given), the vision side in f16 where --vision-type says nothing; `margay simulate --list` names the shapes
    #[arg(long, value_name = "SHAPE", conflicts_with_all = ["model", "mmproj"])]
    shape: Option<String>,
    /// The same seed makes the same random weights
    #[arg(long, value_name = "N", default_value_t = 0, requires = "shape")]
    weights_seed: u64,
    /// Keep the random weights in this file (and mmproj-FILE)
    #[arg(long, value_name = "FILE", requires = "shape")]
    keep: Option<PathBuf>,
    /// A picture; may be repeated
    #[arg(long = "image", short = 'i', value_name = "FILE")]
    images: Vec<PathBuf>,
    /// The question
    #[arg(long, short = 'p', value_name = "TEXT")]
    prompt: Option<String>,
    /// Rounds that count
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    repeat: u16,
    /// Rounds before them that do not
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(0..=100))]
    warmup: u16,
    /// So many rounds begin with loading the model anew; all of them unless given, and the first always does
    #[arg(long, value_name = "N")]
    cold: Option<u16>,
    /// Milliseconds between samples
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    period: u64,
    /// How long the machine is watched idle before: 2s, 500ms; its power is what is subtracted
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = time)]
    idle: Duration,
    /// Let the machine cool down to so many degrees above its start before each round
    #[arg(long, value_name = "DEGREES", default_value_t = 2.0, value_parser = positive)]
    cool_within: f64,
    /// Wait no longer than this for it; 0s does not wait
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time)]
    cool_limit: Duration,
    /// Ask again and again for so long behind the rounds (30m, 90s) and tell the rates at minute 1, 5, 10 and 30
    #[arg(long = "sustained", value_name = "TIME", value_parser = time)]
    sustain: Option<Duration>,
    /// What the battery holds, in watt-hours; the device's own word unless given
    #[arg(long, value_name = "WH", value_parser = positive)]
    battery_wh: Option<f64>,
    /// Time from one answer to the next that the battery's life is told for
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time)]
    each: Duration,
    /// Another program that answers in the same rounds: KIND=WHAT, see below; may be repeated
    #[arg(long = "peer", value_name = "KIND=WHAT")]
    peers: Vec<String>,
    /// Fail with exit code 3 where a time is worse than in this record, beyond noise and by more than --gate-percent
    #[arg(long, value_name = "FILE")]
    gate: Option<PathBuf>,
    /// How much worse is too much
    #[arg(long, value_name = "PERCENT", default_value_t = 10.0, value_parser = positive)]
    gate_percent: f64,
    /// Tell what the time of each stage goes to, op by op, by one more pass of each
    #[arg(long)]
    ops: bool,
    /// Compute pictures and words of the prompt in batches of their own, so that each's time is told: a batch of both, as an
    /// answer computes it, cannot be shared out. Each batch reads all weights
    #[arg(long)]
    pictures_apart: bool,
    /// Write the record: raw numbers of every run, for `margay bench compare`
    #[arg(long, short = 'o', value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write a page with figures
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write a trace of the run nearest to the median, for ui.perfetto.dev; with --ops, each op of a pass behind it
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Print the record as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ask: AskArgs,
    #[command(flatten)]
    load: LoadArgs,
}

impl Pipeline {
    pub(crate) fn run(&self, interrupt: &Interrupt) -> anyhow::Result<Outcome> {
        // Half an hour must not be lost to a baseline that cannot be read.
        let baseline = self.gate.as_deref().map(Record::read).transpose()?;
        let peers = self.peers.iter().map(|spec| Peer::parse(spec)).collect::<Result<Vec<_>, _>>();
        let peers = peers.map_err(|e| Usage(e.to_string()))?;
        let draft_model = self.ask.draft_model()?;
        let mut options = LoadOptions { outputs: self.ask.draft + 1, draft_model, ..self.load.options() };
        let random = match self.random(&mut options, interrupt)? {
            Some(None) => return Ok(Outcome::Interrupted),
            made => made.flatten(),
        };
        let given = random.as_ref().map(|random| random.path.as_path()).or(self.model.as_deref());
        let path = given.map(hub::local).transpose()?;
        options.mmproj =
            self.load.mmproj.as_deref().map(hub::local).transpose()?.map(std::borrow::Cow::into_owned);
        if path.is_none() && options.mmproj.is_some() {
            return Err(Usage("--mmproj needs the model it belongs to".to_owned()).into());
        }
        let load = || match &path {
            Some(path) => Model::load_with(path, &options),
            None => Model::nano_with(&options),
        };
        let spinner = Spinner::start("measuring");
        let say = |what: &str| spinner.say(what.to_owned());
        let default = if self.images.is_empty() { TEXT_QUESTION } else { PICTURE_QUESTION };
        let mut plan = Plan::new(&load, self.prompt.as_deref().unwrap_or(default));
        plan.pictures.clone_from(&self.images);
        plan.ask = AskOptions { pictures_apart: self.pictures_apart, ..self.ask.options() };
        (plan.repeat, plan.warmup) = (self.repeat.into(), self.warmup.into());
        plan.cold = self.cold.map_or(usize::MAX, usize::from);
        (plan.period, plan.idle) = (Duration::from_millis(self.period), self.idle);
        plan.cool = CoolDown { within_celsius: self.cool_within, limit: self.cool_limit };
        (plan.peers, plan.sustain, plan.progress) = (peers, self.sustain, &say);
        plan.model_file = path.as_deref().map(Path::to_owned);
        plan.mmproj_file = vision_file(path.as_deref(), &options)?;
        plan.threads = Some(options.threads.unwrap_or_else(default_threads));
        (plan.batch, plan.kv, plan.ops) = (options.batch, options.kv, self.ops);
        plan.options = told(&options, &self.ask);
        if self.pictures_apart {
            plan.options.insert("pictures-apart".to_owned(), "yes".to_owned());
        }
        if let Some(random) = &random {
            plan.options.insert("weights".to_owned(), random.told.clone());
            plan.warnings.push("weights are random: answers are noise, as long as they may be".to_owned());
        }
        plan.executable = std::env::current_exe().ok();
        plan.baseline = baseline.as_ref();
        let stop = Cancel::new();
        plan.stop = stop.clone();
        let watch = interrupt.watch(stop, Late::Wait);
        let measured = measure(&plan)?;
        let stopped = watch.pressed();
        drop(watch);
        spinner.clear();
        self.write(&measured)?;
        self.show(&measured.record)?;
        if stopped {
            return Ok(Outcome::Interrupted);
        }
        match &baseline {
            Some(baseline) if !gate::passes(baseline, &measured.record, self.gate_percent)? => {
                Ok(Outcome::LimitBroken)
            }
            _ => Ok(Outcome::Done),
        }
    }

    /// The model of random weights that was asked for; `Some(None)` where Ctrl-C came first.
    fn random(
        &self,
        options: &mut LoadOptions,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Option<Option<RandomModel>>> {
        let Some(shape) = &self.shape else { return Ok(None) };
        // The file is of that type already.
        let (dtype, vision) = (options.dtype.take(), options.vision_dtype.take());
        let asked = Asked { shape, dtype, vision, seed: self.weights_seed, keep: self.keep.as_deref() };
        RandomModel::write(&asked, options, interrupt).map(Some)
    }

    fn show(&self, record: &Record) -> anyhow::Result<()> {
        if self.json {
            return output::json(record);
        }
        let text = report::record_text(record, self.each.as_secs_f64(), self.battery_wh);
        output::text(&output::harmless(&text))
    }

    fn write(&self, measured: &Measured) -> anyhow::Result<()> {
        let record = &measured.record;
        let mut files: Vec<(&PathBuf, String)> = Vec::new();
        files.extend(self.out.as_ref().map(|path| (path, record.to_json())));
        if let Some(path) = &self.html {
            let period = self.each.as_secs_f64();
            let long = measured.sustained.as_ref();
            files.push((path, report::page(record, &measured.timelines, long, period, self.battery_wh)));
        }
        if let Some(path) = &self.trace {
            let timeline = report::median_timeline(record, &measured.timelines);
            let timeline = timeline.context("no run was complete, so there is no trace")?;
            let trace = writer("trace").context("no report is called trace")?;
            let with_ops = measured.ops.as_ref().map(|ops| timeline.followed_by(ops));
            files.push((path, trace.write(with_ops.as_ref().unwrap_or(timeline))?));
        }
        for (path, text) in files {
            write_file(path, text.as_bytes())?;
            output::note(&format!("wrote {}", path.display()));
        }
        Ok(())
    }
}

/// The vision file, given or found beside the model; `None` where the model's own file holds both sides, or there is none.
fn vision_file(path: Option<&Path>, options: &LoadOptions) -> anyhow::Result<Option<PathBuf>> {
    let Some(path) = path else { return Ok(None) };
    let source = ModelSource::open(path, options.mmproj.as_deref())?;
    Ok(match &source.files {
        ModelFiles::Gguf { text, vision: Some(vision) } if !vision.is_same(text) => {
            vision.path().map(Path::to_owned)
        }
        _ => None,
    })
}

/// What the model was loaded and asked with, by name.
fn told(options: &LoadOptions, ask: &AskArgs) -> BTreeMap<String, String> {
    let threads = options.threads.unwrap_or_else(default_threads);
    let mut told = BTreeMap::from([
        ("backend", options.backend.clone()),
        ("threads", threads.to_string()),
        ("kv", options.kv.name().to_owned()),
        ("batch", options.batch.to_string()),
        ("temperature", ask.temperature.to_string()),
    ]);
    let or_not = [
        ("decode-threads", options.decode_threads.map(|n| n.to_string())),
        ("cores", options.cores.clone()),
        ("isa", options.isa.clone()),
        ("context", options.context.map(|n| n.to_string())),
        ("max-image-tokens", options.max_image_tokens.map(|n| n.to_string())),
        ("type", options.dtype.map(|dtype| dtype.name().to_owned())),
        ("vision-type", options.vision_dtype.map(|dtype| dtype.name().to_owned())),
        ("int8-encoder", options.int8_encoder.then(|| "yes".to_owned())),
        ("bf16-encoder", options.bf16_encoder.then(|| "yes".to_owned())),
        ("kv-image", options.kv_image.map(|kind| kind.name().to_owned())),
        ("evict", options.eviction.map(|eviction| format!("{eviction:?}"))),
        (
            "keep-image-tokens",
            options.reduction.as_ref().map(|r| format!("{} by {}", kept(r.keep), r.method)),
        ),
        (
            "prune-image-tokens",
            options.pruning.as_ref().map(|p| format!("{} behind layer {} by {}", p.keep, p.layer, p.method)),
        ),
        ("skip-repeated-patches", options.repeated_patches.map(|levels| levels.to_string())),
        ("image-folder", options.image_folder.is_some().then(|| "yes".to_owned())),
        ("prefix-folder", options.prefix_folder.is_some().then(|| "yes".to_owned())),
        ("draft", (ask.draft > 0).then(|| ask.draft.to_string())),
        (
            "draft-model",
            options
                .draft_model
                .as_deref()
                .and_then(Path::file_name)
                .map(|name| name.to_string_lossy().into_owned()),
        ),
        ("packed", (!options.packed).then(|| "no".to_owned())),
        ("seed", (ask.temperature > 0.0).then(|| ask.seed.to_string())),
    ];
    told.extend(or_not.into_iter().filter_map(|(name, value)| Some((name, value?))));
    told.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A stretch of time: `30m`, `90s`, `1.5h`, `500ms`; a bare number is seconds.
fn time(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let factor = match &text[split..] {
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err("a time is expected, as in 30m, 90s, 1h or 500ms".to_owned()),
    };
    let seconds = text[..split].trim().parse::<f64>().ok().map(|number| number * factor);
    let seconds = seconds.filter(|seconds| (0.0..=1e7).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "a time of 0 or more is expected, as in 30m or 90s".to_owned())
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.trim().trim_end_matches('%').parse::<f64>().ok();
    number.filter(|n| n.is_finite() && *n > 0.0).ok_or_else(|| "a number above 0 is expected".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_and_nonsense_is_refused() {
        for (text, seconds) in
            [("30m", 1800.0), ("90s", 90.0), ("1.5h", 5400.0), ("500ms", 0.5), ("2", 2.0), ("0s", 0.0)]
        {
            assert_eq!(time(text), Ok(Duration::from_secs_f64(seconds)), "{text}");
        }
        for text in ["", "m", "-1s", "1d", "inf", "nan", "1e300h", "5 m s"] {
            assert!(time(text).is_err(), "{text}");
        }
        assert_eq!((positive("10%"), positive("19.25")), (Ok(10.0), Ok(19.25)));
        assert!(["0", "-1", "nan", "x"].into_iter().all(|text| positive(text).is_err()));
    }
}
