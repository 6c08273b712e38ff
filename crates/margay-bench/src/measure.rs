//! The whole measurement: idle, warm-up, rounds in which every engine takes its turn, and a long run where one is wanted.

use crate::{
    BenchError, CoolDown, Peer, answer,
    compare::same_question,
    digest::of_file,
    ops::by_op,
    protocol::{Cooler, before, device, idle},
    record::{Build, Engine, FORM, MARGAY, ModelId, PictureId, Question, Record, Run},
    statistics::summary,
    sustain::sustain,
    work::{Prompt, work},
};
use margay::{AskOptions, Cancel, Image, KvType, LoadOptions, Model, ModelSource};
use margay_observe::{PERIOD, Root, Timeline};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// Spread of whole answers above which a warning is given: standard deviation over mean, percent.
const MOST_SPREAD_PERCENT: f64 = 10.0;

/// What to measure and how.
pub struct Plan<'a> {
    /// Loads the model; called anew for each cold run. A model of random weights at a true shape is one more such function.
    pub load: &'a dyn Fn() -> Result<Model, margay::Error>,
    /// Files of the pictures; they are read and decoded in each run.
    pub pictures: Vec<PathBuf>,
    /// The question.
    pub prompt: String,
    /// How the model should behave.
    pub system: Option<String>,
    /// How it answers.
    pub ask: AskOptions,
    /// Rounds that count.
    pub repeat: usize,
    /// Rounds before them that do not.
    pub warmup: usize,
    /// So many of the rounds begin with loading the model anew; at least the first does.
    pub cold: usize,
    /// Time between samples.
    pub period: Duration,
    /// How long the machine is watched idle before.
    pub idle: Duration,
    /// When a round may begin.
    pub cool: CoolDown,
    /// Who else answers.
    pub peers: Vec<Peer>,
    /// Answers one after the other for so long, behind the rounds.
    pub sustain: Option<Duration>,
    /// Once it is cancelled, what is done is reported.
    pub stop: Cancel,
    /// A record that this one will be compared with: another question is an error at once.
    pub baseline: Option<&'a Record>,
    /// Is told what is going on.
    pub progress: &'a dyn Fn(&str),
    /// The model's file, for peers; `None` of the model inside the program.
    pub model_file: Option<PathBuf>,
    /// Its vision file, for peers.
    pub mmproj_file: Option<PathBuf>,
    /// Tokens of a prompt that the model is loaded to compute together.
    pub batch: usize,
    /// How it keeps keys and values.
    pub kv: KvType,
    /// Tell what each stage's time goes to, op by op, by one more pass behind the rounds.
    pub ops: bool,
    /// Threads, for peers.
    pub threads: Option<usize>,
    /// How the model is loaded and asked, by name, for the record.
    pub options: BTreeMap<String, String>,
    /// What a reader should know before believing the numbers, beside what is found.
    pub warnings: Vec<String>,
    /// Version of the program.
    pub version: String,
    /// Its executable file.
    pub executable: Option<PathBuf>,
}

impl<'a> Plan<'a> {
    /// Five rounds after one, all cold and warm, without pictures and peers.
    pub fn new(load: &'a dyn Fn() -> Result<Model, margay::Error>, prompt: impl Into<String>) -> Self {
        Plan {
            load,
            pictures: vec![],
            prompt: prompt.into(),
            system: None,
            ask: AskOptions::default(),
            repeat: 5,
            warmup: 1,
            cold: usize::MAX,
            period: PERIOD,
            idle: Duration::from_secs(2),
            cool: CoolDown::default(),
            peers: vec![],
            sustain: None,
            stop: Cancel::new(),
            baseline: None,
            progress: &|_| {},
            model_file: None,
            mmproj_file: None,
            batch: LoadOptions::default().batch,
            kv: KvType::default(),
            ops: false,
            threads: None,
            options: BTreeMap::new(),
            warnings: vec![],
            version: env!("CARGO_PKG_VERSION").to_owned(),
            executable: None,
        }
    }
}

/// What was measured.
#[derive(Debug)]
pub struct Measured {
    /// The record.
    pub record: Record,
    /// Timelines of Margay's runs, by position those of the record.
    pub timelines: Vec<Timeline>,
    /// That of the long run.
    pub sustained: Option<Timeline>,
    /// That of the pass with a look at the clock between ops, on a clock of its own.
    pub ops: Option<Timeline>,
}

/// Measures. A wish to stop is no error: what is complete is in the record, which says that it was stopped.
///
/// # Errors
/// [`BenchError::Model`] for a model, a picture or a question that cannot be used, [`BenchError::Peer`] and
/// [`BenchError::PeerFailed`], [`BenchError::Start`], [`BenchError::Different`] from the baseline's question.
pub fn measure(plan: &Plan<'_>) -> Result<Measured, BenchError> {
    let root = Root::system();
    // Whatever is wrong with what was asked for is said before anything takes its time.
    let pictures = plan.pictures.iter().map(picture).collect::<Result<Vec<_>, _>>()?;
    let question = Question { prompt: plan.prompt.clone(), pictures, max_tokens: plan.ask.max_tokens };
    if let Some(baseline) = plan.baseline {
        same_question(&baseline.question, &question)?;
    }
    let mut engines = vec![Engine { name: MARGAY.to_owned(), command: None, runs: vec![] }];
    for peer in &plan.peers {
        engines.push(Engine { name: peer.name().to_owned(), command: Some(peer.check(plan)?), runs: vec![] });
    }
    let device = device(&root);
    (plan.progress)("watching the machine idle");
    let idle = idle(plan, &root);
    let mut protocol = before(plan, &device, &idle);
    protocol.warnings.splice(0..0, plan.warnings.iter().cloned());
    let mut rounds = Rounds {
        plan,
        idle_watts: protocol.idle_watts,
        held: None,
        source: None,
        prompt: None,
        prompt_tokens: None,
        stopped: false,
    };
    let mut cooler = Cooler::new(&root, plan.cool, protocol.start_celsius);
    let mut timelines = Vec::new();
    for round in 0..plan.warmup + plan.repeat {
        let counted = round.checked_sub(plan.warmup);
        let name = match counted {
            Some(round) => format!("round {} of {}", round + 1, plan.repeat),
            None => format!("warm-up {} of {}", round + 1, plan.warmup),
        };
        if round > 0 {
            (plan.progress)(&format!("{name}: cooling down"));
            cooler.wait(&root, || plan.stop.is_cancelled());
        }
        rounds.run(counted, &name, &mut engines, &mut timelines)?;
        if rounds.stopped {
            break;
        }
    }
    (protocol.cool_down, protocol.cooled_seconds) = cooler.told();
    let (mut sustained, mut long) = (None, None);
    if let Some(planned) = plan.sustain.filter(|_| !rounds.stopped) {
        let model = match rounds.held.take() {
            Some(model) => model,
            None => (plan.load)()?,
        };
        (sustained, long) = sustain(plan, &model, planned)?.unzip();
        rounds.held = Some(model);
    }
    let (mut ops, mut each_op) = (vec![], None);
    if plan.ops && !rounds.stopped && !plan.stop.is_cancelled() {
        (plan.progress)("op by op");
        let model = match rounds.held.take() {
            Some(model) => model,
            None => (plan.load)()?,
        };
        // What was measured is not lost to what a backend does not tell.
        match by_op(plan, &model, rounds.prompt.as_ref()) {
            Ok((told, timeline)) => (ops, each_op) = (told, Some(timeline)),
            Err(e) => protocol.warnings.push(format!("ops are unknown: {e}")),
        }
    }
    protocol.warnings.extend(after(&engines, plan));
    let stopped = plan.stop.is_cancelled();
    (plan.progress)("digests");
    let model = rounds.source.as_ref().map(model_id).unwrap_or_default();
    let decoded = engines[0].runs.iter().find_map(|run| run.decode_tokens);
    let seen = rounds.prompt_tokens;
    let counted = match (&rounds.source, &rounds.prompt, decoded) {
        (_, Some(prompt), _) if seen.is_some_and(|seen| seen != prompt.tokens()) => {
            let what = "the work of the stages is not counted: visual tokens are left out";
            protocol.warnings.push(what.to_owned());
            vec![]
        }
        (Some(source), Some(prompt), Some(decoded)) => {
            let counted = work(source, prompt, plan.kv, decoded);
            counted.unwrap_or_else(|e| {
                protocol.warnings.push(format!("the work of the stages is not counted: {e}"));
                vec![]
            })
        }
        _ => vec![],
    };
    let record = Record {
        form: FORM.to_owned(),
        device,
        build: Build {
            version: plan.version.clone(),
            executable_sha256: plan.executable.as_deref().and_then(of_file),
            debug_assertions: cfg!(debug_assertions),
        },
        model,
        question,
        options: plan.options.clone(),
        protocol,
        engines,
        work: counted,
        ops,
        sustained,
        stopped,
    };
    let title =
        format!("{} on {}", record.model.name, record.device.cpu.as_deref().unwrap_or("unknown machine"));
    timelines
        .iter_mut()
        .chain(&mut long)
        .for_each(|timeline: &mut Timeline| timeline.title.clone_from(&title));
    Ok(Measured { record, timelines, sustained: long, ops: each_op })
}

struct Rounds<'p> {
    plan: &'p Plan<'p>,
    idle_watts: Option<f64>,
    held: Option<Model>,
    source: Option<ModelSource>,
    prompt: Option<Prompt>,
    /// As Margay computed it.
    prompt_tokens: Option<usize>,
    stopped: bool,
}

impl Rounds<'_> {
    /// Every engine once; every other round the peers go first, so that no one always follows the same.
    fn run(
        &mut self,
        counted: Option<usize>,
        name: &str,
        engines: &mut [Engine],
        timelines: &mut Vec<Timeline>,
    ) -> Result<(), BenchError> {
        let mut order: Vec<usize> = (0..engines.len()).collect();
        if counted.is_some_and(|round| round % 2 == 1) {
            order.rotate_left(1);
        }
        let round = counted.unwrap_or(0);
        let cold = counted.is_none_or(|round| round == 0 || round < self.plan.cold);
        if cold {
            self.held = None;
        }
        for at in order {
            if self.plan.stop.is_cancelled() {
                self.stopped = true;
                return Ok(());
            }
            let engine = &mut engines[at];
            (self.plan.progress)(&format!("{name}: {}", engine.name));
            let Some(peer) = at.checked_sub(1).and_then(|at| self.plan.peers.get(at)) else {
                self.margay(round, counted.is_some(), cold, engine, timelines)?;
                if counted.is_none_or(|round| round + 1 < self.plan.cold) {
                    // The next round loads it anew; until then it is in nobody's way.
                    self.held = None;
                }
                continue;
            };
            match peer.run(self.plan, self.idle_watts, (round, self.prompt_tokens))? {
                Some((run, _)) if counted.is_some() => engine.runs.push(run),
                Some(_) => {}
                None => self.stopped = true,
            }
        }
        Ok(())
    }

    /// A cold answer, where the round begins with one, and a warm one.
    fn margay(
        &mut self,
        round: usize,
        counts: bool,
        cold: bool,
        engine: &mut Engine,
        timelines: &mut Vec<Timeline>,
    ) -> Result<(), BenchError> {
        for _ in 0..1 + usize::from(cold) {
            let mut answered = answer::answer(self.plan, self.idle_watts, round, &mut self.held)?;
            if let (None, Some(model)) = (&self.source, &self.held) {
                self.source = Some(model.source().clone());
                self.prompt = prompt(self.plan, model)?;
            }
            self.prompt_tokens = answered.run.prompt_tokens.or(self.prompt_tokens);
            // Where visual tokens are left out the prompt is another.
            let whole =
                |prompt: &&Prompt| answered.run.prompt_tokens.is_none_or(|tokens| tokens == prompt.tokens());
            if let Some(prompt) = self.prompt.as_ref().filter(whole) {
                answered.tell_parts(&prompt.parts());
            }
            if answered.cancelled {
                self.stopped = true;
                return Ok(());
            }
            if counts {
                engine.runs.push(answered.run);
                timelines.push(answered.timeline);
            }
        }
        Ok(())
    }
}

/// The question as the text program is given it; `None` where a system's words come before it, or where layers of the program
/// are given different tokens.
fn prompt(plan: &Plan<'_>, model: &Model) -> Result<Option<Prompt>, BenchError> {
    if plan.system.is_some() || model.prunes() || model.keeps_prefixes() {
        return Ok(None);
    }
    let images = plan.pictures.iter().map(Image::open).collect::<Result<Vec<_>, _>>()?;
    Ok(Some(Prompt::new(model, &images, &plan.prompt, (plan.batch, plan.ask.pictures_apart))?))
}

/// What the runs themselves say against them.
fn after(engines: &[Engine], plan: &Plan<'_>) -> Vec<String> {
    let mut warnings = Vec::new();
    for engine in engines {
        let warm = |run: &&Run| engine.command.is_some() || run.begin == crate::record::Begin::Warm;
        let whole = |run: &Run| run.without_load_ms.or(run.with_load_ms);
        let times: Vec<f64> = engine.runs.iter().filter(warm).filter_map(whole).collect();
        if let Some((deviation, figures)) = summary(&times).and_then(|s| Some((s.deviation?, s)))
            && 100.0 * deviation > MOST_SPREAD_PERCENT * figures.mean
        {
            let percent = 100.0 * deviation / figures.mean;
            warnings.push(format!(
                "whole answers of {} vary by {percent:.0} % (deviation over mean)",
                engine.name
            ));
        }
        let mut texts: Vec<&String> = engine.runs.iter().filter_map(|run| run.text.as_ref()).collect();
        texts.sort();
        texts.dedup();
        if texts.len() > 1 {
            warnings.push(format!(
                "{} gave {} different answers: times are not of one thing",
                engine.name,
                texts.len()
            ));
        }
    }
    if plan.repeat < 4 {
        warnings.push("fewer than 4 rounds: `margay bench compare` cannot show a difference".to_owned());
    }
    warnings
}

fn picture(path: &PathBuf) -> Result<PictureId, BenchError> {
    let image = Image::open(path)?;
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Ok(PictureId { name, width: image.width(), height: image.height(), sha256: of_file(path) })
}

fn model_id(source: &ModelSource) -> ModelId {
    let sizes = source.weights.names().map(|name| source.weights.info(name)?.size_bytes().ok());
    let bytes: Option<Vec<usize>> = sizes.collect();
    ModelId {
        name: source.config.name.clone(),
        family: source.config.family.to_string(),
        // It reads the whole model, so it comes behind what is measured.
        weights_sha256: margay::model_digest(source).ok(),
        weights_bytes: bytes.map(|bytes| bytes.iter().map(|bytes| *bytes as u64).sum()),
    }
}
