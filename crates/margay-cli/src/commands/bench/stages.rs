//! `margay bench stages`: how fast the stages of an answer are, and how near the limits of the same moment.

use crate::{
    Outcome, Usage,
    limits::{Limit, Measured},
    model::LoadArgs,
    output,
    progress::Meter,
};
use anyhow::Context;
use clap::Args;
use margay::{
    Image, KvType, Model, ModelSource, cpu_backend,
    rooms::{
        cpu::{
            CpuBackend,
            measure::{Limits as CpuLimits, Probe},
        },
        graph::{Bindings, Op, Program, Sym, cost},
        model::ModelPrograms,
        observe::{Clock, Root, process, report::table},
    },
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, io::BufRead, num::NonZeroUsize, path::PathBuf, time::Duration};

const AFTER_HELP: &str = "\
EXAMPLES:
  margay bench stages model.gguf                       a picture too, where the model sees
  margay bench stages model.gguf --depths 0,512,4096 --rounds 9
  margay bench stages model.gguf --threads 1 --json

COLUMNS:
  ms      median of the rounds: of a picture, of the whole prompt, of one decoded token
  Gop/s   10^9 operations a second of products and attention; a multiply-add is 2
  GB/s    10^9 bytes a second of weights, keys and values read
  %       of the limit named behind it, measured just before and just after each figure

Stages take turns within a round, so that what disturbs the machine disturbs all of them. Words do not matter: prompts
are token ids, and answers are not sampled. Every prompt begins with an empty cache; decoding begins behind it each time.

ORDERS:
  With --orders, lines of JSON on stdin are done one by one, and each is answered by a line on stdout; bench programs
  that run several engines in turn use it.
  {\"do\": \"prefill\", \"tokens\": 512}    ms, operations, bytes; the cache then holds these tokens
  {\"do\": \"decode\", \"tokens\": 16}      the same, behind what the cache holds, which stays as it was
  {\"do\": \"encode\"}                    the same, of a picture
  {\"do\": \"limits\"}                    limits: what `margay doctor --json` tells of these threads
  {\"do\": \"memory\"}                    peak_rss_bytes; of it probe_bytes measure the memory;
                                       files_bytes and cache_bytes are what a model needs";

/// A decoded token is timed with some others, so that one late wake-up is not the figure.
const DECODED: usize = 8;

/// Measure the stages of an answer: encode, prefill, decode
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Stages {
    /// The model: a GGUF file or a Hugging Face folder; the model inside the program unless given
    #[arg(value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Tokens of the prompts; behind 0, decoding begins with an empty context
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [0, 512])]
    depths: Vec<usize>,
    /// Tokens that are decoded for one figure
    #[arg(long, value_name = "N", default_value_t = DECODED)]
    decode: usize,
    /// How often each figure is taken; the median counts
    #[arg(long, value_name = "N", default_value = "5")]
    rounds: NonZeroUsize,
    /// The picture; a grey one unless given
    #[arg(long, short = 'i', value_name = "FILE")]
    image: Option<PathBuf>,
    /// Measure only text, where the model sees
    #[arg(long)]
    no_encode: bool,
    /// Do what lines of JSON on stdin say
    #[arg(long, conflicts_with = "json")]
    orders: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    load: LoadArgs,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do", deny_unknown_fields)]
enum Order {
    /// A prompt into the emptied cache.
    Prefill { tokens: usize },
    /// Tokens behind what the cache holds.
    Decode { tokens: usize },
    /// A picture.
    Encode,
    /// The machine's limits.
    Limits,
    /// What the process holds.
    Memory,
}

/// What one figure took.
#[derive(Clone, Copy, Debug, Serialize)]
struct Took {
    ms: f64,
    /// Operations of products and attention, 2 a multiply-add.
    operations: u64,
    /// Bytes of weights, keys and values.
    bytes: u64,
}

/// A stage's figures.
#[derive(Debug, Serialize)]
struct Figure {
    stage: &'static str,
    /// Tokens of context before it.
    depth: usize,
    /// Tokens that one figure is of.
    tokens: usize,
    /// Of each round.
    ms: Vec<f64>,
    /// Operations of one figure.
    operations: u64,
    /// Bytes of one figure.
    bytes: u64,
    limit: &'static str,
    /// Of each round: the share of the limit that was reached.
    shares: Vec<f64>,
}

/// Everything that is told as JSON.
#[derive(Debug, Serialize)]
struct Told<'a> {
    model: &'a str,
    threads: usize,
    figures: &'a [Figure],
    peak_rss_bytes: Option<u64>,
}

impl Stages {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        if self.decode == 0 {
            return Err(Usage("--decode 0 measures nothing".to_owned()).into());
        }
        // A picture that cannot be read is said before a large model is loaded.
        let image = match &self.image {
            Some(path) => Image::open(path)?,
            None => Image::filled(640, 480, [128; 3])?,
        };
        let mut load = self.load.clone();
        let deepest = self.depths.iter().max().copied().unwrap_or(0);
        if load.context.is_none() && !self.orders {
            load.context = NonZeroUsize::new(deepest.max(1) + self.decode);
        }
        let model = load.load(self.model.as_deref())?;
        let mut bench = Bench::new(&model, &load, image)?;
        if self.orders {
            return bench.obey();
        }
        let figures = self.measure(&mut bench)?;
        let threads = bench.cpu.threads();
        if self.json {
            let peak_rss_bytes = process::peak_rss_bytes(&Root::system());
            output::json(&Told { model: &model.config().name, threads, figures: &figures, peak_rss_bytes })?;
        } else {
            output::text(&describe(&figures))?;
        }
        Ok(Outcome::Done)
    }

    /// Nothing has to be tidied up: Ctrl-C ends the process at once.
    fn measure(&self, bench: &mut Bench) -> anyhow::Result<Vec<Figure>> {
        let decode = Order::Decode { tokens: self.decode };
        let mut plan = vec![];
        if bench.programs.encode.is_some() && !self.no_encode {
            plan.push((0, Order::Encode));
        }
        for &depth in &self.depths {
            // An empty cache decodes one token before it is measured.
            plan.push((0, Order::Prefill { tokens: depth.max(1) }));
            plan.push((depth, decode));
        }
        let rounds = self.rounds.get();
        let mut figures: Vec<Figure> =
            plan.iter().map(|&(depth, order)| bench.figure(depth, order)).collect();
        let mut meter = Meter::counting();
        let of = (rounds * plan.len()) as u64;
        let mut done = 0;
        // The first round warms up and is forgotten.
        for round in 0..=rounds {
            let mut before = bench.limits()?;
            for (&(depth, order), figure) in plan.iter().zip(&mut figures) {
                meter.update(done, of, &format!("{} {depth}", figure.stage));
                let took = bench.take(order)?;
                let after = bench.limits()?;
                if round > 0 {
                    figure.add(took, &before, &after);
                    done += 1;
                }
                before = after;
            }
        }
        figures.retain(|f| !(f.stage == "prefill" && f.tokens <= 1));
        Ok(figures)
    }
}

/// A loaded model and what its work is measured by.
struct Bench {
    stages: margay::Stages,
    cpu: CpuBackend,
    probe: Probe,
    clock: Clock,
    image: Image,
    programs: ModelPrograms,
    model: Model,
    vision_bytes: u64,
    files_bytes: u64,
    kv: KvType,
    limits: [&'static str; 2],
    depth: usize,
    context: usize,
}

impl Bench {
    fn new(model: &Model, load: &LoadArgs, image: Image) -> anyhow::Result<Self> {
        let programs = model.config().programs()?;
        let source = model.source();
        let vision: Vec<&Program> = programs.encode.iter().chain(&programs.project).collect();
        let text_limit = limit_of(source, &[&programs.text]);
        let vision_limit = match (load.int8_encoder, load.bf16_encoder) {
            (true, _) => "int8",
            (_, true) => "bfloat16",
            _ => limit_of(source, &vision),
        };
        Ok(Bench {
            stages: margay::Stages::new(model)?,
            cpu: cpu_backend(&load.options())?,
            probe: Probe::new(),
            clock: Clock::start(),
            image,
            vision_bytes: bytes_read(source, &vision, 1),
            model: model.clone(),
            files_bytes: source
                .weights
                .names()
                .filter_map(|n| source.weights.info(n)?.size_bytes().ok())
                .sum::<usize>() as u64,
            programs,
            kv: KvType::from_name(&load.kv).unwrap_or_default(),
            limits: [text_limit, vision_limit],
            depth: 0,
            context: model.context(),
        })
    }

    fn obey(&mut self) -> anyhow::Result<Outcome> {
        for line in std::io::stdin().lock().lines() {
            let line = line.context("cannot read stdin")?;
            let order: Order =
                serde_json::from_str(&line).map_err(|e| Usage(format!("no such order: {line:?}: {e}")))?;
            match order {
                Order::Limits => output::json(&Measured::of(&self.limits()?))?,
                Order::Memory => output::json(&serde_json::json!({
                    "peak_rss_bytes": process::peak_rss_bytes(&Root::system()),
                    "probe_bytes": self.probe.bytes(),
                    "files_bytes": self.files_bytes,
                    "cache_bytes": self.cache_bytes(self.context),
                }))?,
                order => output::json(&self.take(order)?)?,
            }
        }
        Ok(Outcome::Done)
    }
}

impl Bench {
    fn limits(&self) -> anyhow::Result<CpuLimits> {
        Ok(self.probe.limits(&self.cpu, &|| self.clock.now().as_secs_f64())?)
    }

    /// Times one stage and counts its work.
    fn take(&mut self, order: Order) -> anyhow::Result<Took> {
        let (operations, bytes) = self.work(self.depth_of(order), order)?;
        let took = match order {
            Order::Prefill { tokens } => {
                self.depth = tokens;
                self.stages.prefill(tokens)?
            }
            Order::Decode { tokens } => self.stages.decode(tokens)?,
            _ => self.stages.encode(&self.image)?,
        };
        Ok(Took { ms: milliseconds(took), operations, bytes })
    }

    fn depth_of(&self, order: Order) -> usize {
        if matches!(order, Order::Decode { .. }) { self.depth } else { 0 }
    }

    /// Operations and bytes of weights, keys and values behind `depth` tokens.
    fn work(&self, depth: usize, order: Order) -> anyhow::Result<(u64, u64)> {
        let text = |past: usize, tokens: usize| -> anyhow::Result<(u64, u64)> {
            let bindings = Bindings::new()
                .with(Sym::Tokens, tokens)
                .with(Sym::Past, past)
                .with(Sym::Outputs, 1)
                .with(Sym::Visual, 0);
            let cost = cost(&self.programs.text, &bindings)?;
            let weights = bytes_read(self.model.source(), &[&self.programs.text], tokens);
            Ok((cost.operations, weights + self.kept(cost.cache_elements)))
        };
        Ok(match order {
            Order::Prefill { tokens } => text(0, tokens)?,
            Order::Decode { tokens } => {
                let each = (0..tokens).map(|at| text(depth + at, 1));
                each.sum_pairs()?
            }
            _ => {
                let parts = self.programs.encode.iter().chain(&self.programs.project);
                let sizes = self.model.config().vision.as_ref().map(|v| v.limits()).unwrap_or_default();
                let each = parts.map(|p| Ok((cost(p, &sizes)?.operations, 0)));
                (each.sum_pairs()?.0, self.vision_bytes)
            }
        })
    }

    /// Bytes of so many elements of the KV cache.
    fn kept(&self, elements: u64) -> u64 {
        elements * self.kv.bytes() as u64
    }

    /// Bytes of the KV cache of so many tokens.
    fn cache_bytes(&self, context: usize) -> Option<usize> {
        let text = &self.model.config().text;
        self.kv.layer_bytes(text.kv_heads, text.head_dim, context)?.checked_mul(text.layers)
    }

    fn figure(&self, depth: usize, order: Order) -> Figure {
        let [text, vision] = self.limits;
        let (stage, tokens, limit) = match order {
            Order::Prefill { tokens } => ("prefill", tokens, text),
            Order::Decode { tokens } => ("decode", tokens, "memory read"),
            _ => ("encode", 1, vision),
        };
        Figure { stage, depth, tokens, ms: vec![], operations: 0, bytes: 0, limit, shares: vec![] }
    }
}

/// Sums of operations and of bytes.
trait SumPairs: Iterator<Item = anyhow::Result<(u64, u64)>> + Sized {
    fn sum_pairs(mut self) -> anyhow::Result<(u64, u64)> {
        self.try_fold((0, 0), |(operations, bytes), each| {
            let (o, b) = each?;
            Ok((operations + o, bytes + b))
        })
    }
}

impl<I: Iterator<Item = anyhow::Result<(u64, u64)>>> SumPairs for I {}

impl Figure {
    fn add(&mut self, took: Took, before: &CpuLimits, after: &CpuLimits) {
        let limits = [Measured::of(before), Measured::of(after)];
        let all = limits.iter().flat_map(|m| &m.limits).filter(|l| l.name == self.limit);
        let most = all.map(Limit::per_second).fold(0.0, f64::max);
        let done = if self.limit == "memory read" { took.bytes } else { took.operations };
        self.ms.push(took.ms);
        (self.operations, self.bytes) = (took.operations, took.bytes);
        if most > 0.0 {
            self.shares.push(done as f64 * 1000.0 / took.ms / most);
        }
    }

    fn row(&self) -> Vec<String> {
        let ms = median(&self.ms);
        let per_second = |of: f64| of * 1000.0 / ms;
        let name = match self.stage {
            "prefill" => format!("prefill {}", self.tokens),
            "decode" => format!("decode at {}", self.depth),
            stage => stage.to_owned(),
        };
        let each = if self.stage == "decode" { self.tokens as f64 } else { 1.0 };
        let rate = per_second(self.tokens as f64);
        let share = if self.shares.is_empty() {
            "-".to_owned()
        } else {
            format!("{:.0}", median(&self.shares) * 100.0)
        };
        vec![
            name,
            format!("{:.1}", ms / each),
            if self.stage == "encode" { "-".to_owned() } else { format!("{rate:.1}") },
            format!("{:.1}", per_second(self.operations as f64) / 1e9),
            format!("{:.1}", per_second(self.bytes as f64) / 1e9),
            share,
            self.limit.to_owned(),
        ]
    }
}

fn describe(figures: &[Figure]) -> String {
    let rows: Vec<_> = figures.iter().map(Figure::row).collect();
    table(&["stage", "ms", "tok/s", "Gop/s", "GB/s", "%", "of"], &rows)
}

fn milliseconds(took: Duration) -> f64 {
    took.as_secs_f64() * 1000.0
}

/// The middle one, or the mean of the two in the middle; the values are not empty.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[at] } else { (sorted[at - 1] + sorted[at]) / 2.0 }
}

/// Bytes of weights that so many rows read: of tables of which rows are looked up none, of experts as many as the rows
/// can choose.
fn bytes_read(source: &ModelSource, programs: &[&Program], rows: usize) -> u64 {
    let mut parts = BTreeMap::new();
    for program in programs {
        for node in program.nodes().iter().filter(|node| !matches!(node.op, Op::Embed { .. })) {
            let part = match &node.op {
                Op::Experts(op) => {
                    let of = program.value(node.inputs[1]).columns();
                    (rows.saturating_mul(op.used).min(of), of)
                }
                _ => (1, 1),
            };
            parts.extend(node.op.weights().into_iter().map(|id| (program.weight(id).name.as_str(), part)));
        }
    }
    let bytes = |name: &str| source.weights.info(name).and_then(|info| info.size_bytes().ok()).unwrap_or(0);
    parts.into_iter().map(|(name, (read, of))| (bytes(name) / of.max(1) * read) as u64).sum()
}

/// The limit that products with most of these weights meet.
fn limit_of(source: &ModelSource, programs: &[&Program]) -> &'static str {
    let (mut blocks, mut floats) = (0, 0);
    for info in programs.iter().flat_map(|p| p.weights()).filter_map(|w| source.weights.info(&w.name)) {
        let elements = info.shape.elements().unwrap_or(0);
        *if info.dtype.is_block() { &mut blocks } else { &mut floats } += elements;
    }
    if blocks > floats { "int8" } else { "float32" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay::rooms::cpu::{Isa, measure::Peak};

    #[test]
    fn a_figure_is_the_median_of_its_rounds_and_a_share_of_the_better_limit() {
        let mut figure = Figure {
            stage: "decode",
            depth: 512,
            tokens: 4,
            ms: vec![],
            operations: 0,
            bytes: 0,
            limit: "memory read",
            shares: vec![],
        };
        let limits = |read| CpuLimits {
            isa: Isa::Scalar,
            threads: 1,
            read_one_stream: read,
            read_four_streams: 0.0,
            int8: Peak { instruction: "i", ops_per_second: 1e9 },
            int8_exact: None,
            f32: Peak { instruction: "f", ops_per_second: 1e9 },
            bf16: None,
            barrier: 0.0,
        };
        for (ms, before, after) in [(100.0, 1e10, 5e9), (50.0, 1e10, 2e10), (80.0, 1e10, 1e10)] {
            let took = Took { ms, operations: 2_000_000_000, bytes: 400_000_000 };
            figure.add(took, &limits(before), &limits(after));
        }
        assert_eq!(figure.row(), ["decode at 512", "20.0", "50.0", "25.0", "5.0", "40", "memory read"]);
    }

    #[test]
    fn orders_are_read_and_others_refused() {
        let order = |text: &str| serde_json::from_str::<Order>(text);
        assert_eq!(order(r#"{"do": "decode", "tokens": 3}"#).unwrap(), Order::Decode { tokens: 3 });
        assert_eq!(order(r#"{"do": "encode"}"#).unwrap(), Order::Encode);
        assert!(order(r#"{"do": "decode"}"#).is_err());
        assert!(order(r#"{"do": "sleep"}"#).is_err());
    }
}
