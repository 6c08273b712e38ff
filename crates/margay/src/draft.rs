//! Tokens guessed ahead.
//!
//! The decoder computes logits for several tokens in one run for little more than for one, as long as reading its weights
//! is what takes the time. So a guess at the next tokens is run along, and each is kept as long as it is the token that
//! would have been chosen: the sampler draws from the model's own logits at every place, and a guess only saves a run
//! where it was right. Answers are therefore those of a decoder without guesses, whatever the temperature. Source of
//! guessing ahead: Leviathan et al., arXiv 2211.17192, of which this is the case of a draft that is sure of itself; of
//! looking tokens up in the prompt: Saxena, Prompt Lookup Decoding, 2023.

use std::{collections::HashMap, time::Duration};

/// Tokens that must have come before in the same order, longest first.
const SPANS: [usize; 2] = [3, 2];
/// How much of a new measurement counts.
const WEIGHT: f64 = 0.2;
/// Gain that a guess must promise before it is made: what was measured is never exact.
const LEAST_GAIN: f64 = 1.03;
/// Runs without a guess before one is made although it promised nothing, to see whether that is still so: a guess that is
/// lost costs less than twice a run, so that trying takes less than 1% of the time.
const PATIENCE: usize = 128;

/// Looks up what came behind the last tokens when they came before.
#[derive(Default)]
pub(crate) struct Lookup {
    tokens: Vec<i32>,
    /// Where each span was followed last: the place behind it.
    seen: [HashMap<[i32; 3], usize>; SPANS.len()],
}

impl Lookup {
    /// Takes tokens of the prompt or of the answer; negative ones are visual, and match nothing.
    pub(crate) fn push(&mut self, tokens: &[i32]) {
        for token in tokens {
            // What ends here is seen once something follows it.
            for (span, seen) in SPANS.into_iter().zip(&mut self.seen) {
                if let Some(key) = key(&self.tokens, span) {
                    seen.insert(key, self.tokens.len());
                }
            }
            self.tokens.push(*token);
        }
    }

    /// At most so many tokens that may come next.
    pub(crate) fn guess(&self, most: usize) -> &[i32] {
        for (span, seen) in SPANS.into_iter().zip(&self.seen) {
            if let Some(at) = key(&self.tokens, span).and_then(|key| seen.get(&key)) {
                let rest = &self.tokens[*at..];
                let text = rest.iter().position(|token| *token < 0).unwrap_or(rest.len());
                return &rest[..text.min(most)];
            }
        }
        &[]
    }
}

fn key(tokens: &[i32], span: usize) -> Option<[i32; 3]> {
    let last = &tokens[tokens.len().checked_sub(span)?..];
    let mut key = [-1; 3];
    key[..span].copy_from_slice(last);
    last.iter().all(|token| *token >= 0).then_some(key)
}

/// Whether guesses pay, by what runs took and how many guesses were right. A model's, for all answers.
pub(crate) struct Payoff {
    most: usize,
    /// Seconds of a run without guesses; nothing is known at first.
    alone: Option<f64>,
    /// Seconds that each guess adds.
    each: Option<f64>,
    /// Share of guesses that were right, of those in front of which all were right.
    right: f64,
    /// Runs since the last guess.
    without: usize,
    /// Nothing is learned.
    #[cfg(test)]
    fixed: bool,
}

impl Payoff {
    /// For up to `most` guesses a run.
    pub(crate) fn new(most: usize) -> Self {
        // Before anything is known, half of the guesses are taken to be right.
        Payoff {
            most,
            alone: None,
            each: None,
            right: 0.5,
            without: 0,
            #[cfg(test)]
            fixed: false,
        }
    }

    /// All guesses are made, whatever the machine is doing meanwhile.
    #[cfg(test)]
    pub(crate) fn always(most: usize) -> Self {
        Payoff { alone: Some(1.0), each: Some(0.0), right: 1.0, fixed: true, ..Self::new(most) }
    }

    /// How many of so many guesses a run should take along.
    pub(crate) fn choose(&mut self, guesses: usize) -> usize {
        let most = guesses.min(self.most);
        let Some(alone) = self.alone else { return 0 };
        if most == 0 {
            return 0;
        }
        // At first, a tenth of a run.
        let each = self.each.unwrap_or(alone / 10.0);
        let rate = |count: usize| {
            let expected: f64 = (0..=count).map(|i| self.right.powi(i as i32)).sum();
            expected / (alone + each * count as f64)
        };
        let best = (0..=most).max_by(|a, b| rate(*a).total_cmp(&rate(*b))).unwrap_or(0);
        if rate(best) >= LEAST_GAIN * rate(0) || self.without >= PATIENCE {
            self.without = 0;
            return best.max(1);
        }
        self.without += 1;
        0
    }

    /// A run with that many guesses, of which the first `right` were right, took so long.
    pub(crate) fn learn(&mut self, guesses: usize, right: usize, took: Duration) {
        #[cfg(test)]
        if self.fixed {
            return;
        }
        let took = took.as_secs_f64();
        let towards = |before: Option<f64>, new: f64| {
            // A run that was kept waiting by others is no measure of its own cost.
            Some(before.map_or(new, |before| before + WEIGHT * (new.min(3.0 * before) - before)))
        };
        match (guesses, self.alone) {
            (0, _) => self.alone = towards(self.alone, took),
            (_, Some(alone)) => {
                let each = ((took - alone) / guesses as f64).max(0.01 * alone);
                self.each = towards(self.each, each);
            }
            _ => {}
        }
        // Those behind the first wrong one were not put to the test.
        for at in 0..guesses.min(right + 1) {
            let was_right = if at < right { 1.0 } else { 0.0 };
            self.right += WEIGHT * (was_right - self.right);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_the_last_tokens_is_what_is_guessed() {
        let mut lookup = Lookup::default();
        lookup.push(&[1, 2, 3, 4, 5, -1, -2, 9, 1, 2]);
        assert_eq!(lookup.guess(8), [3, 4, 5]);
        assert_eq!(lookup.guess(2), [3, 4]);
        // Three tokens say more than two.
        lookup.push(&[6, 7, 9, 1, 2]);
        assert_eq!(lookup.guess(3), [6, 7, 9]);
        lookup.push(&[8, 1, 2]);
        assert_eq!(lookup.guess(2), [8, 1]);
        // Visual tokens match nothing, and nothing comes before the first.
        lookup.push(&[-1, -2]);
        assert_eq!(lookup.guess(4), [] as [i32; 0]);
        assert_eq!(Lookup::default().guess(4), [] as [i32; 0]);
    }

    fn millis(ms: f64) -> Duration {
        Duration::from_secs_f64(ms / 1000.0)
    }

    #[test]
    fn guesses_are_made_while_they_pay() {
        // A guess costs a twentieth of a run, and most are right.
        let mut payoff = Payoff::new(8);
        assert_eq!(payoff.choose(8), 0, "nothing is known yet");
        payoff.learn(0, 0, millis(10.0));
        assert!(payoff.choose(8) > 0);
        for _ in 0..50 {
            let count = payoff.choose(8);
            payoff.learn(count, count, millis(10.0 + 0.5 * count as f64));
        }
        assert_eq!(payoff.choose(8), 8);
        assert_eq!(payoff.choose(3), 3);
        // Each costs as much as a run, and few are right: only now and then one is tried.
        let mut tried = 0;
        for _ in 0..2000 {
            let count = payoff.choose(8);
            tried += count;
            payoff.learn(count, 0, millis(10.0 + 10.0 * count as f64));
        }
        assert!((1..2000 / 20).contains(&tried), "{tried}");
        // And again when they pay again.
        for _ in 0..3000 {
            let count = payoff.choose(8);
            payoff.learn(count, count, millis(10.0 + 0.5 * count as f64));
        }
        assert_eq!(payoff.choose(8), 8);
    }
}
