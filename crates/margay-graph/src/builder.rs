//! Builds a program op by op; every method checks sizes and says what does not fit.

use crate::{
    Activation, AdaptivePool, Attention, CacheSpec, Conv2d, Dim, Element, Experts, GraphError, Linear, Mask,
    Node, Norm, NormKind, Op, Pool2d, Program, Role, Rope, Route, Stage, Value, ValueId, WeightId,
    WeightSpec,
};
use margay_tensor::Shape;

/// Builds a [`Program`].
#[derive(Debug)]
pub struct Builder {
    program: Program,
    conflict: Option<GraphError>,
}

type Built = Result<ValueId, GraphError>;

impl Builder {
    /// An empty program of that stage.
    pub fn new(stage: Stage) -> Self {
        let program = Program {
            stage,
            nodes: vec![],
            values: vec![],
            weights: vec![],
            inputs: vec![],
            outputs: vec![],
            caches: vec![],
        };
        Builder { program, conflict: None }
    }

    /// A float32 input.
    pub fn input_f32<const N: usize>(&mut self, name: &str, dims: [Dim; N]) -> ValueId {
        self.input(name, Value { dims: dims.to_vec(), element: Element::F32 })
    }

    /// An int32 vector input.
    pub fn input_i32(&mut self, name: &str, len: impl Into<Dim>) -> ValueId {
        self.input(name, Value { dims: vec![len.into()], element: Element::I32 })
    }

    /// An int32 matrix input.
    pub fn input_i32_matrix(&mut self, name: &str, rows: impl Into<Dim>, columns: usize) -> ValueId {
        self.input(name, Value { dims: vec![rows.into(), columns.into()], element: Element::I32 })
    }

    /// Declares a weight; declaring it again with the same shape gives the same id.
    pub fn weight(&mut self, name: &str, shape: impl Into<Shape>, role: Role) -> WeightId {
        let shape = shape.into();
        if let Some(at) = self.program.weights.iter().position(|w| w.name == name) {
            let known = &self.program.weights[at].shape;
            if *known != shape {
                let what = format!("weight {name} is declared as {known} and as {shape}");
                self.conflict.get_or_insert(GraphError::Program { what });
            }
            return WeightId(at);
        }
        self.program.weights.push(WeightSpec { name: name.to_owned(), shape, role });
        WeightId(self.program.weights.len() - 1)
    }

    /// Names a value as an output.
    pub fn output(&mut self, name: &str, value: ValueId) {
        self.program.outputs.push((name.to_owned(), value));
    }

    /// The sizes of a value built so far.
    pub fn dims(&self, value: ValueId) -> &[Dim] {
        &self.program.values[value.0].dims
    }

    /// The finished program.
    ///
    /// # Errors
    /// [`GraphError::Program`] without outputs, or where a weight was declared with two shapes.
    pub fn finish(self) -> Result<Program, GraphError> {
        if let Some(conflict) = self.conflict {
            return Err(conflict);
        }
        if self.program.outputs.is_empty() {
            return Err(GraphError::Program {
                what: format!("the {} program has no output", self.program.stage.name()),
            });
        }
        Ok(self.program)
    }

    /// A weight as a value; a vector `[C]` becomes one row `[1, C]`.
    ///
    /// # Errors
    /// [`GraphError::Shape`] for more than two dimensions.
    pub fn param(&mut self, weight: WeightId) -> Built {
        let dims = match *self.shape(weight) {
            [c] => vec![Dim::from(1), Dim::from(c)],
            [r, c] => vec![Dim::from(r), Dim::from(c)],
            ref other => {
                return Err(GraphError::shape(format!("param takes one or two dimensions, got {other:?}")));
            }
        };
        Ok(self.push(Op::Param { weight }, &[], dims))
    }

    /// Rows of `table` for `ids`, with rows of `visual` for negative ids; see [`Op::Embed`].
    ///
    /// # Errors
    /// [`GraphError::Shape`] where the widths differ.
    pub fn embed(&mut self, table: WeightId, ids: ValueId, visual: Option<ValueId>) -> Built {
        let &[_, width] = self.shape(table) else {
            return Err(GraphError::shape("an embedding table has two dimensions"));
        };
        let mut inputs = vec![ids];
        if let Some(visual) = visual {
            self.expect_columns("embed", visual, width)?;
            inputs.push(visual);
        }
        let rows = self.dims(ids)[0];
        Ok(self.push(Op::Embed { table }, &inputs, vec![rows, width.into()]))
    }

    /// `x @ weight^T + bias`.
    ///
    /// # Errors
    /// [`GraphError::Shape`] where the sizes do not fit.
    pub fn linear(&mut self, x: ValueId, weight: WeightId, bias: Option<WeightId>) -> Built {
        let &[out, width] = self.shape(weight) else {
            return Err(GraphError::shape(format!("{} is no matrix", self.program.weight(weight).name)));
        };
        self.expect_columns(&self.program.weight(weight).name.clone(), x, width)?;
        if let Some(bias) = bias {
            self.expect_vector(bias, out)?;
        }
        let rows = self.dims(x)[0];
        let op = Op::Linear(Linear { weight, bias, activation: None, residual: false });
        Ok(self.push(op, &[x], vec![rows, out.into()]))
    }

    /// Normalises each row of `x`.
    ///
    /// # Errors
    /// [`GraphError::Shape`] where the width of the vectors does not divide that of `x`.
    pub fn norm(
        &mut self,
        x: ValueId,
        kind: NormKind,
        weight: WeightId,
        bias: Option<WeightId>,
        eps: f32,
    ) -> Built {
        let columns = self.matrix("norm", x)?.1;
        // A width that divides the columns is that of a head.
        let width = self.shape(weight).first().copied().filter(|w| *w > 0 && columns.is_multiple_of(*w));
        for vector in std::iter::once(weight).chain(bias) {
            self.expect_vector(vector, width.unwrap_or(columns))?;
        }
        let dims = self.dims(x).to_vec();
        Ok(self.push(Op::Norm(Norm { kind, weight, bias, eps }), &[x], dims))
    }

    /// `act(x)`.
    ///
    /// # Errors
    /// [`GraphError::Shape`] where `x` is no matrix.
    pub fn activation(&mut self, x: ValueId, act: Activation) -> Built {
        self.matrix("activation", x)?;
        let dims = self.dims(x).to_vec();
        Ok(self.push(Op::Activation(act), &[x], dims))
    }

    /// `a + b`, where b may be one row.
    ///
    /// # Errors
    /// [`GraphError::Shape`] where the sizes differ otherwise.
    pub fn add(&mut self, a: ValueId, b: ValueId) -> Built {
        self.elementwise(Op::Add, a, b)
    }

    /// `a * b`, where b may be one row.
    ///
    /// # Errors
    /// [`GraphError::Shape`] where the sizes differ otherwise.
    pub fn mul(&mut self, a: ValueId, b: ValueId) -> Built {
        self.elementwise(Op::Mul, a, b)
    }

    /// Each element times `factor`.
    ///
    /// # Errors
    /// [`GraphError::Shape`] where `x` is no matrix.
    pub fn scale(&mut self, x: ValueId, factor: f32) -> Built {
        self.matrix("scale", x)?;
        let dims = self.dims(x).to_vec();
        Ok(self.push(Op::Scale(factor), &[x], dims))
    }

    /// `act(gate) * up`.
    ///
    /// # Errors
    /// [`GraphError::Shape`] where the sizes differ.
    pub fn glu(&mut self, act: Activation, gate: ValueId, up: ValueId) -> Built {
        if self.dims(gate) != self.dims(up) {
            return Err(self.mismatch("glu", gate, up));
        }
        let dims = self.dims(gate).to_vec();
        Ok(self.push(Op::Glu(act), &[gate, up], dims))
    }

    /// Which experts see a row.
    ///
    /// # Errors
    /// [`GraphError::Shape`] where there are fewer experts than a row is to see, or none is.
    pub fn route(&mut self, logits: ValueId, route: Route) -> Built {
        let (rows, experts) = self.matrix("route", logits)?;
        if route.used == 0 || route.used > experts {
            return Err(GraphError::shape(format!("route to {} of {experts} experts", route.used)));
        }
        Ok(self.push(Op::Route(route), &[logits], vec![rows, experts.into()]))
    }

    /// Gated feed-forward layers of which each row passes a few.
    ///
    /// # Errors
    /// [`GraphError::Shape`] where the sizes do not fit.
    pub fn experts(&mut self, x: ValueId, shares: ValueId, experts: Experts) -> Built {
        let (rows, width) = self.matrix("experts", x)?;
        let (share_rows, count) = self.matrix("experts", shares)?;
        let &[_, ffn, _] = self.shape(experts.gate) else {
            let name = &self.program.weight(experts.gate).name;
            return Err(GraphError::shape(format!("{name} is no stack of matrices")));
        };
        if rows != share_rows {
            return Err(self.mismatch("experts", x, shares));
        }
        let layers = [(experts.gate, [count, ffn, width]), (experts.up, [count, ffn, width])];
        for (weight, expected) in layers.into_iter().chain([(experts.down, [count, width, ffn])]) {
            let spec = self.program.weight(weight);
            if spec.shape.dims() != expected {
                let what = format!("{} is {}, expected {expected:?}", spec.name, spec.shape);
                return Err(GraphError::shape(what));
            }
        }
        Ok(self.push(Op::Experts(experts), &[x, shares], vec![rows, width.into()]))
    }

    /// Rotary position embedding.
    ///
    /// # Errors
    /// [`GraphError::Shape`] where heads, rotary columns or factors do not fit.
    pub fn rope(&mut self, x: ValueId, positions: ValueId, rope: Rope) -> Built {
        let (rows, columns) = self.matrix("rope", x)?;
        let fits = rope.head_dim > 0
            && columns.is_multiple_of(rope.head_dim)
            && rope.rotary.is_multiple_of(2)
            && rope.rotary <= rope.head_dim;
        let of_axes = match &rope.axes {
            None => self.dims(positions) == [rows],
            Some(axes) => {
                axes.count > 0
                    && axes.sections.iter().sum::<usize>() == rope.rotary / 2
                    && self.dims(positions) == [rows, axes.count.into()]
            }
        };
        if !fits || !of_axes {
            let what = format!(
                "rope of {} of {} columns a head does not fit {columns} columns",
                rope.rotary, rope.head_dim
            );
            return Err(GraphError::shape(what));
        }
        if let Some(factors) = rope.factors {
            self.expect_vector(factors, rope.rotary / 2)?;
        }
        let dims = self.dims(x).to_vec();
        Ok(self.push(Op::Rope(rope), &[x, positions], dims))
    }

    /// Attention; with `cached` the program keeps keys and values between calls in a slot of its own
    /// ([`Attention::cache`] is set here).
    ///
    /// # Errors
    /// [`GraphError::Shape`] where the head counts do not fit the columns.
    pub fn attention(&mut self, qkv: [ValueId; 3], attention: Attention, cached: bool) -> Built {
        if let Mask::Segments { .. } = attention.mask {
            return Err(GraphError::shape("attention in segments takes their numbers"));
        }
        let rows = qkv.map(|value| self.dims(value).first().copied());
        if rows[1] != rows[2] || (rows[0] != rows[1] && (cached || attention.mask != Mask::Full)) {
            return Err(GraphError::shape("queries, keys and values of other numbers of rows"));
        }
        self.attention_over(qkv, None, attention, cached)
    }

    /// Attention among the rows of each segment of `segments` `[T]`; see [`Mask::Segments`].
    ///
    /// # Errors
    /// [`GraphError::Shape`] where the head counts do not fit the columns, or there is not one number for each row.
    pub fn attention_in_segments(
        &mut self,
        qkv: [ValueId; 3],
        segments: ValueId,
        attention: Attention,
    ) -> Built {
        let rows = self.dims(qkv[0])[0];
        let alike = qkv.iter().all(|v| self.dims(*v).first() == Some(&rows));
        if !alike || self.dims(segments) != [rows] || !matches!(attention.mask, Mask::Segments { most: 1.. })
        {
            return Err(GraphError::shape(format!("segments do not number the {rows} rows of attention")));
        }
        self.attention_over(qkv, Some(segments), attention, false)
    }

    fn attention_over(
        &mut self,
        [q, k, v]: [ValueId; 3],
        segments: Option<ValueId>,
        mut attention: Attention,
        cached: bool,
    ) -> Built {
        let Attention { heads, kv_heads, head_dim, .. } = attention;
        if kv_heads == 0 || head_dim == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(GraphError::shape(format!(
                "{heads} heads cannot share {kv_heads} of {head_dim} columns"
            )));
        }
        self.expect_columns("attention queries", q, heads * head_dim)?;
        self.expect_columns("attention keys", k, kv_heads * head_dim)?;
        self.expect_columns("attention values", v, kv_heads * head_dim)?;
        attention.cache = cached.then(|| {
            self.program.caches.push(CacheSpec { kv_heads, head_dim });
            self.program.caches.len() - 1
        });
        let dims = self.dims(q).to_vec();
        let inputs: Vec<_> = [q, k, v].into_iter().chain(segments).collect();
        Ok(self.push(Op::Attention(attention), &inputs, dims))
    }

    /// Squares of a picture as rows; see [`Op::Patchify`].
    ///
    /// # Errors
    /// [`GraphError::Shape`] where `pixels` is no picture of at least one square.
    pub fn patchify(&mut self, pixels: ValueId, patch: usize) -> Built {
        let fixed: Option<Vec<usize>> = self.dims(pixels).iter().map(|d| d.fixed()).collect();
        let Some([channels, height, width]) = fixed.as_deref().and_then(|d| <[usize; 3]>::try_from(d).ok())
        else {
            return Err(GraphError::shape("patchify takes [channels, height, width]"));
        };
        if patch == 0 || height < patch || width < patch {
            return Err(GraphError::shape(format!(
                "a {height} x {width} picture holds no {patch} x {patch} patch"
            )));
        }
        let dims = vec![Dim::from((height / patch) * (width / patch)), Dim::from(channels * patch * patch)];
        Ok(self.push(Op::Patchify { patch }, &[pixels], dims))
    }

    /// 2-D convolution.
    ///
    /// # Errors
    /// [`GraphError::Shape`] where map, kernel and groups do not fit.
    pub fn conv2d(&mut self, x: ValueId, conv: Conv2d) -> Built {
        let (rows, channels) = self.matrix("conv2d", x)?;
        let name = self.program.weight(conv.weight).name.clone();
        let bad = |what: &str| GraphError::shape(format!("conv2d {name}: {what}"));
        if conv.stride == 0 || conv.groups == 0 || conv.kernel == 0 || !channels.is_multiple_of(conv.groups) {
            return Err(bad("kernel, stride and groups must be positive, and groups divide the channels"));
        }
        if rows.fixed() != Some(conv.height * conv.width) {
            return Err(bad(&format!("a {} x {} map is not {rows} rows", conv.height, conv.width)));
        }
        if conv.kernel > conv.height + 2 * conv.padding || conv.kernel > conv.width + 2 * conv.padding {
            return Err(bad("the kernel is larger than the padded map"));
        }
        let out = self.shape(conv.weight).first().copied().unwrap_or(0);
        let expected = [out, channels / conv.groups, conv.kernel, conv.kernel];
        if self.shape(conv.weight) != expected || !out.is_multiple_of(conv.groups) {
            return Err(bad(&format!("weight {:?}, expected {expected:?}", self.shape(conv.weight))));
        }
        if let Some(bias) = conv.bias {
            self.expect_vector(bias, out)?;
        }
        let (h, w) = conv.output_size();
        Ok(self.push(Op::Conv2d(conv), &[x], vec![Dim::from(h * w), out.into()]))
    }

    /// Mean of squares of a feature map.
    ///
    /// # Errors
    /// [`GraphError::Shape`] where the map is not a multiple of the square.
    pub fn avg_pool2d(&mut self, x: ValueId, pool: Pool2d) -> Built {
        let (squares, columns) = self.squares("avg_pool2d", x, &pool)?;
        Ok(self.push(Op::AvgPool2d(pool), &[x], vec![squares.into(), columns.into()]))
    }

    /// Squares of a feature map as rows; see [`Op::SpaceToDepth`].
    ///
    /// # Errors
    /// [`GraphError::Shape`] where the map is not a multiple of the square.
    pub fn space_to_depth(&mut self, x: ValueId, pool: Pool2d) -> Built {
        let (squares, columns) = self.squares("space_to_depth", x, &pool)?;
        let dims = vec![squares.into(), (columns * pool.kernel * pool.kernel).into()];
        Ok(self.push(Op::SpaceToDepth(pool), &[x], dims))
    }

    /// How many squares a map has, and its columns.
    fn squares(&self, op: &str, x: ValueId, pool: &Pool2d) -> Result<(usize, usize), GraphError> {
        let (rows, columns) = self.matrix(op, x)?;
        let &Pool2d { height, width, kernel } = pool;
        let fits = kernel > 0 && height.is_multiple_of(kernel) && width.is_multiple_of(kernel);
        if !fits || rows.fixed() != Some(height * width) {
            return Err(GraphError::shape(format!(
                "{op}: a {height} x {width} map of {rows} rows has no {kernel} x {kernel} squares"
            )));
        }
        Ok((height * width / (kernel * kernel), columns))
    }

    /// Rows that follow each other side by side; see [`Op::JoinRows`].
    ///
    /// # Errors
    /// [`GraphError::Shape`] where the rows are known and do not divide.
    pub fn join_rows(&mut self, x: ValueId, count: usize) -> Built {
        let (rows, columns) = self.matrix("join_rows", x)?;
        let dims = vec![rows.divided(count)?, (columns * count).into()];
        Ok(self.push(Op::JoinRows { count }, &[x], dims))
    }

    /// The map of rows of `x` that `map` lists, of the size `size`, pooled; see [`Op::AdaptivePool`].
    ///
    /// # Errors
    /// [`GraphError::Shape`] where `x` is no matrix, `map` no vector, `size` not two numbers, or the result has no place.
    pub fn adaptive_pool(&mut self, x: ValueId, map: ValueId, size: ValueId, pool: AdaptivePool) -> Built {
        let columns = self.matrix("adaptive_pool", x)?.1;
        if self.dims(map).len() != 1 || self.dims(size) != [Dim::from(2)] || pool.height * pool.width == 0 {
            return Err(GraphError::shape(
                "adaptive_pool takes a map of rows, its two sizes and a result of places",
            ));
        }
        let dims = vec![Dim::from(pool.height * pool.width), columns.into()];
        Ok(self.push(Op::AdaptivePool(pool), &[x, map, size], dims))
    }

    /// The mean row.
    ///
    /// # Errors
    /// [`GraphError::Shape`] where `x` is no matrix.
    pub fn mean_rows(&mut self, x: ValueId) -> Built {
        let columns = self.matrix("mean_rows", x)?.1;
        Ok(self.push(Op::MeanRows, &[x], vec![1.into(), columns.into()]))
    }

    /// a's rows, then b's.
    ///
    /// # Errors
    /// [`GraphError::Shape`] where the widths differ or both row counts are symbolic.
    pub fn concat_rows(&mut self, a: ValueId, b: ValueId) -> Built {
        let (rows_a, columns) = self.matrix("concat_rows", a)?;
        self.expect_columns("concat_rows", b, columns)?;
        let rows_b = self.dims(b)[0];
        let rows = match (rows_a.fixed(), rows_b.fixed()) {
            (Some(n), _) => rows_b.plus(n),
            (_, Some(n)) => rows_a.plus(n),
            _ => return Err(GraphError::shape(format!("cannot add up {rows_a} and {rows_b} rows"))),
        };
        Ok(self.push(Op::ConcatRows, &[a, b], vec![rows, columns.into()]))
    }

    /// a's columns, then b's.
    ///
    /// # Errors
    /// [`GraphError::Shape`] where the rows differ.
    pub fn concat_columns(&mut self, a: ValueId, b: ValueId) -> Built {
        let (rows, columns) = self.matrix("concat_columns", a)?;
        let (rows_b, columns_b) = self.matrix("concat_columns", b)?;
        if rows != rows_b {
            return Err(self.mismatch("concat_columns", a, b));
        }
        Ok(self.push(Op::ConcatColumns, &[a, b], vec![rows, (columns + columns_b).into()]))
    }

    /// `len` rows from `start`.
    ///
    /// # Errors
    /// [`GraphError::Shape`] where the rows are known and too few.
    pub fn slice_rows(&mut self, x: ValueId, start: usize, len: impl Into<Dim>) -> Built {
        let (rows, columns) = self.matrix("slice_rows", x)?;
        let len = len.into();
        if let (Some(rows), Some(len)) = (rows.fixed(), len.fixed())
            && start + len > rows
        {
            return Err(GraphError::shape(format!("rows {start}..{} of {rows}", start + len)));
        }
        Ok(self.push(Op::SliceRows { start, len }, &[x], vec![len, columns.into()]))
    }

    /// `len` columns from `start`.
    ///
    /// # Errors
    /// [`GraphError::Shape`] where there are too few.
    pub fn slice_columns(&mut self, x: ValueId, start: usize, len: usize) -> Built {
        let (rows, columns) = self.matrix("slice_columns", x)?;
        if start + len > columns {
            return Err(GraphError::shape(format!("columns {start}..{} of {columns}", start + len)));
        }
        Ok(self.push(Op::SliceColumns { start, len }, &[x], vec![rows, len.into()]))
    }

    /// The rows of `x` that `rows` lists.
    ///
    /// # Errors
    /// [`GraphError::Shape`] where `x` is no matrix or `rows` no vector.
    pub fn gather_rows(&mut self, x: ValueId, rows: ValueId) -> Built {
        let columns = self.matrix("gather_rows", x)?.1;
        let &[len] = self.dims(rows) else {
            return Err(GraphError::shape("gather_rows takes a vector of row numbers"));
        };
        Ok(self.push(Op::GatherRows, &[x, rows], vec![len, columns.into()]))
    }

    /// Some columns of `x`, which are ascending.
    ///
    /// # Errors
    /// [`GraphError::Shape`] where there are none, not so many in `x`, or one comes twice.
    pub fn select_columns(&mut self, x: ValueId, columns: Vec<usize>) -> Built {
        let (rows, width) = self.matrix("select_columns", x)?;
        ascending("select_columns", &columns, width)?;
        let dims = vec![rows, columns.len().into()];
        Ok(self.push(Op::SelectColumns { columns }, &[x], dims))
    }

    /// `x` with zeros in some columns, which are ascending.
    ///
    /// # Errors
    /// As [`Builder::select_columns`].
    pub fn zero_columns(&mut self, x: ValueId, columns: Vec<usize>) -> Built {
        let (rows, width) = self.matrix("zero_columns", x)?;
        ascending("zero_columns", &columns, width)?;
        Ok(self.push(Op::ZeroColumns { columns }, &[x], vec![rows, width.into()]))
    }

    fn elementwise(&mut self, op: Op, a: ValueId, b: ValueId) -> Built {
        let (rows, columns) = self.matrix(op.name(), a)?;
        let (rows_b, columns_b) = self.matrix(op.name(), b)?;
        if columns != columns_b || (rows != rows_b && rows_b != Dim::from(1)) {
            return Err(self.mismatch(op.name(), a, b));
        }
        Ok(self.push(op, &[a, b], vec![rows, columns.into()]))
    }

    fn input(&mut self, name: &str, value: Value) -> ValueId {
        let id = self.push(Op::Input, &[], value.dims.clone());
        self.program.values[id.0] = value;
        self.program.inputs.push((name.to_owned(), id));
        id
    }

    fn push(&mut self, op: Op, inputs: &[ValueId], dims: Vec<Dim>) -> ValueId {
        let output = ValueId(self.program.values.len());
        self.program.values.push(Value { dims, element: Element::F32 });
        self.program.nodes.push(Node { op, inputs: inputs.to_vec(), output });
        output
    }

    fn shape(&self, weight: WeightId) -> &[usize] {
        self.program.weight(weight).shape.dims()
    }

    fn matrix(&self, what: &str, x: ValueId) -> Result<(Dim, usize), GraphError> {
        match *self.dims(x) {
            [rows, columns] => {
                let columns =
                    columns.fixed().ok_or_else(|| GraphError::shape(format!("{what}: symbolic columns")))?;
                Ok((rows, columns))
            }
            ref other => {
                Err(GraphError::shape(format!("{what} takes a matrix, got {} dimensions", other.len())))
            }
        }
    }

    fn expect_columns(&self, what: &str, x: ValueId, columns: usize) -> Result<(), GraphError> {
        match self.matrix(what, x)?.1 {
            got if got == columns => Ok(()),
            got => Err(GraphError::shape(format!("{what} takes {columns} columns, got {got}"))),
        }
    }

    fn expect_vector(&self, weight: WeightId, len: usize) -> Result<(), GraphError> {
        let spec = self.program.weight(weight);
        if spec.shape.dims() != [len] {
            return Err(GraphError::shape(format!("{} is {}, expected [{len}]", spec.name, spec.shape)));
        }
        Ok(())
    }

    fn mismatch(&self, what: &str, a: ValueId, b: ValueId) -> GraphError {
        let text = |v: ValueId| self.dims(v).iter().map(|d| d.to_string()).collect::<Vec<_>>().join(", ");
        GraphError::shape(format!("{what} of [{}] and [{}]", text(a), text(b)))
    }
}

/// Checks that `columns` are some of `width`, ascending and each once.
pub(crate) fn ascending(what: &str, columns: &[usize], width: usize) -> Result<(), GraphError> {
    if let Some(pair) = columns.windows(2).find(|pair| pair[0] >= pair[1]) {
        return Err(GraphError::shape(format!(
            "{what}: column {} follows {}; columns ascend, each comes once",
            pair[1], pair[0]
        )));
    }
    match columns.last() {
        None => Err(GraphError::shape(format!("{what}: no columns"))),
        Some(last) if *last >= width => {
            Err(GraphError::shape(format!("{what}: column {last} of {width}, counted from 0")))
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sym;

    #[test]
    fn sizes_that_do_not_fit_are_named() {
        let mut b = Builder::new(Stage::Text);
        let x = b.input_f32("x", [Sym::Tokens.into(), 8.into()]);
        let w = b.weight("w", [4, 9], Role::FfnUp);
        let err = b.linear(x, w, None).unwrap_err().to_string();
        assert_eq!(err, "w takes 9 columns, got 8");
        let y = b.input_f32("y", [Sym::Tokens.into(), 7.into()]);
        assert_eq!(b.add(x, y).unwrap_err().to_string(), "add of [T, 8] and [T, 7]");
        assert!(b.slice_columns(x, 4, 5).is_err());
        for wrong in [vec![], vec![8], vec![3, 3], vec![4, 1]] {
            assert!(b.select_columns(x, wrong.clone()).is_err(), "{wrong:?}");
            assert!(b.zero_columns(x, wrong.clone()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn experts_must_fit_rows_and_shares() {
        let mut b = Builder::new(Stage::Text);
        let x = b.input_f32("x", [Sym::Tokens.into(), 8.into()]);
        let logits = b.input_f32("logits", [Sym::Tokens.into(), 3.into()]);
        assert!(b.route(logits, Route { used: 4, normalised: true }).is_err());
        let shares = b.route(logits, Route { used: 2, normalised: true }).unwrap();
        let [gate, up] = ["gate", "up"].map(|n| b.weight(n, [3, 5, 8], Role::FfnUp));
        let [down, few] = [("down", 3), ("few", 2)].map(|(n, of)| b.weight(n, [of, 8, 5], Role::FfnDown));
        let experts = Experts { gate, up, down, activation: Activation::Silu, used: 2 };
        assert_eq!(b.experts(x, shares, experts.clone()).map(|y| b.dims(y).to_vec()).unwrap(), b.dims(x));
        let error = b.experts(x, shares, Experts { down: few, ..experts }).unwrap_err().to_string();
        assert_eq!(error, "few is [2, 8, 5], expected [3, 8, 5]");
    }

    #[test]
    fn one_name_has_one_shape() {
        let mut b = Builder::new(Stage::Text);
        let x = b.input_f32("x", [1.into(), 8.into()]);
        b.weight("w", [4, 8], Role::FfnUp);
        b.weight("w", [8, 8], Role::FfnUp);
        b.output("x", x);
        assert!(b.finish().unwrap_err().to_string().contains("[4, 8]"));
    }
}
