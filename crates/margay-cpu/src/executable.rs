//! A compiled program, and running it.

use crate::{
    backend::{Encoder, ID},
    kernels::Kernels,
    kv::{KvSlot, KvState, KvType},
    lines::Lines,
    ops::{
        Engine, Scratch,
        attention::{self, int8::Int8Slot},
        bf16::{self, Bf16Rows},
        channel::{self, ChannelRows},
        conv,
        experts::{self, ExpertRows},
        linear::{self, Epilogue, Gated, Layer, Matrix, QuantRows, QuantSize, Side},
        rows::{self, Norm, Source},
        view::{Out, View},
    },
    pack::BF16_STEP,
    step::{Form, MOST_TOGETHER, Prepared, Quantize, Step, first_dim},
    threads::{Pool, TaskPanic},
};
use margay_graph::{
    Attention, BackendError, Bindings, Cancel, Element, Executable, InputData, Mask, MemoryUse, Node, Op,
    Program, Stage, State, StateOptions, Sym, ValueId, WeightSource, memory, passes,
};
use std::sync::{Arc, atomic::AtomicBool};

/// Where a value lies.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// Floats from the start of the arena.
    Arena(usize),
    /// The caller's, by its number.
    Input(usize),
    /// A small weight.
    Constant(usize),
}

/// Cosines and sines for the positions of one call.
struct RopeTable {
    cos: Lines<f32>,
    sin: Lines<f32>,
}

/// A program compiled for the processor.
pub(crate) struct CpuExecutable {
    program: Program,
    limits: Bindings,
    prepared: Prepared,
    places: Vec<Place>,
    /// Floats each value may take.
    room: Vec<usize>,
    engine: Engine,
    /// Threads for a call of one token.
    decode_threads: usize,
    buffers: Buffers,
    kv: KvType,
    /// Elements of each output as the last run left them.
    output_len: Vec<usize>,
}

/// Everything a run writes to.
struct Buffers {
    arena: Lines<f32>,
    quantized: QuantRows,
    /// Results of gated ops, which are made while the rows above are read.
    gated: QuantRows,
    channel: ChannelRows,
    bf16: Bf16Rows,
    unrolled: Lines<f32>,
    experts: ExpertRows,
    ropes: Vec<RopeTable>,
    /// Keys and values of attention without a cache, one for each shape.
    encoder: Vec<KvSlot>,
    /// The same in 8 bits, and then all of them.
    int8: Vec<Int8Slot>,
    /// Copies of inputs that are outputs.
    passed: Vec<(ValueId, Lines<f32>)>,
}

fn call(what: impl Into<String>) -> BackendError {
    BackendError::Call { what: what.into() }
}

fn panicked(panic: TaskPanic) -> BackendError {
    call(panic.to_string())
}

impl CpuExecutable {
    /// Optimizes and compiles `program`.
    pub(crate) fn compile(
        program: &Program,
        weights: &dyn WeightSource,
        limits: &Bindings,
        (pool, decode_threads): (Arc<Pool>, usize),
        kernels: Kernels,
        kv: KvType,
        encoder: Encoder,
    ) -> Result<Self, BackendError> {
        let program = passes::optimize(program);
        let prepared = Prepared::new(&program, weights, &pool, encoder)?;
        let plan = memory::plan_without(&program, limits, &prepared.absent)?;
        let mut places = Vec::with_capacity(program.values().len());
        let mut room = Vec::with_capacity(program.values().len());
        for (value, offset) in plan.offsets.iter().enumerate() {
            places.push(offset.map_or(Place::Input(usize::MAX), |bytes| Place::Arena(bytes / 4)));
            room.push(plan.sizes[value] / 4);
        }
        for (at, (_, value)) in program.inputs().iter().enumerate() {
            places[value.index()] = Place::Input(at);
        }
        let mut unrolled = 0;
        let codes = prepared.matrices.iter().filter_map(|matrix| match matrix {
            Matrix::Quant(matrix) => Some(matrix.kind.codes),
            _ => None,
        });
        let mut q = QuantSize::new(&kernels, codes);
        let mut gated = q;
        let (mut whole_rows, mut whole_columns, mut rounded) = (0, 0, 0);
        // Rows, width and feed-forward width.
        let mut chosen = [0; 3];
        let mut scratch = linear::scratch_floats();
        let mut slots: Vec<KvSlot> = vec![];
        let mut int8: Vec<Int8Slot> = vec![];
        let in_8_bits = encoder == Encoder::Int8 && program.stage() == Stage::Encode;
        for (node, step) in program.nodes().iter().zip(&prepared.steps) {
            if let Op::Param { weight } = &node.op {
                let at = prepared.constant_of(*weight).expect("invariant: every param is a constant");
                places[node.output.index()] = Place::Constant(at);
            }
            let size = |value: ValueId| {
                let rows = first_dim(&program, value).eval(limits)?;
                Ok::<_, BackendError>((rows, program.value(value).columns()))
            };
            let quantized = match step {
                Step::Norm { quantize: Some(form), .. } => Some((node.output, *form)),
                Step::Quantize => Some((node.inputs[0], Form::Groups)),
                Step::Linear { matrix, quantize: Some(Quantize::Fill), .. } => {
                    prepared.form(*matrix).map(|form| (node.inputs[0], form))
                }
                _ => None,
            };
            if let Some((value, form)) = quantized {
                let (rows, columns) = size(value)?;
                match form {
                    Form::Groups => q = q.max(rows, columns),
                    Form::Whole => {
                        whole_rows = whole_rows.max(rows);
                        whole_columns = whole_columns.max(columns);
                    }
                    Form::Bf16 => rounded = rounded.max(rows * columns.next_multiple_of(BF16_STEP)),
                }
            }
            if let Step::Norm { .. } = step {
                scratch = scratch.max(size(node.output)?.1);
            }
            if let Step::Gated { quantize, .. } = step {
                scratch = scratch.max(linear::gated_scratch_floats());
                if *quantize {
                    let (rows, columns) = size(node.output)?;
                    gated = gated.max(rows, columns);
                }
            }
            if let (Op::Experts(e), Step::Experts { .. }) = (&node.op, step) {
                let ((rows, width), ffn) = (size(node.output)?, program.weight(e.gate).shape.dims()[1]);
                chosen = [chosen[0].max(rows), chosen[1].max(width), chosen[2].max(ffn)];
                q = q.max(rows, width.max(ffn));
                scratch = scratch.max(linear::gated_scratch_floats());
            }
            if let (Op::Conv2d(conv), Step::Conv2d { weight, .. }) = (&node.op, step) {
                unrolled = unrolled.max(weight.unrolled_floats(conv));
                scratch = scratch.max(weight.scratch_floats(conv));
            }
            if let Op::Attention(a) = &node.op {
                let tokens = match a.cache {
                    Some(_) => 0,
                    None => together(a, first_dim(&program, node.inputs[1]).eval(limits)?),
                };
                let too_large = || call("the size of the keys overflows");
                if a.cache.is_none() && in_8_bits {
                    scratch = scratch.max(attention::int8::scratch_floats(a));
                    if !int8.iter().any(|slot| slot.fits(a, tokens)) {
                        int8.push(Int8Slot::new(a, tokens).ok_or_else(too_large)?);
                    }
                    continue;
                }
                scratch = scratch.max(attention::scratch_floats(a));
                let fits =
                    |s: &KvSlot| s.kv_heads == a.kv_heads && s.head_dim == a.head_dim && s.capacity >= tokens;
                if a.cache.is_none() && !slots.iter().any(fits) {
                    let slot = KvSlot::new(KvType::F32, a.kv_heads, a.head_dim, tokens);
                    slots.push(slot.ok_or_else(too_large)?);
                }
            }
        }
        let ropes = prepared.ropes.iter().map(|rope| {
            let floats = first_dim(&program, rope.positions).eval(limits)? * rope.frequencies.len();
            Ok(RopeTable { cos: Lines::zeroed(floats), sin: Lines::zeroed(floats) })
        });
        let ropes = ropes.collect::<Result<_, BackendError>>()?;
        let mut passed = vec![];
        for (_, value) in program.outputs() {
            if let Place::Input(_) = places[value.index()] {
                let mut floats = 1usize;
                for dim in &program.value(*value).dims {
                    floats = floats.saturating_mul(dim.eval(limits)?);
                }
                passed.push((*value, Lines::zeroed(floats)));
            }
        }
        let scratch = Scratch::new(pool.threads(), scratch);
        let channel = ChannelRows::new(&kernels, whole_rows, whole_columns);
        let engine = Engine {
            team: pool.threads(),
            pool,
            kernels,
            scratch,
            cancel: Cancel::new(),
            skipped: AtomicBool::new(false),
        };
        let buffers = Buffers {
            arena: Lines::zeroed(plan.arena_bytes.div_ceil(4)),
            quantized: QuantRows::new(q),
            gated: QuantRows::new(gated),
            channel,
            bf16: Bf16Rows::new(rounded),
            unrolled: Lines::zeroed(unrolled),
            experts: ExpertRows::new(chosen[0], chosen[1], chosen[2]),
            ropes,
            encoder: slots,
            int8,
            passed,
        };
        let output_len = vec![0; program.outputs().len()];
        Ok(CpuExecutable {
            program,
            limits: *limits,
            prepared,
            places,
            room,
            engine,
            decode_threads,
            buffers,
            kv,
            output_len,
        })
    }

    /// Refuses sizes beyond the limits and inputs that do not fit.
    fn check(&self, bindings: &Bindings, inputs: &[InputData<'_>]) -> Result<(), BackendError> {
        for sym in Sym::ALL.into_iter().filter(|sym| *sym != Sym::Past) {
            if let (Ok(limit), Ok(size)) = (self.limits.get(sym), bindings.get(sym))
                && size > limit
            {
                let name = sym.name();
                return Err(call(format!("{name} = {size}, the program was compiled for {limit}")));
            }
        }
        let declared = self.program.inputs();
        if inputs.len() != declared.len() {
            return Err(call(format!("{} inputs, the program takes {}", inputs.len(), declared.len())));
        }
        for ((name, id), input) in declared.iter().zip(inputs) {
            let value = self.program.value(*id);
            let expected = elements(&value.dims, bindings)?;
            let (element, got) = match input {
                InputData::F32(data) => (Element::F32, data.len()),
                InputData::I32(data) => (Element::I32, data.len()),
            };
            if element != value.element || got != expected {
                let what = format!(
                    "input {name} is {got} elements of {element:?}, the program takes {expected} of {:?}",
                    value.element
                );
                return Err(call(what));
            }
        }
        Ok(())
    }
}

fn elements(dims: &[margay_graph::Dim], bindings: &Bindings) -> Result<usize, BackendError> {
    let mut product = 1usize;
    for dim in dims {
        let size = dim.eval(bindings)?;
        product = product.checked_mul(size).ok_or_else(|| call("a size overflows"))?;
    }
    Ok(product)
}

impl Executable for CpuExecutable {
    fn program(&self) -> &Program {
        &self.program
    }

    fn memory(&self) -> MemoryUse {
        let p = &self.prepared;
        let convs = p.steps.iter().map(|s| match s {
            Step::Conv2d { weight, .. } => weight.size_bytes(),
            _ => 0,
        });
        let constants: usize = p.constants.iter().map(|c| c.len() * 4).sum();
        let b = &self.buffers;
        let ropes: usize = b.ropes.iter().map(|r| r.cos.size_bytes() + r.sin.size_bytes()).sum();
        let encoder = b.encoder.iter().map(KvSlot::size_bytes).chain(b.int8.iter().map(Int8Slot::size_bytes));
        let passed: usize = b.passed.iter().map(|(_, copy)| copy.size_bytes()).sum();
        MemoryUse {
            packed_weight_bytes: p.packed_bytes + constants + convs.sum::<usize>(),
            mapped_weight_bytes: p.mapped_bytes,
            arena_bytes: b.arena.size_bytes(),
            scratch_bytes: self.engine.scratch.size_bytes()
                + b.quantized.size_bytes()
                + b.gated.size_bytes()
                + b.channel.size_bytes()
                + b.bf16.size_bytes()
                + b.unrolled.size_bytes()
                + b.experts.size_bytes()
                + ropes
                + encoder.sum::<usize>()
                + passed,
        }
    }

    fn new_state(&self, options: StateOptions) -> Result<Box<dyn State>, BackendError> {
        let partials = self.program.nodes().iter().map(|node| match &node.op {
            Op::Attention(a) if a.cache.is_some() => attention::partial_floats(a, options.capacity),
            _ => 0,
        });
        let partials = partials.max().unwrap_or(0);
        let state = KvState::new(self.program.caches(), self.kv, options.capacity, partials);
        let too_large = || {
            call(format!("a KV cache of {} tokens does not fit memory; lower the context", options.capacity))
        };
        let state = state.ok_or_else(too_large)?;
        Ok(Box::new(state))
    }

    fn run(
        &mut self,
        bindings: &Bindings,
        inputs: &[InputData<'_>],
        state: Option<&mut dyn State>,
        cancel: &Cancel,
    ) -> Result<(), BackendError> {
        let mut state = match state {
            Some(state) => Some(
                state
                    .as_any_mut()
                    .downcast_mut::<KvState>()
                    .ok_or_else(|| call("the state was made by another backend"))?,
            ),
            None => None,
        };
        if state.is_none() && !self.program.caches().is_empty() {
            return Err(call("this program keeps a KV cache: call it with a state"));
        }
        if let Some(state) = &state {
            let same = state.slots.len() == self.program.caches().len()
                && state
                    .slots
                    .iter()
                    .zip(self.program.caches())
                    .all(|(slot, spec)| slot.kv_heads == spec.kv_heads && slot.head_dim == spec.head_dim);
            if !same {
                return Err(call("the state was made for another program"));
            }
        }
        let past = state.as_ref().map_or(0, |s| s.len);
        let bindings = bindings.with(Sym::Past, past);
        self.check(&bindings, inputs)?;
        let mut appended = 0;
        if let Some(state) = &state {
            for node in self.program.nodes() {
                if let Op::Attention(Attention { cache: Some(_), .. }) = node.op {
                    appended = first_dim(&self.program, node.inputs[1]).eval(&bindings)?;
                    if appended > state.capacity - past {
                        let (capacity, used) = (state.capacity, past);
                        return Err(BackendError::ContextFull { capacity, used, wanted: appended });
                    }
                }
            }
        }
        let one_token = bindings.get(Sym::Tokens) == Ok(1);
        let team = if one_token { self.decode_threads } else { self.engine.pool.threads() };
        self.engine.begin(team, cancel);
        let buffers = &mut self.buffers;
        for (rope, table) in self.prepared.ropes.iter().zip(&mut buffers.ropes) {
            let positions = ints(&self.places, rope.positions, inputs)?;
            rows::rope_table(&rope.frequencies, positions, rope.axes, &mut table.cos, &mut table.sin);
        }
        let mut run = Run {
            program: &self.program,
            prepared: &self.prepared,
            places: &self.places,
            room: &self.room,
            engine: &self.engine,
            arena: buffers.arena.as_mut_ptr(),
            arena_len: buffers.arena.len(),
            quantized: &mut buffers.quantized,
            gated: &mut buffers.gated,
            channel: &mut buffers.channel,
            bf16: &mut buffers.bf16,
            unrolled: &mut buffers.unrolled,
            experts: &mut buffers.experts,
            ropes: &buffers.ropes,
            encoder: &mut buffers.encoder,
            int8: &mut buffers.int8,
            bindings: &bindings,
            inputs,
            past,
        };
        let mut at = 0;
        while at < self.prepared.steps.len() {
            at += run.step(at, state.as_deref_mut())?;
            // After it: a step that was cancelled half way has not written all of its result.
            if self.engine.was_cancelled() {
                return Err(BackendError::Cancelled);
            }
        }
        for (len, (_, value)) in self.output_len.iter_mut().zip(self.program.outputs()) {
            *len = elements(&self.program.value(*value).dims, &bindings)?;
        }
        for (value, copy) in &mut buffers.passed {
            if let Place::Input(at) = self.places[value.index()]
                && let InputData::F32(data) = inputs[at]
            {
                copy[..data.len()].copy_from_slice(data);
            }
        }
        if let Some(state) = state {
            state.len += appended;
        }
        Ok(())
    }

    fn output(&self, name: &str) -> Option<&[f32]> {
        let at = self.program.outputs().iter().position(|(n, _)| n == name)?;
        let (value, len) = (self.program.outputs()[at].1, self.output_len[at]);
        match self.places[value.index()] {
            Place::Arena(offset) => self.buffers.arena.get(offset..offset + len),
            Place::Constant(constant) => self.prepared.constants[constant].get(..len),
            Place::Input(_) => {
                let (_, copy) = self.buffers.passed.iter().find(|(v, _)| *v == value)?;
                copy.get(..len)
            }
        }
    }
}

fn ints<'a>(places: &[Place], value: ValueId, inputs: &[InputData<'a>]) -> Result<&'a [i32], BackendError> {
    match places[value.index()] {
        Place::Input(at) => match inputs[at] {
            InputData::I32(data) => Ok(data),
            InputData::F32(_) => Err(call("an input of floats is used as row numbers")),
        },
        _ => Err(call("row numbers must be an input")),
    }
}

/// Rows whose keys attention without a cache looks at together, of so many.
fn together(attention: &Attention, rows: usize) -> usize {
    match attention.mask {
        Mask::Segments { most } => rows.min(most),
        Mask::Full | Mask::Causal | Mask::Prefix => rows,
    }
}

/// One call under way.
struct Run<'a> {
    program: &'a Program,
    prepared: &'a Prepared,
    places: &'a [Place],
    room: &'a [usize],
    engine: &'a Engine,
    arena: *mut f32,
    arena_len: usize,
    quantized: &'a mut QuantRows,
    gated: &'a mut QuantRows,
    channel: &'a mut ChannelRows,
    bf16: &'a mut Bf16Rows,
    unrolled: &'a mut Lines<f32>,
    experts: &'a mut ExpertRows,
    ropes: &'a [RopeTable],
    encoder: &'a mut [KvSlot],
    int8: &'a mut [Int8Slot],
    bindings: &'a Bindings,
    inputs: &'a [InputData<'a>],
    past: usize,
}

impl<'a> Run<'a> {
    fn size(&self, value: ValueId) -> Result<(usize, usize), BackendError> {
        let dims = &self.program.value(value).dims;
        let rows = first_dim(self.program, value).eval(self.bindings)?;
        Ok((rows, elements(&dims[1.min(dims.len())..], self.bindings)?))
    }

    /// A value to read.
    fn view(&self, value: ValueId) -> Result<View<'a>, BackendError> {
        let (rows, columns) = self.size(value)?;
        let at: *const f32 = match self.places[value.index()] {
            Place::Arena(offset) => {
                assert!(rows * columns <= self.room[value.index()] && offset <= self.arena_len);
                // SAFETY: the plan placed the value inside the arena.
                unsafe { self.arena.add(offset) }
            }
            Place::Constant(constant) => {
                assert!(rows * columns <= self.prepared.constants[constant].len());
                self.prepared.constants[constant].as_ptr()
            }
            Place::Input(at) => match self.inputs[at] {
                InputData::F32(data) => data.as_ptr(),
                InputData::I32(_) => return Err(call("an input of integers is used as numbers")),
            },
        };
        // SAFETY: that many floats lie there: checked above, and for inputs by `check`.
        Ok(unsafe { View::new(at, rows, columns) })
    }

    /// A value to write.
    fn out(&self, value: ValueId) -> Result<Out<'a>, BackendError> {
        let (rows, columns) = self.size(value)?;
        let Place::Arena(offset) = self.places[value.index()] else {
            return Err(call("a result has no place in the arena"));
        };
        assert!(rows * columns <= self.room[value.index()] && offset <= self.arena_len);
        // SAFETY: the plan placed the value inside the arena, and apart from all values that are still to be read
        // except where the op may write over its input.
        Ok(unsafe { Out::new(self.arena.add(offset), rows, columns) })
    }

    fn constant(&self, at: usize) -> &'a [f32] {
        &self.prepared.constants[at]
    }

    fn norm(&self, op: &margay_graph::Norm, weight: usize, bias: Option<usize>) -> Norm<'a> {
        let bias = bias.map(|b| self.constant(b));
        Norm { kind: op.kind, weight: self.constant(weight), bias, eps: op.eps }
    }

    /// Runs step `at` and those that are run together with it; returns how many.
    fn step(&mut self, at: usize, state: Option<&mut KvState>) -> Result<usize, BackendError> {
        match self.prepared.steps[at] {
            Step::Nothing => Ok(1),
            Step::Linear { together, .. } if together > 1 => self.together(at, together),
            ref step => self.single(&self.program.nodes()[at], step, state).map(|()| 1),
        }
    }

    /// Linear layers of the same quantized rows.
    fn together(&mut self, first: usize, count: usize) -> Result<usize, BackendError> {
        let nodes = &self.program.nodes()[first..first + count];
        let steps = &self.prepared.steps[first..first + count];
        if let Step::Linear { quantize: Some(Quantize::Fill), .. } = steps[0] {
            let source = Source { x: self.view(nodes[0].inputs[0])?, norm: None };
            self.quantized.fill(self.engine, source).map_err(panicked)?;
        }
        let mut layers = [None; MOST_TOGETHER];
        for (layer, (node, step)) in layers.iter_mut().zip(nodes.iter().zip(steps)) {
            let (Op::Linear(op), Step::Linear { matrix, bias, .. }) = (&node.op, step) else {
                unreachable!("invariant: only linear layers are joined");
            };
            let matrix = self.prepared.quant(*matrix);
            let bias = bias.map(|b| self.constant(b));
            let epilogue = Epilogue { bias, activation: op.activation, residual: None };
            *layer = Some(Layer { matrix, epilogue, out: self.out(node.output)? });
        }
        let layers: [Layer<'_>; MOST_TOGETHER] =
            std::array::from_fn(|at| layers[at].or(layers[0]).expect("invariant: at least one"));
        linear::quantized(self.engine, &layers[..count], self.quantized).map_err(panicked)?;
        Ok(count)
    }

    fn single(&mut self, node: &Node, step: &Step, state: Option<&mut KvState>) -> Result<(), BackendError> {
        let engine = self.engine;
        let input = |at: usize| node.inputs[at];
        if self.size(node.output)?.0 == 0 {
            return self.empty_step(node);
        }
        // The steps that leave their results quantized have no other.
        match (&node.op, step) {
            (_, Step::Quantize) => {
                let source = Source { x: self.view(input(0))?, norm: None };
                return self.quantized.fill(engine, source).map_err(panicked);
            }
            (Op::Norm(op), Step::Norm { weight, bias, quantize: Some(form) }) => {
                let norm = Some(self.norm(op, *weight, *bias));
                let source = Source { x: self.view(input(0))?, norm };
                let done = match form {
                    Form::Groups => self.quantized.fill(engine, source),
                    Form::Whole => self.channel.fill(engine, source),
                    Form::Bf16 => self.bf16.fill(engine, source),
                };
                return done.map_err(panicked);
            }
            (Op::Glu(act), Step::Gated { sides, quantize }) => {
                let prepared = self.prepared;
                let sides = sides.map(|(matrix, bias)| Side {
                    matrix: prepared.quant(matrix),
                    bias: bias.map(|b| &prepared.constants[b][..]),
                });
                let rows = self.size(node.output)?.0;
                let out = if *quantize {
                    Gated::Quantized(self.gated)
                } else {
                    Gated::Float(self.out(node.output)?)
                };
                return linear::gated(engine, sides, *act, self.quantized, rows, out).map_err(panicked);
            }
            _ => {}
        }
        let out = self.out(node.output)?;
        let done = match (&node.op, step) {
            (Op::Embed { .. }, Step::Embed { table }) => return self.embed(node, table, out),
            (Op::Linear(op), Step::Linear { matrix, bias, quantize, .. }) => {
                let residual = if op.residual { Some(self.view(input(1))?) } else { None };
                let bias = bias.map(|b| self.constant(b));
                let epilogue = Epilogue { bias, activation: op.activation, residual };
                match &self.prepared.matrices[*matrix] {
                    Matrix::Float(matrix) => {
                        linear::float(engine, matrix, self.view(input(0))?, epilogue, out)
                    }
                    Matrix::Quant(matrix) => {
                        if let Some(Quantize::Fill) = quantize {
                            let source = Source { x: self.view(input(0))?, norm: None };
                            self.quantized.fill(engine, source).map_err(panicked)?;
                        }
                        let gated = *quantize == Some(Quantize::Gated);
                        let x = if gated { &*self.gated } else { &*self.quantized };
                        linear::quantized(engine, &[Layer { matrix, epilogue, out }], x)
                    }
                    Matrix::Channel(matrix) => {
                        if let Some(Quantize::Fill) = quantize {
                            let source = Source { x: self.view(input(0))?, norm: None };
                            self.channel.fill(engine, source).map_err(panicked)?;
                        }
                        channel::multiply(engine, matrix, self.channel, epilogue, out)
                    }
                    Matrix::Bf16(matrix) => {
                        if let Some(Quantize::Fill) = quantize {
                            let source = Source { x: self.view(input(0))?, norm: None };
                            self.bf16.fill(engine, source).map_err(panicked)?;
                        }
                        let kernels =
                            engine.kernels.bf16.expect("invariant: checked when the backend was made");
                        bf16::multiply(engine, kernels, matrix, self.bf16, epilogue, out)
                    }
                }
            }
            (Op::Norm(op), Step::Norm { weight, bias, .. }) => {
                rows::norm(engine, self.norm(op, *weight, *bias), self.view(input(0))?, out)
            }
            (Op::Rope(op), Step::Rope { table }) => {
                let table = &self.ropes[*table];
                rows::rope(engine, op, (&table.cos, &table.sin), self.view(input(0))?, out)
            }
            (Op::Route(route), _) => experts::route(engine, *route, self.view(input(0))?, out),
            (Op::Experts(op), Step::Experts { experts }) => {
                let prepared = self.prepared;
                let matrices = experts.iter().map(|expert| expert.map(|at| &prepared.matrices[at]));
                let rows = (self.view(input(0))?, self.view(input(1))?);
                let buffers = (&mut *self.experts, &mut *self.quantized);
                experts::experts(engine, matrices, op.activation, rows, buffers, out)
            }
            (Op::Conv2d(op), Step::Conv2d { weight, bias }) => {
                let (x, bias) = (self.view(input(0))?, bias.map(|b| self.constant(b)));
                conv::conv2d(engine, op, weight, bias, x, self.unrolled, out)
            }
            (Op::Attention(op), _) => {
                let [q, k, v] = [self.view(input(0))?, self.view(input(1))?, self.view(input(2))?];
                let tokens = together(op, k.rows);
                if let Mask::Segments { most } = op.mask {
                    let segments = ints(self.places, input(3), self.inputs)?;
                    if let Some(long) = segments.chunk_by(|a, b| a == b).find(|rows| rows.len() > most) {
                        let rows = long.len();
                        return Err(call(format!("a segment of {rows} rows, at most {most} were promised")));
                    }
                }
                if op.cache.is_none()
                    && let Some(slot) = self.int8.iter_mut().find(|slot| slot.fits(op, tokens))
                {
                    let done = match op.mask {
                        Mask::Segments { .. } => {
                            let segments = ints(self.places, input(3), self.inputs)?;
                            attention::int8::attend_in_segments(engine, op, slot, segments, [q, k, v], out)
                        }
                        _ => {
                            let prefix = op.prefix(self.bindings, q.rows)?;
                            attention::int8::attend(engine, op, slot, prefix, [q, k, v], out)
                        }
                    };
                    return done.map_err(panicked);
                }
                let (slot, partials, past) = match (op.cache, state) {
                    (Some(cache), Some(state)) => {
                        (&mut state.slots[cache], &mut state.partials[..], self.past)
                    }
                    (None, _) => {
                        let fits = |s: &&mut KvSlot| {
                            s.kv_heads == op.kv_heads && s.head_dim == op.head_dim && s.capacity >= tokens
                        };
                        let slot = self.encoder.iter_mut().find(fits);
                        let slot = slot.expect("invariant: compile made a slot for each shape");
                        (slot, &mut [][..], 0)
                    }
                    (Some(_), None) => return Err(call("attention with a cache needs a state")),
                };
                if let Mask::Segments { .. } = op.mask {
                    let segments = ints(self.places, input(3), self.inputs)?;
                    return attention::attend_in_segments(engine, op, slot, segments, [q, k, v], out)
                        .map_err(panicked);
                }
                let prefix = op.prefix(self.bindings, q.rows)?;
                attention::append(engine, slot, past, k, v).map_err(panicked)?;
                attention::attend(engine, op, slot, partials, (past, past + k.rows, prefix), q, out)
            }
            (Op::Activation(act), _) => rows::activation(engine, *act, self.view(input(0))?, out),
            (Op::Glu(act), _) => rows::glu(engine, *act, self.view(input(0))?, self.view(input(1))?, out),
            (Op::Add, _) => {
                let kernel = engine.kernels.rows.add;
                rows::elementwise(engine, kernel, self.view(input(0))?, self.view(input(1))?, out)
            }
            (Op::Mul, _) => {
                let kernel = engine.kernels.rows.mul;
                rows::elementwise(engine, kernel, self.view(input(0))?, self.view(input(1))?, out)
            }
            (Op::Scale(factor), _) => rows::scale(engine, *factor, self.view(input(0))?, out),
            (Op::Patchify { patch }, _) => {
                let dims = &self.program.value(input(0)).dims;
                let side = |at: usize| dims[at].eval(self.bindings);
                let size = (side(1)?, side(2)?);
                let view = self.view(input(0))?;
                // SAFETY: the view covers the picture, which nobody writes meanwhile.
                let pixels = unsafe { std::slice::from_raw_parts(view.pointer(), view.rows * view.columns) };
                rows::patchify(engine, pixels, size, *patch, out)
            }
            (Op::AvgPool2d(op), _) => rows::avg_pool2d(engine, op, self.view(input(0))?, out),
            (Op::SpaceToDepth(op), _) => rows::space_to_depth(engine, op, self.view(input(0))?, out),
            (Op::JoinRows { .. }, _) => {
                let x = self.view(input(0))?;
                rows::copy_rows(engine, x, 0, out.pieces(x.columns), |row| row)
            }
            (Op::AdaptivePool(op), _) => {
                let x = self.view(input(0))?;
                let integers = |at: usize| ints(self.places, input(at), self.inputs);
                let map = rows::Map::new(x.rows, integers(1)?, integers(2)?).map_err(call)?;
                rows::adaptive_pool(engine, *op, &map, x, out)
            }
            (Op::MeanRows, _) => rows::mean_rows(engine, self.view(input(0))?, out),
            (Op::ConcatRows, _) => rows::concat_rows(engine, self.view(input(0))?, self.view(input(1))?, out),
            (Op::ConcatColumns, _) => {
                rows::concat_columns(engine, self.view(input(0))?, self.view(input(1))?, out)
            }
            (Op::SliceRows { start, .. }, _) => {
                let x = self.view(input(0))?;
                if start + out.rows > x.rows {
                    let end = start + out.rows;
                    return Err(call(format!("rows {start}..{end} of a value of {}", x.rows)));
                }
                rows::copy_rows(engine, x, 0, out, |row| start + row)
            }
            (Op::SliceColumns { start, .. }, _) => {
                rows::copy_rows(engine, self.view(input(0))?, *start, out, |row| row)
            }
            (Op::GatherRows, _) => {
                let (x, wanted) = (self.view(input(0))?, ints(self.places, input(1), self.inputs)?);
                if let Some(row) = wanted.iter().find(|&&r| usize::try_from(r).map_or(true, |r| r >= x.rows))
                {
                    return Err(call(format!("row {row} of a value of {} rows", x.rows)));
                }
                rows::copy_rows(engine, x, 0, out, |row| wanted[row] as usize)
            }
            (op, _) => {
                let what = format!("{}: it was not prepared", op.name());
                return Err(BackendError::Unsupported { backend: ID, what });
            }
        };
        done.map_err(panicked)
    }

    /// A step without result rows may still have to look at its inputs: keys without queries are appended.
    fn empty_step(&self, node: &Node) -> Result<(), BackendError> {
        match &node.op {
            Op::Attention(op) if op.cache.is_some() && self.size(node.inputs[1])?.0 > 0 => {
                Err(call("attention has keys to append, but no queries"))
            }
            _ => Ok(()),
        }
    }

    fn embed(&self, node: &Node, table: &margay_tensor::Tensor, out: Out<'_>) -> Result<(), BackendError> {
        let ids = ints(self.places, node.inputs[0], self.inputs)?;
        let visual = node.inputs.get(1).map(|v| self.view(*v)).transpose()?;
        let rows = table.shape().dims()[0];
        let visual_rows = visual.map_or(0, |v| v.rows);
        for id in ids {
            let known = match usize::try_from(*id) {
                Ok(row) => row < rows,
                Err(_) => visual_row(*id) < visual_rows,
            };
            if !known {
                let what = format!("token {id} of a vocabulary of {rows} and {visual_rows} visual tokens");
                return Err(call(what));
            }
        }
        let each = |row: usize| {
            // SAFETY: each row is one task's own; `visual` is another value.
            let y = unsafe { out.row(row) };
            match (usize::try_from(ids[row]), visual) {
                (Err(_), Some(visual)) => {
                    // SAFETY: nobody writes `visual` meanwhile.
                    y.copy_from_slice(unsafe { visual.row(visual_row(ids[row])) });
                }
                (id, _) => {
                    let id = id.unwrap_or(0);
                    margay_quant::decode_row(table, id, y).expect("invariant: format and row were checked");
                }
            }
        };
        self.engine.run(ids.len(), &|_, row| each(row)).map_err(panicked)
    }
}

/// The row of the visual tokens that a negative id stands for.
fn visual_row(id: i32) -> usize {
    (-1 - i64::from(id)) as usize
}
