//! Ops made ready to run: weights packed, choices made.

use crate::{
    backend::{Encoder, ID},
    lines::Arena,
    ops::{conv::ConvWeight, linear::Matrix, rows},
    pack::{Bf16Matrix, ChannelMatrix, QuantMatrix},
    threads::Pool,
};
use margay_graph::{
    BackendError, Dim, Op, PackedWeight, Program, Role, Rope, Stage, ValueId, WeightId, WeightSource,
};
use margay_tensor::{DType, Storage, Tensor};

/// One node of the program, ready to run. Numbers index the lists of [`Prepared`].
#[derive(Debug)]
pub(crate) enum Step {
    /// Inputs and params are there already.
    Nothing,
    Embed {
        table: Tensor,
    },
    Linear {
        matrix: usize,
        bias: Option<usize>,
        quantize: Option<Quantize>,
        /// Steps from this one on that share their tasks out as one: 1 is this one alone.
        together: usize,
    },
    /// A linear layer of which only the quantization of its rows is left: a later [`Step::Gated`] multiplies.
    Quantize,
    /// A gated op with the two linear layers before it; each its matrix and bias.
    Gated {
        sides: [(usize, Option<usize>); 2],
        /// Whether the next layer reads the result quantized.
        quantize: bool,
    },
    Norm {
        weight: usize,
        bias: Option<usize>,
        quantize: Option<Form>,
    },
    /// The matrices gate, up and down of each expert.
    Experts {
        experts: Vec<[usize; 3]>,
    },
    Rope {
        table: usize,
    },
    Conv2d {
        weight: ConvWeight,
        bias: Option<usize>,
    },
    /// The op says it all.
    Plain,
}

/// How a linear layer gets its quantized rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quantize {
    /// An earlier layer has quantized the same value.
    Reuse,
    /// This layer does.
    Fill,
    /// A gated op has left its result quantized.
    Gated,
}

/// How rows are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// In groups of 32.
    Groups,
    /// As wholes.
    Whole,
    /// Not quantized but rounded.
    Bf16,
}

/// The buffers that rows are prepared in.
const BUFFERS: usize = 3;

impl Form {
    /// The number of its buffer.
    fn buffer(self) -> usize {
        match self {
            Form::Groups => 0,
            Form::Whole => 1,
            Form::Bf16 => 2,
        }
    }
}

/// Angles that rope ops of the same positions share.
#[derive(Debug, PartialEq)]
pub(crate) struct RopeSpec {
    pub(crate) positions: ValueId,
    /// Positions of a row.
    pub(crate) axes: usize,
    /// The axis of each pair, and by how much position 1 turns it.
    pub(crate) frequencies: Vec<(usize, f64)>,
}

/// Linear layers that may share out their tasks as one: query, key and value.
pub(crate) const MOST_TOGETHER: usize = 3;

/// The steps of a program and what they share.
pub(crate) struct Prepared {
    pub(crate) steps: Vec<Step>,
    pub(crate) matrices: Vec<Matrix>,
    /// Small weights as float32, and which weight each was.
    pub(crate) constants: Vec<Vec<f32>>,
    constant_of: Vec<(WeightId, usize)>,
    pub(crate) ropes: Vec<RopeSpec>,
    /// Values that are never written: who reads them gets them in another form.
    pub(crate) absent: Vec<ValueId>,
    /// Bytes of tables and of matrices packed earlier, which are read where they lie.
    pub(crate) mapped_bytes: usize,
    /// Bytes of matrices packed now.
    pub(crate) packed_bytes: usize,
}

impl Prepared {
    /// Packs every weight of `program`.
    pub(crate) fn new(
        program: &Program,
        weights: &dyn WeightSource,
        pool: &Pool,
        encoder: Encoder,
    ) -> Result<Self, BackendError> {
        let mut made = Prepared {
            steps: vec![],
            matrices: vec![],
            constants: vec![],
            constant_of: vec![],
            ropes: vec![],
            absent: vec![],
            mapped_bytes: 0,
            packed_bytes: 0,
        };
        let arena = Arena::default();
        let mut matrix_of: Vec<Option<usize>> = vec![None; program.weights().len()];
        let fetch = |id: WeightId| fetch(program, weights, id);
        let mut changed = false;
        for node in program.nodes() {
            let step = match &node.op {
                Op::Input => Step::Nothing,
                Op::Param { weight } => {
                    made.constant(*weight, &fetch)?;
                    Step::Nothing
                }
                Op::Embed { table } => {
                    let tensor = fetch(*table)?;
                    made.mapped_bytes += tensor.bytes().len();
                    Step::Embed { table: tensor }
                }
                Op::Linear(linear) => {
                    let matrix = match matrix_of[linear.weight.index()] {
                        Some(matrix) => matrix,
                        None => {
                            let (spec, tensor) = (program.weight(linear.weight), fetch(linear.weight)?);
                            let own = match is_of_encoder(program.stage(), spec.role, tensor.dtype()) {
                                true => encoder,
                                false => Encoder::AsStored,
                            };
                            changed |= own != Encoder::AsStored;
                            // What is kept of it is in full precision.
                            let kept = match own {
                                Encoder::AsStored => weights.packed(&spec.name, &Matrix::form_of(&tensor)),
                                Encoder::Int8 | Encoder::Bf16 => None,
                            };
                            let kept = kept.and_then(|parts| {
                                parts.iter().for_each(Storage::prefetch);
                                Matrix::over(&tensor, &parts)
                            });
                            made.matrices.push(match kept {
                                Some(kept) => {
                                    made.mapped_bytes += kept.size_bytes();
                                    kept
                                }
                                None => {
                                    let name = &spec.name;
                                    let packed = match own {
                                        Encoder::AsStored => Matrix::pack(name, &tensor, pool, &arena)?,
                                        Encoder::Int8 => {
                                            Matrix::Channel(ChannelMatrix::pack(name, &tensor, pool, &arena)?)
                                        }
                                        Encoder::Bf16 => {
                                            Matrix::Bf16(Bf16Matrix::pack(name, &tensor, pool, &arena)?)
                                        }
                                    };
                                    made.packed_bytes += packed.size_bytes();
                                    // Memory need not hold the file's bytes beside the packed ones.
                                    tensor.storage().release();
                                    packed
                                }
                            });
                            made.matrices.len() - 1
                        }
                    };
                    matrix_of[linear.weight.index()] = Some(matrix);
                    let bias = linear.bias.map(|b| made.constant(b, &fetch)).transpose()?;
                    Step::Linear { matrix, bias, quantize: None, together: 1 }
                }
                Op::Norm(norm) => Step::Norm {
                    weight: made.constant(norm.weight, &fetch)?,
                    bias: norm.bias.map(|b| made.constant(b, &fetch)).transpose()?,
                    quantize: None,
                },
                Op::Experts(e) => {
                    let count = program.value(node.inputs[1]).columns();
                    let mut experts = vec![[0; 3]; count];
                    for (at, weight) in [e.gate, e.up, e.down].into_iter().enumerate() {
                        let (name, tensor) = (&program.weight(weight).name, fetch(weight)?);
                        for (n, expert) in experts.iter_mut().enumerate() {
                            let layer = layer_of(name, &tensor, n, count)?;
                            let kept = weights.packed(&format!("{name}.{n}"), &Matrix::form_of(&layer));
                            made.matrices.push(match kept.and_then(|parts| Matrix::over(&layer, &parts)) {
                                Some(kept) => {
                                    made.mapped_bytes += kept.size_bytes();
                                    kept
                                }
                                None => {
                                    let packed = Matrix::pack(name, &layer, pool, &arena)?;
                                    made.packed_bytes += packed.size_bytes();
                                    packed
                                }
                            });
                            expert[at] = made.matrices.len() - 1;
                        }
                        tensor.storage().release();
                    }
                    Step::Experts { experts }
                }
                Op::Rope(rope) => Step::Rope { table: made.rope(rope, node.inputs[1], &fetch)? },
                Op::Conv2d(conv) => {
                    let (name, tensor) = (&program.weight(conv.weight).name, fetch(conv.weight)?);
                    let values = crate::weights::decode(name, &tensor)?;
                    Step::Conv2d {
                        weight: ConvWeight::new(
                            conv,
                            values,
                            program.value(node.inputs[0]).columns(),
                            &arena,
                        ),
                        bias: conv.bias.map(|b| made.constant(b, &fetch)).transpose()?,
                    }
                }
                Op::Activation(_)
                | Op::Add
                | Op::Mul
                | Op::Scale(_)
                | Op::Glu(_)
                | Op::Route(_)
                | Op::Attention(_)
                | Op::Patchify { .. }
                | Op::AvgPool2d(_)
                | Op::SpaceToDepth(_)
                | Op::JoinRows { .. }
                | Op::AdaptivePool(_)
                | Op::MeanRows
                | Op::ConcatRows
                | Op::ConcatColumns
                | Op::SliceRows { .. }
                | Op::SliceColumns { .. }
                | Op::GatherRows
                | Op::SelectColumns { .. }
                | Op::ZeroColumns { .. } => Step::Plain,
            };
            made.steps.push(step);
        }
        if encoder != Encoder::AsStored && program.stage() == Stage::Encode && !changed {
            let what =
                "another precision of an encoder whose matrices are all quantized already: leave the option \
                        away, or use a file with a float encoder"
                    .to_owned();
            return Err(BackendError::Unsupported { backend: ID, what });
        }
        made.share_quantized_rows(program);
        made.fuse_gates(program);
        made.fuse_norms(program);
        made.join_layers(program);
        Ok(made)
    }

    /// The constant that holds weight `id`.
    pub(crate) fn constant_of(&self, id: WeightId) -> Option<usize> {
        self.constant_of.iter().find(|(known, _)| *known == id).map(|(_, at)| *at)
    }

    /// How the rows are prepared that matrix `at` multiplies; `None` where it takes floats.
    pub(crate) fn form(&self, at: usize) -> Option<Form> {
        match &self.matrices[at] {
            Matrix::Quant(_) => Some(Form::Groups),
            Matrix::Channel(_) => Some(Form::Whole),
            Matrix::Bf16(_) => Some(Form::Bf16),
            Matrix::Float(_) => None,
        }
    }

    /// The quantized matrix `at`, which must be one.
    pub(crate) fn quant(&self, at: usize) -> &QuantMatrix {
        match &self.matrices[at] {
            Matrix::Quant(matrix) => matrix,
            _ => unreachable!("a step asks for what `fuse_gates` saw"),
        }
    }

    fn constant(
        &mut self,
        id: WeightId,
        fetch: &dyn Fn(WeightId) -> Result<Tensor, BackendError>,
    ) -> Result<usize, BackendError> {
        if let Some(at) = self.constant_of(id) {
            return Ok(at);
        }
        let tensor = fetch(id)?;
        self.constants.push(crate::weights::decode(&format!("number {}", id.index()), &tensor)?);
        self.constant_of.push((id, self.constants.len() - 1));
        Ok(self.constants.len() - 1)
    }

    fn rope(
        &mut self,
        rope: &Rope,
        positions: ValueId,
        fetch: &dyn Fn(WeightId) -> Result<Tensor, BackendError>,
    ) -> Result<usize, BackendError> {
        let factors = rope.factors.map(|f| self.constant(f, fetch)).transpose()?;
        let frequencies = rows::rope_frequencies(rope, factors.map(|f| &self.constants[f][..]));
        let axes = rope.axes.as_ref().map_or(1, |axes| axes.count);
        let spec = RopeSpec { positions, axes, frequencies };
        if let Some(at) = self.ropes.iter().position(|known| *known == spec) {
            return Ok(at);
        }
        self.ropes.push(spec);
        Ok(self.ropes.len() - 1)
    }

    /// Layers in a row that read the same value (q, k, v; gate, up) quantize it once.
    fn share_quantized_rows(&mut self, program: &Program) {
        let mut filled: [Option<ValueId>; BUFFERS] = [None; BUFFERS];
        for (at, node) in program.nodes().iter().enumerate() {
            let Step::Linear { matrix, .. } = self.steps[at] else { continue };
            let Some(kind) = self.form(matrix).map(Form::buffer) else { continue };
            let x = node.inputs[0];
            let choice = if filled[kind] == Some(x) { Quantize::Reuse } else { Quantize::Fill };
            if let Step::Linear { quantize, .. } = &mut self.steps[at] {
                *quantize = Some(choice);
            }
            filled[kind] = Some(x);
        }
    }

    /// A gated op takes the two quantized layers before it along: their results meet in the cache and are never written.
    fn fuse_gates(&mut self, program: &Program) {
        let readers = readers(program);
        for (at, node) in program.nodes().iter().enumerate() {
            let Op::Glu(_) = node.op else { continue };
            let layers = [node.inputs[0], node.inputs[1]].map(|value| {
                let maker = program.nodes()[..at].iter().position(|n| n.output == value)?;
                let Op::Linear(linear) = &program.nodes()[maker].op else { return None };
                let alone = readers[value.index()] == [at] && !is_output(program, value);
                let plain = alone && linear.activation.is_none() && !linear.residual;
                match self.steps[maker] {
                    Step::Linear { matrix, bias, quantize: Some(quantize), .. } if plain => {
                        let quantized = matches!(self.matrices[matrix], Matrix::Quant(_));
                        quantized.then_some((maker, (matrix, bias), quantize))
                    }
                    _ => None,
                }
            });
            let [Some(gate), Some(up)] = layers else { continue };
            let (first, last) = if gate.0 < up.0 { (gate, up) } else { (up, gate) };
            // The second reads what the first does, and up to here nobody quantizes another value.
            let others = (first.0 + 1..at).filter(|&i| i != last.0);
            let undisturbed = others.map(|i| &self.steps[i]).all(|step| {
                !matches!(step, Step::Linear { quantize: Some(Quantize::Fill), .. } | Step::Quantize)
            });
            if first.0 == last.0 || last.2 != Quantize::Reuse || !undisturbed {
                continue;
            }
            self.steps[first.0] = match first.2 {
                Quantize::Fill => Step::Quantize,
                Quantize::Reuse | Quantize::Gated => Step::Nothing,
            };
            self.steps[last.0] = Step::Nothing;
            self.absent.extend(&node.inputs);
            let quantize = match self.handed_on(program, &readers, at) {
                Some((reader, Form::Groups)) if readers[node.output.index()] == [reader] => {
                    self.set_quantize(reader, Quantize::Gated);
                    self.absent.push(node.output);
                    true
                }
                _ => false,
            };
            self.steps[at] = Step::Gated { sides: [gate.1, up.1], quantize };
        }
    }

    /// A norm whose result is read quantized and in no other form hands it on so, and never writes it.
    fn fuse_norms(&mut self, program: &Program) {
        let readers = readers(program);
        for (at, node) in program.nodes().iter().enumerate() {
            let whole_rows = |norm: &margay_graph::Norm| {
                let width = program.weight(norm.weight).shape.elements();
                width == Some(program.value(node.output).columns())
            };
            if matches!(&node.op, Op::Norm(norm) if whole_rows(norm))
                && let Some((reader, form)) = self.handed_on(program, &readers, at)
            {
                self.set_quantize(reader, Quantize::Reuse);
                if let Step::Norm { quantize, .. } = &mut self.steps[at] {
                    *quantize = Some(form);
                }
                self.absent.push(node.output);
            }
        }
    }

    /// The step that quantizes the result of node `at`, and how, where all who read it read what that step makes, and
    /// what it makes is not in use before.
    fn handed_on(&self, program: &Program, readers: &[Vec<usize>], at: usize) -> Option<(usize, Form)> {
        let value = program.nodes()[at].output;
        let readers = &readers[value.index()];
        let (first, others) = readers.split_first().filter(|_| !is_output(program, value))?;
        let form = match self.steps[*first] {
            Step::Quantize => Form::Groups,
            Step::Linear { matrix, quantize: Some(Quantize::Fill), .. } => self.form(matrix)?,
            _ => return None,
        };
        let kind_of = |step: &Step| match step {
            Step::Linear { matrix, .. } => self.form(*matrix).map(Form::buffer),
            Step::Quantize | Step::Gated { .. } => Some(Form::Groups.buffer()),
            _ => None,
        };
        let kind = Some(form.buffer());
        let free = (at + 1..*first).all(|i| kind_of(&self.steps[i]) != kind);
        let residual = |reader: &usize| program.nodes()[*reader].inputs[1..].contains(&value);
        // Those that `fuse_gates` has taken are part of a step that reads quantized rows.
        let same = others.iter().all(|reader| match self.steps[*reader] {
            Step::Linear { quantize: Some(Quantize::Reuse), .. } => kind_of(&self.steps[*reader]) == kind,
            Step::Nothing => true,
            _ => false,
        });
        (free && same && !readers.iter().any(residual)).then_some((*first, form))
    }

    /// Finds layers that follow each other and read the same quantized rows. One that adds a residual stays alone: its
    /// result may lie where another's input lay.
    fn join_layers(&mut self, program: &Program) {
        let joins = |made: &Self, at: usize| {
            let residual = matches!(&program.nodes()[at].op, Op::Linear(linear) if linear.residual);
            let Step::Linear { matrix, quantize, .. } = made.steps[at] else { return false };
            let gated = quantize == Some(Quantize::Gated);
            !residual && !gated && matches!(made.matrices[matrix], Matrix::Quant(_))
        };
        for first in 0..self.steps.len() {
            if !joins(self, first) {
                continue;
            }
            let follows = |at: &usize| {
                let reuses = matches!(self.steps[*at], Step::Linear { quantize: Some(Quantize::Reuse), .. });
                reuses && joins(self, *at)
            };
            let last = self.steps.len().min(first + MOST_TOGETHER);
            let count = 1 + (first + 1..last).take_while(follows).count();
            if let Step::Linear { together, .. } = &mut self.steps[first] {
                *together = count;
            }
        }
    }

    fn set_quantize(&mut self, at: usize, choice: Quantize) {
        match &mut self.steps[at] {
            Step::Linear { quantize, .. } => *quantize = Some(choice),
            step => *step = Step::Nothing,
        }
    }
}

fn is_output(program: &Program, value: ValueId) -> bool {
    program.outputs().iter().any(|(_, output)| *output == value)
}

/// For each value the nodes that read it, in order.
fn readers(program: &Program) -> Vec<Vec<usize>> {
    let mut readers = vec![vec![]; program.values().len()];
    for (at, node) in program.nodes().iter().enumerate() {
        for input in &node.inputs {
            readers[input.index()].push(at);
        }
    }
    readers
}

/// True for the matrices of an encoder's blocks and of the projector, where they are not quantized already: the patch
/// embedding keeps its precision.
fn is_of_encoder(stage: Stage, role: Role, dtype: DType) -> bool {
    use Role::*;
    let block =
        matches!(role, AttentionQ | AttentionK | AttentionV | AttentionOut | FfnGate | FfnUp | FfnDown);
    let of_vision = (stage == Stage::Encode && block) || (stage == Stage::Project && role == Projector);
    of_vision && ChannelMatrix::suits(dtype)
}

/// Packs the matrices of `program` one after the other, each once, and hands them to `keep`.
pub(crate) fn pack_matrices(
    program: &Program,
    weights: &dyn WeightSource,
    pool: &Pool,
    keep: &mut dyn FnMut(&str, PackedWeight) -> Result<(), BackendError>,
) -> Result<(), BackendError> {
    let mut seen = vec![false; program.weights().len()];
    for node in program.nodes() {
        let Op::Linear(linear) = &node.op else { continue };
        if std::mem::replace(&mut seen[linear.weight.index()], true) {
            continue;
        }
        let (name, tensor) = (&program.weight(linear.weight).name, fetch(program, weights, linear.weight)?);
        // An arena of its own: memory holds one matrix at a time.
        let packed = Matrix::pack(name, &tensor, pool, &Arena::default())?;
        tensor.storage().release();
        keep(name, packed.keep(&tensor))?;
    }
    Ok(())
}

/// The weight `id`, of the shape the program declares and of a format that can be decoded.
fn fetch(program: &Program, weights: &dyn WeightSource, id: WeightId) -> Result<Tensor, BackendError> {
    let spec = program.weight(id);
    let tensor = weights.weight(&spec.name)?;
    if *tensor.shape() != spec.shape {
        let what = format!("has shape {}, the program declares {}", tensor.shape(), spec.shape);
        return Err(BackendError::Weight { name: spec.name.clone(), what });
    }
    readable(&spec.name, &tensor)?;
    Ok(tensor)
}

/// Matrix `n` of a stack of `count`: a view, not a copy.
fn layer_of(name: &str, stack: &Tensor, n: usize, count: usize) -> Result<Tensor, BackendError> {
    let bytes = stack.bytes().len() / count;
    let matrix = stack.storage().slice(n * bytes..(n + 1) * bytes).and_then(|storage| {
        let shape = margay_tensor::Shape::from(stack.shape().dims()[1..].to_vec());
        Tensor::new(stack.dtype(), shape, storage).ok()
    });
    matrix
        .ok_or_else(|| BackendError::Weight { name: name.to_owned(), what: "is no stack of matrices".into() })
}

/// Refuses a format that nobody can decode.
fn readable(name: &str, tensor: &Tensor) -> Result<(), BackendError> {
    if margay_quant::format(tensor.dtype()).is_some() {
        return Ok(());
    }
    let what = format!("the weight {name} of type {}: convert it to a type Margay reads", tensor.dtype());
    Err(BackendError::Unsupported { backend: ID, what })
}

/// Rows a value has under the given sizes (its first dimension).
pub(crate) fn first_dim(program: &Program, value: ValueId) -> Dim {
    program.value(value).dims.first().copied().unwrap_or(Dim::from(1))
}
