//! Chooses the next token from logits.

use crate::{AskOptions, Error, Sampling};
use margay_prompt::text::FormedAnswer;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::RangeInclusive,
};

/// Chooses tokens; the same seed and logits give the same choices.
pub(crate) struct Sampler {
    sampling: Sampling,
    bias: Vec<(u32, f32)>,
    rng: StdRng,
    /// Random numbers that were drawn for guesses and are still to be used, in order.
    drawn: VecDeque<f32>,
    candidates: Vec<(f32, u32)>,
    /// How often the answer holds each token.
    counts: BTreeMap<u32, u32>,
    /// Tokens of the prompt, where they matter.
    prompt: BTreeSet<u32>,
    /// Logits after bias and penalties.
    adjusted: Vec<f32>,
    form: Option<FormedAnswer>,
}

impl Sampler {
    /// # Errors
    /// [`Error::Option`] for options out of range.
    pub(crate) fn new(
        options: &AskOptions,
        vocabulary: usize,
        form: Option<FormedAnswer>,
    ) -> Result<Self, Error> {
        let sampling = options.sampling;
        let bad = |option, what: String| Err(Error::Option { option, what });
        if !(sampling.temperature >= 0.0 && sampling.temperature.is_finite()) {
            return bad("temperature", format!("{} is not 0 or more", sampling.temperature));
        }
        if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
            return bad("top_p", format!("{} is not within 0 to 1", sampling.top_p));
        }
        if !(0.0..=1.0).contains(&sampling.min_p) {
            return bad("min_p", format!("{} is not within 0 to 1", sampling.min_p));
        }
        let penalties = [
            ("frequency_penalty", sampling.frequency_penalty),
            ("presence_penalty", sampling.presence_penalty),
        ];
        const PENALTY: RangeInclusive<f32> = -2.0..=2.0;
        for (option, penalty) in penalties {
            if !PENALTY.contains(&penalty) {
                return bad(option, format!("{penalty} is not within -2 to 2"));
            }
        }
        if !(sampling.repeat_penalty > 0.0 && sampling.repeat_penalty.is_finite()) {
            return bad("repeat_penalty", format!("{} is not above 0", sampling.repeat_penalty));
        }
        for (token, bias) in &options.logit_bias {
            if *token as usize >= vocabulary {
                let what = format!("the vocabulary has {vocabulary} tokens, and none has number {token}");
                return bad("logit_bias", what);
            }
            if bias.is_nan() || *bias == f32::INFINITY {
                return bad("logit_bias", format!("{bias}, for token {token}, is no bias"));
            }
        }
        Ok(Sampler {
            sampling,
            bias: options.logit_bias.clone(),
            rng: StdRng::seed_from_u64(sampling.seed),
            drawn: VecDeque::new(),
            candidates: vec![],
            counts: BTreeMap::new(),
            prompt: BTreeSet::new(),
            adjusted: vec![],
            form,
        })
    }

    /// A copy that guesses what this one will choose, up to `count` tokens of it: with the same random numbers.
    pub(crate) fn ahead(&mut self, count: usize) -> Self {
        while self.sampling.temperature != 0.0 && self.drawn.len() < count {
            let number = self.rng.random();
            self.drawn.push_back(number);
        }
        Sampler {
            sampling: self.sampling,
            bias: self.bias.clone(),
            // Not used for the tokens asked for.
            rng: StdRng::seed_from_u64(self.sampling.seed),
            drawn: self.drawn.clone(),
            candidates: vec![],
            counts: self.counts.clone(),
            prompt: self.prompt.clone(),
            adjusted: vec![],
            form: self.form.clone(),
        }
    }

    /// Looks at the prompt, in which negative ids are visual tokens.
    pub(crate) fn begin(&mut self, prompt: &[i32]) {
        if self.sampling.repeat_penalty != 1.0 {
            self.prompt = prompt.iter().filter_map(|id| u32::try_from(*id).ok()).collect();
        }
    }

    /// Takes a token that became part of the answer.
    pub(crate) fn accept(&mut self, token: u32) -> Result<(), Error> {
        if self.has_penalties() {
            *self.counts.entry(token).or_default() += 1;
        }
        match &mut self.form {
            Some(form) => Ok(form.accept(token)?),
            None => Ok(()),
        }
    }

    /// True where the answer has its form, and nothing may follow.
    pub(crate) fn is_complete(&self) -> bool {
        self.form.as_ref().is_some_and(FormedAnswer::is_complete)
    }

    fn has_penalties(&self) -> bool {
        let s = &self.sampling;
        s.frequency_penalty != 0.0 || s.presence_penalty != 0.0 || s.repeat_penalty != 1.0
    }

    /// The next token; `logits`: [vocabulary].
    pub(crate) fn choose(&mut self, logits: &[f32]) -> Result<u32, Error> {
        if self.bias.is_empty() && self.form.is_none() && !self.has_penalties() {
            return self.choose_of(logits);
        }
        let mut adjusted = std::mem::take(&mut self.adjusted);
        adjusted.clear();
        adjusted.extend_from_slice(logits);
        self.adjust(&mut adjusted);
        if let Some(form) = &mut self.form {
            form.forbid(&mut adjusted)?;
        }
        let chosen = self.choose_of(&adjusted);
        self.adjusted = adjusted;
        chosen
    }

    fn adjust(&self, logits: &mut [f32]) {
        let Sampling { frequency_penalty, presence_penalty, repeat_penalty, .. } = self.sampling;
        if repeat_penalty != 1.0 {
            for token in self.prompt.iter().chain(self.counts.keys().filter(|id| !self.prompt.contains(id))) {
                if let Some(logit) = logits.get_mut(*token as usize) {
                    *logit = if *logit > 0.0 { *logit / repeat_penalty } else { *logit * repeat_penalty };
                }
            }
        }
        for (token, count) in &self.counts {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit -= *count as f32 * frequency_penalty + presence_penalty;
            }
        }
        for (token, bias) in &self.bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
    }

    fn choose_of(&mut self, logits: &[f32]) -> Result<u32, Error> {
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
        let mut left = self.drawn.pop_front().unwrap_or_else(|| self.rng.random::<f32>()) * kept;
        let chosen = self.candidates.iter().find(|c| {
            left -= c.0;
            left < 0.0
        });
        Ok(chosen.or(self.candidates.last()).map_or(best, |c| c.1))
    }
}

/// Natural logarithms of probabilities under the model: that of `token`, and those of the `most` likeliest tokens, likeliest
/// first. `logits`: [vocabulary], as the model gives them.
pub(crate) fn logprobs(logits: &[f32], token: u32, most: usize) -> (f32, Vec<(u32, f32)>) {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|logit| f64::from(logit - top).exp()).sum();
    let log_of = |logit: f32| (f64::from(logit - top) - total.ln()) as f32;
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let likelier = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let most = most.min(order.len());
    if most > 0 && most < order.len() {
        order.select_nth_unstable_by(most - 1, likelier);
    }
    order.truncate(most);
    order.sort_unstable_by(likelier);
    (log_of(logits[token as usize]), order.into_iter().map(|id| (id, log_of(logits[id as usize]))).collect())
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
        let options = AskOptions { sampling, ..AskOptions::default() };
        let mut sampler = Sampler::new(&options, logits.len(), None).unwrap();
        (0..n).map(|_| sampler.choose(logits).unwrap()).collect()
    }

    fn plain(seed: u64) -> Sampling {
        Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed, ..Sampling::default() }
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
        let sampling = plain(7);
        let n = 20_000;
        let first = draws(sampling, &logits, n).iter().filter(|t| **t == 0).count() as f64 / n as f64;
        // Five standard deviations of a binomial at p = 1/2.
        assert!((first - 0.5).abs() < 5.0 * (0.25 / n as f64).sqrt(), "{first}");
    }

    #[test]
    fn cuts_drop_unlikely_tokens_and_a_seed_repeats() {
        let logits = [3.0, 2.0, 1.0, -4.0];
        let base = plain(1);
        assert!(draws(Sampling { top_k: 2, ..base }, &logits, 500).iter().all(|t| *t < 2));
        assert!(draws(Sampling { top_p: 0.5, ..base }, &logits, 500).iter().all(|t| *t == 0));
        assert!(draws(Sampling { min_p: 0.3, ..base }, &logits, 500).iter().all(|t| *t < 2));
        assert_eq!(draws(base, &logits, 50), draws(base, &logits, 50));
        assert_ne!(draws(base, &logits, 50), draws(Sampling { seed: 2, ..base }, &logits, 50));
    }

    #[test]
    fn penalties_and_biases_move_logits_as_defined() {
        let logits = [2.0, 1.0, -1.0, 0.0];
        let adjusted = |sampling: Sampling, logit_bias: Vec<(u32, f32)>| {
            let options = AskOptions { sampling, logit_bias, ..AskOptions::default() };
            let mut sampler = Sampler::new(&options, 4, None).unwrap();
            sampler.begin(&[2, -1, 3]);
            [0, 0, 1].into_iter().for_each(|id| sampler.accept(id).unwrap());
            let mut logits = logits;
            sampler.adjust(&mut logits);
            logits
        };
        let none = Sampling::default();
        assert_eq!(adjusted(none, vec![]), logits);
        assert_eq!(adjusted(Sampling { frequency_penalty: 0.5, ..none }, vec![]), [1.0, 0.5, -1.0, 0.0]);
        assert_eq!(adjusted(Sampling { presence_penalty: 0.5, ..none }, vec![]), [1.5, 0.5, -1.0, 0.0]);
        assert_eq!(adjusted(Sampling { repeat_penalty: 2.0, ..none }, vec![]), [1.0, 0.5, -2.0, 0.0]);
        assert_eq!(
            adjusted(none, vec![(3, 7.0), (0, f32::NEG_INFINITY)]),
            [f32::NEG_INFINITY, 1.0, -1.0, 7.0]
        );
        let refused = |sampling: Sampling, logit_bias: Vec<(u32, f32)>| {
            let options = AskOptions { sampling, logit_bias, ..AskOptions::default() };
            Sampler::new(&options, 4, None).err().unwrap().to_string()
        };
        assert!(refused(none, vec![(4, 0.0)]).contains("none has number 4"));
        assert!(refused(none, vec![(1, f32::NAN)]).contains("token 1"));
        assert!(refused(Sampling { presence_penalty: 2.5, ..none }, vec![]).contains("2.5"));
        assert!(refused(Sampling { repeat_penalty: 0.0, ..none }, vec![]).contains("repeat_penalty"));
    }

    #[test]
    fn log_probabilities_are_those_of_the_softmax() {
        let logits = [1.0f32.ln(), 5.0f32.ln(), 2.0f32.ln(), 2.0f32.ln()];
        let (of, top) = logprobs(&logits, 0, 3);
        assert!((of - 0.1f32.ln()).abs() < 1e-6);
        assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2, 3]);
        assert!((top[0].1 - 0.5f32.ln()).abs() < 1e-6 && (top[2].1 - 0.2f32.ln()).abs() < 1e-6);
        assert_eq!(logprobs(&logits, 3, 9).1.len(), 4);
        assert_eq!(logprobs(&logits, 3, 0).1, []);
    }
}
