//! Runs a program node by node.

use crate::{backend::call, ops, weights::Weights};
use candle_core::{Device, Tensor};
use margay_graph::{BackendError, Bindings, Cancel, Element, InputData, Node, Op, Program, Value, ValueId};
use std::{collections::BTreeMap, sync::Arc};

/// What a value holds while a program runs.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    F32(Tensor),
    I32(Arc<[i32]>),
}

/// The KV cache during one run: what was there, and what the run has appended so far.
#[derive(Default)]
pub(crate) struct Caches {
    /// Rows held before the run.
    pub(crate) past: usize,
    /// Rows that fit; `None` sets no bound.
    pub(crate) capacity: Option<usize>,
    pub(crate) slots: Vec<Option<(Tensor, Tensor)>>,
}

/// What an op sees.
pub(crate) struct Context<'a> {
    pub(crate) node: &'a Node,
    pub(crate) weights: &'a Weights,
    pub(crate) caches: &'a mut Caches,
    /// Sizes of the result.
    pub(crate) dims: Vec<usize>,
    pub(crate) bindings: &'a Bindings,
    pub(crate) values: &'a [Option<Data>],
}

impl Context<'_> {
    /// The node's input number `at`, which must be float32.
    pub(crate) fn tensor(&self, at: usize) -> Result<&Tensor, BackendError> {
        match self.data(at)? {
            Data::F32(tensor) => Ok(tensor),
            Data::I32(_) => {
                Err(call(format!("input {at} of {} holds integers, not numbers", self.node.op.name())))
            }
        }
    }

    /// The node's input number `at`, which must be int32.
    pub(crate) fn integers(&self, at: usize) -> Result<Arc<[i32]>, BackendError> {
        match self.data(at)? {
            Data::I32(values) => Ok(values.clone()),
            Data::F32(_) => {
                Err(call(format!("input {at} of {} holds numbers, not integers", self.node.op.name())))
            }
        }
    }

    fn data(&self, at: usize) -> Result<&Data, BackendError> {
        let value = self.node.inputs.get(at).and_then(|id| self.values[id.index()].as_ref());
        value.ok_or_else(|| call(format!("{} has no input {at}", self.node.op.name())))
    }
}

/// Runs the program and gives its float32 outputs by name.
pub(crate) fn evaluate(
    program: &Program,
    weights: &Weights,
    bindings: &Bindings,
    inputs: &[InputData<'_>],
    caches: &mut Caches,
    cancel: &Cancel,
) -> Result<BTreeMap<String, Vec<f32>>, BackendError> {
    let inputs = bind_inputs(program, bindings, inputs)?;
    let values = evaluate_values(program, weights, bindings, &inputs, caches, cancel, &mut |_, t| Ok(t))?;
    let mut outputs = BTreeMap::new();
    for (name, id) in program.outputs() {
        if let Some(Data::F32(tensor)) = &values[id.index()] {
            let numbers = tensor.flatten_all().and_then(|t| t.to_vec1::<f32>());
            outputs.insert(name.clone(), numbers.map_err(|e| call(format!("output {name}: {e}")))?);
        }
    }
    Ok(outputs)
}

/// The inputs of a call as data of the declared element types and sizes.
pub(crate) fn bind_inputs(
    program: &Program,
    bindings: &Bindings,
    inputs: &[InputData<'_>],
) -> Result<Vec<(ValueId, Data)>, BackendError> {
    if inputs.len() != program.inputs().len() {
        let names: Vec<_> = program.inputs().iter().map(|(n, _)| n.as_str()).collect();
        let what = format!("{} inputs handed in, the program takes {}", inputs.len(), names.join(", "));
        return Err(call(what));
    }
    let mut bound = Vec::with_capacity(inputs.len());
    for ((name, id), input) in program.inputs().iter().zip(inputs) {
        let value = program.value(*id);
        let dims = sizes(value, bindings)?;
        let len: usize = dims.iter().product();
        let expect_len = |got: usize| {
            if got == len {
                Ok(())
            } else {
                Err(call(format!("input {name} holds {got} values, expected {dims:?}")))
            }
        };
        let data = match (input, value.element) {
            (InputData::F32(values), Element::F32) => {
                expect_len(values.len())?;
                let tensor = Tensor::from_slice(values, dims.as_slice(), &Device::Cpu);
                Data::F32(tensor.map_err(|e| call(format!("input {name}: {e}")))?)
            }
            (InputData::I32(values), Element::I32) => {
                expect_len(values.len())?;
                Data::I32((*values).into())
            }
            (_, Element::F32) => return Err(call(format!("input {name} takes float32"))),
            (_, Element::I32) => return Err(call(format!("input {name} takes int32"))),
        };
        bound.push((*id, data));
    }
    Ok(bound)
}

/// What becomes of a result before anybody reads it.
pub(crate) type Change<'c> = &'c mut dyn FnMut(ValueId, Tensor) -> candle_core::Result<Tensor>;

/// Runs every node; values that nobody reads any more are dropped, outputs and inputs stay.
pub(crate) fn evaluate_values(
    program: &Program,
    weights: &Weights,
    bindings: &Bindings,
    inputs: &[(ValueId, Data)],
    caches: &mut Caches,
    cancel: &Cancel,
    change: Change<'_>,
) -> Result<Vec<Option<Data>>, BackendError> {
    let last_uses = program.last_uses();
    let mut values: Vec<Option<Data>> = vec![None; program.values().len()];
    for (id, data) in inputs {
        values[id.index()] = Some(data.clone());
    }
    for (at, node) in program.nodes().iter().enumerate() {
        if cancel.is_cancelled() {
            return Err(BackendError::Cancelled);
        }
        if node.op == Op::Input {
            continue;
        }
        let dims = sizes(program.value(node.output), bindings)?;
        let mut context = Context { node, weights, caches, dims, bindings, values: &values };
        let result = ops::run(&mut context).map_err(|e| named(program, node, e))?;
        let result = change(node.output, result).map_err(|e| call(e.to_string()))?;
        values[node.output.index()] = Some(Data::F32(result));
        for input in &node.inputs {
            if last_uses[input.index()] == at {
                values[input.index()] = None;
            }
        }
    }
    Ok(values)
}

pub(crate) fn sizes(value: &Value, bindings: &Bindings) -> Result<Vec<usize>, BackendError> {
    Ok(value.dims.iter().map(|d| d.eval(bindings)).collect::<Result<_, _>>()?)
}

/// Says which node an error comes from.
pub(crate) fn named(program: &Program, node: &Node, error: BackendError) -> BackendError {
    match error {
        BackendError::Call { what } => {
            let weights: Vec<_> =
                node.op.weights().iter().map(|w| program.weight(*w).name.as_str()).collect();
            let weights =
                if weights.is_empty() { String::new() } else { format!(" of {}", weights.join(", ")) };
            call(format!("{}{weights}: {what}", node.op.name()))
        }
        other => other,
    }
}
