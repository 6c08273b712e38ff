//! Pruning while a walk over questions goes by: each layer is given what the pruned layers before it give.
//!
//! Source: the sequential order of SparseGPT's and Wanda's own programs.

use super::{PruneMethod, as_progress, pass::Pass};
use crate::{
    PackError,
    calibrate::{Base, multiplied},
    flow::{Flowing, Rows, bare_programs, flow, walked},
    quantize::read_again,
};
use margay_graph::{BackendError, Program, ValueId, WeightSource};
use margay_model::ModelPrograms;
use margay_quant::{InputStats, Needs};
use margay_reference::{Visit, Walker};
use margay_tensor::Tensor;
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
};

/// Rows of an input that are kept to compare outputs.
const SAMPLE_ROWS: usize = 256;

/// Prunes and writes every weight that the walk meets; what it does not meet is left to be written afterwards.
pub(super) fn run(pass: &mut Pass<'_, '_>, all: &ModelPrograms) -> Result<(), PackError> {
    let (source, prompts) = (pass.source, pass.options.prompts);
    let programs = bare_programs(source)?;
    let again = read_again(all);
    let mut go_on = |_: &crate::WalkProgress<'_>| ControlFlow::Continue(());
    let mut walker = Pruning {
        base: Base::new(source, &walked(&programs, prompts), &mut go_on),
        pass,
        again: &again,
        kept: BTreeMap::new(),
        input: None,
    };
    flow(source, &programs, prompts, false, &mut walker)?;
    Ok(())
}

struct Pruning<'w, 'a, 'p> {
    base: Base<'w>,
    pass: &'w mut Pass<'a, 'p>,
    again: &'w BTreeSet<String>,
    /// Weights of this node, and those that a later node reads too, as they were written.
    kept: BTreeMap<String, Tensor>,
    /// What was gathered last, and of which value.
    input: Option<(ValueId, InputStats)>,
}

impl WeightSource for Pruning<'_, '_, '_> {
    fn weight(&self, name: &str) -> Result<Tensor, BackendError> {
        let declared = self.base.weight(name)?;
        match self.kept.get(name) {
            // Stored with its sizes split otherwise, the numbers are the same.
            Some(tensor) => tensor
                .reshape(declared.shape().clone())
                .map_err(|e| BackendError::Weight { name: name.to_owned(), what: e.to_string() }),
            None => Ok(declared),
        }
    }
}

impl Walker for Pruning<'_, '_, '_> {
    type Error = PackError;

    fn node(&mut self, visit: &Visit<'_>) -> Result<(), PackError> {
        self.base.step(visit)?;
        let step = crate::WalkProgress {
            doing: visit.node().op.name(),
            done: self.pass.next,
            of: self.pass.order.len(),
        };
        if as_progress(&step, &mut *self.pass.progress).is_break() {
            return Err(PackError::Stopped);
        }
        self.kept.retain(|name, _| self.again.contains(name));
        let multiplied = multiplied(&visit.node().op);
        for weight in visit.node().op.weights() {
            let name = self.base.name(weight).to_owned();
            let order = self.pass.order;
            // Read before, or not stored at all.
            if !order[self.pass.next..].iter().any(|(_, item)| item.from == name) {
                continue;
            }
            while order[self.pass.next].1.from != name {
                self.pass.write_next(None)?;
            }
            if multiplied.contains(&weight) && order[self.pass.next].1.zeros && !self.pass.is_written() {
                self.gather(visit)?;
                let mut input = self.input.take();
                self.pass.write_next(input.as_mut().map(|(_, stats)| stats))?;
                self.input = input;
            } else {
                self.pass.write_next(None)?;
            }
            let tensor = self.pass.read_back()?;
            self.kept.insert(name, tensor);
        }
        Ok(())
    }
}

impl Pruning<'_, '_, '_> {
    /// Queries, keys and values read one input, which is looked at once.
    fn gather(&mut self, visit: &Visit<'_>) -> Result<(), PackError> {
        let value = visit.node().inputs[0];
        if self.input.as_ref().is_none_or(|(of, _)| *of != value) {
            self.input = None;
            let hessian = self.pass.options.method == PruneMethod::SparseGpt;
            let needs = Needs { activations: true, sample: true, hessian, gradients: false };
            let rows = if self.pass.options.measure { SAMPLE_ROWS } else { 0 };
            self.input = Some((value, self.base.gather(visit, needs, rows, &|_, _| None)?));
        }
        Ok(())
    }
}

impl Flowing for Pruning<'_, '_, '_> {
    fn begin(&mut self, program: &Program, rows: Rows) {
        self.input = None;
        self.base.begin(program, rows);
    }
}
