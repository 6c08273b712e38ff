//! Gradients of one output of a program, for calibration.

use crate::{
    backend::call,
    run::{Caches, Data, bind_inputs, evaluate_values},
    weights::Weights,
};
use candle_core::{Device, Tensor, Var, backprop::GradStore};
use margay_graph::{BackendError, Bindings, Cancel, InputData, Op, Program, Sym, ValueId, WeightSource};
use std::collections::BTreeMap;

/// What [`gradients`] finds.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// The output itself, row-major.
    pub output: Vec<f32>,
    /// Gradient of each weight by name, in the weight's shape; zeros where the output does not depend on it. The
    /// divisors of rotary frequencies are constants and have none.
    pub weights: BTreeMap<String, Vec<f32>>,
    /// Gradient of each float32 input by name, in the input's shape.
    pub inputs: BTreeMap<String, Vec<f32>>,
}

/// Gradients of `sum(output * upstream)` with respect to every weight and float32 input.
///
/// The program runs once with an empty KV cache (`past` is 0). `upstream` is as long as the output; weights of any
/// stored type are differentiated at their decoded values.
///
/// # Errors
/// [`BackendError`] as a run gives it; [`BackendError::Call`] where `output` is no float32 output of the program or
/// `upstream` has another length.
pub fn gradients(
    program: &Program,
    weights: &dyn WeightSource,
    bindings: &Bindings,
    inputs: &[InputData<'_>],
    output: &str,
    upstream: &[f32],
) -> Result<Gradients, BackendError> {
    let candle = |e: candle_core::Error| call(format!("gradients of {output}: {e}"));
    let wanted = program.output(output).ok_or_else(|| call(format!("the program has no output {output}")))?;
    let bindings = bindings.with(Sym::Past, 0);

    let variable = |t: Tensor| Var::from_tensor(&t).map(|v| v.as_tensor().clone());
    let weights = Weights::load(program, weights)?.try_map(variable).map_err(candle)?;
    let mut bound = bind_inputs(program, &bindings, inputs)?;
    for (_, data) in &mut bound {
        if let Data::F32(tensor) = data {
            *tensor = variable(tensor.clone()).map_err(candle)?;
        }
    }

    let caches = &mut Caches::default();
    let values =
        evaluate_values(program, &weights, &bindings, &bound, caches, &Cancel::new(), &mut |_, t| Ok(t))?;
    let Some(Data::F32(result)) = &values[wanted.index()] else {
        return Err(call(format!("output {output} holds integers, which have no gradient")));
    };
    if result.elem_count() != upstream.len() {
        let what =
            format!("output {output} is {:?}, the upstream gradient has {}", result.dims(), upstream.len());
        return Err(call(what));
    }
    let output = result.flatten_all().and_then(|t| t.to_vec1()).map_err(candle)?;
    let store = if upstream.is_empty() {
        None
    } else {
        let upstream = Tensor::from_slice(upstream, result.dims(), &Device::Cpu).map_err(candle)?;
        let loss = (result * upstream).and_then(|t| t.sum_all()).map_err(candle)?;
        Some(loss.backward().map_err(candle)?)
    };

    let constant = constants(program);
    let trainable =
        program.weights().iter().zip(weights.all()).zip(&constant).filter(|(_, constant)| !**constant);
    let weights = trainable
        .map(|((spec, weight), _)| Ok((spec.name.clone(), numbers(store.as_ref(), weight)?)))
        .collect::<Result<_, _>>()
        .map_err(candle)?;
    let name_of = |id: &ValueId| program.inputs().iter().find(|(_, v)| v == id).map(|(n, _)| n.clone());
    let mut input_gradients = BTreeMap::new();
    for (id, data) in &bound {
        if let (Some(name), Data::F32(tensor)) = (name_of(id), data) {
            input_gradients.insert(name, numbers(store.as_ref(), tensor).map_err(candle)?);
        }
    }
    Ok(Gradients { output, weights, inputs: input_gradients })
}

/// Gradients with respect to values inside the program, each in the value's shape, row-major: of
/// `sum(output * upstream)`, where `upstream` is what `of` makes of the output.
///
/// The program runs once with an empty KV cache. Weights are constants, so that the memory is that of the weights as
/// float32 and of all values together.
///
/// # Errors
/// As [`gradients`].
pub fn value_gradients(
    program: &Program,
    weights: &dyn WeightSource,
    bindings: &Bindings,
    inputs: &[InputData<'_>],
    output: &str,
    of: &dyn Fn(&[f32]) -> Vec<f32>,
    values: &[ValueId],
) -> Result<Vec<Vec<f32>>, BackendError> {
    let candle = |e: candle_core::Error| call(format!("gradients of {output}: {e}"));
    let wanted = program.output(output).ok_or_else(|| call(format!("the program has no output {output}")))?;
    let bindings = bindings.with(Sym::Past, 0);
    let weights = Weights::load(program, weights)?;
    let bound = bind_inputs(program, &bindings, inputs)?;
    // Zeros that are added to a value have its gradient.
    let mut zeros: BTreeMap<ValueId, Tensor> = BTreeMap::new();
    let mut add_zeros = |id: ValueId, result: Tensor| {
        if !values.contains(&id) {
            return Ok(result);
        }
        let zero = Var::zeros(result.shape(), result.dtype(), &Device::Cpu)?.as_tensor().clone();
        let sum = (result + &zero)?;
        zeros.insert(id, zero);
        Ok(sum)
    };
    let caches = &mut Caches::default();
    let (cancel, change) = (Cancel::new(), &mut add_zeros);
    let results = evaluate_values(program, &weights, &bindings, &bound, caches, &cancel, change)?;
    let Some(Data::F32(result)) = &results[wanted.index()] else {
        return Err(call(format!("output {output} holds integers, which have no gradient")));
    };
    let numbers_of = result.flatten_all().and_then(|t| t.to_vec1::<f32>()).map_err(candle)?;
    let upstream = Tensor::from_vec(of(&numbers_of), result.dims(), &Device::Cpu).map_err(candle)?;
    let loss = (result * upstream).and_then(|t| t.sum_all()).map_err(candle)?;
    let store = loss.backward().map_err(candle)?;
    let gradient = |id: &ValueId| match zeros.get(id) {
        Some(zero) => numbers(Some(&store), zero).map_err(candle),
        None => Err(call("a gradient of a value that no node makes")),
    };
    values.iter().map(gradient).collect()
}

/// Gradients with respect to some weights, each in the weight's shape, row-major: of `sum(output * upstream)`, where
/// `upstream` is what `of` makes of the output.
///
/// The program runs once with an empty KV cache. The memory is that of all weights as float32, of the gradients, and of all
/// values together.
///
/// # Errors
/// As [`gradients`]; [`BackendError::Weight`] for a name that the program does not declare.
pub fn weight_gradients(
    program: &Program,
    weights: &dyn WeightSource,
    bindings: &Bindings,
    inputs: &[InputData<'_>],
    output: &str,
    of: &dyn Fn(&[f32]) -> Vec<f32>,
    names: &[&str],
) -> Result<Vec<Vec<f32>>, BackendError> {
    let candle = |e: candle_core::Error| call(format!("gradients of {output}: {e}"));
    let wanted = program.output(output).ok_or_else(|| call(format!("the program has no output {output}")))?;
    let bindings = bindings.with(Sym::Past, 0);
    let mut specs = program.weights().iter();
    let variable = |tensor: Tensor| {
        let spec = specs.next().expect("invariant: a tensor for each weight");
        if !names.contains(&spec.name.as_str()) {
            return Ok(tensor);
        }
        Var::from_tensor(&tensor).map(|v| v.as_tensor().clone())
    };
    let weights = Weights::load(program, weights)?.try_map(variable).map_err(candle)?;
    let bound = bind_inputs(program, &bindings, inputs)?;
    let caches = &mut Caches::default();
    let values =
        evaluate_values(program, &weights, &bindings, &bound, caches, &Cancel::new(), &mut |_, t| Ok(t))?;
    let Some(Data::F32(result)) = &values[wanted.index()] else {
        return Err(call(format!("output {output} holds integers, which have no gradient")));
    };
    let numbers_of = result.flatten_all().and_then(|t| t.to_vec1::<f32>()).map_err(candle)?;
    let upstream = Tensor::from_vec(of(&numbers_of), result.dims(), &Device::Cpu).map_err(candle)?;
    let loss = (result * upstream).and_then(|t| t.sum_all()).map_err(candle)?;
    let store = loss.backward().map_err(candle)?;
    let gradient = |name: &&str| {
        let place = program.weights().iter().position(|spec| spec.name == *name);
        let weight = place.and_then(|place| weights.all().nth(place));
        let missing = || BackendError::Weight {
            name: (*name).to_owned(),
            what: "the program does not declare it".to_owned(),
        };
        numbers(Some(&store), weight.ok_or_else(missing)?).map_err(candle)
    };
    names.iter().map(gradient).collect()
}

/// The gradient of `tensor`, or zeros where the loss does not depend on it.
fn numbers(store: Option<&GradStore>, tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    match store.and_then(|s| s.get(tensor)) {
        Some(gradient) => gradient.flatten_all()?.to_vec1(),
        None => Ok(vec![0.0; tensor.elem_count()]),
    }
}

/// For each weight whether it is only read as a constant (rotary factors).
fn constants(program: &Program) -> Vec<bool> {
    let mut constant = vec![false; program.weights().len()];
    for node in program.nodes() {
        for weight in node.op.weights() {
            constant[weight.index()] = matches!(node.op, Op::Rope(_));
        }
    }
    constant
}
