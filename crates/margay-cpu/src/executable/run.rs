//! The steps of one run.

use super::*;

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
    pub(super) fn step(&mut self, at: usize, segments: &mut [Segment<'_>]) -> Result<usize, BackendError> {
        match self.prepared.steps[at] {
            Step::Nothing => Ok(1),
            Step::Linear { together, .. } if together > 1 => self.together(at, together),
            ref step => self.single(&self.program.nodes()[at], step, segments).map(|()| 1),
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

    fn single(&mut self, node: &Node, step: &Step, segments: &mut [Segment<'_>]) -> Result<(), BackendError> {
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
                        bf16::multiply(engine, matrix, self.bf16, epilogue, out)
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
                    && let Some(slot) = self.narrow.iter_mut().find(|slot| slot.fits(op, tokens))
                {
                    let done = match op.mask {
                        Mask::Segments { .. } => {
                            let segments = ints(self.places, input(3), self.inputs)?;
                            slot.attend_in_segments(engine, op, segments, [q, k, v], out)
                        }
                        _ => {
                            let prefix = op.prefix(self.bindings, q.rows)?;
                            slot.attend(engine, op, prefix, [q, k, v], out)
                        }
                    };
                    return done.map_err(panicked);
                }
                if let Some(cache) = op.cache {
                    return self.cached_attention(op, cache, segments, [q, k, v], out);
                }
                let fits =
                    |s: &&KvTable| s.layouts.shapes == [(op.kv_heads, op.head_dim)] && s.capacity() >= tokens;
                let table = self.encoder.iter().find(fits);
                let slot = table.expect("invariant: compile made one for each shape").layer(0);
                if let Mask::Segments { .. } = op.mask {
                    let segments = ints(self.places, input(3), self.inputs)?;
                    return attention::attend_in_segments(engine, op, slot, segments, [q, k, v], out)
                        .map_err(panicked);
                }
                let prefix = op.prefix(self.bindings, q.rows)?;
                attention::append(engine, slot, 0, k, v).map_err(panicked)?;
                attention::attend(engine, op, slot, &mut [], (0, k.rows, prefix), q, out)
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
            (Op::SelectColumns { columns }, _) => {
                rows::select_columns(engine, self.view(input(0))?, columns, out)
            }
            (Op::ZeroColumns { columns }, _) => {
                rows::zero_columns(engine, self.view(input(0))?, columns, out)
            }
            (op, _) => {
                let what = format!("{}: it was not prepared", op.name());
                return Err(BackendError::Unsupported { backend: ID, what });
            }
        };
        done.map_err(panicked)
    }

    /// The rows of each segment are appended to its state, and attend to what it then holds.
    fn cached_attention(
        &self,
        op: &Attention,
        cache: usize,
        segments: &mut [Segment<'_>],
        [q, k, v]: [View<'_>; 3],
        out: Out<'_>,
    ) -> Result<(), BackendError> {
        if q.rows != k.rows {
            return Err(call(format!(
                "attention with a cache has {} queries for {} new keys",
                q.rows, k.rows
            )));
        }
        let prefix = op.prefix(self.bindings, q.rows)?;
        if prefix > 0 && segments.len() > 1 {
            return Err(call("tokens that see one another are computed one conversation at a time"));
        }
        let (mut start, engine) = (0, self.engine);
        for Segment { state, rows } in segments {
            let (state, rows) = (own(*state)?, *rows);
            let past = state.len;
            let (slot, partials) = (state.table.layer(cache), &mut state.partials[..]);
            let [q, k, v] = [q, k, v].map(|x| x.part_of_rows(start, rows));
            attention::append(engine, slot, past, k, v).map_err(panicked)?;
            let out = out.part_of_rows(start, rows);
            attention::attend(engine, op, slot, partials, (past, past + rows, prefix), q, out)
                .map_err(panicked)?;
            state.observed.note(engine, op, (cache, slot), past, q).map_err(panicked)?;
            start += rows;
        }
        Ok(())
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
