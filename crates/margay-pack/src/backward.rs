//! A backward pass of the answers' own loss over the decoder, question by question.

use crate::{
    OnStep, PackError, WalkProgress,
    calibrate::{Base, OUTPUT, Plain},
    flow::{see, seeing},
};
use margay::{ModelSource, PromptInputs};
use margay_graph::{Bindings, InputData, Program, ValueId};
use margay_model::ModelPrograms;
use margay_reference::{value_gradients, weight_gradients};
use std::iter::zip;

/// Bytes that a backward pass may take: weights as float32, and beside them values and their gradients.
const MOST_BYTES: u64 = 4 << 30;

/// A question, as the reference takes it.
pub(crate) struct Asked<'q> {
    pub(crate) prompt: &'q PromptInputs,
    source: &'q ModelSource,
    text: &'q Program,
    inputs: &'q [InputData<'q>],
    bindings: Bindings,
    /// Places of its text tokens, whose logits there are.
    places: &'q [i32],
}

impl Asked<'_> {
    /// The gradients of the loss by these values of the decoder.
    pub(crate) fn by_values(&self, values: &[ValueId]) -> Result<Vec<Vec<f32>>, PackError> {
        let (weights, loss) =
            (self.source.weights.for_program(self.text), |logits: &[f32]| self.upstream(logits));
        Ok(value_gradients(self.text, &weights, &self.bindings, self.inputs, OUTPUT, &loss, values)?)
    }

    /// The gradients of the loss by these weights of the decoder.
    pub(crate) fn by_weights(&self, names: &[&str]) -> Result<Vec<Vec<f32>>, PackError> {
        let (weights, loss) =
            (self.source.weights.for_program(self.text), |logits: &[f32]| self.upstream(logits));
        Ok(weight_gradients(self.text, &weights, &self.bindings, self.inputs, OUTPUT, &loss, names)?)
    }

    fn upstream(&self, logits: &[f32]) -> Vec<f32> {
        upstream(self.prompt, self.places, logits)
    }
}

/// Hands each question to `each`. `copies` is how many float32 copies of all weights that takes.
///
/// # Errors
/// [`PackError::TooLarge`] where the model does not fit; what a walk, or `each`, gives.
pub(crate) fn backward(
    source: &ModelSource,
    programs: &ModelPrograms,
    prompts: &[PromptInputs],
    copies: u64,
    on_step: OnStep<'_>,
    each: &mut dyn FnMut(&Asked<'_>) -> Result<(), PackError>,
) -> Result<(), PackError> {
    let text = &programs.text;
    let elements: usize = text.weights().iter().filter_map(|spec| spec.shape.elements()).sum();
    let tokens = prompts.iter().map(|p| p.ids.len()).max().unwrap_or(0);
    let columns: usize = text.values().iter().map(|value| value.columns()).sum();
    let bytes = 4 * (copies * elements as u64 + 3 * (columns as u64).saturating_mul(tokens as u64));
    if bytes > MOST_BYTES {
        return Err(PackError::TooLarge { needs: bytes, most: MOST_BYTES });
    }
    let mut plain = Plain(Base::new(source, &seeing(programs, prompts), &mut *on_step));
    let visual = see(source, programs, prompts, &mut plain)?;
    let mut tell =
        |done: usize| match on_step(&WalkProgress { doing: "backward pass", done, of: prompts.len() }) {
            flow if flow.is_break() => Err(PackError::Stopped),
            _ => Ok(()),
        };
    for (done, (prompt, visual)) in zip(prompts, &visual).enumerate() {
        tell(done)?;
        let places: Vec<i32> = zip(0.., &prompt.ids).filter(|(_, id)| **id >= 0).map(|(at, _)| at).collect();
        let all = [
            InputData::I32(&prompt.ids),
            InputData::I32(&prompt.positions),
            InputData::I32(&places),
            InputData::F32(visual),
        ];
        let (inputs, bindings) = (&all[..text.inputs().len()], prompt.text_bindings(places.len()));
        each(&Asked { prompt, source, text, inputs, bindings, places: &places })?;
    }
    tell(prompts.len())
}

/// The gradient of the mean cross-entropy of the answer (of the whole text where there is none) by the logits.
fn upstream(prompt: &PromptInputs, asked: &[i32], logits: &[f32]) -> Vec<f32> {
    let vocabulary = logits.len() / asked.len().max(1);
    let answered = prompt.ids.len() > prompt.prompt_tokens;
    let target = |at: i32| {
        let next = at as usize + 1;
        let counts = !answered || next >= prompt.prompt_tokens;
        prompt.ids.get(next).filter(|id| counts && **id >= 0).map(|id| *id as usize)
    };
    let count = asked.iter().filter(|at| target(**at).is_some()).count().max(1) as f32;
    let mut gradient = vec![0f32; logits.len()];
    for ((at, row), out) in asked
        .iter()
        .zip(logits.chunks_exact(vocabulary.max(1)))
        .zip(gradient.chunks_exact_mut(vocabulary.max(1)))
    {
        let Some(target) = target(*at) else { continue };
        let most = row.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
        let sum: f32 = row.iter().map(|x| (x - most).exp()).sum();
        for (g, x) in out.iter_mut().zip(row) {
            *g = (x - most).exp() / sum / count;
        }
        out[target] -= 1.0 / count;
    }
    gradient
}
