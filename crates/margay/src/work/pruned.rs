//! The prefill of a prompt of which some visual tokens are left out inside the decoder: all of it goes through the first
//! layers, then what stays of it through the others.

use super::{Pace, Work};
use crate::{
    Error, Session,
    embed::of_length_1,
    engine::{Engine, TailCall},
    prune::SplitState,
};
use margay_observe::Stopwatch;

/// How far a prompt has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pruned {
    /// Nothing is left out: its tokens go through all layers.
    Not,
    /// So many of its tokens went through the first layers.
    Head(usize),
    /// All of them did, and those that stay go through the others.
    Tail,
}

impl Work {
    /// Decides whether anything is left out of what is to be computed behind the first `shared` tokens.
    pub(super) fn begin_pruned(&mut self, session: &mut Session, shared: usize) -> Result<(), Error> {
        let model = self.model.clone();
        let pictures = self.sequence.ids[shared..].iter().any(|id| *id < 0);
        self.pruned = match model.pruning().filter(|_| pictures) {
            Some(pruning) => {
                Engine::observe_last(pruning, session.state.as_mut())?;
                Pruned::Head(shared)
            }
            None => Pruned::Not,
        };
        self.stages.pruned_tokens = session.pruned_tokens();
        Ok(())
    }

    /// A step of it.
    pub(super) fn prefill_pruned(&mut self, session: &mut Session, pace: &mut Pace<'_>) -> Result<(), Error> {
        let model = self.model.clone();
        let clock = Stopwatch::start();
        let mut engine = model.engine()?;
        let batch = pace.prefill.clamp(1, engine.batch());
        let mut token = None;
        let left = match self.pruned {
            Pruned::Head(from) => self.prefill_head(session, &mut engine, from, batch)?,
            _ => {
                let (left, logits) = self.prefill_tail(session, &mut engine, batch)?;
                if left == 0 {
                    token = Some(self.choose(&logits)?);
                    let width = model.config().text.width;
                    self.embedding = engine.embedding(width).filter(|_| self.options.embed).map(of_length_1);
                    self.pruned = Pruned::Not;
                }
                left
            }
        };
        drop(engine);
        self.prefilled(session, token, clock.elapsed(), left)
    }

    /// The next batch through the first layers; gives the steps that are left.
    fn prefill_head(
        &mut self,
        session: &mut Session,
        engine: &mut Engine,
        from: usize,
        batch: usize,
    ) -> Result<usize, Error> {
        let model = self.model.clone();
        let to = self.batch_end(engine, from, batch)?;
        let call = self.prompt_call(&session.visual, from..to);
        engine.run_head(&call, session.state.as_mut(), &session.cancel)?;
        let all = &self.sequence.ids;
        let start = session.held.len();
        self.pruned = Pruned::Head(to);
        let Some(pruning) = model.pruning() else { return Ok(0) };
        if to == all.len() {
            Engine::prune(pruning, all, session.state.as_mut())?;
            self.pruned = Pruned::Tail;
            let waiting = SplitState::of(session.state.as_mut())?.waiting().len();
            return Ok(waiting.div_ceil(batch));
        }
        // Of what is not chosen yet the share is known.
        let visual = all[start..].iter().filter(|id| **id < 0).count();
        let staying = all.len() - start - visual + pruning.count(visual);
        Ok(self.batches_left(to, batch) + staying.div_ceil(batch))
    }

    /// The next batch of what stays through the deeper layers; gives the steps that are left, and the logits of its last token.
    fn prefill_tail(
        &mut self,
        session: &mut Session,
        engine: &mut Engine,
        batch: usize,
    ) -> Result<(usize, Vec<f32>), Error> {
        let start = session.held.len();
        let state = SplitState::of(session.state.as_mut())?;
        let waiting = state.waiting();
        // Tokens that see one another go together.
        let prefix = if start < self.prefix { self.prefix } else { 0 };
        let together = waiting.iter().take_while(|place| (**place as usize) < prefix).count();
        let count = waiting.len().min(batch.max(together));
        let left = (waiting.len() - count).div_ceil(batch);
        let call = TailCall { count, places: &self.places, prefix: self.prefix };
        let logits = engine.run_tail(&call, session.state.as_mut(), &session.cancel)?.to_vec();
        let held = session.state.len();
        session.held.extend_from_slice(&self.sequence.ids[start..held]);
        self.stages.prefill_tokens += held - start;
        self.stages.pruned_tokens = session.pruned_tokens();
        let by_question = self.model.pruning().map_or(Ok(false), |pruning| pruning.is_by_question())?;
        let first = session.held.iter().position(|id| *id < 0).filter(|_| by_question);
        session.whole = first.or(session.whole);
        Ok((left, logits))
    }
}
