//! What the answers' own loss changes to first order where a weight, or a part, of the decoder goes.
//!
//! Source: Molchanov et al. (arXiv 1906.10771): the square of what goes times its gradient, over batches; a batch here is
//! a question. Its root is what is given, since only the order counts.

use crate::{OnStep, PackError, backward::backward, flow::bare_programs, quantize::quant};
use margay::{ModelSource, PromptInputs};
use margay_quant::{Matrix, decode_tensor, pruning::structured::taylor_scores};
use std::{collections::BTreeMap, iter::zip};

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
    backward(source, &bare_programs(source)?, prompts, COPIES, on_step, &mut |asked| {
        for (name, gradient) in zip(names, asked.by_weights(names)?) {
            let sum = sums.entry((*name).to_owned()).or_insert_with(|| vec![0.0; gradient.len()]);
            zip(sum, &gradient).for_each(|(sum, g)| *sum += g * g);
        }
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
    backward(source, &bare_programs(source)?, prompts, COPIES, on_step, &mut |asked| {
        for (name, gradient) in zip(&names, asked.by_weights(&names)?) {
            let fail = |e| quant(name, e);
            let tensor = source.weights.tensor(name)?;
            let values = decode_tensor(&tensor).map_err(fail)?;
            let cols = tensor.shape().row().max(1);
            let matrix = Matrix::new(&values, values.len() / cols, cols).map_err(fail)?;
            let scores = taylor_scores(matrix, &gradient, parts[name]).map_err(fail)?;
            let sum = sums.entry((*name).to_owned()).or_insert_with(|| vec![0.0; scores.len()]);
            zip(sum, &scores).for_each(|(sum, score)| *sum += score * score);
        }
        Ok(())
    })?;
    sums.values_mut().for_each(|sum| roots(sum, prompts.len()));
    Ok(sums)
}

fn roots(sums: &mut [f32], count: usize) {
    sums.iter_mut().for_each(|sum| *sum = (*sum / count.max(1) as f32).sqrt());
}

/// Copies of all weights as float32: they, their gradients, and what is summed up of them.
const COPIES: u64 = 3;
