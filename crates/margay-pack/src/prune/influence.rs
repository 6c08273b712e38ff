//! How much each layer of the decoder changes what passes through it.

use crate::{
    OnStep, PackError,
    calibrate::Base,
    flow::{Flowing, Rows, flow, walked},
    quantize::quant,
};
use margay::{ModelSource, PromptInputs};
use margay_graph::{BackendError, Program, Stage, ValueId, WeightSource};
use margay_model::ModelPrograms;
use margay_quant::pruning::structured::layer_influence;
use margay_reference::{Visit, Walker};
use margay_tensor::Tensor;
use std::collections::BTreeMap;

/// The block influence of each layer over all tokens of the questions. Two hidden states are in memory at a time.
///
/// # Errors
/// [`PackError`] as a walk gives it.
pub(super) fn of_layers(
    source: &ModelSource,
    programs: &ModelPrograms,
    prompts: &[PromptInputs],
    on_step: OnStep<'_>,
) -> Result<Vec<f32>, PackError> {
    let layers = source.config.text.layers;
    let hidden =
        (0..=layers).filter_map(|at| Some((programs.text.output(&format!("hidden.{at}"))?, at))).collect();
    let mut watcher = Watcher {
        base: Base::new(source, &walked(programs, prompts), on_step),
        hidden,
        before: None,
        sums: vec![(0.0, 0); layers],
    };
    flow(source, programs, prompts, false, &mut watcher)?;
    Ok(watcher.sums.iter().map(|(sum, tokens)| (sum / (*tokens).max(1) as f64) as f32).collect())
}

struct Watcher<'a> {
    base: Base<'a>,
    /// Which hidden state a value is.
    hidden: BTreeMap<ValueId, usize>,
    /// The last one that came by, of each question.
    before: Option<(usize, Vec<Vec<f32>>)>,
    /// Influence times tokens, and tokens, of each layer.
    sums: Vec<(f64, usize)>,
}

impl WeightSource for Watcher<'_> {
    fn weight(&self, name: &str) -> Result<Tensor, BackendError> {
        self.base.weight(name)
    }
}

impl Walker for Watcher<'_> {
    type Error = PackError;

    fn node(&mut self, visit: &Visit<'_>) -> Result<(), PackError> {
        self.base.step(visit)?;
        let program = self.base.program.as_ref().filter(|program| program.stage() == Stage::Text);
        let Some(program) = program else { return Ok(()) };
        for (input, value) in visit.node().inputs.iter().enumerate() {
            let Some(&at) = self.hidden.get(value) else { continue };
            if self.before.as_ref().is_some_and(|(before, _)| *before == at) {
                continue;
            }
            let width = program.value(*value).columns();
            let states = (0..visit.samples())
                .map(|s| visit.input(s, input))
                .collect::<Result<Vec<_>, BackendError>>()?;
            if let Some((_, before)) = self.before.take().filter(|(before, _)| before + 1 == at) {
                for (before, after) in before.iter().zip(&states) {
                    let influence = layer_influence(before, after, width);
                    let influence = influence.map_err(|e| quant(&format!("layer {}", at - 1), e))?;
                    let tokens = after.len() / width.max(1);
                    let sum = &mut self.sums[at - 1];
                    *sum = (sum.0 + f64::from(influence) * tokens as f64, sum.1 + tokens);
                }
            }
            self.before = Some((at, states));
        }
        Ok(())
    }
}

impl Flowing for Watcher<'_> {
    fn begin(&mut self, program: &Program, rows: Rows) {
        self.base.begin(program, rows);
    }
}
