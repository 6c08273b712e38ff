//! Methods that look at what a layer is given by the layers before it, as those are stored: the model is walked over
//! questions, and each layer is packed when the walk comes to it.
//!
//! Source: GPTQ's "true sequential" order.

use crate::{
    PackError, WalkProgress,
    calibrate::{Base, multiplied},
    flow::{Flowing, Rows, bare_programs, flow, walked},
    importance::Importance,
    quantize::{Pass, folded, read_again},
};
use margay_graph::{BackendError, Program, ValueId, WeightSource};
use margay_quant::{InputStats, Needs};
use margay_reference::{Visit, Walker};
use margay_tensor::Tensor;
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
};

/// Rows of an input that are kept whole for methods that compare outputs.
const SAMPLE_ROWS: usize = 256;

/// Packs and writes every weight that the walk meets; what it does not meet is left to be written afterwards.
pub(crate) fn run(pass: &mut Pass<'_, '_>) -> Result<(), PackError> {
    let (source, prompts, needs) = (pass.source, pass.options.prompts, pass.options.method.needs());
    let programs = bare_programs(source)?;
    let importance = match needs.gradients {
        true => Importance::find(source, &programs, prompts, &mut |step| pass.tell(step.doing))?,
        false => Importance::default(),
    };
    // The walk itself tells and stops with each weight that it writes.
    let mut go_on = |_: &WalkProgress<'_>| ControlFlow::Continue(());
    let again = read_again(&programs);
    let mut walker = Sequential {
        base: Base::new(source, &walked(&programs, prompts), &mut go_on),
        pass,
        importance: &importance,
        again: &again,
        needs,
        kept: BTreeMap::new(),
        input: None,
    };
    flow(source, &programs, prompts, false, &mut walker)?;
    Ok(())
}

struct Sequential<'w, 'a, 'p> {
    base: Base<'w>,
    pass: &'w mut Pass<'a, 'p>,
    importance: &'w Importance,
    again: &'w BTreeSet<String>,
    needs: Needs,
    /// Weights of this node, and those that a later node reads too, as they were written.
    kept: BTreeMap<String, Tensor>,
    /// What was gathered last, of which value, and without which of its columns.
    input: Option<(ValueId, Vec<usize>, InputStats)>,
}

impl WeightSource for Sequential<'_, '_, '_> {
    fn weight(&self, name: &str) -> Result<Tensor, BackendError> {
        let fail = |e: PackError| BackendError::Weight { name: name.to_owned(), what: e.to_string() };
        let declared = self.base.weight(name)?;
        match (self.kept.get(name), self.pass.folds.get(name)) {
            // Stored with its sizes split otherwise, the numbers are the same.
            (Some(tensor), _) => tensor
                .reshape(declared.shape().clone())
                .map_err(|e| BackendError::Weight { name: name.to_owned(), what: e.to_string() }),
            (None, Some(fold)) => folded(name, &declared, fold).map_err(fail),
            (None, None) => Ok(declared),
        }
    }
}

impl Walker for Sequential<'_, '_, '_> {
    type Error = PackError;

    fn node(&mut self, visit: &Visit<'_>) -> Result<(), PackError> {
        self.base.step(visit)?;
        self.kept.retain(|name, _| self.again.contains(name));
        let multiplied = multiplied(&visit.node().op);
        for weight in visit.node().op.weights() {
            let name = self.base.name(weight).to_owned();
            let order = self.pass.order;
            // Read before, or not stored at all.
            if !order[self.pass.next..].iter().any(|(_, planned)| planned.name() == name) {
                continue;
            }
            while order[self.pass.next].1.name() != name {
                self.pass.write_next(None)?;
            }
            let planned = order[self.pass.next].1;
            let rounded = planned.info.dtype.is_block() && !planned.per_channel;
            if multiplied.contains(&weight) && rounded && !self.pass.is_written() {
                self.gather(visit, &name, planned.without())?;
                let mut input = self.input.take();
                self.pass.write_next(input.as_mut().map(|(.., stats)| stats))?;
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

impl Sequential<'_, '_, '_> {
    /// Queries, keys and values read one input, which is looked at once unless each weighs its tokens otherwise.
    fn gather(&mut self, visit: &Visit<'_>, name: &str, without: &[usize]) -> Result<(), PackError> {
        let value = visit.node().inputs[0];
        let known = self.importance.of(name);
        let seen = self.input.as_ref().is_some_and(|(of, cleared, _)| *of == value && cleared == without);
        let same = seen && known.is_none();
        if !same {
            self.input = None;
            let weighs = self.needs.gradients;
            // Where no gradient comes by, before the decoder, tokens matter alike.
            let weigh = |sample: usize, count: usize| match known {
                Some(known) => known.rows.get(sample).cloned(),
                None => weighs.then(|| vec![1.0; count]),
            };
            let rows = if self.needs.sample || self.pass.options.measure { SAMPLE_ROWS } else { 0 };
            let mut stats = self.base.gather(visit, self.needs, rows, &weigh)?;
            stats.visual_weight = known.map_or(1.0, |known| known.visual_weight);
            stats.clear(without);
            self.input = Some((value, without.to_vec(), stats));
        }
        Ok(())
    }
}

impl Flowing for Sequential<'_, '_, '_> {
    fn begin(&mut self, program: &Program, rows: Rows) {
        self.input = None;
        self.base.begin(program, rows);
    }
}
