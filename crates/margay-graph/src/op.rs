//! The op vocabulary. `margay-reference` executes each op and thereby says exactly what it means.
//!
//! Values are row-major. Most are `[rows, columns]`: one row a token, a patch or a pixel of a feature map
//! (channels last), so that a convolution's output is at once the next linear layer's input.

use crate::{Bindings, Dim, GraphError, Sym, WeightId};

/// An elementwise function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x * sigmoid(x)`
    Silu,
    /// `x * Phi(x)`, with the error function (PyTorch's `nn.GELU()`).
    GeluErf,
    /// The tanh approximation of GELU (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// `x * sigmoid(1.702 x)` (CLIP).
    QuickGelu,
    /// `max(x, 0)`
    Relu,
    /// `x * relu6(x + 3) / 6`
    Hardswish,
    /// `relu6(x + 3) / 6`
    Hardsigmoid,
    /// `1 / (1 + e^-x)`
    Sigmoid,
}

impl Activation {
    /// Every activation, for suites and tables.
    pub const ALL: [Activation; 8] = [
        Activation::Silu,
        Activation::GeluErf,
        Activation::GeluTanh,
        Activation::QuickGelu,
        Activation::Relu,
        Activation::Hardswish,
        Activation::Hardsigmoid,
        Activation::Sigmoid,
    ];

    /// Lower-case name, as it stands in files: `silu`, `gelu_erf`, `gelu_tanh`, `quick_gelu`, ...
    pub fn name(self) -> &'static str {
        match self {
            Activation::Silu => "silu",
            Activation::GeluErf => "gelu_erf",
            Activation::GeluTanh => "gelu_tanh",
            Activation::QuickGelu => "quick_gelu",
            Activation::Relu => "relu",
            Activation::Hardswish => "hardswish",
            Activation::Hardsigmoid => "hardsigmoid",
            Activation::Sigmoid => "sigmoid",
        }
    }
}

/// `y = act(x @ weight^T + bias) (+ residual)`; `x`: [R, in], weight: [out, in], y: [R, out].
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// `[out, in]`, of any format.
    pub weight: WeightId,
    /// `[out]`
    pub bias: Option<WeightId>,
    /// Applied after the bias; filled in by fusion.
    pub activation: Option<Activation>,
    /// True where the node's second input is added last; filled in by fusion.
    pub residual: bool,
}

/// Which normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormKind {
    /// `x / sqrt(mean(x^2) + eps) * w`
    Rms,
    /// `(x - mean) / sqrt(var + eps) * w + b`, with the biased variance.
    Layer,
}

/// Normalises each row, or each piece of a row as wide as the weight: a head.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    /// Which one.
    pub kind: NormKind,
    /// `[columns]`, or a width that divides them.
    pub weight: WeightId,
    /// As wide.
    pub bias: Option<WeightId>,
    /// Added to the variance or mean square.
    pub eps: f32,
}

/// Which elements of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeStyle {
    /// `(i, i + rotary/2)`: Hugging Face's `rotate_half`, "NEOX".
    Half,
    /// `(2i, 2i + 1)`: the layout of `llama` GGUF files, "NORM".
    Interleaved,
}

/// Positions along several axes: `[T, axes]`, of which each pair of a head follows one.
#[derive(Clone, Debug, PartialEq)]
pub struct Axes {
    /// How many axes there are.
    pub count: usize,
    /// Pairs of each section of a head, all of its pairs together; section `s` follows axis `s % count`.
    pub sections: Vec<usize>,
    /// Each section has the frequencies of a head of its own (2-D positions of patches); else those of all pairs in
    /// their order (M-RoPE).
    pub restart: bool,
}

impl Axes {
    /// For each pair in order its axis, and its exponent of the base: of the pairs it is counted among, the part
    /// before it.
    pub fn pairs(&self) -> impl Iterator<Item = (usize, f64)> + '_ {
        let all: usize = self.sections.iter().sum();
        let sections = self.sections.iter().enumerate().scan(0, |end, (section, &pairs)| {
            let start = *end;
            *end += pairs;
            Some((section, start, pairs))
        });
        sections.flat_map(move |(section, start, pairs)| {
            (0..pairs).map(move |i| {
                let part =
                    if self.restart { i as f64 / pairs as f64 } else { (start + i) as f64 / all as f64 };
                (section % self.count, part)
            })
        })
    }
}

/// Rotary position embedding of each head of `x`: [T, H*D] at `positions`: `[T]`, or `[T, axes]`.
/// Pair `i` turns by `position * base^(-2i / rotary) / factors[i]`; columns past `rotary` of a head stay.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// D
    pub head_dim: usize,
    /// How many leading columns of a head turn; even, at most D.
    pub rotary: usize,
    /// Usually 10000.
    pub base: f32,
    /// Which columns form a pair.
    pub style: RopeStyle,
    /// `[rotary / 2]` divisors of the frequencies (`rope_freqs.weight`).
    pub factors: Option<WeightId>,
    /// Which axis each pair follows, where positions have several.
    pub axes: Option<Axes>,
}

impl Rope {
    /// For each pair its axis, and by how much position 1 turns it before the factors.
    pub fn frequencies(&self) -> Vec<(usize, f64)> {
        let turn = |part: f64| f64::from(self.base).powf(-part);
        let pairs = self.rotary / 2;
        match &self.axes {
            Some(axes) => axes.pairs().map(|(axis, part)| (axis, turn(part))).collect(),
            None => (0..pairs).map(|i| (0, turn(2.0 * i as f64 / self.rotary as f64))).collect(),
        }
    }
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mask {
    /// All of them.
    Full,
    /// Those at its own position and before.
    Causal,
    /// Those of its own segment. Without a cache; a fourth input, segments `[T]` (int32), has one number for each row:
    /// rows that follow each other with the same number are a segment.
    Segments {
        /// Rows of a segment, at most.
        most: usize,
    },
    /// As [`Mask::Causal`], and the first [`crate::Sym::Prefix`] positions see one another. A call holds either all of them
    /// or none, since keys that come later are not there to be seen.
    Prefix,
}

/// Scaled dot-product attention with grouped heads; q: [T, H*D], k and v: [T, K*D], result [T, H*D]. Without a cache and
/// under [`Mask::Full`], keys may be of another number than queries.
///
/// With a cache, the rows of k and v are first appended to it at positions `past..past+T`, and queries see the whole
/// cache under the mask.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// H, a multiple of K.
    pub heads: usize,
    /// K
    pub kv_heads: usize,
    /// D
    pub head_dim: usize,
    /// Factor on the scores, usually `D^-0.5`.
    pub scale: f32,
    /// Which keys a query sees.
    pub mask: Mask,
    /// Slot of the program's KV cache; `None` keeps nothing (an encoder).
    pub cache: Option<usize>,
}

impl Attention {
    /// Positions from the start that every query sees in a call of `queries` queries: 0 but under [`Mask::Prefix`], and
    /// where the prefix lies in the cache, so that all see it anyway.
    ///
    /// # Errors
    /// [`GraphError::Unbound`] without a prefix, [`GraphError::Shape`] where the call holds only a part of it.
    pub fn prefix(&self, bindings: &Bindings, queries: usize) -> Result<usize, GraphError> {
        if self.mask != Mask::Prefix {
            return Ok(0);
        }
        let prefix = bindings.get(Sym::Prefix)?;
        let past = if self.cache.is_some() { bindings.get(Sym::Past)? } else { 0 };
        if prefix <= past {
            return Ok(0);
        }
        if past > 0 || prefix > queries {
            let what = format!(
                "the first {prefix} tokens see one another and have to be computed together, not {queries} behind {past}"
            );
            return Err(GraphError::shape(what));
        }
        Ok(prefix)
    }
}

/// 2-D convolution over a feature map stored channels last, [height*width, C_in] -> [h'*w', C_out], zero padding.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv2d {
    /// `[C_out, C_in / groups, kernel, kernel]` as PyTorch stores it.
    pub weight: WeightId,
    /// `[C_out]`
    pub bias: Option<WeightId>,
    /// Rows of the map.
    pub height: usize,
    /// Columns of the map.
    pub width: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Step, both ways.
    pub stride: usize,
    /// Zeros around the map.
    pub padding: usize,
    /// Channel groups; C_in for a depthwise convolution.
    pub groups: usize,
}

impl Conv2d {
    /// Rows and columns of the result.
    pub fn output_size(&self) -> (usize, usize) {
        let side = |n: usize| (n + 2 * self.padding).saturating_sub(self.kernel) / self.stride + 1;
        (side(self.height), side(self.width))
    }
}

/// The `kernel` x `kernel` squares of a feature map [h*w, C], which do not overlap.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool2d {
    /// Rows of the map, a multiple of the kernel.
    pub height: usize,
    /// Columns of the map, a multiple of the kernel.
    pub width: usize,
    /// Side of the square.
    pub kernel: usize,
}

/// Adaptive average pooling of a feature map to `height` x `width`, whatever the size of the map: place (i, j) is the mean
/// of the map's rows `floor(i*H/height)..ceil((i+1)*H/height)` and, alike, columns.
/// Source: PyTorch `AdaptiveAveragePooling.cpp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdaptivePool {
    /// Rows of the result.
    pub height: usize,
    /// Columns of the result.
    pub width: usize,
}

/// Which experts see a row and how much each counts: the softmax of the row's logits, of which the greatest stay and the
/// others become 0. Of equals the first stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// How many stay.
    pub used: usize,
    /// Those that stay are divided by their sum.
    pub normalised: bool,
}

/// Gated feed-forward layers of which each row passes a few: the sum over the experts n of
/// `shares[n] * (act(x @ gate[n]^T) * (x @ up[n]^T)) @ down[n]^T`. Those whose share is 0 need not be computed.
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    /// `[N, F, E]`, of any format.
    pub gate: WeightId,
    /// `[N, F, E]`, of any format.
    pub up: WeightId,
    /// `[N, E, F]`, of any format.
    pub down: WeightId,
    /// Of the gate.
    pub activation: Activation,
    /// Shares of a row that are not 0, at most: what a call costs.
    pub used: usize,
}

/// One operation. Inputs stand in [`crate::Node::inputs`], in the order named here.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// A value the caller hands in.
    Input,
    /// A small weight as a value, decoded to float32: `[R, C]` (a vector is one row).
    Param {
        /// The weight.
        weight: WeightId,
    },
    /// Rows of a table. Inputs: ids `[T]` (int32), optionally visual [V, E]. An id `>= 0` is a row of the table, a
    /// negative one is row `-1 - id` of `visual`. Result [T, E].
    Embed {
        /// `[vocabulary, E]`, of any format.
        table: WeightId,
    },
    /// Input x, and the residual where [`Linear::residual`].
    Linear(Linear),
    /// Input x [R, C].
    Norm(Norm),
    /// Input x.
    Activation(Activation),
    /// Inputs a [R, C], b [R, C] or [1, C] (added to each row).
    Add,
    /// Inputs a [R, C], b [R, C] or [1, C].
    Mul,
    /// Input x: each element times that factor.
    Scale(f32),
    /// Inputs gate and up, [R, C] each: `act(gate) * up`.
    Glu(Activation),
    /// Input logits [R, N]: shares [R, N].
    Route(Route),
    /// Inputs x [R, E], shares [R, N].
    Experts(Experts),
    /// Inputs x [T, H*D], positions `[T]` (int32).
    Rope(Rope),
    /// Inputs q, k, v, and segments under [`Mask::Segments`].
    Attention(Attention),
    /// Input pixels [C, height, width]: each `patch` x `patch` square as a row [P, C*patch*patch], in the order of a
    /// flattened convolution kernel. Squares that do not fit are dropped, as by an unpadded convolution.
    Patchify {
        /// Side of the square.
        patch: usize,
    },
    /// Input map [h*w, C].
    Conv2d(Conv2d),
    /// Input map [h*w, C]: the mean of each square [h/k * w/k, C].
    AvgPool2d(Pool2d),
    /// Input map [h*w, C]: the pixels of each square side by side in one row [h/k * w/k, k*k*C], row by row of the
    /// square ("pixel shuffle", the inverse of PyTorch's `PixelShuffle` but for the order of channels).
    SpaceToDepth(Pool2d),
    /// Input x [R, C]: rows that follow each other side by side in one row [R / count, count * C].
    JoinRows {
        /// How many become one.
        count: usize,
    },
    /// Inputs x [R, C], map `[M]` (int32, each in 0..R), size `[2]` (int32, H and W with H*W = M): pools the map of H x W
    /// whose places, row by row, are the rows of x that `map` lists, [height*width, C]. So a map that is stitched from
    /// others is pooled where its parts lie.
    AdaptivePool(AdaptivePool),
    /// Input x [R, C]: the mean row [1, C].
    MeanRows,
    /// Inputs a [A, C], b [B, C]: a's rows, then b's.
    ConcatRows,
    /// Inputs a [R, A], b [R, B]: a's columns, then b's.
    ConcatColumns,
    /// Input x [R, C]: `len` rows from `start`.
    SliceRows {
        /// First row.
        start: usize,
        /// Number of rows.
        len: Dim,
    },
    /// Input x [R, C]: `len` columns from `start`.
    SliceColumns {
        /// First column.
        start: usize,
        /// Number of columns.
        len: usize,
    },
    /// Inputs x [R, C], rows `[N]` (int32, each in 0..R): those rows [N, C].
    GatherRows,
    /// Input x [R, C]: those columns, in their order [R, N].
    SelectColumns {
        /// Ascending, each once.
        columns: Vec<usize>,
    },
    /// Input x [R, C]: x with zeros in those columns.
    ZeroColumns {
        /// Ascending, each once.
        columns: Vec<usize>,
    },
}

impl Op {
    /// Lower-case name for errors, traces and tables.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Input => "input",
            Op::Param { .. } => "param",
            Op::Embed { .. } => "embed",
            Op::Linear(_) => "linear",
            Op::Norm(_) => "norm",
            Op::Activation(_) => "activation",
            Op::Add => "add",
            Op::Mul => "mul",
            Op::Scale(_) => "scale",
            Op::Glu(_) => "glu",
            Op::Route(_) => "route",
            Op::Experts(_) => "experts",
            Op::Rope(_) => "rope",
            Op::Attention(_) => "attention",
            Op::Patchify { .. } => "patchify",
            Op::Conv2d(_) => "conv2d",
            Op::AvgPool2d(_) => "avg_pool2d",
            Op::SpaceToDepth(_) => "space_to_depth",
            Op::JoinRows { .. } => "join_rows",
            Op::AdaptivePool(_) => "adaptive_pool",
            Op::MeanRows => "mean_rows",
            Op::ConcatRows => "concat_rows",
            Op::ConcatColumns => "concat_columns",
            Op::SliceRows { .. } => "slice_rows",
            Op::SliceColumns { .. } => "slice_columns",
            Op::GatherRows => "gather_rows",
            Op::SelectColumns { .. } => "select_columns",
            Op::ZeroColumns { .. } => "zero_columns",
        }
    }

    /// Every weight the op reads.
    pub fn weights(&self) -> Vec<WeightId> {
        match self {
            Op::Param { weight } | Op::Embed { table: weight } => vec![*weight],
            Op::Linear(l) => std::iter::once(l.weight).chain(l.bias).collect(),
            Op::Norm(n) => std::iter::once(n.weight).chain(n.bias).collect(),
            Op::Conv2d(c) => std::iter::once(c.weight).chain(c.bias).collect(),
            Op::Experts(e) => vec![e.gate, e.up, e.down],
            Op::Rope(r) => r.factors.into_iter().collect(),
            _ => vec![],
        }
    }

    pub(crate) fn weights_mut(&mut self) -> Vec<&mut WeightId> {
        match self {
            Op::Param { weight } | Op::Embed { table: weight } => vec![weight],
            Op::Linear(l) => std::iter::once(&mut l.weight).chain(&mut l.bias).collect(),
            Op::Norm(n) => std::iter::once(&mut n.weight).chain(&mut n.bias).collect(),
            Op::Conv2d(c) => std::iter::once(&mut c.weight).chain(&mut c.bias).collect(),
            Op::Experts(e) => vec![&mut e.gate, &mut e.up, &mut e.down],
            Op::Rope(r) => r.factors.iter_mut().collect(),
            _ => vec![],
        }
    }
}
