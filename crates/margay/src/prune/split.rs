//! A text program in two compiled parts, cut behind the layers that see every token.

use super::{Pruning, state::SplitState};
use crate::{Error, engine::Compile};
use margay_graph::{
    BackendError, Bindings, Cancel, Executable, InputData, MemoryUse, Program, Segment, State, StateOptions,
    Sym, passes,
};
use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
};

/// The compiled text program of a model.
pub(crate) enum Decoder {
    /// In one piece.
    Whole(Box<dyn Executable>),
    /// In two, of which the second sees fewer tokens.
    Split(Box<Split>),
}

impl Deref for Decoder {
    type Target = dyn Executable;

    fn deref(&self) -> &Self::Target {
        match self {
            Decoder::Whole(whole) => whole.as_ref(),
            Decoder::Split(split) => split.as_ref(),
        }
    }
}

impl DerefMut for Decoder {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match self {
            Decoder::Whole(whole) => whole.as_mut(),
            Decoder::Split(split) => split.as_mut(),
        }
    }
}

impl Decoder {
    /// What the backend compiled.
    pub(crate) fn parts_mut(&mut self) -> Vec<&mut Box<dyn Executable>> {
        match self {
            Decoder::Whole(whole) => vec![whole],
            Decoder::Split(split) => vec![&mut split.head, &mut split.tail],
        }
    }

    pub(crate) fn split_mut(&mut self) -> Option<&mut Split> {
        match self {
            Decoder::Whole(_) => None,
            Decoder::Split(split) => Some(split),
        }
    }
}

/// A text program in two parts. Tokens of a run go through both; [`Split::run_head`] and [`Split::run_tail`] take those of a
/// prompt of which some are left out in between.
pub(crate) struct Split {
    /// As one, for who asks what it takes.
    program: Program,
    head: Box<dyn Executable>,
    tail: Box<dyn Executable>,
    /// The name of what goes from one to the other, [T, E].
    hidden: String,
    width: usize,
    form: Arc<str>,
}

impl Split {
    /// Of an unoptimized text program with its taps; `outputs` are those that are wanted of it.
    pub(crate) fn new(
        text: &Program,
        outputs: impl Fn(&str) -> bool,
        pruning: &Pruning,
        compile: Compile<'_>,
    ) -> Result<Split, Error> {
        let hidden = format!("hidden.{}", pruning.layer);
        let (head, tail) = text.with_outputs(|name| outputs(name) || name == hidden)?.cut(&hidden)?;
        let program = passes::optimize(&text.with_outputs(outputs)?);
        let width = head.output(&hidden).map_or(1, |id| head.value(id).columns());
        let [head, tail] = [passes::optimize(&head), passes::optimize(&tail)];
        let (head, tail) = (compile(&head)?, compile(&tail)?);
        Ok(Split { program, head, tail, hidden, width, form: pruning.form().into() })
    }

    /// Runs the first layers; their rows wait in the state. Inputs as of the whole program, which has no `rows` to give.
    pub(crate) fn run_head(
        &mut self,
        bindings: &Bindings,
        inputs: &[InputData<'_>],
        state: &mut SplitState,
        cancel: &Cancel,
    ) -> Result<(), BackendError> {
        let given = named(&self.program, inputs);
        let inputs = wanted(self.head.program(), &given)?;
        let before = state.head.len();
        self.head.run(bindings, &inputs, Some(state.head.as_mut()), cancel)?;
        let done = state.take_ahead(hidden_of(self.head.as_ref(), &self.hidden));
        if done.is_err() {
            state.head.truncate(before);
        }
        done
    }

    /// Runs the other layers over the next `count` tokens that stay; logits of the last `outputs` of them are computed.
    /// `positions` as the program takes them, `prefix` tokens of the prompt see one another.
    pub(crate) fn run_tail(
        &mut self,
        count: usize,
        (positions, rows): (&[i32], &[i32]),
        prefix: usize,
        state: &mut SplitState,
        cancel: &Cancel,
    ) -> Result<(), BackendError> {
        let bindings = Bindings::new()
            .with(Sym::Tokens, count)
            .with(Sym::Outputs, rows.len())
            .with(Sym::Prefix, state.in_tail(prefix));
        let (tail, hidden) = state.next(count);
        let given = [
            ("positions", InputData::I32(positions)),
            ("rows", InputData::I32(rows)),
            (self.hidden.as_str(), InputData::F32(hidden)),
        ];
        let inputs = wanted(self.tail.program(), &given)?;
        self.tail.run(&bindings, &inputs, Some(tail), cancel)?;
        state.pass(count);
        Ok(())
    }
}

impl Executable for Split {
    fn program(&self) -> &Program {
        &self.program
    }

    fn memory(&self) -> MemoryUse {
        let mut sum = self.head.memory();
        sum += self.tail.memory();
        sum
    }

    fn new_state(&self, options: StateOptions) -> Result<Box<dyn State>, BackendError> {
        let (head, tail) = (self.head.new_state(options)?, self.tail.new_state(options)?);
        Ok(Box::new(SplitState::new(head, tail, self.width, self.form.clone())))
    }

    fn run(
        &mut self,
        bindings: &Bindings,
        inputs: &[InputData<'_>],
        state: Option<&mut dyn State>,
        cancel: &Cancel,
    ) -> Result<(), BackendError> {
        let none =
            || BackendError::Call { what: "this program keeps a KV cache: call it with a state".to_owned() };
        let state = SplitState::of(state.ok_or_else(none)?)?;
        state.forget_ahead();
        let before = state.head.len();
        let given = named(&self.program, inputs);
        let head_inputs = wanted(self.head.program(), &given)?;
        self.head.run(bindings, &head_inputs, Some(state.head.as_mut()), cancel)?;
        let given = with_hidden(given, &self.hidden, self.head.as_ref());
        let bindings = bindings.with(Sym::Prefix, state.in_tail(bindings.get(Sym::Prefix)?));
        let done = wanted(self.tail.program(), &given)
            .and_then(|inputs| self.tail.run(&bindings, &inputs, Some(state.tail.as_mut()), cancel));
        if done.is_err() {
            state.head.truncate(before);
        }
        done
    }

    fn runs_several(&self) -> bool {
        self.head.runs_several() && self.tail.runs_several()
    }

    fn run_several(
        &mut self,
        bindings: &Bindings,
        inputs: &[InputData<'_>],
        segments: &mut [Segment<'_>],
        cancel: &Cancel,
    ) -> Result<(), BackendError> {
        let mut before = Vec::with_capacity(segments.len());
        for segment in &mut *segments {
            let state = SplitState::of(segment.state)?;
            state.forget_ahead();
            before.push(state.head.len());
        }
        let given = named(&self.program, inputs);
        let head_inputs = wanted(self.head.program(), &given)?;
        let mut heads = parts(segments, |state| state.head.as_mut())?;
        self.head.run_several(bindings, &head_inputs, &mut heads, cancel)?;
        let given = with_hidden(given, &self.hidden, self.head.as_ref());
        let mut tails = parts(segments, |state| state.tail.as_mut())?;
        let done = wanted(self.tail.program(), &given)
            .and_then(|inputs| self.tail.run_several(bindings, &inputs, &mut tails, cancel));
        if done.is_err() {
            for (segment, before) in segments.iter_mut().zip(before) {
                SplitState::of(segment.state)?.head.truncate(before);
            }
        }
        done
    }

    fn output(&self, name: &str) -> Option<&[f32]> {
        self.tail.output(name)
    }
}

/// The segments of one part.
fn parts<'s>(
    segments: &'s mut [Segment<'_>],
    part: impl Fn(&'s mut SplitState) -> &'s mut dyn State,
) -> Result<Vec<Segment<'s>>, BackendError> {
    let of = |segment: &'s mut Segment<'_>| {
        Ok(Segment { rows: segment.rows, state: part(SplitState::of(&mut *segment.state)?) })
    };
    segments.iter_mut().map(of).collect()
}

type Given<'n, 'd> = Vec<(&'n str, InputData<'d>)>;

fn named<'n, 'd>(program: &'n Program, inputs: &[InputData<'d>]) -> Given<'n, 'd> {
    program.inputs().iter().map(|(name, _)| name.as_str()).zip(inputs.iter().copied()).collect()
}

fn with_hidden<'n, 'd>(mut given: Given<'n, 'd>, name: &'n str, head: &'d dyn Executable) -> Given<'n, 'd> {
    given.push((name, InputData::F32(hidden_of(head, name))));
    given
}

fn hidden_of<'h>(head: &'h dyn Executable, name: &str) -> &'h [f32] {
    head.output(name).expect("invariant: the first part gives what the second takes")
}

/// Those that a part takes, in its order.
fn wanted<'d>(part: &Program, given: &[(&str, InputData<'d>)]) -> Result<Vec<InputData<'d>>, BackendError> {
    let find = |(name, _): &(String, _)| {
        let found = given.iter().find(|(given, _)| given == name).map(|(_, data)| *data);
        found.ok_or_else(|| BackendError::Call { what: format!("the call has no input {name}") })
    };
    part.inputs().iter().map(find).collect()
}
