//! `qvlm`: one clipping factor for a whole weight, by what serves its outputs best; and which layers to search together.
//!
//! Q-VLM found that the entropy of a layer's activations tells how far its errors reach into the next layers: it searches
//! runs of such layers jointly and the others one by one. The search itself shrinks the range in steps of a tenth.
//! Source: Q-VLM (arXiv 2410.08119) and its code. There it is the 4-bit activations that are clipped; a model file stores
//! only weights, so it is their range here.

use margay_tensor::DType;

use super::{Needs, Rounding, rtn::Rtn, target};
use crate::{InputStats, Matrix, QuantError, sensitivity::each_output};

/// Steps of a tenth by which the range shrinks.
const STEPS: usize = 7;
/// Where the range starts: this part of all magnitudes lies within. Source: the initial clip of the Q-VLM code.
const PERCENTILE: f64 = 0.9997;
/// A layer is searched with its neighbours at least this often. Source: the Q-VLM code.
const EVERY: usize = 3;

/// Clipping search over a whole weight.
pub struct Qvlm;

impl Rounding for Qvlm {
    fn id(&self) -> &'static str {
        "qvlm"
    }

    fn about(&self) -> &'static str {
        "one clipping factor for a whole weight, by what serves its outputs best"
    }

    fn needs(&self) -> Needs {
        Needs { sample: true, ..Needs::default() }
    }

    fn pack(
        &self,
        weight: Matrix<'_>,
        input: Option<&InputStats>,
        dtype: DType,
        out: &mut [u8],
    ) -> Result<(), QuantError> {
        let format = target(weight, dtype, out)?;
        let sample = input.map(|input| &input.sample).filter(|sample| !sample.is_empty());
        let sample = sample.ok_or(QuantError::Missing { what: "a sample of inputs", why: self.id() })?;
        crate::stats::same("numbers of sampled inputs", sample.len() * weight.cols, sample.rows.len())?;
        Rtn.pack(weight, None, dtype, out)?;
        let mut off = vec![0.0; weight.values.len()];
        let mut loss = |packed: &[u8]| {
            format.decode(packed, &mut off);
            for (off, w) in off.iter_mut().zip(weight.values) {
                *off -= w;
            }
            let mut total = 0.0;
            each_output(&off, weight.cols, &sample.rows, |_, token, d| {
                total += f64::from(sample.importance[token]) * f64::from(d).powi(2);
            });
            total
        };
        let mut best = loss(out);
        let widest = percentile(weight.values, PERCENTILE);
        let (mut clipped, mut trial) = (Vec::with_capacity(weight.values.len()), vec![0; out.len()]);
        for step in 0..STEPS {
            let limit = widest * (1.0 - step as f32 / 10.0);
            clipped.clear();
            clipped.extend(weight.values.iter().map(|w| w.clamp(-limit, limit)));
            format.encode(&clipped, &mut trial);
            let this = loss(&trial);
            if this < best {
                best = this;
                out.copy_from_slice(&trial);
            }
        }
        Ok(())
    }
}

/// The magnitude below which `part` of the numbers lie; 0 of none.
fn percentile(values: &[f32], part: f64) -> f32 {
    let mut magnitudes: Vec<f32> = values.iter().map(|x| x.abs()).collect();
    if magnitudes.is_empty() {
        return 0.0;
    }
    let at = ((part * magnitudes.len() as f64) as usize).min(magnitudes.len() - 1);
    *magnitudes.select_nth_unstable_by(at, f32::total_cmp).1
}

/// How evenly the magnitudes of the activations `[tokens, width]` spread over each token, mean over the tokens.
///
/// Source: the entropy of the Q-VLM code, `-Σ p ln(p + 1e-7)`.
pub fn activation_entropy(activations: &[f32], width: usize) -> f64 {
    let tokens = activations.len() / width.max(1);
    let entropy = |token: &[f32]| {
        let total: f64 = token.iter().map(|x| f64::from(x.abs())).sum();
        let part = |x: &f32| f64::from(x.abs()) / total.max(f64::MIN_POSITIVE);
        token.iter().map(part).map(|p| -p * (p + 1e-7).ln()).sum::<f64>()
    };
    activations.chunks_exact(width.max(1)).map(entropy).sum::<f64>() / tokens.max(1) as f64
}

/// Runs of layers to search together, in order: a run ends at a layer whose entropy is at least the mean of those before
/// it, or when it is three layers long.
pub fn partition(entropies: &[f64]) -> Vec<std::ops::Range<usize>> {
    let (mut runs, mut start, mut sum) = (Vec::new(), 0, 0.0);
    for (layer, &entropy) in entropies.iter().enumerate() {
        let triggers = layer > 0 && entropy >= sum / layer as f64;
        sum += entropy;
        if triggers || layer + 1 - start >= EVERY {
            runs.push(start..layer + 1);
            start = layer + 1;
        }
    }
    if start < entropies.len() {
        runs.push(start..entropies.len());
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_activations_have_the_entropy_of_their_width() {
        let even = activation_entropy(&[0.5, -0.5, 0.5, 0.5, 2.0, 2.0, -2.0, 2.0], 4);
        assert!((even - 4f64.ln()).abs() < 1e-5, "{even}");
        assert!(activation_entropy(&[1.0, 0.0, 0.0, 0.0], 4).abs() < 1e-5);
        assert_eq!(activation_entropy(&[], 4), 0.0);
    }

    #[test]
    fn runs_cover_every_layer_once_and_are_short() {
        for n in 0..20 {
            let entropies: Vec<f64> = (0..n).map(|i| ((i * 7) as f64).sin()).collect();
            let runs = partition(&entropies);
            let covered: Vec<usize> = runs.iter().cloned().flatten().collect();
            assert_eq!(covered, (0..n).collect::<Vec<_>>());
            assert!(runs.iter().all(|run| (1..=EVERY).contains(&run.len())));
        }
        assert_eq!(partition(&[1.0, 2.0, 0.0, 3.0, 0.5]), [0..2, 2..4, 4..5]);
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_magnitudes() {
        let values: Vec<f32> = (0..1000).map(|i| if i % 2 == 0 { i as f32 } else { -(i as f32) }).collect();
        assert_eq!(percentile(&values, 0.9), 900.0);
        assert_eq!(percentile(&values, 1.0), 999.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }
}
