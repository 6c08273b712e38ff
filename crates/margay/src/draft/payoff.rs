//! How many tokens to guess, by what guesses cost and how many were right.

use std::time::Duration;

/// How much of a new measurement counts.
const WEIGHT: f64 = 0.2;
/// Gain that a guess must promise before it is made: what was measured is never exact.
const LEAST_GAIN: f64 = 1.03;
/// Runs without a guess before one is made although it promised nothing, to see whether that is still so: a guess that is
/// lost costs less than twice a run, so that trying takes less than 1% of the time.
const PATIENCE: usize = 128;
/// The same of a draft model, which may have a prompt to compute first: the part of the time since it was last asked that
/// asking it may take.
const TRIAL: f64 = 0.01;
/// Tokens that a draft model takes in about as long as one: those behind its last guesses.
const FEW: usize = 8;
/// Tokens of an answer, before any has ended. Of no source; the first answers correct it.
const LENGTH: f64 = 64.0;

/// Who guesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// [`super::Lookup`], at no cost.
    Lookup,
    /// [`super::Drafter`].
    Model,
}

/// Whether guesses pay, by what runs took and how many guesses were right. A model's, for all answers.
pub(crate) struct Payoff {
    most: usize,
    /// Seconds of a run without guesses; nothing is known at first.
    alone: Option<f64>,
    /// Seconds that each guess adds to a run.
    each: Option<f64>,
    lookup: Guesser,
    model: Guesser,
    /// Work of the draft model's step, as a part of the model's.
    scale: f64,
    /// Seconds of the draft model for a guess.
    step: Option<f64>,
    /// Seconds of the draft model for a token that it catches up with.
    catch_up: Option<f64>,
    /// Tokens of an answer.
    length: f64,
    /// Nothing is learned.
    #[cfg(test)]
    fixed: bool,
}

/// How one source fares.
struct Guesser {
    /// Share of guesses that were right, of those in front of which all were right. At first, half.
    right: f64,
    /// Runs since its last guess.
    without: usize,
}

impl Guesser {
    const NEW: Guesser = Guesser { right: 0.5, without: 0 };
}

impl Payoff {
    /// For up to `most` guesses a run. `scale`: bytes of the draft model's weights, where there is one, as a part of the
    /// model's, which stands for what its steps cost until they are measured.
    pub(crate) fn new(most: usize, scale: Option<f64>) -> Self {
        Payoff {
            most,
            alone: None,
            each: None,
            lookup: Guesser::NEW,
            model: Guesser::NEW,
            scale: scale.unwrap_or(1.0),
            step: None,
            catch_up: None,
            length: LENGTH,
            #[cfg(test)]
            fixed: false,
        }
    }

    /// All guesses are made, whatever the machine is doing meanwhile.
    #[cfg(test)]
    pub(crate) fn always(most: usize) -> Self {
        let sure = || Guesser { right: 1.0, without: 0 };
        Payoff {
            alone: Some(1.0),
            each: Some(0.0),
            lookup: sure(),
            model: sure(),
            step: Some(0.0),
            catch_up: Some(0.0),
            fixed: true,
            ..Self::new(most, None)
        }
    }

    /// How many of so many tokens that were looked up a run should take along.
    pub(crate) fn choose(&mut self, guesses: usize) -> usize {
        let most = guesses.min(self.most);
        let Some(alone) = self.alone.filter(|_| most > 0) else { return 0 };
        let (best, gain) = self.best(alone, self.lookup.right, 0.0, most);
        if gain >= LEAST_GAIN || self.lookup.without >= PATIENCE {
            self.lookup.without = 0;
            return best.max(1);
        }
        self.lookup.without += 1;
        0
    }

    /// How many tokens a draft model should guess, up to `most`, in an answer of `answered` tokens that can grow by `left`, where
    /// it has `behind` tokens to compute before its first guess: none where what it would save of the rest of the answer is
    /// less than that takes. How long that rest is nobody knows: as long as answers are in the mean, and from there on as long
    /// again as the answer is already.
    pub(crate) fn choose_drafted(
        &mut self,
        most: usize,
        (answered, left): (usize, usize),
        behind: impl FnOnce() -> usize,
    ) -> usize {
        let most = most.min(self.most);
        let Some(alone) = self.alone.filter(|_| most > 0) else { return 0 };
        let step = self.step.unwrap_or(self.scale * alone);
        let (best, gain) = self.best(alone, self.model.right, step, most);
        let trial = step + self.each(alone);
        let trials = TRIAL * alone * self.model.without as f64;
        if gain >= LEAST_GAIN || trial <= trials {
            let behind = Some(behind()).filter(|behind| *behind >= FEW).unwrap_or(0);
            // Rows of a prompt are cheaper than steps; how much is measured when the first is computed.
            let catch_up = behind as f64 * self.catch_up.unwrap_or(step / 4.0);
            let answered = answered as f64;
            let rest = (self.length - answered).max(answered).min(left as f64);
            let saves = rest * alone * (1.0 - 1.0 / gain);
            if (gain >= LEAST_GAIN && saves >= catch_up) || catch_up + trial <= trials {
                self.model.without = 0;
                return best.max(1);
            }
        }
        self.model.without += 1;
        0
    }

    /// The best number of guesses up to `most`, where each is right with that probability and costs that many seconds to
    /// make, and how many times as fast as without any that is.
    fn best(&self, alone: f64, right: f64, step: f64, most: usize) -> (usize, f64) {
        let each = self.each(alone) + step;
        let rate = |count: usize| {
            let expected: f64 = (0..=count).map(|i| right.powi(i as i32)).sum();
            expected / (alone + each * count as f64)
        };
        let best = (0..=most).max_by(|a, b| rate(*a).total_cmp(&rate(*b))).unwrap_or(0);
        (best, rate(best) / rate(0))
    }

    /// At first, a tenth of a run.
    fn each(&self, alone: f64) -> f64 {
        self.each.unwrap_or(alone / 10.0)
    }

    /// A run with that many guesses, of which the first `right` were right, took so long, the making of the guesses not
    /// counted.
    pub(crate) fn learn(&mut self, source: Source, guesses: usize, right: usize, took: Duration) {
        #[cfg(test)]
        if self.fixed {
            return;
        }
        let took = took.as_secs_f64();
        match (guesses, self.alone) {
            (0, _) => self.alone = towards(self.alone, took),
            (_, Some(alone)) => {
                let each = ((took - alone) / guesses as f64).max(0.01 * alone);
                self.each = towards(self.each, each);
            }
            _ => {}
        }
        let guesser = match source {
            Source::Lookup => &mut self.lookup,
            Source::Model => &mut self.model,
        };
        // Those behind the first wrong one were not put to the test.
        for at in 0..guesses.min(right + 1) {
            let was_right = if at < right { 1.0 } else { 0.0 };
            guesser.right += WEIGHT * (was_right - guesser.right);
        }
    }

    /// The draft model computed that many tokens, and made that many guesses behind them, in so long.
    pub(crate) fn learn_drafted(
        &mut self,
        (behind, caught_up): (usize, Duration),
        (guesses, guessed): (usize, Duration),
    ) {
        #[cfg(test)]
        if self.fixed {
            return;
        }
        // The first guess comes with the last of those tokens.
        let mut rest = (guesses.saturating_sub(1), guessed.as_secs_f64());
        if behind >= FEW {
            self.catch_up = towards(self.catch_up, caught_up.as_secs_f64() / behind as f64);
        } else if guesses > 0 {
            rest = (guesses, rest.1 + caught_up.as_secs_f64());
        }
        if rest.0 > 0 {
            self.step = towards(self.step, rest.1 / rest.0 as f64);
        }
    }

    /// An answer has ended that had so many tokens.
    pub(crate) fn learn_length(&mut self, tokens: usize) {
        self.length += WEIGHT * (tokens as f64 - self.length);
    }
}

/// A run that was kept waiting by others is no measure of its own cost.
fn towards(before: Option<f64>, new: f64) -> Option<f64> {
    Some(before.map_or(new, |before| before + WEIGHT * (new.min(3.0 * before) - before)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(ms: f64) -> Duration {
        Duration::from_secs_f64(ms / 1000.0)
    }

    #[test]
    fn guesses_are_made_while_they_pay() {
        // A guess costs a twentieth of a run, and most are right.
        let mut payoff = Payoff::new(8, None);
        let looked_up = |payoff: &mut Payoff, count, right, ms| {
            payoff.learn(Source::Lookup, count, right, millis(ms));
        };
        assert_eq!(payoff.choose(8), 0, "nothing is known yet");
        looked_up(&mut payoff, 0, 0, 10.0);
        assert!(payoff.choose(8) > 0);
        for _ in 0..50 {
            let count = payoff.choose(8);
            looked_up(&mut payoff, count, count, 10.0 + 0.5 * count as f64);
        }
        assert_eq!(payoff.choose(8), 8);
        assert_eq!(payoff.choose(3), 3);
        // Each costs as much as a run, and few are right: only now and then one is tried.
        let mut tried = 0;
        for _ in 0..2000 {
            let count = payoff.choose(8);
            tried += count;
            looked_up(&mut payoff, count, 0, 10.0 + 10.0 * count as f64);
        }
        assert!((1..2000 / 20).contains(&tried), "{tried}");
        // And again when they pay again.
        for _ in 0..3000 {
            let count = payoff.choose(8);
            looked_up(&mut payoff, count, count, 10.0 + 0.5 * count as f64);
        }
        assert_eq!(payoff.choose(8), 8);
    }

    /// Answers by a machine on which a run takes 10 ms and a guess adds 0.5 ms to it, the draft model 2 ms a guess and 0.5 ms
    /// a token of the prompt: gives milliseconds an answer beside what they are without guesses.
    fn answers(payoff: &mut Payoff, count: usize, prompt: usize, length: usize, right: f64) -> f64 {
        let (mut all, mut plain, mut luck) = (0.0, 0.0, 0u64);
        for _ in 0..count {
            let (mut behind, mut answered) = (prompt, 1);
            while answered < length {
                let left = length - answered;
                let guesses = payoff.choose_drafted(8.min(left), (answered, left), || behind);
                let mut hits = 0;
                for _ in 0..guesses {
                    luck = luck.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    if (luck >> 33) as f64 / (1u64 << 31) as f64 >= right {
                        break;
                    }
                    hits += 1;
                }
                let mut drafted = 0.0;
                if guesses > 0 {
                    let first = if behind >= FEW { 0.5 * behind as f64 } else { 2.0 };
                    let rest = 2.0 * (guesses - 1) as f64;
                    payoff.learn_drafted((behind, millis(first)), (guesses, millis(rest)));
                    (behind, drafted) = (0, first + rest);
                }
                let run = 10.0 + 0.5 * guesses as f64;
                payoff.learn(Source::Model, guesses, hits, millis(run));
                (behind, answered) = (behind + 1, answered + hits + 1);
                all += run + drafted;
                plain += 10.0 * (hits + 1) as f64;
            }
            payoff.learn_length(length);
        }
        all / plain
    }

    #[test]
    fn a_draft_model_is_asked_where_it_saves_more_than_it_takes() {
        let mut payoff = Payoff::new(8, Some(0.2));
        assert_eq!(payoff.choose_drafted(8, (1, 99), || 1), 0);
        // Long answers behind a short prompt, and a draft that is mostly right.
        let ratio = answers(&mut payoff, 20, 100, 200, 0.9);
        assert!(ratio < 0.6, "{ratio}");
        // One that is never right costs its first guesses, and then nearly nothing.
        let mut payoff = Payoff::new(8, Some(0.2));
        answers(&mut payoff, 5, 100, 200, 0.0);
        let ratio = answers(&mut payoff, 50, 100, 200, 0.0);
        assert!((1.0..1.02).contains(&ratio), "{ratio}");
        // It comes back when it is right again.
        let ratio = [(); 3].map(|()| answers(&mut payoff, 40, 100, 200, 0.9))[2];
        assert!(ratio < 0.6, "{ratio}");
    }

    #[test]
    fn a_draft_model_is_left_out_where_answers_are_too_short_for_its_prompt() {
        let mut payoff = Payoff::new(8, Some(0.2));
        answers(&mut payoff, 30, 100, 4, 0.9);
        let ratio = answers(&mut payoff, 500, 100, 4, 0.9);
        assert!(ratio < 1.02, "{ratio}");
        // An answer that turns out to be long is worth it, in its middle.
        let ratio = answers(&mut payoff, 1, 100, 400, 0.9);
        assert!(ratio < 0.7, "{ratio}");
    }
}
