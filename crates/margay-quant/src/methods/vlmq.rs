//! `vlmq`: as `gptq`, every token counting by how much its error matters.
//!
//! Most visual tokens are redundant, and a plain sum over tokens is a sum over them. VLMQ takes the gradient of a block's
//! output error at each token and weighs the Hessian with it. The calibration weighs while it sums; where only a plain
//! Hessian is at hand, the sample's weighted rows stand in for it.
//! Source: VLMQ (arXiv 2508.03351). How gradients become weights is not spelled out there: [`token_importance`] says
//! what is done here.

use margay_tensor::DType;

use super::{
    Needs, Rounding,
    gptq::{factor, pack_compensating},
};
use crate::{Hessian, InputStats, Matrix, QuantError};

/// Error compensation by token-weighted second-order statistics.
pub struct Vlmq;

impl Rounding for Vlmq {
    fn id(&self) -> &'static str {
        "vlmq"
    }

    fn about(&self) -> &'static str {
        "as gptq, every token counting by the gradient of the error at it"
    }

    fn needs(&self) -> Needs {
        Needs { hessian: true, gradients: true, ..Needs::default() }
    }

    fn prepare(&self, input: &mut InputStats) -> Result<(), QuantError> {
        if !input.hessian.as_ref().is_some_and(Hessian::weighted) && input.factor.is_none() {
            if input.sample.is_empty() {
                return Err(QuantError::Missing { what: "a Hessian of weighted tokens", why: self.id() });
            }
            let mut hessian = Hessian::new(input.columns);
            hessian.add(&input.sample.rows, Some(&input.sample.importance))?;
            input.hessian = Some(hessian);
        }
        factor(input)
    }

    fn pack(
        &self,
        weight: Matrix<'_>,
        input: Option<&InputStats>,
        dtype: DType,
        out: &mut [u8],
    ) -> Result<(), QuantError> {
        pack_compensating(self.id(), weight, input, dtype, out)
    }
}

/// How much each token's error matters, from the norm of the gradient at it: `norm ^ power`, outliers cut off at one and a
/// half interquartile ranges beyond the quartiles, none below `floor` times the mean, mean 1. All 1 where every norm is 0.
///
/// Source of the cut: QIG (arXiv 2603.17809), as VLMQ does not say.
pub fn token_importance(norms: &[f32], power: f32, floor: f32) -> Vec<f32> {
    let finite = |norm: &f32| if norm.is_finite() { norm.abs().powf(power) } else { 0.0 };
    let raised: Vec<f32> = norms.iter().map(finite).collect();
    let mut sorted = raised.clone();
    sorted.sort_by(f32::total_cmp);
    let quartile = |part: f32| sorted.get((part * sorted.len() as f32) as usize).copied().unwrap_or(0.0);
    let (low, high) = (quartile(0.25), quartile(0.75));
    let reach = 1.5 * (high - low);
    let mut weights: Vec<f32> = raised.iter().map(|w| w.clamp(low - reach, high + reach)).collect();
    let mean = |weights: &[f32]| {
        (weights.iter().map(|&w| f64::from(w)).sum::<f64>() / weights.len().max(1) as f64) as f32
    };
    let least = floor * mean(&weights);
    weights.iter_mut().for_each(|w| *w = w.max(least));
    let mean = mean(&weights);
    if mean > 0.0 {
        weights.iter_mut().for_each(|w| *w /= mean);
    } else {
        weights.fill(1.0);
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_become_weights_of_mean_one_without_outliers() {
        let mut norms: Vec<f32> = (0..100).map(|i| 1.0 + (i % 10) as f32).collect();
        norms[7] = 1e9;
        norms[8] = f32::NAN;
        let weights = token_importance(&norms, 1.0, 0.1);
        let mean = weights.iter().sum::<f32>() / 100.0;
        assert!((mean - 1.0).abs() < 1e-5);
        assert!(weights.iter().all(|w| (0.05..4.0).contains(w)), "{weights:?}");
        assert!(weights[9] > weights[0]);
        assert_eq!(token_importance(&[0.0; 3], 1.0, 0.1), [1.0; 3]);
        assert!(token_importance(&[], 1.0, 0.1).is_empty());
    }
}
