//! The reference as a backend.

use crate::{
    run::{Caches, evaluate},
    state::ReferenceState,
    weights::Weights,
};
use margay_graph::{
    Backend, BackendError, Bindings, Cancel, Executable, InputData, MemoryUse, Program, State, StateOptions,
    Sym, WeightSource,
};
use std::collections::BTreeMap;

/// Id of the backend.
pub(crate) const ID: &str = "reference";

/// Runs programs as they are, fused or not, in float32.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReferenceBackend;

impl ReferenceBackend {
    /// The reference.
    pub fn new() -> Self {
        Self
    }
}

impl Backend for ReferenceBackend {
    fn id(&self) -> &'static str {
        ID
    }

    fn describe(&self) -> String {
        "candle, float32 weights and KV cache; slow, exact, the oracle of the others".to_owned()
    }

    fn compile(
        &self,
        program: &Program,
        weights: &dyn WeightSource,
        limits: &Bindings,
    ) -> Result<Box<dyn Executable>, BackendError> {
        Ok(Box::new(ReferenceExecutable {
            program: program.clone(),
            weights: Weights::load(program, weights)?,
            limits: *limits,
            outputs: BTreeMap::new(),
        }))
    }
}

struct ReferenceExecutable {
    program: Program,
    weights: Weights,
    limits: Bindings,
    /// What the last run left, by output name.
    outputs: BTreeMap<String, Vec<f32>>,
}

impl Executable for ReferenceExecutable {
    fn program(&self) -> &Program {
        &self.program
    }

    fn memory(&self) -> MemoryUse {
        // Values are allocated as they are needed: there is no arena whose size could be told before a run.
        MemoryUse { packed_weight_bytes: self.weights.size_bytes(), ..MemoryUse::default() }
    }

    fn new_state(&self, options: StateOptions) -> Result<Box<dyn State>, BackendError> {
        Ok(Box::new(ReferenceState::new(self.program.caches(), options)?))
    }

    fn run(
        &mut self,
        bindings: &Bindings,
        inputs: &[InputData<'_>],
        state: Option<&mut dyn State>,
        cancel: &Cancel,
    ) -> Result<(), BackendError> {
        check_limits(bindings, &self.limits)?;
        let mut state = state.map(own_state).transpose()?;
        if let Some(state) = &state
            && state.specs() != self.program.caches()
        {
            return Err(call("the state was made for another program"));
        }
        if state.is_none() && !self.program.caches().is_empty() {
            return Err(call("this program keeps a KV cache: hand in a state made by new_state"));
        }
        let mut caches = match &state {
            Some(state) => state.caches(),
            None => Caches::default(),
        };
        let bindings = bindings.with(Sym::Past, caches.past);
        self.outputs = evaluate(&self.program, &self.weights, &bindings, inputs, &mut caches, cancel)?;
        if let Some(state) = &mut state {
            state.commit(caches);
        }
        Ok(())
    }

    fn output(&self, name: &str) -> Option<&[f32]> {
        self.outputs.get(name).map(Vec::as_slice)
    }
}

/// A call that does not fit.
pub(crate) fn call(what: impl Into<String>) -> BackendError {
    BackendError::Call { what: what.into() }
}

fn own_state(state: &mut dyn State) -> Result<&mut ReferenceState, BackendError> {
    state
        .as_any_mut()
        .downcast_mut::<ReferenceState>()
        .ok_or_else(|| call("the state was made by another backend than the reference"))
}

fn check_limits(bindings: &Bindings, limits: &Bindings) -> Result<(), BackendError> {
    for sym in Sym::ALL {
        if sym == Sym::Past {
            continue;
        }
        if let (Ok(size), Ok(limit)) = (bindings.get(sym), limits.get(sym))
            && size > limit
        {
            let what = format!("{} = {size}, but the program was compiled for at most {limit}", sym.name());
            return Err(call(what));
        }
    }
    Ok(())
}
