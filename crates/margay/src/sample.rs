//! Chooses the next token from logits.

use crate::{Error, Sampling};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Chooses tokens; the same seed and logits give the same choices.
pub(crate) struct Sampler {
    sampling: Sampling,
    rng: StdRng,
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    pub(crate) fn new(sampling: Sampling) -> Result<Self, Error> {
        let bad = |option, what: String| Error::Option { option, what };
        if !(sampling.temperature >= 0.0 && sampling.temperature.is_finite()) {
            return Err(bad("temperature", format!("{} is not 0 or more", sampling.temperature)));
        }
        if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
            return Err(bad("top_p", format!("{} is not within 0 to 1", sampling.top_p)));
        }
        if !(0.0..=1.0).contains(&sampling.min_p) {
            return Err(bad("min_p", format!("{} is not within 0 to 1", sampling.min_p)));
        }
        Ok(Sampler { sampling, rng: StdRng::seed_from_u64(sampling.seed), candidates: vec![] })
    }

    /// The next token; `logits`: [vocabulary].
    pub(crate) fn choose(&mut self, logits: &[f32]) -> Result<u32, Error> {
        let best = greedy(logits)?;
        if self.sampling.temperature == 0.0 {
            return Ok(best);
        }
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.sampling;
        let top = logits[best as usize];
        // Weights relative to the likeliest token; min_p is a bound on just that ratio.
        self.candidates.clear();
        self.candidates.extend(
            logits
                .iter()
                .enumerate()
                .map(|(id, logit)| (((logit - top) / temperature).exp(), id as u32))
                .filter(|(weight, _)| *weight >= min_p && *weight > 0.0),
        );
        // Ties go to the lower id, so that the order does not depend on the sort.
        self.candidates.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        if top_k > 0 {
            self.candidates.truncate(top_k);
        }
        let total: f32 = self.candidates.iter().map(|c| c.0).sum();
        let mut reached = 0.0;
        let enough = self.candidates.iter().position(|c| {
            reached += c.0;
            reached >= top_p * total
        });
        self.candidates.truncate(enough.map_or(usize::MAX, |at| at + 1));
        let kept: f32 = self.candidates.iter().map(|c| c.0).sum();
        let mut left = self.rng.random::<f32>() * kept;
        let chosen = self.candidates.iter().find(|c| {
            left -= c.0;
            left < 0.0
        });
        Ok(chosen.or(self.candidates.last()).map_or(best, |c| c.1))
    }
}

/// The likeliest token, the lowest id among equals.
pub(crate) fn greedy(logits: &[f32]) -> Result<u32, Error> {
    let mut best = (f32::NEG_INFINITY, None);
    for (id, &logit) in logits.iter().enumerate() {
        if logit > best.0 {
            best = (logit, Some(id as u32));
        } else if logit.is_nan() {
            return Err(Error::NotFinite);
        }
    }
    best.1.filter(|_| best.0.is_finite()).ok_or(Error::NotFinite)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(sampling: Sampling, logits: &[f32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling).unwrap();
        (0..n).map(|_| sampler.choose(logits).unwrap()).collect()
    }

    #[test]
    fn greedy_takes_the_lowest_id_among_equals_and_refuses_nan() {
        assert_eq!(greedy(&[1.0, 3.0, 3.0]).unwrap(), 1);
        assert!(matches!(greedy(&[1.0, f32::NAN]), Err(Error::NotFinite)));
        assert!(matches!(greedy(&[f32::NEG_INFINITY; 2]), Err(Error::NotFinite)));
        assert!(matches!(greedy(&[1.0, f32::INFINITY]), Err(Error::NotFinite)));
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let logits = [2.0f32.ln(), 1.0f32.ln(), 1.0f32.ln()];
        let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 7 };
        let n = 20_000;
        let first = draws(sampling, &logits, n).iter().filter(|t| **t == 0).count() as f64 / n as f64;
        // Five standard deviations of a binomial at p = 1/2.
        assert!((first - 0.5).abs() < 5.0 * (0.25 / n as f64).sqrt(), "{first}");
    }

    #[test]
    fn cuts_drop_unlikely_tokens_and_a_seed_repeats() {
        let logits = [3.0, 2.0, 1.0, -4.0];
        let base = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 1 };
        assert!(draws(Sampling { top_k: 2, ..base }, &logits, 500).iter().all(|t| *t < 2));
        assert!(draws(Sampling { top_p: 0.5, ..base }, &logits, 500).iter().all(|t| *t == 0));
        assert!(draws(Sampling { min_p: 0.3, ..base }, &logits, 500).iter().all(|t| *t < 2));
        assert_eq!(draws(base, &logits, 50), draws(base, &logits, 50));
        assert_ne!(draws(base, &logits, 50), draws(Sampling { seed: 2, ..base }, &logits, 50));
    }
}
