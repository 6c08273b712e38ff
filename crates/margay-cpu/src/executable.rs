//! A compiled program, and running it.

mod run;

use crate::{
    backend::{Encoder, ID},
    kernels::Kernels,
    kv::{KeyRope, KvPlan, KvState, KvTable, KvType},
    lines::Lines,
    ops::{
        Engine, Scratch,
        attention::{
            self,
            narrow::{self, NarrowSlot},
        },
        bf16::{self, Bf16Rows},
        channel::{self, ChannelRows},
        conv,
        experts::{self, ExpertRows},
        linear::{self, Epilogue, Gated, Layer, Matrix, QuantRows, QuantSize, Side},
        rows::{self, Norm, Source},
        view::{Out, View},
    },
    step::{Form, MOST_TOGETHER, Prepared, Quantize, Step, first_dim},
    threads::{Pool, TaskPanic},
};
use margay_graph::{
    Attention, BackendError, Bindings, Cancel, Element, Executable, InputData, Mask, MemoryUse, Node, Op,
    Program, Segment, Stage, State, StateOptions, Sym, ValueId, Watch, WeightSource, memory, passes,
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
    kv: KvPlan,
    /// Elements of each output as the last run left them.
    output_len: Vec<usize>,
    watch: Option<Watch>,
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
    encoder: Vec<KvTable>,
    /// The same in fewer bits, where the encoder multiplies in them: then all of them.
    narrow: Vec<NarrowSlot>,
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
        kv: KvPlan,
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
        let mut slots: Vec<KvTable> = vec![];
        let mut narrow: Vec<NarrowSlot> = vec![];
        let is_narrow = encoder != Encoder::AsStored && program.stage() == Stage::Encode;
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
                    Form::Bf16 => rounded = rounded.max(Bf16Rows::elements(rows, columns)),
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
                if a.cache.is_none() && is_narrow {
                    scratch = scratch.max(narrow::scratch_floats(encoder, a));
                    if !narrow.iter().any(|slot| slot.fits(a, tokens)) {
                        narrow.push(NarrowSlot::new(encoder, a, tokens).ok_or_else(too_large)?);
                    }
                    continue;
                }
                scratch = scratch.max(attention::scratch_floats(a));
                let fits =
                    |s: &KvTable| s.layouts.shapes == [(a.kv_heads, a.head_dim)] && s.capacity() >= tokens;
                if a.cache.is_none() && !slots.iter().any(fits) {
                    let slot = KvTable::of_layer(KvType::F32, (a.kv_heads, a.head_dim), tokens);
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
            narrow,
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
            watch: None,
        })
    }

    /// Tokens that a call appends to the states.
    fn appended(&self, bindings: &Bindings) -> Result<usize, BackendError> {
        let appends = |node: &&Node| matches!(node.op, Op::Attention(Attention { cache: Some(_), .. }));
        match self.program.nodes().iter().find(appends) {
            Some(node) => Ok(first_dim(&self.program, node.inputs[1]).eval(bindings)?),
            None => Ok(0),
        }
    }

    /// How each slot of the cache turns its keys, where all of them do.
    fn key_ropes(&self) -> Option<Vec<KeyRope>> {
        let rope = |node: Option<usize>| match (&self.program.nodes()[node?].op, &self.prepared.steps[node?])
        {
            (Op::Rope(rope), Step::Rope { table }) => {
                let frequencies = self.prepared.ropes[*table].frequencies.iter();
                let frequencies = frequencies.map(|(_, frequency)| *frequency).collect();
                Some(KeyRope { style: rope.style, frequencies })
            }
            _ => None,
        };
        self.program.key_ropes().into_iter().map(rope).collect()
    }

    /// The ids of the tokens of a call, where the program begins with any.
    fn tokens(&self) -> Option<ValueId> {
        let embed = self.program.nodes().iter().find(|node| matches!(node.op, Op::Embed { .. }))?;
        embed.inputs.first().copied()
    }

    /// Refuses states of other programs, and those without room.
    fn check_segments(&self, segments: &mut [Segment<'_>], appended: usize) -> Result<(), BackendError> {
        let rows = segments.iter().try_fold(0usize, |sum, segment| sum.checked_add(segment.rows));
        if !segments.is_empty() && rows != Some(appended) {
            return Err(call(format!("the segments are {rows:?} tokens, the call {appended}")));
        }
        for segment in segments {
            let state = own(segment.state)?;
            let specs = self.program.caches().iter().map(|spec| (spec.kv_heads, spec.head_dim));
            let same = specs.eq(state.table.layouts.shapes.iter().copied());
            if !same {
                return Err(call("the state was made for another program"));
            }
            if segment.rows > state.capacity - state.len {
                let (capacity, used) = (state.capacity, state.len);
                return Err(BackendError::ContextFull { capacity, used, wanted: segment.rows });
            }
        }
        Ok(())
    }

    /// Runs from a step on until `pause` says so; gives the step to go on from, or none at the end.
    fn execute(
        &mut self,
        bindings: &Bindings,
        inputs: &[InputData<'_>],
        segments: &mut [Segment<'_>],
        (from, pause): (usize, &mut dyn FnMut() -> bool),
        cancel: &Cancel,
    ) -> Result<Option<usize>, BackendError> {
        if segments.is_empty() && !self.program.caches().is_empty() {
            return Err(call("this program keeps a KV cache: call it with a state"));
        }
        let past = segments.iter().map(|segment| segment.state.len()).min().unwrap_or(0);
        let bindings = bindings.with(Sym::Past, past);
        self.check(&bindings, inputs)?;
        let appended = self.appended(&bindings)?;
        self.check_segments(segments, appended)?;
        let one_token = bindings.get(Sym::Tokens) == Ok(1);
        let team = if one_token { self.decode_threads } else { self.engine.pool.threads() };
        self.engine.begin(team, cancel);
        for segment in &mut *segments {
            let state = own(segment.state)?;
            let to = state.len + segment.rows;
            if !state.table.prepare(&self.engine, state.len, to).map_err(panicked)? {
                return Err(call("there is no memory for another block of the KV cache"));
            }
        }
        // What was to be written may not be ready.
        if self.engine.was_cancelled() {
            return Err(BackendError::Cancelled);
        }
        let buffers = &mut self.buffers;
        if from == 0 {
            for (rope, table) in self.prepared.ropes.iter().zip(&mut buffers.ropes) {
                let positions = ints(&self.places, rope.positions, inputs)?;
                rows::rope_table(&rope.frequencies, positions, rope.axes, &mut table.cos, &mut table.sin);
            }
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
            encoder: &buffers.encoder,
            narrow: &mut buffers.narrow,
            bindings: &bindings,
            inputs,
        };
        if let Some(watch) = &mut self.watch {
            watch(from..from, &bindings);
        }
        let (mut at, mut told) = (from, from);
        while at < self.prepared.steps.len() {
            // What is put off is told with the step that does it.
            let put_off = matches!(self.prepared.steps[at], Step::Nothing | Step::Quantize);
            at += run.step(at, segments)?;
            if let Some(watch) = &mut self.watch
                && !put_off
            {
                watch(told..at, &bindings);
                told = at;
            }
            // After it: a step that was cancelled half way has not written all of its result.
            if self.engine.was_cancelled() {
                return Err(BackendError::Cancelled);
            }
            if !put_off && at < self.prepared.steps.len() && pause() {
                return Ok(Some(at));
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
        let ids = match self.tokens() {
            Some(ids) => ints(&self.places, ids, inputs)?,
            None => &[],
        };
        let mut start = 0;
        for segment in segments {
            let state = own(segment.state)?;
            for (row, id) in ids.iter().skip(start).take(segment.rows).enumerate() {
                // A negative id is a visual token's.
                if *id < 0 {
                    state.table.mark_visual(state.len + row);
                }
            }
            state.len += segment.rows;
            start += segment.rows;
        }
        Ok(None)
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

/// A state of this backend.
fn own(state: &mut dyn State) -> Result<&mut KvState, BackendError> {
    let own = state.as_any_mut().downcast_mut::<KvState>();
    own.ok_or_else(|| call("the state was made by another backend"))
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
        let encoder =
            b.encoder.iter().map(KvTable::size_bytes).chain(b.narrow.iter().map(NarrowSlot::size_bytes));
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
        let batch = self.limits.get(Sym::Tokens).unwrap_or(options.capacity);
        let state = KvState::new(
            self.program.caches(),
            options.most_bits.map_or(self.kv, |bits| self.kv.within(bits)),
            (options.capacity, batch),
            partials,
            self.engine.kernels,
        );
        let too_large = || {
            call(format!("a KV cache of {} tokens does not fit memory; lower the context", options.capacity))
        };
        let state = state.ok_or_else(too_large)?;
        Ok(Box::new(state.with_ropes(self.key_ropes())))
    }

    fn run(
        &mut self,
        bindings: &Bindings,
        inputs: &[InputData<'_>],
        state: Option<&mut dyn State>,
        cancel: &Cancel,
    ) -> Result<(), BackendError> {
        match state {
            Some(state) => {
                let rows = self.appended(&bindings.with(Sym::Past, state.len()))?;
                self.run_several(bindings, inputs, &mut [Segment { state, rows }], cancel)
            }
            None => self.execute(bindings, inputs, &mut [], (0, &mut || false), cancel).map(|_| ()),
        }
    }

    fn runs_several(&self) -> bool {
        true
    }

    fn run_several(
        &mut self,
        bindings: &Bindings,
        inputs: &[InputData<'_>],
        segments: &mut [Segment<'_>],
        cancel: &Cancel,
    ) -> Result<(), BackendError> {
        self.execute(bindings, inputs, segments, (0, &mut || false), cancel).map(|_| ())
    }

    fn run_part(
        &mut self,
        bindings: &Bindings,
        inputs: &[InputData<'_>],
        from: usize,
        pause: &mut dyn FnMut() -> bool,
        cancel: &Cancel,
    ) -> Result<Option<usize>, BackendError> {
        self.execute(bindings, inputs, &mut [], (from, pause), cancel)
    }

    fn watch(&mut self, watch: Option<Watch>) -> bool {
        self.watch = watch;
        true
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
    encoder: &'a [KvTable],
    narrow: &'a mut [NarrowSlot],
    bindings: &'a Bindings,
    inputs: &'a [InputData<'a>],
}
