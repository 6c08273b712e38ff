//! Prompts of which only the first layers see every token.

use super::{Engine, TextCall, positions};
use crate::{
    Error,
    prune::{Pruning, SplitState},
};
use margay_graph::{BackendError, Bindings, Cancel, InputData, Observe, State, Sym};

/// Tokens of a prompt that go through the deeper layers together.
pub(crate) struct TailCall<'a> {
    /// How many of those that wait.
    pub count: usize,
    /// The places of all tokens of the prompt, as [`TextCall::places`].
    pub places: &'a [[i32; 3]],
    /// Tokens at the start of the prompt that see one another, those that were left out counted.
    pub prefix: usize,
}

impl Engine {
    /// Runs the first layers over at most [`Engine::batch`] tokens of a prompt; [`Engine::prune`] follows its last.
    pub(crate) fn run_head(
        &mut self,
        call: &TextCall<'_>,
        state: &mut dyn State,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        positions(self.text.program(), call.position, call.ids.len(), call.places, &mut self.positions);
        let bindings = Bindings::new()
            .with(Sym::Tokens, call.ids.len())
            .with(Sym::Visual, call.visual.len() / call.width)
            .with(Sym::Prefix, call.prefix);
        let inputs = [
            InputData::I32(call.ids),
            InputData::I32(&self.positions),
            InputData::I32(&[]),
            InputData::F32(call.visual),
        ];
        let split = self.text.split_mut().ok_or_else(whole)?;
        Ok(split.run_head(&bindings, &inputs, SplitState::of(state)?, cancel)?)
    }

    /// Has the first layers note what [`Engine::prune`] needs of the prompt's last token.
    pub(crate) fn observe_last(pruning: &Pruning, state: &mut dyn State) -> Result<(), Error> {
        let what = if pruning.is_by_question()? { Observe::Newest(1) } else { Observe::Nothing };
        Ok(SplitState::of(state)?.observe_head(what)?)
    }

    /// Chooses which of the tokens that went through the first layers go on; `ids` are those of the whole prompt.
    pub(crate) fn prune(pruning: &Pruning, ids: &[i32], state: &mut dyn State) -> Result<(), Error> {
        let state = SplitState::of(state)?;
        let attention = if pruning.is_by_question()? { state.last_attention()? } else { vec![] };
        let (rows, places) = state.ahead();
        let kept = pruning.kept(&ids[places.clone()], rows, attention.get(places).unwrap_or_default())?;
        Ok(state.keep_ahead(&kept)?)
    }

    /// Runs the deeper layers over the next tokens that stay and gives the logits of the last of them, `[vocabulary]`.
    pub(crate) fn run_tail(
        &mut self,
        call: &TailCall<'_>,
        state: &mut dyn State,
        cancel: &Cancel,
    ) -> Result<&[f32], Error> {
        let state = SplitState::of(state)?;
        self.ids.clear();
        let program = self.text.program();
        let mut one = vec![];
        for place in &state.waiting()[..call.count] {
            let place = *place as usize;
            let places = call.places.get(place..=place).unwrap_or_default();
            positions(program, place, 1, places, &mut one);
            self.ids.extend_from_slice(&one);
        }
        let rows = [call.count as i32 - 1];
        let split = self.text.split_mut().ok_or_else(whole)?;
        split.run_tail(call.count, (&self.ids, &rows), call.prefix, state, cancel)?;
        Ok(self.text.output("logits").expect("invariant: the text program has logits"))
    }
}

fn whole() -> Error {
    let what = "the model was not loaded to prune visual tokens".to_owned();
    BackendError::Call { what }.into()
}
