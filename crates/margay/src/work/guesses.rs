//! Tokens guessed behind the last of an answer, looked up or by a draft model.

use super::{Pace, Work};
use crate::{
    Error, Session,
    draft::{Ahead, Source},
};
use margay_observe::Stopwatch;
use std::time::Duration;

/// Who guessed, and what that took.
pub(super) struct Guessed {
    source: Source,
    count: usize,
    pub took: Duration,
}

impl Work {
    /// Appends tokens that may come behind the last, where that pays and they have room: what was looked up, which costs
    /// nothing, or else what a draft model guesses.
    pub(super) fn guess(
        &mut self,
        session: &mut Session,
        outputs: usize,
        ids: &mut Vec<i32>,
        pace: &Pace<'_>,
    ) -> Result<Guessed, Error> {
        let mut guessed = Guessed { source: Source::Lookup, count: 0, took: Duration::ZERO };
        let room = session.state.capacity() - session.state.len() - 1;
        let wanted = self.options.max_tokens.saturating_sub(self.tokens.len() + 1);
        let most = self.options.draft.min(outputs - 1).min(room).min(wanted);
        if self.options.draft == 0 {
            return Ok(guessed);
        }
        let model = self.model.clone();
        if self.options.lookup {
            let guesses = self.look_up(most);
            guessed.count = model.payoff()?.choose(guesses.len());
            ids.extend_from_slice(&guesses[..guessed.count]);
        }
        if guessed.count == 0 {
            self.ask_draft_model(session, (most, wanted), ids, pace, &mut guessed)?;
        }
        Ok(guessed)
    }

    fn look_up(&mut self, most: usize) -> &[i32] {
        let lookup = self.lookup.get_or_insert_default();
        if self.looked_at == 0 {
            lookup.push(&self.sequence.ids);
        }
        let new: Vec<i32> = self.tokens[self.looked_at..].iter().map(|id| *id as i32).collect();
        lookup.push(&new);
        self.looked_at = self.tokens.len();
        lookup.guess(most)
    }

    fn ask_draft_model(
        &mut self,
        session: &mut Session,
        (most, left): (usize, usize),
        ids: &mut Vec<i32>,
        pace: &Pace<'_>,
        guessed: &mut Guessed,
    ) -> Result<(), Error> {
        let model = self.model.clone();
        let (Some(drafter), Some(drafted)) = (model.drafter(), &mut session.drafted) else { return Ok(()) };
        let clock = Stopwatch::start();
        let ahead = Ahead {
            held: &session.held,
            last: self.last_token() as i32,
            places: (&self.places, self.next_place),
            visual: &session.visual,
            cancel: &session.cancel,
        };
        let behind = || drafter.behind(drafted, &ahead);
        let count = model.payoff()?.choose_drafted(most, (self.tokens.len(), left), behind);
        if count == 0 {
            return Ok(());
        }
        let guesses = drafter.guess(drafted, &ahead, count, pace.prefill, &mut self.sampler)?;
        ids.extend_from_slice(&guesses.ids);
        model.payoff()?.learn_drafted(guesses.behind, (guesses.ids.len(), guesses.took));
        *guessed = Guessed { source: Source::Model, count: guesses.ids.len(), took: clock.elapsed() };
        *self.stages.draft_ms.get_or_insert(0.0) += guessed.took.as_secs_f64() * 1000.0;
        Ok(())
    }

    /// A run took so long beside the guesses, of which the first `right` were right.
    pub(super) fn guessed(&mut self, guessed: &Guessed, right: usize, took: Duration) -> Result<(), Error> {
        self.model.payoff()?.learn(guessed.source, guessed.count, right, took);
        self.stages.drafted_tokens += guessed.count;
        self.stages.accepted_tokens += right;
        if guessed.source == Source::Model {
            self.stages.model_drafted_tokens += guessed.count;
            self.stages.model_accepted_tokens += right;
        }
        Ok(())
    }
}
