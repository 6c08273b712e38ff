//! What the inputs of a model's linear layers look like, over questions about pictures.

use crate::{
    Calibration, OnStep, PackError, WalkProgress,
    flow::{Flowing, LOGITS, Rows, bare_programs, flow, walked},
    importance::Importance,
};
use margay::{ModelSource, PromptInputs};
use margay_graph::{BackendError, Op, Program, ValueId, WeightId, WeightSource, WeightSpec};
use margay_quant::{Hessian, InputStats, Needs};
use margay_reference::{Visit, Walker, steps};
use margay_tensor::Tensor;
use std::{collections::BTreeMap, ops::ControlFlow};

/// How to calibrate.
#[derive(Clone, Copy, Debug)]
pub struct CalibrateOptions {
    /// Rows of each input that are kept whole.
    pub sample_rows: usize,
    /// Find out by a backward pass how much errors matter.
    pub gradients: bool,
}

impl Default for CalibrateOptions {
    fn default() -> Self {
        CalibrateOptions { sample_rows: 256, gradients: false }
    }
}

/// Walks the model over the questions, layer by layer, and keeps what each linear layer is given. The memory is that of
/// the values between two layers, of one layer's weights, and of what is kept.
///
/// # Errors
/// [`PackError`]; of [`CalibrateOptions::gradients`] also [`PackError::TooLarge`].
pub fn calibrate(
    source: &ModelSource,
    prompts: &[PromptInputs],
    made_from: &str,
    options: &CalibrateOptions,
    on_step: OnStep<'_>,
) -> Result<Calibration, PackError> {
    let programs = bare_programs(source)?;
    let importance = match options.gradients {
        true => Some(Importance::find(source, &programs, prompts, on_step)?),
        false => None,
    };
    let mut collector = Collector {
        base: Base::new(source, &walked(&programs, prompts), on_step),
        found: Calibration::new(source, made_from.to_owned())?,
        options: *options,
        importance: importance.as_ref(),
        seen: BTreeMap::new(),
    };
    flow(source, &programs, prompts, false, &mut collector)?;
    Ok(collector.found)
}

/// Logits of the text tokens of each question, [rows, vocabulary], by the weights as they are stored.
///
/// # Errors
/// [`PackError`].
pub fn logits(
    source: &ModelSource,
    prompts: &[PromptInputs],
    on_step: OnStep<'_>,
) -> Result<Vec<Vec<f32>>, PackError> {
    let programs = bare_programs(source)?;
    flow(
        source,
        &programs,
        prompts,
        true,
        &mut Plain(Base::new(source, &walked(&programs, prompts), on_step)),
    )
}

/// What every walker over a model has: its weights, where it is, and whom it tells.
pub(crate) struct Base<'a> {
    pub(crate) source: &'a ModelSource,
    specs: BTreeMap<String, WeightSpec>,
    on_step: OnStep<'a>,
    done: usize,
    of: usize,
    /// The program that is walked.
    pub(crate) program: Option<Program>,
    pub(crate) rows: Option<Rows>,
}

impl<'a> Base<'a> {
    /// Of a walk over these programs.
    pub(crate) fn new(source: &'a ModelSource, programs: &[&Program], on_step: OnStep<'a>) -> Self {
        let specs = programs.iter().flat_map(|p| p.weights()).map(|spec| (spec.name.clone(), spec.clone()));
        Base {
            source,
            specs: specs.collect(),
            on_step,
            done: 0,
            of: programs.iter().map(|p| steps(p)).sum(),
            program: None,
            rows: None,
        }
    }

    pub(crate) fn begin(&mut self, program: &Program, rows: Rows) {
        (self.program, self.rows) = (Some(program.clone()), Some(rows));
    }

    pub(crate) fn step(&mut self, visit: &Visit<'_>) -> Result<(), PackError> {
        self.done += 1;
        let program = self.program.as_ref();
        let weight = visit.node().op.weights().first().and_then(|id| Some(&program?.weight(*id).name));
        let doing = weight.map_or_else(|| visit.node().op.name(), String::as_str);
        match (self.on_step)(&WalkProgress { doing, done: self.done, of: self.of }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(PackError::Stopped),
        }
    }

    pub(crate) fn name(&self, weight: WeightId) -> &str {
        &self.program.as_ref().expect("invariant: begun").weight(weight).name
    }

    pub(crate) fn weight(&self, name: &str) -> Result<Tensor, BackendError> {
        let bad = |what: String| BackendError::Weight { name: name.to_owned(), what };
        let spec = self.specs.get(name).ok_or_else(|| bad("no program declares it".into()))?;
        self.source.weights.declared(spec).map_err(|e| bad(e.to_string()))
    }

    /// What the node is given as its first input, of all samples. `weigh` says how much
    /// the rows of a sample, so many, matter.
    pub(crate) fn gather(
        &self,
        visit: &Visit<'_>,
        needs: Needs,
        sample_rows: usize,
        weigh: &dyn Fn(usize, usize) -> Option<Vec<f32>>,
    ) -> Result<InputStats, PackError> {
        let program = self.program.as_ref().expect("invariant: begun");
        let value = program.value(visit.node().inputs[0]);
        let columns = value.columns();
        let mut stats = InputStats::new(columns);
        stats.hessian = needs.hessian.then(|| Hessian::by(columns, margay::default_threads()));
        let counts: Vec<usize> = (0..visit.samples()).map(|s| visit.rows(s, 0)).collect();
        let total: usize = counts.iter().sum();
        let keep = sample_rows.min(total);
        let (mut first, mut picked) = (0, 0);
        for (sample, &count) in counts.iter().enumerate() {
            let values = visit.input(sample, 0)?;
            let rows = self.rows.as_ref().expect("invariant: begun");
            let visual = rows.visual(sample, value, count);
            let weights = weigh(sample, count).filter(|weights| weights.len() == count);
            let name = || visit.node().op.weights().first().map_or("?", |id| self.name(*id)).to_owned();
            let fail = |source| PackError::Input { name: name(), source };
            stats.add_weighted(&values, &visual, weights.as_deref()).map_err(fail)?;
            // Evenly spread over all rows of all samples, so that each kind of token has its share.
            while picked < keep && picked * total / keep < first + count {
                let row = picked * total / keep - first;
                let weight = weights.as_ref().map(|weights| &weights[row..=row]);
                stats.keep(&values[row * columns..][..columns], &visual[row..=row], weight).map_err(fail)?;
                picked += 1;
            }
            first += count;
        }
        Ok(stats)
    }
}

/// Goes along and changes nothing.
pub(crate) struct Plain<'a>(pub(crate) Base<'a>);

impl WeightSource for Plain<'_> {
    fn weight(&self, name: &str) -> Result<Tensor, BackendError> {
        self.0.weight(name)
    }
}

impl Walker for Plain<'_> {
    type Error = PackError;

    fn node(&mut self, visit: &Visit<'_>) -> Result<(), PackError> {
        self.0.step(visit)
    }
}

impl Flowing for Plain<'_> {
    fn begin(&mut self, program: &Program, rows: Rows) {
        self.0.begin(program, rows);
    }
}

/// Keeps what each linear layer is given.
struct Collector<'a> {
    base: Base<'a>,
    found: Calibration,
    options: CalibrateOptions,
    importance: Option<&'a Importance>,
    /// Of this program, what is kept already: by value, the name it is kept under.
    seen: BTreeMap<ValueId, String>,
}

impl WeightSource for Collector<'_> {
    fn weight(&self, name: &str) -> Result<Tensor, BackendError> {
        self.base.weight(name)
    }
}

impl Walker for Collector<'_> {
    type Error = PackError;

    fn node(&mut self, visit: &Visit<'_>) -> Result<(), PackError> {
        self.base.step(visit)?;
        for weight in multiplied(&visit.node().op) {
            let (name, value) = (self.base.name(weight).to_owned(), visit.node().inputs[0]);
            if !self.seen.contains_key(&value) {
                let stats =
                    self.base.gather(visit, Needs::default(), self.options.sample_rows, &|_, _| None)?;
                self.found.insert(&name, &stats)?;
                self.seen.insert(value, name.clone());
            }
            let input = self.seen[&value].clone();
            let total: usize = (0..visit.samples()).map(|s| visit.rows(s, 0)).sum();
            let known = self.importance.and_then(|i| i.of(&name));
            let kept = known.map(|known| known.sample(total, self.options.sample_rows.min(total)));
            let visual_weight = known.map_or(1.0, |known| known.visual_weight);
            self.found.read_by(&name, &input, visual_weight, kept.as_deref());
        }
        Ok(())
    }
}

impl Flowing for Collector<'_> {
    fn begin(&mut self, program: &Program, rows: Rows) {
        self.seen.clear();
        self.base.begin(program, rows);
    }
}

/// Weights that the node multiplies its first input with.
pub(crate) fn multiplied(op: &Op) -> Vec<WeightId> {
    match op {
        Op::Linear(linear) => vec![linear.weight],
        Op::Experts(experts) => vec![experts.gate, experts.up],
        _ => vec![],
    }
}

/// Kullback-Leibler divergence of two rows of logits, in nats.
pub(crate) fn divergence(expected: &[f32], got: &[f32]) -> f64 {
    let log_sum = |row: &[f32]| {
        let most = row.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
        f64::from(most) + row.iter().map(|x| f64::from(x - most).exp()).sum::<f64>().ln()
    };
    let (p, q) = (log_sum(expected), log_sum(got));
    let term = |(a, b): (&f32, &f32)| {
        let (a, b) = (f64::from(*a) - p, f64::from(*b) - q);
        a.exp() * (a - b)
    };
    expected.iter().zip(got).map(term).sum::<f64>().max(0.0)
}

/// Name of the output that [`logits`] gives.
pub(crate) const OUTPUT: &str = LOGITS;
