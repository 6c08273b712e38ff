//! A case made ready to run: its operands, the call into the engine, and the work of one call.

use super::cases::{Case, What};
use crate::{
    CpuBackend, KvType,
    backend::Encoder,
    kernels::attention::NO_SCORE,
    kv::{KvPlan, KvTable},
    lines::{Arena, Lines},
    ops::{
        Engine,
        attention::{
            self,
            narrow::{self, NarrowSlot},
        },
        bf16::{self, Bf16Rows},
        carve,
        channel::{self, ChannelRows},
        conv::{self, ConvWeight},
        linear::{self, Epilogue, Layer, Matrix, QuantRows, QuantSize},
        rows::{self, Norm, Source},
        view::{Out, View},
    },
    pack::{Bf16Matrix, ChannelMatrix, FloatType},
    threads::TaskPanic,
};
use margay_graph::{Activation, Attention, BackendError, Builder, Conv2d, Mask, NormKind, Role, Rope, Stage};
use margay_tensor::{DType, Shape, Storage, Tensor};

/// Which peak limits the operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Int8,
    /// Of full signed bytes, which some instruction sets multiply at half the rate.
    Int8Exact,
    F32,
    Bf16,
}

/// The work of one call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Work {
    pub(super) ops: f64,
    /// Bytes read from memory and written to it.
    pub(super) bytes: f64,
    pub(super) unit: Unit,
}

/// A case ready to run.
pub(super) struct Prepared {
    pub(super) work: Work,
    pub(super) run: Box<dyn FnMut() -> Result<(), TaskPanic>>,
}

/// Float operations of `math::exp`.
const EXP_OPS: usize = 22;
/// Softmax of an element: greatest, difference, sum, and the 14 operations of `math::exp2`.
const SOFTMAX_OPS: usize = 14 + 3;
/// An activation of one exponential: its argument, a sum, a quotient, a product.
const ACTIVATION_OPS: usize = EXP_OPS + 4;
/// Scale, greatest, rounding and sum of an element.
const QUANTIZE_OPS: usize = 4;
/// Passes over a tile that stays in the first-level cache, so that a task is no mere instant.
const CACHED_PASSES: usize = 16;

/// Makes the operands of `case`, enough of them to fill `rotate_bytes`.
pub(super) fn prepare(cpu: &CpuBackend, case: &Case, rotate_bytes: usize) -> Result<Prepared, BackendError> {
    match &case.what {
        What::Linear { dtype, rows, outputs, inputs } => {
            linear(cpu, *dtype, [*rows, *outputs, *inputs], rotate_bytes)
        }
        What::Channel { rows, outputs, inputs } => channel(cpu, [*rows, *outputs, *inputs]),
        What::Bf16 { rows, outputs, inputs } => rounded(cpu, [*rows, *outputs, *inputs]),
        What::Attention { attention, kv, queries, keys } => {
            attend(cpu, attention.clone(), *kv, (*queries, *keys), rotate_bytes)
        }
        What::NarrowAttention { encoder, attention, rows } => {
            attend_narrowly(cpu, *encoder, attention.clone(), *rows)
        }
        What::Quantize { rows, columns } => quantize(cpu, *rows, *columns, rotate_bytes),
        What::Softmax { rows, columns } => Ok(softmax(cpu, *rows, *columns)),
        What::Conv { side, size, stride, groups, channels } => {
            let weight = Builder::new(Stage::Encode).weight("weight", [1], Role::Projector);
            let (width, height, kernel, stride) = (*side, *side, *size, *stride);
            let conv = Conv2d {
                weight,
                bias: None,
                height,
                width,
                kernel,
                stride,
                padding: kernel / 2,
                groups: *groups,
            };
            Ok(convolve(cpu, conv, *channels, rotate_bytes))
        }
        What::Norm { kind, rows, columns } => {
            let (kind, weight) = (*kind, vec![1.0; *columns]);
            let ops = if kind == NormKind::Rms { 4 } else { 7 };
            let run = move |engine: &Engine, x: View<'_>, out: Out<'_>| {
                let bias = (kind == NormKind::Layer).then_some(&weight[..]);
                rows::norm(engine, Norm { kind, weight: &weight, bias, eps: 1e-5 }, x, out)
            };
            Ok(each_row(cpu, *rows, *columns, ops, rotate_bytes, run))
        }
        What::Rope { style, rows, heads, head_dim } => {
            let (head_dim, style) = (*head_dim, *style);
            let rope = Rope { head_dim, rotary: head_dim, base: 1e4, style, factors: None, axes: None };
            let frequencies = rows::rope_frequencies(&rope, None);
            let positions: Vec<i32> = (0..*rows as i32).collect();
            let (mut cos, mut sin) = (vec![0.0; rows * head_dim / 2], vec![0.0; rows * head_dim / 2]);
            rows::rope_table(&frequencies, &positions, 1, &mut cos, &mut sin);
            let run = move |engine: &Engine, x: View<'_>, out: Out<'_>| {
                rows::rope(engine, &rope, (&cos, &sin), x, out)
            };
            Ok(each_row(cpu, *rows, heads * head_dim, 3, rotate_bytes, run))
        }
        What::Activation { act, rows, columns } => {
            let act = *act;
            let run = move |engine: &Engine, x: View<'_>, out: Out<'_>| rows::activation(engine, act, x, out);
            Ok(each_row(cpu, *rows, *columns, ACTIVATION_OPS, rotate_bytes, run))
        }
        What::Glu { act, rows, columns } => Ok(glu(cpu, *act, *rows, *columns, rotate_bytes)),
    }
}

/// A product of `rows` rows with a matrix of `outputs` rows of `inputs` columns.
fn linear(
    cpu: &CpuBackend,
    dtype: DType,
    [rows, outputs, inputs]: [usize; 3],
    rotate_bytes: usize,
) -> Result<Prepared, BackendError> {
    let engine = cpu.engine(linear::scratch_floats());
    let tensor = weight(dtype, outputs, inputs)?;
    let arena = Arena::default();
    let mut matrices = vec![];
    let mut packed_bytes = 0;
    // Few rows stream the weight; with many it is read once for all of them.
    while matrices.is_empty() || rows == 1 && packed_bytes <= rotate_bytes {
        let matrix = Matrix::pack("weight", &tensor, &engine.pool, &arena)?;
        packed_bytes += matrix.size_bytes();
        matrices.push(matrix);
    }
    drop(tensor);
    let x = random(rows * inputs);
    let mut y = Lines::zeroed(rows * outputs);
    let mut quantized = None;
    let mut x_bytes = x.size_bytes();
    let unit = match &matrices[0] {
        Matrix::Quant(matrix) => {
            let size = QuantSize::new(&engine.kernels, [matrix.kind.codes]);
            let mut q = QuantRows::new(size.max(rows, inputs));
            q.fill(&engine, Source { x: view(&x, rows, inputs), norm: None }).map_err(super::panicked)?;
            x_bytes = q.size_bytes();
            quantized = Some(q);
            Unit::Int8
        }
        Matrix::Float(matrix) if matrix.kind == FloatType::Bf16 => Unit::Bf16,
        Matrix::Float(_) => Unit::F32,
        Matrix::Channel(_) | Matrix::Bf16(_) => unreachable!("packed only for encoders that ask for it"),
    };
    let bytes = matrices[0].size_bytes() + x_bytes + y.size_bytes();
    let work = Work { ops: 2.0 * rows as f64 * outputs as f64 * inputs as f64, bytes: bytes as f64, unit };
    let mut turn = 0;
    let run = move || {
        turn = (turn + 1) % matrices.len();
        let epilogue = Epilogue { bias: None, activation: None, residual: None };
        let out = out(&mut y, rows, outputs);
        match (&matrices[turn], &quantized) {
            (Matrix::Quant(matrix), Some(q)) => {
                linear::quantized(&engine, &[Layer { matrix, epilogue, out }], q)
            }
            (Matrix::Float(matrix), _) => {
                linear::float(&engine, matrix, view(&x, rows, inputs), epilogue, out)
            }
            (Matrix::Quant(_) | Matrix::Channel(_) | Matrix::Bf16(_), _) => unreachable!("quantized above"),
        }
    };
    Ok(Prepared { work, run: Box::new(run) })
}

/// The product of an encoder in int8, its rows quantized before.
fn channel(cpu: &CpuBackend, [rows, outputs, inputs]: [usize; 3]) -> Result<Prepared, BackendError> {
    let engine = cpu.engine(linear::scratch_floats());
    let tensor = weight(DType::F32, outputs, inputs)?;
    let matrix = ChannelMatrix::pack("weight", &tensor, &engine.pool, &Arena::default())?;
    let x = random(rows * inputs);
    let mut q = ChannelRows::new(&engine.kernels, rows, inputs);
    q.fill(&engine, Source { x: view(&x, rows, inputs), norm: None }).map_err(super::panicked)?;
    let mut y = Lines::zeroed(rows * outputs);
    let work = Work {
        ops: 2.0 * rows as f64 * outputs as f64 * inputs as f64,
        bytes: (matrix.size_bytes() + q.size_bytes() + y.size_bytes()) as f64,
        unit: Unit::Int8Exact,
    };
    let run = move || {
        let epilogue = Epilogue { bias: None, activation: None, residual: None };
        channel::multiply(&engine, &matrix, &q, epilogue, out(&mut y, rows, outputs))
    };
    Ok(Prepared { work, run: Box::new(run) })
}

/// The product of an encoder in bfloat16, its rows rounded before.
fn rounded(cpu: &CpuBackend, [rows, outputs, inputs]: [usize; 3]) -> Result<Prepared, BackendError> {
    let engine = cpu.engine(linear::scratch_floats());
    has_bf16(cpu, &engine)?;
    let tensor = weight(DType::BF16, outputs, inputs)?;
    let matrix = Bf16Matrix::pack("weight", &tensor, &engine.pool, &Arena::default())?;
    let x = random(rows * inputs);
    let mut half = Bf16Rows::new(Bf16Rows::elements(rows, inputs));
    half.fill(&engine, Source { x: view(&x, rows, inputs), norm: None }).map_err(super::panicked)?;
    let mut y = Lines::zeroed(rows * outputs);
    let work = Work {
        ops: 2.0 * rows as f64 * outputs as f64 * inputs as f64,
        bytes: (matrix.size_bytes() + half.size_bytes() + y.size_bytes()) as f64,
        unit: Unit::Bf16,
    };
    let run = move || {
        let epilogue = Epilogue { bias: None, activation: None, residual: None };
        bf16::multiply(&engine, &matrix, &half, epilogue, out(&mut y, rows, outputs))
    };
    Ok(Prepared { work, run: Box::new(run) })
}

/// An error where the processor does not multiply bfloat16.
fn has_bf16(cpu: &CpuBackend, engine: &Engine) -> Result<(), BackendError> {
    if engine.kernels.bf16.is_some() {
        return Ok(());
    }
    let what = format!("products of bfloat16 with {}", cpu.isa());
    Err(BackendError::Unsupported { backend: crate::backend::ID, what })
}

/// Attention of the last `queries` of `keys` tokens.
fn attend(
    cpu: &CpuBackend,
    a: Attention,
    kv: KvType,
    (queries, keys): (usize, usize),
    rotate_bytes: usize,
) -> Result<Prepared, BackendError> {
    let engine = cpu.engine(attention::scratch_floats(&a));
    let kv_columns = a.kv_heads * a.head_dim;
    let (k, v) = (random(keys * kv_columns), random(keys * kv_columns));
    let mut slots = vec![];
    let mut slot_bytes = 0;
    while slot_bytes <= rotate_bytes {
        let overflow = || BackendError::Call { what: "a KV cache overflows".to_owned() };
        let (plan, shape) = (KvPlan { text: kv, image: kv }, vec![(a.kv_heads, a.head_dim)]);
        let mut slot = KvTable::new(plan, shape, keys, keys).ok_or_else(overflow)?;
        slot.prepare(&engine, 0, keys).map_err(super::panicked)?;
        let (k, v) = (view(&k, keys, kv_columns), view(&v, keys, kv_columns));
        attention::append(&engine, slot.layer(0), 0, k, v).map_err(super::panicked)?;
        slot.prepare(&engine, keys, keys).map_err(super::panicked)?;
        slot_bytes += slot.size_bytes();
        slots.push(slot);
    }
    let (columns, past) = (a.heads * a.head_dim, keys - queries);
    let q = random(queries * columns);
    let mut y = Lines::zeroed(queries * columns);
    let seen = |query: usize| if a.mask != Mask::Full { past + query + 1 } else { keys };
    let pairs: usize = (0..queries).map(seen).sum();
    let work = Work {
        // A product with the key and one with the value; the softmax is not counted.
        ops: (4 * a.head_dim * a.heads * pairs) as f64,
        bytes: (slots[0].size_bytes() + q.size_bytes() + y.size_bytes()) as f64,
        unit: Unit::F32,
    };
    let mut partials = Lines::zeroed(attention::partial_floats(&a, keys));
    let mut turn = 0;
    let run = move || {
        turn = (turn + 1) % slots.len();
        let (q, out) = (view(&q, queries, columns), out(&mut y, queries, columns));
        attention::attend(&engine, &a, slots[turn].layer(0), &mut partials, (past, keys, 0), q, out)
    };
    Ok(Prepared { work, run: Box::new(run) })
}

/// Attention of as many keys as queries in fewer bits than float32.
fn attend_narrowly(
    cpu: &CpuBackend,
    encoder: Encoder,
    a: Attention,
    rows: usize,
) -> Result<Prepared, BackendError> {
    let engine = cpu.engine(narrow::scratch_floats(encoder, &a));
    if encoder == Encoder::Bf16 {
        has_bf16(cpu, &engine)?;
    }
    let columns = a.heads * a.head_dim;
    let [q, k, v] = std::array::from_fn(|_| random(rows * columns));
    let mut y = Lines::zeroed(rows * columns);
    let slot = NarrowSlot::new(encoder, &a, rows);
    let mut slot = slot.ok_or_else(|| BackendError::Call { what: "the keys overflow".to_owned() })?;
    let work = Work {
        ops: (4 * a.head_dim * a.heads * rows * rows) as f64,
        bytes: (4 * q.size_bytes()) as f64,
        unit: if encoder == Encoder::Int8 { Unit::Int8 } else { Unit::Bf16 },
    };
    let run = move || {
        let inputs = [&q, &k, &v].map(|x| view(x, rows, columns));
        slot.attend(&engine, &a, 0, inputs, out(&mut y, rows, columns))
    };
    Ok(Prepared { work, run: Box::new(run) })
}

fn quantize(
    cpu: &CpuBackend,
    rows: usize,
    columns: usize,
    rotate_bytes: usize,
) -> Result<Prepared, BackendError> {
    let engine = cpu.engine(0);
    let mut x = Rotation::new(rows, columns, rotate_bytes);
    let mut q = QuantRows::new(QuantSize::new(&engine.kernels, []).max(rows, columns));
    let work = Work {
        ops: (QUANTIZE_OPS * rows * columns) as f64,
        bytes: (x.each_bytes() + q.size_bytes()) as f64,
        unit: Unit::F32,
    };
    Ok(Prepared { work, run: Box::new(move || q.fill(&engine, Source { x: x.next(), norm: None })) })
}

/// An op from one matrix to another, `ops` operations an element.
fn each_row(
    cpu: &CpuBackend,
    rows: usize,
    columns: usize,
    ops: usize,
    rotate_bytes: usize,
    run: impl Fn(&Engine, View<'_>, Out<'_>) -> Result<(), TaskPanic> + 'static,
) -> Prepared {
    let engine = cpu.engine(0);
    let mut x = Rotation::new(rows, columns, rotate_bytes / 2);
    let mut y = Rotation::new(rows, columns, rotate_bytes / 2);
    let bytes = (x.each_bytes() + y.each_bytes()) as f64;
    let work = Work { ops: (ops * rows * columns) as f64, bytes, unit: Unit::F32 };
    Prepared { work, run: Box::new(move || run(&engine, x.next(), y.next_out())) }
}

fn glu(cpu: &CpuBackend, act: Activation, rows: usize, columns: usize, rotate_bytes: usize) -> Prepared {
    let engine = cpu.engine(0);
    let [mut gate, mut up, mut y] = [(); 3].map(|()| Rotation::new(rows, columns, rotate_bytes / 3));
    let work = Work {
        ops: ((ACTIVATION_OPS + 1) * rows * columns) as f64,
        bytes: 3.0 * y.each_bytes() as f64,
        unit: Unit::F32,
    };
    let run = move || rows::glu(&engine, act, gate.next(), up.next(), y.next_out());
    Prepared { work, run: Box::new(run) }
}

/// Rows of scores as attention has them, in the first-level cache of each thread.
fn softmax(cpu: &CpuBackend, rows: usize, columns: usize) -> Prepared {
    let engine = cpu.engine(rows * columns + 3 * (rows + 16));
    let scores = random(rows * columns);
    let tasks = engine.pool.threads() * CACHED_PASSES;
    let work = Work {
        ops: (SOFTMAX_OPS * rows * columns * CACHED_PASSES * tasks) as f64,
        bytes: 0.0,
        unit: Unit::F32,
    };
    let run = move || {
        engine.run(tasks, &|worker, _| {
            // SAFETY: a worker runs one task at a time.
            let mut scratch = unsafe { engine.scratch.worker(worker) };
            let tile = carve(&mut scratch, rows * columns);
            let [max, sum, keep] = [(); 3].map(|()| carve(&mut scratch, rows));
            for _ in 0..CACHED_PASSES {
                tile.copy_from_slice(&scores);
                max.fill(NO_SCORE);
                sum.fill(0.0);
                (engine.kernels.attention.softmax.block)(tile, max, sum, keep);
            }
        })
    };
    Prepared { work, run: Box::new(run) }
}

fn convolve(cpu: &CpuBackend, conv: Conv2d, channels: usize, rotate_bytes: usize) -> Prepared {
    let engine = cpu.engine(linear::scratch_floats());
    let (rows, (height, width)) = (conv.height * conv.width, conv.output_size());
    let per_output = channels / conv.groups * conv.kernel * conv.kernel;
    let values = random(channels * per_output).to_vec();
    let weight = ConvWeight::new(&conv, values, channels, &Arena::default());
    let mut unrolled = Lines::zeroed(weight.unrolled_floats(&conv));
    let mut x = Rotation::new(rows, channels, rotate_bytes / 2);
    let mut y = Rotation::new(height * width, channels, rotate_bytes / 2);
    let work = Work {
        ops: (2 * per_output * channels * height * width) as f64,
        bytes: (x.each_bytes() + y.each_bytes() + weight.size_bytes()) as f64,
        unit: Unit::F32,
    };
    let run = move || conv::conv2d(&engine, &conv, &weight, None, x.next(), &mut unrolled, y.next_out());
    Prepared { work, run: Box::new(run) }
}

/// Matrices of one shape that are used in turn.
struct Rotation {
    floats: Lines<f32>,
    rows: usize,
    columns: usize,
    turn: usize,
}

impl Rotation {
    fn new(rows: usize, columns: usize, bytes: usize) -> Self {
        let copies = bytes / (rows * columns * 4) + 1;
        Rotation { floats: random(copies * rows * columns), rows, columns, turn: 0 }
    }

    fn each_bytes(&self) -> usize {
        self.rows * self.columns * 4
    }

    fn next_part(&mut self) -> &mut [f32] {
        let each = self.rows * self.columns;
        self.turn = (self.turn + 1) % (self.floats.len() / each);
        &mut self.floats[self.turn * each..][..each]
    }

    fn next(&mut self) -> View<'_> {
        let (rows, columns) = (self.rows, self.columns);
        view(self.next_part(), rows, columns)
    }

    fn next_out(&mut self) -> Out<'_> {
        let (rows, columns) = (self.rows, self.columns);
        out(self.next_part(), rows, columns)
    }
}

fn view(floats: &[f32], rows: usize, columns: usize) -> View<'_> {
    assert!(rows * columns <= floats.len());
    // SAFETY: that many floats are borrowed for as long as the view lives.
    unsafe { View::new(floats.as_ptr(), rows, columns) }
}

fn out(floats: &mut [f32], rows: usize, columns: usize) -> Out<'_> {
    assert!(rows * columns <= floats.len());
    // SAFETY: that many floats are borrowed, and by nobody else, for as long as the view lives.
    unsafe { Out::new(floats.as_mut_ptr(), rows, columns) }
}

/// Numbers in -1..1, the same each time.
fn random(len: usize) -> Lines<f32> {
    let mut lines = Lines::zeroed(len);
    let mut seed = 1u32;
    for x in &mut *lines {
        // Source: the generator of Numerical Recipes, section 7.1.
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *x = (seed >> 8) as f32 / (1 << 23) as f32 - 1.0;
    }
    lines
}

/// A matrix of `dtype`. To quantize all of it would take longer than to measure it: one row, turned by some blocks for
/// each output, is random enough for speed.
fn weight(dtype: DType, outputs: usize, inputs: usize) -> Result<Tensor, BackendError> {
    let bad = |what: String| BackendError::Weight { name: "weight".to_owned(), what };
    let row = margay_quant::encode_tensor(&random(inputs), Shape::from([1, inputs]), dtype)
        .map_err(|e| bad(e.to_string()))?;
    let (row, block) = (row.bytes(), dtype.block_bytes());
    let storage = Storage::build(row.len() * outputs, |bytes| {
        for (i, out) in bytes.chunks_exact_mut(row.len()).enumerate() {
            let (front, back) = row.split_at(i * 7 % (row.len() / block) * block);
            out[..back.len()].copy_from_slice(back);
            out[back.len()..].copy_from_slice(front);
        }
    });
    Tensor::new(dtype, Shape::from([outputs, inputs]), storage).map_err(|e| bad(e.to_string()))
}
