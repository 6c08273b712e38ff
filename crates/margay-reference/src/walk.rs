//! Runs a program over many inputs side by side, one node at a time.
//!
//! Whoever calibrates sees what each node is given before it computes, and may change the node's weights first: so a
//! layer is calibrated on what the layers before it give as they will be stored. At any time the weights of one node are
//! decoded, and of each input those values are kept that a later node reads.

use crate::{
    backend::call,
    ops,
    run::{Caches, Context, Data, bind_inputs, named, sizes},
    weights::Weights,
};
use candle_core::{Device, Tensor};
use margay_graph::{
    BackendError, Bindings, InputData, Node, Op, Program, Sym, ValueId, WeightId, WeightSource,
};
use margay_quant::decode_row;
use std::collections::BTreeMap;

/// What one call of the program would be given; `past` is 0.
#[derive(Clone, Debug)]
pub struct WalkInput<'a> {
    /// Sizes.
    pub bindings: Bindings,
    /// In the order of [`Program::inputs`].
    pub inputs: Vec<InputData<'a>>,
}

/// Who goes along. Its weights are asked for after [`Walker::node`] of the node that reads them, once for each such node.
pub trait Walker: WeightSource {
    /// Why it may end.
    type Error: From<BackendError>;

    /// Called before each node computes; inputs of the program are passed over.
    ///
    /// # Errors
    /// Its own; the walk then ends.
    fn node(&mut self, visit: &Visit<'_>) -> Result<(), Self::Error>;
}

/// A node that is about to compute.
pub struct Visit<'a> {
    program: &'a Program,
    at: usize,
    samples: &'a [Sample],
}

impl Visit<'_> {
    /// The node.
    pub fn node(&self) -> &Node {
        &self.program.nodes()[self.at]
    }

    /// Its number, from 0.
    pub fn number(&self) -> usize {
        self.at
    }

    /// How many inputs go side by side.
    pub fn samples(&self) -> usize {
        self.samples.len()
    }

    /// Rows of the node's input number `at` in that sample.
    pub fn rows(&self, sample: usize, at: usize) -> usize {
        let value =
            self.node().inputs.get(at).and_then(|id| self.samples[sample].values[id.index()].as_ref());
        match value {
            Some(Data::F32(tensor)) => tensor.dims().first().copied().unwrap_or(0),
            Some(Data::I32(values)) => values.len(),
            None => 0,
        }
    }

    /// The node's input number `at` in that sample, row-major.
    ///
    /// # Errors
    /// [`BackendError::Call`] where there is none, or it holds integers.
    pub fn input(&self, sample: usize, at: usize) -> Result<Vec<f32>, BackendError> {
        let value =
            self.node().inputs.get(at).and_then(|id| self.samples[sample].values[id.index()].as_ref());
        match value {
            Some(Data::F32(tensor)) => numbers(tensor),
            _ => Err(call(format!("{} has no input {at} of numbers", self.node().op.name()))),
        }
    }
}

/// The values of one input, and its sizes.
struct Sample {
    bindings: Bindings,
    values: Vec<Option<Data>>,
}

/// Runs `program` over all `inputs`, node by node: the whole of one node before the next. Gives the outputs of these
/// names, of each input. A node whose result nobody asks for is visited and not computed.
///
/// # Errors
/// [`BackendError`] as a run gives it; whatever the walker ends with.
pub fn walk<W: Walker>(
    program: &Program,
    inputs: &[WalkInput<'_>],
    outputs: &[&str],
    walker: &mut W,
) -> Result<Vec<BTreeMap<String, Vec<f32>>>, W::Error> {
    let mut samples = Vec::with_capacity(inputs.len());
    for input in inputs {
        let bindings = input.bindings.with(Sym::Past, 0);
        let mut values = vec![None; program.values().len()];
        for (id, data) in bind_inputs(program, &bindings, &input.inputs)? {
            values[id.index()] = Some(data);
        }
        samples.push(Sample { bindings, values });
    }
    let wanted: Vec<(&str, ValueId)> = outputs
        .iter()
        .map(|name| Ok((*name, program.output(name).ok_or_else(|| call(format!("no output {name}")))?)))
        .collect::<Result<_, BackendError>>()?;
    let plan = Plan::new(program, &wanted);
    for (at, node) in program.nodes().iter().enumerate() {
        if node.op == Op::Input || !plan.visited[at] {
            continue;
        }
        walker.node(&Visit { program, at, samples: &samples })?;
        if plan.read[node.output.index()] {
            compute(program, node, &*walker, &mut samples).map_err(|e| named(program, node, e))?;
        }
        for sample in &mut samples {
            for input in node.inputs.iter().filter(|id| plan.last_uses[id.index()] == at) {
                sample.values[input.index()] = None;
            }
        }
    }
    let outputs_of = |sample: &Sample| {
        let numbers_of = |(name, id): &(&str, ValueId)| match &sample.values[id.index()] {
            Some(Data::F32(tensor)) => Ok(((*name).to_owned(), numbers(tensor)?)),
            _ => Err(call(format!("output {name} holds no numbers"))),
        };
        wanted.iter().map(numbers_of).collect::<Result<BTreeMap<_, _>, BackendError>>()
    };
    Ok(samples.iter().map(outputs_of).collect::<Result<_, _>>()?)
}

/// How many nodes a walk of the program visits.
pub fn steps(program: &Program) -> usize {
    let visited = Plan::new(program, &[]).visited;
    program.nodes().iter().zip(visited).filter(|(node, visited)| *visited && node.op != Op::Input).count()
}

/// Which nodes are visited, which values are read, and by which node last.
struct Plan {
    visited: Vec<bool>,
    read: Vec<bool>,
    last_uses: Vec<usize>,
}

impl Plan {
    fn new(program: &Program, wanted: &[(&str, ValueId)]) -> Self {
        let mut reached = vec![false; program.values().len()];
        for (_, id) in program.outputs() {
            reached[id.index()] = true;
        }
        let mut visited = vec![false; program.nodes().len()];
        let mut read = vec![false; program.values().len()];
        let mut last_uses = vec![usize::MAX; program.values().len()];
        for (at, node) in program.nodes().iter().enumerate().rev() {
            visited[at] = reached[node.output.index()];
            if visited[at] {
                for input in &node.inputs {
                    (reached[input.index()], read[input.index()]) = (true, true);
                    last_uses[input.index()] = match last_uses[input.index()] {
                        usize::MAX => at,
                        later => later,
                    };
                }
            }
        }
        for (_, id) in wanted {
            read[id.index()] = true;
            last_uses[id.index()] = usize::MAX;
        }
        Plan { visited, read, last_uses }
    }
}

fn compute(
    program: &Program,
    node: &Node,
    source: &dyn WeightSource,
    samples: &mut [Sample],
) -> Result<(), BackendError> {
    if let Op::Embed { table } = node.op {
        return embed(program, node, table, source, samples);
    }
    let weights = Weights::load_only(program, &node.op.weights(), source)?;
    for sample in samples {
        let dims = sizes(program.value(node.output), &sample.bindings)?;
        // Nothing comes after the walk that could read the cache.
        let caches = &mut Caches::default();
        let (bindings, values) = (&sample.bindings, &sample.values[..]);
        let result = ops::run(&mut Context { node, weights: &weights, caches, dims, bindings, values })?;
        sample.values[node.output.index()] = Some(Data::F32(result));
    }
    Ok(())
}

/// As the op, but of a table that may be larger than all else only the rows that are read are decoded.
fn embed(
    program: &Program,
    node: &Node,
    table: WeightId,
    source: &dyn WeightSource,
    samples: &mut [Sample],
) -> Result<(), BackendError> {
    let spec = program.weight(table);
    let wrong = |what: String| BackendError::Weight { name: spec.name.clone(), what };
    let stored = source.weight(&spec.name)?;
    if stored.shape() != &spec.shape {
        return Err(wrong(format!(
            "the model file has {}, the program wants {}",
            stored.shape(),
            spec.shape
        )));
    }
    let width = spec.shape.row();
    for sample in samples {
        let of = |at: usize| node.inputs.get(at).and_then(|id| sample.values[id.index()].as_ref());
        let Some(Data::I32(ids)) = of(0) else { return Err(call("the ids are no integers")) };
        let visual = match of(1) {
            Some(Data::F32(visual)) => numbers(visual)?,
            _ => vec![],
        };
        let mut rows = vec![0f32; ids.len() * width];
        for (&id, row) in ids.iter().zip(rows.chunks_exact_mut(width.max(1))) {
            if id >= 0 {
                decode_row(&stored, id as usize, row).map_err(|e| wrong(e.to_string()))?;
            } else {
                let from = visual.get(!id as usize * width..(!id as usize + 1) * width);
                row.copy_from_slice(from.ok_or_else(|| call(format!("id {id} is outside the visual rows")))?);
            }
        }
        let rows = Tensor::from_vec(rows, (ids.len(), width), &Device::Cpu);
        let rows = rows.map_err(|e| call(e.to_string()))?;
        sample.values[node.output.index()] = Some(Data::F32(rows));
    }
    Ok(())
}

fn numbers(tensor: &Tensor) -> Result<Vec<f32>, BackendError> {
    tensor.flatten_all().and_then(|t| t.to_vec1()).map_err(|e| call(e.to_string()))
}
