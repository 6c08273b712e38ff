//! A quality floor: the fewest bytes at which the logits stay close to the original's.

use crate::{
    Calibration, Choice, OnStep, PackError, Sensitivities,
    calibrate::{Base, divergence, logits},
    flow::{Flowing, Rows, bare_programs, flow, walked},
    piece::Packing,
    plan::places,
};
use margay::{ModelSource, PromptInputs};
use margay_file::TensorInfo;
use margay_graph::{BackendError, Program, WeightSource};
use margay_quant::{
    Rounding,
    methods::{imatrix::Imatrix, rtn::Rtn},
};
use margay_reference::{Visit, Walker};
use margay_tensor::Tensor;
use std::{collections::BTreeMap, ops::ControlFlow};

/// Halvings of the way between the smallest and the largest size.
const TRIALS: usize = 8;

/// A choice and what it was measured to cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Floored {
    /// The formats.
    pub choice: Choice,
    /// Mean Kullback-Leibler divergence of its logits from the original's, nats, over the questions' text tokens.
    pub kl: f64,
    /// Every size that was tried, and its divergence.
    pub tried: Vec<(u64, f64)>,
}

/// The smallest choice whose mean divergence is at most `most` nats, found by halving; each size that is tried is
/// measured by a walk over the questions.
///
/// # Errors
/// [`PackError::Floor`] where even the largest formats diverge more.
pub fn keep_below(
    source: &ModelSource,
    calibration: &Calibration,
    sensitivities: &Sensitivities,
    prompts: &[PromptInputs],
    most: f64,
    on_step: OnStep<'_>,
) -> Result<Floored, PackError> {
    let expected = logits(source, prompts, &mut *on_step)?;
    let vocabulary = source.config.text.vocabulary.max(1);
    let mut measure = |choice: &Choice| -> Result<f64, PackError> {
        let programs = bare_programs(source)?;
        let mut probe = Probe {
            base: Base::new(source, &walked(&programs, prompts), &mut *on_step),
            choice,
            calibration,
        };
        let got = flow(source, &programs, prompts, true, &mut probe)?;
        let rows = expected.iter().zip(&got).flat_map(|(a, b)| {
            a.chunks_exact(vocabulary).zip(b.chunks_exact(vocabulary)).map(|(a, b)| divergence(a, b))
        });
        let (sum, count) = rows.fold((0.0, 0usize), |(sum, count), kl| (sum + kl, count + 1));
        Ok(sum / count.max(1) as f64)
    };
    let largest: u64 = sensitivities.weights.iter().filter_map(|w| Some(w.at.last()?.1)).sum();
    let (mut low, mut high) = (sensitivities.least_bytes(), sensitivities.other_bytes + largest);
    let mut tried = vec![];
    let choice = sensitivities.fit(high)?;
    let kl = measure(&choice)?;
    tried.push((choice.bytes, kl));
    if kl > most {
        return Err(PackError::Floor { most, got: kl });
    }
    let mut best = (choice, kl);
    for _ in 0..TRIALS {
        if high <= low {
            break;
        }
        let choice = sensitivities.fit(low + (high - low) / 2)?;
        let kl = measure(&choice)?;
        tried.push((choice.bytes, kl));
        if kl <= most {
            high = choice.bytes.saturating_sub(1);
            best = (choice, kl);
        } else {
            low = low + (high - low) / 2 + 1;
        }
    }
    Ok(Floored { choice: best.0, kl: best.1, tried })
}

/// The model with a choice's formats, each weight packed when it is asked for.
struct Probe<'a> {
    base: Base<'a>,
    choice: &'a Choice,
    calibration: &'a Calibration,
}

impl Probe<'_> {
    fn packed(&self, name: &str, tensor: &Tensor) -> Result<Option<Tensor>, PackError> {
        let program = self.base.program.as_ref().expect("invariant: begun");
        let all: BTreeMap<String, _> =
            places(program).into_iter().map(|(s, place)| (s.name, place)).collect();
        let Some(place) = all.get(name) else { return Ok(None) };
        let dtype = self.choice.recipe.format(name, place);
        if !dtype.is_block() {
            return Ok(None);
        }
        let info = TensorInfo { dtype, shape: tensor.shape().clone() };
        let input = self.calibration.input(name)?.filter(|input| input.tokens() > 0);
        let rounding: &dyn Rounding = if input.is_some() { &Imatrix } else { &Rtn };
        let packing = Packing {
            name,
            tensor,
            info: &info,
            fold: None,
            without: &[],
            rounding,
            input: input.as_ref(),
            threads: margay::default_threads(),
        };
        packing.tensor(&mut |_| ControlFlow::Continue(())).map(Some)
    }
}

impl WeightSource for Probe<'_> {
    fn weight(&self, name: &str) -> Result<Tensor, BackendError> {
        let tensor = self.base.weight(name)?;
        let packed = self.packed(name, &tensor);
        let packed =
            packed.map_err(|e| BackendError::Weight { name: name.to_owned(), what: e.to_string() })?;
        Ok(packed.unwrap_or(tensor))
    }
}

impl Walker for Probe<'_> {
    type Error = PackError;

    fn node(&mut self, visit: &Visit<'_>) -> Result<(), PackError> {
        self.base.step(visit)
    }
}

impl Flowing for Probe<'_> {
    fn begin(&mut self, program: &Program, rows: Rows) {
        self.base.begin(program, rows);
    }
}
