//! How much errors at each token matter, from a backward pass of the answers' own loss.
//!
//! Source: MBQ (arXiv 2412.19509) for the ratio of visual to text tokens, VLMQ (arXiv 2508.03351) for the weight of each
//! token. Both take gradients at the outputs of layers; VLMQ's are of a layer's own error, these of the answer.

use crate::{OnStep, PackError, backward::backward, calibrate::multiplied};
use margay::{ModelSource, PromptInputs};
use margay_graph::{Op, Role, ValueId};
use margay_model::ModelPrograms;
use margay_quant::methods::vlmq::token_importance;
use std::{collections::BTreeMap, iter::zip};

/// How the norm of a gradient becomes a weight: in proportion, and no token counts less than a tenth of the mean.
const POWER: f32 = 1.0;
const FLOOR: f32 = 0.1;

/// How much errors in the output of each linear layer of the decoder matter.
#[derive(Clone, Debug, Default)]
pub(crate) struct Importance(BTreeMap<String, Known>);

/// Of one layer.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    /// Mean gradient at visual tokens over that at tokens of the answer, where its block writes to the stream.
    pub(crate) visual_weight: f32,
    /// Of each question, how much each row matters; mean 1 over all of them.
    pub(crate) rows: Vec<Vec<f32>>,
}

impl Known {
    /// Of rows that are kept evenly spread, `keep` of `total`, how much each matters.
    pub(crate) fn sample(&self, total: usize, keep: usize) -> Vec<f32> {
        let all = self.rows.concat();
        (0..keep).map(|at| all.get(at * total / keep.max(1)).copied().unwrap_or(1.0)).collect()
    }
}

impl Importance {
    pub(crate) fn of(&self, weight: &str) -> Option<&Known> {
        self.0.get(weight)
    }

    /// # Errors
    /// [`PackError::TooLarge`] where the model does not fit a backward pass.
    pub(crate) fn find(
        source: &ModelSource,
        programs: &ModelPrograms,
        prompts: &[PromptInputs],
        on_step: OnStep<'_>,
    ) -> Result<Self, PackError> {
        let text = &programs.text;
        let mut linears: Vec<(String, Role, ValueId)> = vec![];
        for node in text.nodes().iter().filter(|node| matches!(node.op, Op::Linear(_))) {
            let specs = multiplied(&node.op).into_iter().map(|id| text.weight(id));
            linears.extend(specs.map(|spec| (spec.name.clone(), spec.role, node.output)));
        }
        let values: Vec<ValueId> = linears.iter().map(|(_, _, value)| *value).collect();
        // Of each layer: sums of |g| and counts of tokens that answer and visual ones, and the norm of each row of each
        // question.
        let mut sums = vec![[(0f64, 0usize); 2]; linears.len()];
        let mut norms: Vec<Vec<Vec<f32>>> = vec![vec![]; linears.len()];
        backward(source, programs, prompts, 1, on_step, &mut |asked| {
            let prompt = asked.prompt;
            for (at, gradient) in asked.by_values(&values)?.iter().enumerate() {
                let columns = text.value(values[at]).columns();
                let of_tokens = gradient.len() / columns == prompt.ids.len();
                let mut rows = vec![];
                for (row, g) in gradient.chunks_exact(columns).enumerate() {
                    let visual = of_tokens && prompt.ids[row] < 0;
                    if visual || !of_tokens || answers(prompt, row) {
                        let kind = usize::from(visual);
                        sums[at][kind].0 +=
                            g.iter().map(|x| f64::from(x.abs())).sum::<f64>() / columns as f64;
                        sums[at][kind].1 += 1;
                    }
                    rows.push(g.iter().map(|x| x * x).sum::<f32>().sqrt());
                }
                norms[at].push(rows);
            }
            Ok(())
        })?;
        let mean = |(sum, count): (f64, usize)| if count == 0 { 0.0 } else { sum / count as f64 };
        let ratio = |sums: &[(f64, usize); 2]| {
            let (text, visual) = (mean(sums[0]), mean(sums[1]));
            if text > 0.0 && sums[1].1 > 0 { (visual / text) as f32 } else { 1.0 }
        };
        let mut of_role: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
        for ((_, role, _), sums) in zip(&linears, &sums) {
            of_role.entry(role.name()).or_default().push(ratio(sums));
        }
        let mut layer: BTreeMap<&str, usize> = BTreeMap::new();
        let known = zip(&linears, zip(&sums, &norms)).map(|((name, role, _), (sums, norms))| {
            let at = layer.entry(role.name()).or_default();
            let ratios = of_role.get(writer(*role).name()).or_else(|| of_role.get(role.name()));
            let ratios = ratios.map_or(&[][..], Vec::as_slice);
            let own = ratios.get(*at).copied().unwrap_or_else(|| ratio(sums));
            *at += 1;
            // Nobody reads visual tokens behind the last layer, and a weight of 0 would give its columns away: as MBQ,
            // none counts less than the median of its kind.
            let visual_weight = own.max(median(ratios));
            (name.clone(), Known { visual_weight, rows: weights_of(norms) })
        });
        Ok(Importance(known.collect()))
    }
}

/// What the layers of a block write their result to the stream with: MBQ looks at its gradients for all of them.
fn writer(role: Role) -> Role {
    match role {
        Role::AttentionQ | Role::AttentionK | Role::AttentionV | Role::AttentionOut => Role::AttentionOut,
        Role::FfnGate | Role::FfnUp | Role::FfnDown => Role::FfnDown,
        other => other,
    }
}

fn median(values: &[f32]) -> f32 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f32::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// Whether the logits of that row of a question say a token of its answer; of a text without an answer, any does.
fn answers(prompt: &PromptInputs, row: usize) -> bool {
    prompt.ids[row] >= 0 && (prompt.ids.len() == prompt.prompt_tokens || row + 1 >= prompt.prompt_tokens)
}

/// Norms of gradients, of each question, as weights of mean 1 over all of them.
fn weights_of(norms: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let weights = token_importance(&norms.concat(), POWER, FLOOR);
    let mut weights = weights.into_iter();
    norms.iter().map(|rows| weights.by_ref().take(rows.len()).collect()).collect()
}
