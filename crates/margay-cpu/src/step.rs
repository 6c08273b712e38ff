//! Ops made ready to run: weights packed, choices made.

use crate::{
    backend::ID,
    kernels::Kernels,
    lines::Arena,
    ops::{conv::ConvWeight, linear::Matrix, rows},
    pack::{ChannelMatrix, Codes},
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
    Norm {
        weight: usize,
        bias: Option<usize>,
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
    /// This layer does, in 16 bits as well where asked.
    Fill { wide: bool },
}

/// Angles that rope ops of the same positions share.
#[derive(Debug, PartialEq)]
pub(crate) struct RopeSpec {
    pub(crate) positions: ValueId,
    pub(crate) frequencies: Vec<f64>,
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
        kernels: &Kernels,
        int8_encoder: bool,
    ) -> Result<Self, BackendError> {
        let mut made = Prepared {
            steps: vec![],
            matrices: vec![],
            constants: vec![],
            constant_of: vec![],
            ropes: vec![],
            mapped_bytes: 0,
            packed_bytes: 0,
        };
        let arena = Arena::default();
        let mut matrix_of: Vec<Option<usize>> = vec![None; program.weights().len()];
        let fetch = |id: WeightId| fetch(program, weights, id);
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
                            let in_int8 =
                                int8_encoder && is_of_encoder(program.stage(), spec.role, tensor.dtype());
                            // What is kept of it is in full precision.
                            let kept = match in_int8 {
                                true => None,
                                false => weights.packed(&spec.name, &Matrix::form_of(&tensor)),
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
                                    let packed = if in_int8 {
                                        Matrix::Channel(ChannelMatrix::pack(
                                            &spec.name, &tensor, pool, &arena,
                                        )?)
                                    } else {
                                        Matrix::pack(&spec.name, &tensor, pool, &arena)?
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
                },
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
                | Op::Glu(_)
                | Op::Attention(_)
                | Op::Patchify { .. }
                | Op::AvgPool2d(_)
                | Op::MeanRows
                | Op::ConcatRows
                | Op::SliceRows { .. }
                | Op::SliceColumns { .. }
                | Op::GatherRows => Step::Plain,
            };
            made.steps.push(step);
        }
        made.share_quantized_rows(program, kernels);
        made.join_layers(program);
        Ok(made)
    }

    /// The constant that holds weight `id`.
    pub(crate) fn constant_of(&self, id: WeightId) -> Option<usize> {
        self.constant_of.iter().find(|(known, _)| *known == id).map(|(_, at)| *at)
    }

    /// Codes of the matrix of a linear step, where it is quantized.
    pub(crate) fn codes(&self, step: &Step) -> Option<(usize, Codes)> {
        let Step::Linear { matrix, .. } = step else { return None };
        match &self.matrices[*matrix] {
            Matrix::Quant(m) => Some((m.k, m.kind.codes)),
            Matrix::Float(_) | Matrix::Channel(_) => None,
        }
    }

    /// Columns of the matrix of a linear step, where its rows are quantized as wholes.
    pub(crate) fn channel_columns(&self, step: &Step) -> Option<usize> {
        let Step::Linear { matrix, .. } = step else { return None };
        match &self.matrices[*matrix] {
            Matrix::Channel(m) => Some(m.k),
            Matrix::Float(_) | Matrix::Quant(_) => None,
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
        let spec = RopeSpec { positions, frequencies };
        if let Some(at) = self.ropes.iter().position(|known| *known == spec) {
            return Ok(at);
        }
        self.ropes.push(spec);
        Ok(self.ropes.len() - 1)
    }

    /// Layers in a row that read the same value (q, k, v; gate, up) quantize it once.
    fn share_quantized_rows(&mut self, program: &Program, kernels: &Kernels) {
        // Of groups, and of whole rows.
        let mut filled: [Option<(ValueId, usize)>; 2] = [None; 2];
        for (at, node) in program.nodes().iter().enumerate() {
            let step = &self.steps[at];
            let (kind, needs_wide) = match (self.codes(step), self.channel_columns(step)) {
                (Some((_, codes)), _) => (0, (kernels.quant.wants_q16)(codes)),
                (None, Some(_)) => (1, kernels.channel.wants_q16),
                (None, None) => continue,
            };
            let x = node.inputs[0];
            let (choice, filler) = match filled[kind] {
                Some((value, filler)) if value == x => (Quantize::Reuse, filler),
                _ => (Quantize::Fill { wide: false }, at),
            };
            if let Step::Linear { quantize, .. } = &mut self.steps[at] {
                *quantize = Some(choice);
            }
            if let Step::Linear { quantize: Some(Quantize::Fill { wide }), .. } = &mut self.steps[filler] {
                *wide |= needs_wide;
            }
            filled[kind] = Some((x, filler));
        }
    }

    /// Finds layers that follow each other and read the same quantized rows. One that adds a residual stays alone: its
    /// result may lie where another's input lay.
    fn join_layers(&mut self, program: &Program) {
        let joins = |made: &Self, at: usize| {
            let residual = matches!(&program.nodes()[at].op, Op::Linear(linear) if linear.residual);
            !residual && made.codes(&made.steps[at]).is_some()
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
}

/// True for the matrices of an encoder's blocks, where they are not quantized already: its patch embedding, and all of
/// the projector, keep their precision.
fn is_of_encoder(stage: Stage, role: Role, dtype: DType) -> bool {
    use Role::*;
    let block =
        matches!(role, AttentionQ | AttentionK | AttentionV | AttentionOut | FfnGate | FfnUp | FfnDown);
    stage == Stage::Encode && block && ChannelMatrix::suits(dtype)
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
