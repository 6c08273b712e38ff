//! Every op once more, as loops over float64: the oracle of the reference.
//!
//! Nothing is shared with `margay-reference` or candle: an op is written from its documentation alone, one output
//! number at a time. Slow; for small programs.

mod ops;

use margay_graph::{
    Backend, BackendError, Bindings, Cancel, Element, Executable, InputData, MemoryUse, Op, Program, State,
    StateOptions, Sym, WeightSource,
};
use std::{any::Any, collections::BTreeMap};

/// Runs programs in float64 loops, exactly or with the roundings that a fast backend makes by design.
#[derive(Clone, Copy, Debug, Default)]
pub struct NaiveBackend {
    rounding: Rounding,
}

/// Which roundings the loops make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rounding {
    /// Before a product with a quantized matrix, activations become 8-bit multiples of one scale for each so many
    /// neighbours.
    pub(crate) int8_block: Option<usize>,
    /// Keys and values are held in half precision.
    pub(crate) half_cache: bool,
}

impl NaiveBackend {
    /// No rounding but float64's.
    pub fn exact() -> Self {
        Self::default()
    }

    /// What a correct fast backend may do: 8-bit activations in blocks of `int8_block` against quantized weights, and a
    /// KV cache in half precision. Shows that [`crate::tolerance::Policy::FAST`] allows this and little more.
    pub fn rounding(int8_block: usize) -> Self {
        NaiveBackend { rounding: Rounding { int8_block: Some(int8_block), half_cache: true } }
    }
}

/// A value while a program runs.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    F64(Vec<f64>),
    I32(Vec<i32>),
}

impl Backend for NaiveBackend {
    fn id(&self) -> &'static str {
        "naive"
    }

    fn describe(&self) -> String {
        "loops in float64".to_owned()
    }

    fn compile(
        &self,
        program: &Program,
        weights: &dyn WeightSource,
        _limits: &Bindings,
    ) -> Result<Box<dyn Executable>, BackendError> {
        let decode = |spec: &margay_graph::WeightSpec| {
            let tensor = weights.weight(&spec.name)?;
            let values = margay_quant::decode_tensor(&tensor)
                .map_err(|e| BackendError::Weight { name: spec.name.clone(), what: e.to_string() })?;
            Ok(Weight {
                values: values.into_iter().map(f64::from).collect(),
                quantized: tensor.dtype().is_block(),
            })
        };
        let weights = program.weights().iter().map(decode).collect::<Result<_, BackendError>>()?;
        let (program, rounding) = (program.clone(), self.rounding);
        Ok(Box::new(NaiveExecutable { program, weights, rounding, outputs: BTreeMap::new() }))
    }
}

/// A decoded weight.
pub(crate) struct Weight {
    pub(crate) values: Vec<f64>,
    /// Whether it is stored in blocks.
    pub(crate) quantized: bool,
}

struct NaiveExecutable {
    program: Program,
    weights: Vec<Weight>,
    rounding: Rounding,
    outputs: BTreeMap<String, Vec<f32>>,
}

/// Keys and values of each slot, rows one after the other.
#[derive(Clone, Default)]
pub(crate) struct NaiveState {
    pub(crate) slots: Vec<(Vec<f64>, Vec<f64>)>,
    row_sizes: Vec<usize>,
    pub(crate) len: usize,
    capacity: usize,
}

impl State for NaiveState {
    fn len(&self) -> usize {
        self.len
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        for ((keys, values), row) in self.slots.iter_mut().zip(&self.row_sizes) {
            keys.truncate(self.len * row);
            values.truncate(self.len * row);
        }
    }

    fn size_bytes(&self) -> usize {
        self.slots.iter().map(|(k, v)| (k.len() + v.len()) * size_of::<f64>()).sum()
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

impl Executable for NaiveExecutable {
    fn program(&self) -> &Program {
        &self.program
    }

    fn memory(&self) -> MemoryUse {
        let packed_weight_bytes = self.weights.iter().map(|w| w.values.len() * size_of::<f64>()).sum();
        MemoryUse { packed_weight_bytes, ..MemoryUse::default() }
    }

    fn new_state(&self, options: StateOptions) -> Result<Box<dyn State>, BackendError> {
        let caches = self.program.caches();
        Ok(Box::new(NaiveState {
            slots: vec![Default::default(); caches.len()],
            row_sizes: caches.iter().map(|c| c.kv_heads * c.head_dim).collect(),
            len: 0,
            capacity: options.capacity,
        }))
    }

    fn run(
        &mut self,
        bindings: &Bindings,
        inputs: &[InputData<'_>],
        state: Option<&mut dyn State>,
        cancel: &Cancel,
    ) -> Result<(), BackendError> {
        let state = state.map(|s| {
            s.as_any_mut().downcast_mut::<NaiveState>().ok_or_else(|| call("a state of another backend"))
        });
        let state = state.transpose()?;
        let mut cache = state.as_deref().cloned().unwrap_or_default();
        let bindings = bindings.with(Sym::Past, cache.len);
        let mut values: Vec<Option<Data>> = vec![None; self.program.values().len()];
        for ((_, id), input) in self.program.inputs().iter().zip(inputs) {
            values[id.index()] = Some(match (input, self.program.value(*id).element) {
                (InputData::F32(x), Element::F32) => Data::F64(x.iter().copied().map(f64::from).collect()),
                (InputData::I32(x), Element::I32) => Data::I32(x.to_vec()),
                _ => return Err(call("an input of another element type")),
            });
        }
        let sizes = |id: margay_graph::ValueId| {
            let dims = &self.program.value(id).dims;
            dims.iter().map(|d| d.eval(&bindings)).collect::<Result<Vec<_>, _>>()
        };
        for node in self.program.nodes().iter().filter(|n| n.op != Op::Input) {
            if cancel.is_cancelled() {
                return Err(BackendError::Cancelled);
            }
            let inputs: Option<Vec<&Data>> = node.inputs.iter().map(|v| values[v.index()].as_ref()).collect();
            let frame = ops::Frame {
                inputs: inputs.ok_or_else(|| call("a value is read before it is made"))?,
                input_sizes: node.inputs.iter().map(|v| sizes(*v)).collect::<Result<_, _>>()?,
                size: sizes(node.output)?,
                weights: &self.weights,
                rounding: self.rounding,
                program: &self.program,
                bindings: &bindings,
            };
            let result = ops::run(&node.op, &frame, &mut cache)?;
            values[node.output.index()] = Some(Data::F64(result));
        }
        for (name, id) in self.program.outputs() {
            if let Some(Data::F64(x)) = &values[id.index()] {
                self.outputs.insert(name.clone(), x.iter().map(|x| *x as f32).collect());
            }
        }
        if let Some(state) = state {
            if let (Some((keys, _)), Some(row)) = (cache.slots.first(), cache.row_sizes.first()) {
                cache.len = keys.len() / row;
            }
            *state = cache;
        }
        Ok(())
    }

    fn output(&self, name: &str) -> Option<&[f32]> {
        self.outputs.get(name).map(Vec::as_slice)
    }
}

pub(crate) fn call(what: &str) -> BackendError {
    BackendError::Call { what: what.to_owned() }
}
