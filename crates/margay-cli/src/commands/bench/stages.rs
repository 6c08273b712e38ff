//! `margay bench stages`: how fast the stages of an answer are, and how near the limits of the same moment.

use crate::{Outcome, Usage, limits::Measured, model::LoadArgs, output, progress::Meter};
use anyhow::Context;
use clap::Args;
use margay::{
    Image, KvType, Model, ModelSource, OpTime, cpu_backend,
    rooms::{
        cpu::{
            CpuBackend,
            measure::{Limits as CpuLimits, Probe, Sustained},
        },
        graph::{Bindings, Program, Sym, cost},
        model::ModelPrograms,
        observe::{Clock, Root, process, report::table},
    },
};
use margay_bench::bytes_read;
use serde::{Deserialize, Serialize};
use std::{io::BufRead, num::NonZeroUsize, path::PathBuf, time::Duration};

const AFTER_HELP: &str = "\
EXAMPLES:
  margay bench stages model.gguf                       a picture too, where the model sees
  margay bench stages model.gguf --depths 0,512,4096 --rounds 9
  margay bench stages model.gguf --threads 1 --json
  margay bench stages model.gguf --ops                 what the time of each stage goes to

COLUMNS:
  ms      median of the rounds: of a picture, of the whole prompt, of one decoded token
  Gop/s   10^9 operations a second of products and attention; a multiply-add is 2
  GB/s    10^9 bytes a second of weights, keys and values read
  %       of the limit named behind it: bare instructions, or a bare read, by the same threads right behind each figure
          and for as long (2 seconds at most)

Stages take turns within a round, so that what disturbs the machine disturbs all of them. Words do not matter: prompts
are token ids, and answers are not sampled. Every prompt begins with an empty cache; decoding begins behind it each time.

ORDERS:
  With --orders, lines of JSON on stdin are done one by one, and each is answered by a line on stdout; bench programs
  that run several engines in turn use it.
  {\"do\": \"prefill\", \"tokens\": 512}    ms, operations, bytes; the cache then holds these tokens
  {\"do\": \"decode\", \"tokens\": 16}      the same, behind what the cache holds, which stays as it was
  {\"do\": \"encode\"}                    the same, of a picture
  {\"do\": \"sustain\", \"limit\": \"int8\", \"ms\": 500}
                                       giga_per_second: what a bare loop does for so long; limits as below
  {\"do\": \"limits\"}                    limits: what `margay doctor --json` tells of these threads
  {\"do\": \"memory\"}                    peak_rss_bytes; of it probe_bytes measure the memory;
                                       files_bytes and cache_bytes are what a model needs";

/// A decoded token is timed with some others, so that one late wake-up is not the figure.
const DECODED: usize = 8;
/// A limit is measured no longer.
const LONGEST_LIMIT: Duration = Duration::from_secs(2);

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
    /// Tell what each stage's time goes to, op by op
    #[arg(long, conflicts_with = "orders")]
    ops: bool,
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
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do", deny_unknown_fields)]
enum Order {
    /// A prompt into the emptied cache.
    Prefill { tokens: usize },
    /// Tokens behind what the cache holds.
    Decode { tokens: usize },
    /// A picture.
    Encode,
    /// A bare loop, and nothing else.
    Sustain { limit: Bare, ms: f64 },
    /// The machine's limits.
    Limits,
    /// What the process holds.
    Memory,
}

/// What a bare loop does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Bare {
    #[serde(rename = "memory read")]
    Read,
    #[serde(rename = "int8")]
    Int8,
    #[serde(rename = "float32")]
    F32,
    #[serde(rename = "bfloat16")]
    Bf16,
}

impl Bare {
    fn name(self) -> &'static str {
        match self {
            Bare::Read => "memory read",
            Bare::Int8 => "int8",
            Bare::F32 => "float32",
            Bare::Bf16 => "bfloat16",
        }
    }
}

/// How fast a bare loop was; unknown where the processor has no such instructions.
#[derive(Clone, Copy, Debug, Serialize)]
struct Rate {
    giga_per_second: Option<f64>,
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
    /// What one more round went to, most first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ops: Vec<OpFigure>,
}

/// A kind of op within a stage.
#[derive(Debug, Serialize)]
struct OpFigure {
    op: String,
    calls: u64,
    ms: f64,
    operations: u64,
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
            for (&(depth, order), figure) in plan.iter().zip(&mut figures) {
                meter.update(done, of, &format!("{} {depth}", figure.stage));
                let (took, share) = bench.beside_its_limit(order)?;
                if round > 0 {
                    figure.add(took, share);
                    done += 1;
                }
            }
        }
        if self.ops {
            for (&(_, order), figure) in plan.iter().zip(&mut figures) {
                figure.ops = bench.by_op(order)?;
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
    limits: [Bare; 2],
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
            (true, _) => Bare::Int8,
            (_, true) => Bare::Bf16,
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
            kv: load.kv.unwrap_or_default(),
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
                Order::Sustain { limit, ms } => output::json(&self.sustain(limit, ms)?)?,
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

    /// Times one stage, and tells which share of its limit it reached.
    fn beside_its_limit(&mut self, order: Order) -> anyhow::Result<(Took, Option<f64>)> {
        let took = self.take(order)?;
        let limit = self.limit_of(order);
        let done = if limit == Bare::Read { took.bytes } else { took.operations };
        let rate = self.sustain(limit, took.ms)?.giga_per_second;
        Ok((took, rate.map(|most| done as f64 / took.ms / 1e6 / most)))
    }

    fn sustain(&self, limit: Bare, ms: f64) -> anyhow::Result<Rate> {
        let what = match limit {
            Bare::Read => Sustained::Read,
            Bare::Int8 => Sustained::Int8,
            Bare::F32 => Sustained::F32,
            Bare::Bf16 => Sustained::Bf16,
        };
        let seconds = (ms / 1000.0).clamp(0.0, LONGEST_LIMIT.as_secs_f64());
        let rate = self.probe.sustained(&self.cpu, &|| self.clock.now().as_secs_f64(), what, seconds)?;
        Ok(Rate { giga_per_second: rate.map(|rate| rate / 1e9) })
    }

    /// Times one stage and counts its work.
    fn take(&mut self, order: Order) -> anyhow::Result<Took> {
        let (operations, bytes) = self.work(self.depth_of(order), order)?;
        if let Order::Prefill { tokens } = order {
            self.depth = tokens;
        }
        let took = run(&mut self.stages, order, &self.image)?;
        Ok(Took { ms: milliseconds(took), operations, bytes })
    }

    /// A stage once more, with a look at the clock between its ops.
    fn by_op(&mut self, order: Order) -> anyhow::Result<Vec<OpFigure>> {
        let image = &self.image;
        let ops = self.stages.by_op(|stages| run(stages, order, image))?;
        let figure = |time: OpTime| OpFigure {
            op: time.op,
            calls: time.calls,
            ms: milliseconds(time.took),
            operations: time.operations,
        };
        Ok(ops.into_iter().map(figure).collect())
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
                let (width, height) = (self.image.width(), self.image.height());
                let vision = self.model.config().vision.as_ref();
                let sizes = vision.map_or(Ok(Bindings::new()), |vision| vision.sizes(width, height))?;
                let each = parts.map(|p| Ok((cost(p, &sizes)?.operations, 0)));
                (each.sum_pairs()?.0, self.vision_bytes)
            }
        })
    }

    /// Bytes of so many elements of the KV cache.
    fn kept(&self, elements: u64) -> u64 {
        elements * self.kv.bits() as u64 / 8
    }

    /// Bytes of the KV cache of so many tokens.
    fn cache_bytes(&self, context: usize) -> Option<usize> {
        let text = &self.model.config().text;
        self.kv.layer_bytes(text.kv_heads, text.head_dim, context)?.checked_mul(text.layers)
    }

    fn limit_of(&self, order: Order) -> Bare {
        let [text, vision] = self.limits;
        match order {
            Order::Prefill { .. } => text,
            Order::Decode { .. } => Bare::Read,
            _ => vision,
        }
    }

    fn figure(&self, depth: usize, order: Order) -> Figure {
        let (stage, tokens) = match order {
            Order::Prefill { tokens } => ("prefill", tokens),
            Order::Decode { tokens } => ("decode", tokens),
            _ => ("encode", 1),
        };
        let limit = self.limit_of(order).name();
        Figure {
            stage,
            depth,
            tokens,
            ms: vec![],
            operations: 0,
            bytes: 0,
            limit,
            shares: vec![],
            ops: vec![],
        }
    }
}

fn run(stages: &mut margay::Stages, order: Order, image: &Image) -> Result<Duration, margay::Error> {
    match order {
        Order::Prefill { tokens } => stages.prefill(tokens),
        Order::Decode { tokens } => stages.decode(tokens),
        _ => stages.encode(image),
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
    fn add(&mut self, took: Took, share: Option<f64>) {
        self.ms.push(took.ms);
        (self.operations, self.bytes) = (took.operations, took.bytes);
        self.shares.extend(share);
    }

    fn name(&self) -> String {
        match self.stage {
            "prefill" => format!("prefill {}", self.tokens),
            "decode" => format!("decode at {}", self.depth),
            stage => stage.to_owned(),
        }
    }

    fn row(&self) -> Vec<String> {
        let ms = median(&self.ms);
        let per_second = |of: f64| of * 1000.0 / ms;
        let each = if self.stage == "decode" { self.tokens as f64 } else { 1.0 };
        let rate = per_second(self.tokens as f64);
        let share = if self.shares.is_empty() {
            "-".to_owned()
        } else {
            format!("{:.0}", median(&self.shares) * 100.0)
        };
        vec![
            self.name(),
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
    let mut told = table(&["stage", "ms", "tok/s", "Gop/s", "GB/s", "%", "of"], &rows);
    for figure in figures.iter().filter(|figure| !figure.ops.is_empty()) {
        let whole: f64 = figure.ops.iter().map(|op| op.ms).sum();
        let row = |op: &OpFigure| {
            let rate = op.operations as f64 / op.ms / 1e6;
            let rate = if op.operations > 0 { format!("{rate:.1}") } else { "-".to_owned() };
            let share = format!("{:.1}", op.ms * 100.0 / whole);
            vec![op.op.clone(), op.calls.to_string(), format!("{:.2}", op.ms), share, rate]
        };
        let rows: Vec<_> = figure.ops.iter().map(row).collect();
        told += &format!("\n{}\n", figure.name());
        told += &table(&["op", "calls", "ms", "% of the stage", "Gop/s"], &rows);
    }
    told
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

/// The limit that products with most of these weights meet.
fn limit_of(source: &ModelSource, programs: &[&Program]) -> Bare {
    let (mut blocks, mut floats) = (0, 0);
    for info in programs.iter().flat_map(|p| p.weights()).filter_map(|w| source.weights.info(&w.name)) {
        let elements = info.shape.elements().unwrap_or(0);
        *if info.dtype.is_block() { &mut blocks } else { &mut floats } += elements;
    }
    if blocks > floats { Bare::Int8 } else { Bare::F32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_the_median_of_its_rounds_and_of_its_shares() {
        let mut figure = Figure {
            stage: "decode",
            depth: 512,
            tokens: 4,
            ms: vec![],
            operations: 0,
            bytes: 0,
            limit: "memory read",
            shares: vec![],
            ops: vec![],
        };
        for (ms, share) in [(100.0, 0.4), (50.0, 0.5), (80.0, 0.3)] {
            figure.add(Took { ms, operations: 2_000_000_000, bytes: 400_000_000 }, Some(share));
        }
        assert_eq!(figure.row(), ["decode at 512", "20.0", "50.0", "25.0", "5.0", "40", "memory read"]);
    }

    #[test]
    fn orders_are_read_and_others_refused() {
        let order = |text: &str| serde_json::from_str::<Order>(text);
        assert_eq!(order(r#"{"do": "decode", "tokens": 3}"#).unwrap(), Order::Decode { tokens: 3 });
        let sustain = order(r#"{"do": "sustain", "limit": "memory read", "ms": 9}"#).unwrap();
        assert_eq!(sustain, Order::Sustain { limit: Bare::Read, ms: 9.0 });
        assert!(order(r#"{"do": "sustain", "limit": "int9", "ms": 9}"#).is_err());
        assert_eq!(order(r#"{"do": "encode"}"#).unwrap(), Order::Encode);
        assert!(order(r#"{"do": "decode"}"#).is_err());
        assert!(order(r#"{"do": "sleep"}"#).is_err());
    }
}
