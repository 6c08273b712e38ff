//! What the answers' own loss changes to first order where a weight, or a part, of the decoder goes.
//!
//! Source: Molchanov et al. (arXiv 1906.10771): the square of what goes times its gradient, over batches; a batch here is
//! a question. Its root is what is given, since only the order counts.

use crate::{
    OnStep, PackError, WalkProgress,
    calibrate::{Base, OUTPUT, Plain},
    flow::{bare_programs, see, seeing},
    importance::upstream,
    quantize::quant,
};
use margay::{ModelSource, PromptInputs};
use margay_graph::InputData;
use margay_quant::{Matrix, decode_tensor, pruning::structured::taylor_scores};
use margay_reference::weight_gradients;
use std::{collections::BTreeMap, iter::zip};

/// Bytes that a backward pass may take: weights and gradients as float32, and beside them values and theirs.
const MOST_BYTES: u64 = 4 << 30;

/// The root of the mean square gradient of each number of these weights.
///
/// # Errors
/// [`PackError::TooLarge`] where the model does not fit a backward pass.
pub(super) fn of_weights(
    source: &ModelSource,
    prompts: &[PromptInputs],
    names: &[&str],
    on_step: OnStep<'_>,
) -> Result<BTreeMap<String, Vec<f32>>, PackError> {
    let mut sums: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    backward(source, prompts, names, on_step, &mut |name, gradient| {
        let sum = sums.entry(name.to_owned()).or_insert_with(|| vec![0.0; gradient.len()]);
        zip(sum, &gradient).for_each(|(sum, g)| *sum += g * g);
        Ok(())
    })?;
    sums.values_mut().for_each(|sum| roots(sum, prompts.len()));
    Ok(sums)
}

/// The same of `parts` equal runs of columns of these matrices, for all rows together.
///
/// # Errors
/// As [`of_weights`].
pub(super) fn of_parts(
    source: &ModelSource,
    prompts: &[PromptInputs],
    names: &[(&str, usize)],
    on_step: OnStep<'_>,
) -> Result<BTreeMap<String, Vec<f32>>, PackError> {
    let parts: BTreeMap<&str, usize> = names.iter().copied().collect();
    let names: Vec<&str> = parts.keys().copied().collect();
    let mut sums: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    backward(source, prompts, &names, on_step, &mut |name, gradient| {
        let fail = |e| quant(name, e);
        let tensor = source.weights.tensor(name)?;
        let values = decode_tensor(&tensor).map_err(fail)?;
        let cols = tensor.shape().row().max(1);
        let matrix = Matrix::new(&values, values.len() / cols, cols).map_err(fail)?;
        let scores = taylor_scores(matrix, &gradient, parts[name]).map_err(fail)?;
        let sum = sums.entry(name.to_owned()).or_insert_with(|| vec![0.0; scores.len()]);
        zip(sum, &scores).for_each(|(sum, score)| *sum += score * score);
        Ok(())
    })?;
    sums.values_mut().for_each(|sum| roots(sum, prompts.len()));
    Ok(sums)
}

fn roots(sums: &mut [f32], count: usize) {
    sums.iter_mut().for_each(|sum| *sum = (*sum / count.max(1) as f32).sqrt());
}

/// Takes the gradient of a weight.
type Take<'t> = &'t mut dyn FnMut(&str, Vec<f32>) -> Result<(), PackError>;

/// Hands the gradient of each weight to `take`, question by question.
fn backward(
    source: &ModelSource,
    prompts: &[PromptInputs],
    names: &[&str],
    on_step: OnStep<'_>,
    take: Take<'_>,
) -> Result<(), PackError> {
    let programs = bare_programs(source)?;
    let text = &programs.text;
    let elements: usize = text.weights().iter().filter_map(|spec| spec.shape.elements()).sum();
    let tokens = prompts.iter().map(|p| p.ids.len()).max().unwrap_or(0);
    let columns: usize = text.values().iter().map(|value| value.columns()).sum();
    // The weights, their gradients, and what is summed up of them.
    let bytes = 4 * (3 * elements as u64 + 3 * (columns as u64).saturating_mul(tokens as u64));
    if bytes > MOST_BYTES {
        return Err(PackError::TooLarge { needs: bytes, most: MOST_BYTES });
    }
    let mut plain = Plain(Base::new(source, &seeing(&programs, prompts), &mut *on_step));
    let visual = see(source, &programs, prompts, &mut plain)?;
    let weights = source.weights.for_program(text);
    for (done, (prompt, visual)) in zip(prompts, &visual).enumerate() {
        if on_step(&WalkProgress { doing: "backward pass", done, of: prompts.len() }).is_break() {
            return Err(PackError::Stopped);
        }
        let asked: Vec<i32> = zip(0.., &prompt.ids).filter(|(_, id)| **id >= 0).map(|(at, _)| at).collect();
        let all = [
            InputData::I32(&prompt.ids),
            InputData::I32(&prompt.positions),
            InputData::I32(&asked),
            InputData::F32(visual),
        ];
        let inputs = &all[..text.inputs().len()];
        let bindings = prompt.text_bindings(asked.len());
        let loss = |logits: &[f32]| upstream(prompt, &asked, logits);
        let gradients = weight_gradients(text, &weights, &bindings, inputs, OUTPUT, &loss, names)?;
        for (name, gradient) in zip(names, gradients) {
            take(name, gradient)?;
        }
    }
    Ok(())
}
