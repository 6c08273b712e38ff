//! Mixtures of experts.

use super::{OpResult, elementwise::activation};
use crate::run::Context;
use candle_core::{D, Device, Tensor};
use margay_graph::{Experts, Route, WeightId};

/// The softmax of each row, of which the greatest stay.
pub(super) fn route(logits: &Tensor, route: Route) -> OpResult {
    let (rows, experts) = logits.dims2()?;
    let values = logits.flatten_all()?.to_vec1::<f32>()?;
    let mut kept = vec![0f32; values.len()];
    for (row, kept) in values.chunks(experts).zip(kept.chunks_mut(experts)) {
        let mut order: Vec<usize> = (0..experts).collect();
        // Stable: of equals the first stay.
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        order[..route.used].iter().for_each(|n| kept[*n] = 1.0);
    }
    let kept = Tensor::from_vec(kept, (rows, experts), &Device::Cpu)?;
    let greatest = logits.max_keepdim(D::Minus1)?.detach();
    let power = logits.broadcast_sub(&greatest)?.exp()?;
    let stay = (&power * &kept)?;
    let whole = if route.normalised { &stay } else { &power };
    Ok(stay.broadcast_div(&whole.sum_keepdim(D::Minus1)?)?)
}

/// The sum over the experts of what each makes of the rows, times its share.
pub(super) fn experts(context: &Context<'_>, e: &Experts) -> OpResult {
    let (x, shares) = (context.tensor(0)?, context.tensor(1)?);
    let mut sum = x.zeros_like()?;
    for n in 0..shares.dim(1)? {
        let share = shares.narrow(1, n, 1)?; // [R, 1]
        if share.flatten_all()?.to_vec1::<f32>()?.iter().all(|s| *s == 0.0) {
            continue;
        }
        let product = |x: &Tensor, weight: WeightId| {
            let matrix = context.weights.get(weight).narrow(0, n, 1)?.squeeze(0)?;
            x.matmul(&matrix.t()?)
        };
        let hidden = (activation(&product(x, e.gate)?, e.activation)? * product(x, e.up)?)?; // [R, F]
        sum = (sum + product(&hidden, e.down)?.broadcast_mul(&share)?)?;
    }
    Ok(sum)
}
