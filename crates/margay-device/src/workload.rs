//! What one question costs, counted from the programs of a model.

use crate::DeviceError;
use margay_graph::{Bindings, Op, Program, Role, Sym, WeightSpec, node_cost};
use margay_tensor::DType;
use std::collections::BTreeMap;

/// Prompt tokens that an engine computes together: the weights are read once for so many.
pub const BATCH_TOKENS: usize = 512;

/// The stages of an answer, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the field's own words")]
pub enum Step {
    Load,
    Encode,
    Project,
    PrefillImage,
    PrefillText,
    Decode,
}

impl Step {
    /// All of them, in order.
    pub const ALL: [Step; 6] =
        [Step::Load, Step::Encode, Step::Project, Step::PrefillImage, Step::PrefillText, Step::Decode];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Step::Load => "load",
            Step::Encode => "encode",
            Step::Project => "project",
            Step::PrefillImage => "prefill image",
            Step::PrefillText => "prefill text",
            Step::Decode => "decode",
        }
    }
}

/// Which part of a program, as engines place them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Linear layers and convolutions but for the head.
    Body,
    /// Attention over the cache or the patches.
    Attention,
    /// The matrix of the vocabulary.
    Head,
}

/// Work of a part: operations (2 a multiply-add), bytes of weights, and bytes of keys and values, read from memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[allow(missing_docs, reason = "the line above says it")]
pub struct Piece {
    pub operations: f64,
    pub weight_bytes: f64,
    pub cache_bytes: f64,
    /// Ops that are begun.
    pub launches: f64,
}

/// Work of a stage by [`Part`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    pieces: [Piece; 3],
}

impl Work {
    /// That part of it.
    pub fn piece(&self, part: Part) -> &Piece {
        &self.pieces[part as usize]
    }

    /// All operations.
    pub fn operations(&self) -> f64 {
        self.pieces.iter().map(|p| p.operations).sum()
    }

    /// All bytes read.
    pub fn bytes(&self) -> f64 {
        self.pieces.iter().map(|p| p.weight_bytes + p.cache_bytes).sum()
    }

    fn times(mut self, factor: f64) -> Self {
        for p in &mut self.pieces {
            let Piece { operations, weight_bytes, cache_bytes, launches } = *p;
            *p = Piece {
                operations: operations * factor,
                weight_bytes: weight_bytes * factor,
                cache_bytes: cache_bytes * factor,
                launches: launches * factor,
            };
        }
        self
    }

    fn without_head(mut self) -> Self {
        self.pieces[Part::Head as usize] = Piece::default();
        self
    }
}

/// One picture, one question, one answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Query {
    /// Sizes of the vision programs for one tile.
    pub picture: Bindings,
    /// Tiles that are encoded; 0 without a picture.
    pub tiles: usize,
    /// Times the projector runs.
    pub projections: usize,
    /// V, of the whole picture.
    pub visual_tokens: usize,
    /// Tokens of text before the picture: they can be computed while it is encoded.
    pub prefix_tokens: usize,
    /// Tokens of text in all.
    pub prompt_tokens: usize,
    /// Tokens of the answer.
    pub answer_tokens: usize,
}

impl Query {
    /// A query of text alone.
    pub fn text(prompt_tokens: usize, answer_tokens: usize) -> Self {
        Query {
            picture: Bindings::new(),
            tiles: 0,
            projections: 0,
            visual_tokens: 0,
            prefix_tokens: 0,
            prompt_tokens,
            answer_tokens,
        }
    }
}

/// The programs of a model.
#[derive(Clone, Copy, Debug)]
pub struct Programs<'a> {
    /// Tower and projector, where it sees.
    pub vision: Option<[&'a Program; 2]>,
    /// Decoder.
    pub text: &'a Program,
}

/// What one question to a model costs.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// For people: model and format.
    pub name: String,
    /// The question.
    pub query: Query,
    /// Bytes of all weights as they are stored.
    pub weight_bytes: f64,
    /// Bytes of keys and values of a token, all layers.
    pub cache_bytes_per_token: f64,
    /// D, of the first layer; 0 without a cache.
    pub head_dim: usize,
    pub(crate) works: [Work; Step::ALL.len()],
    /// Of `PrefillText`, the part before the picture.
    pub(crate) prefix: f64,
}

impl Workload {
    /// Counts it. `format` says how each weight is stored, `cache_element_bytes` how many bytes a number of the KV cache
    /// takes, scales counted.
    ///
    /// # Errors
    /// [`DeviceError::Graph`] where a size of the programs is not bound.
    pub fn count(
        name: &str,
        programs: Programs<'_>,
        format: &dyn Fn(&Program, &WeightSpec) -> DType,
        cache_element_bytes: f64,
        query: Query,
    ) -> Result<Self, DeviceError> {
        let mut works = [Work::default(); Step::ALL.len()];
        let mut stored: BTreeMap<&str, f64> = BTreeMap::new();
        let text = Counter::new(programs.text, format, cache_element_bytes);
        text.store(&mut stored);
        if let Some([tower, projector]) = programs.vision.filter(|_| query.tiles > 0) {
            for (step, program, times) in
                [(Step::Encode, tower, query.tiles), (Step::Project, projector, query.projections)]
            {
                let counter = Counter::new(program, format, cache_element_bytes);
                works[step as usize] = counter.work(&query.picture)?.times(times as f64);
            }
        }
        for program in programs.vision.iter().flatten() {
            Counter::new(program, format, cache_element_bytes).store(&mut stored);
        }
        let Query { visual_tokens: visual, prefix_tokens: prefix, prompt_tokens, answer_tokens, .. } = query;
        let bind = |tokens, past| {
            let sizes = Bindings::new().with(Sym::Tokens, tokens).with(Sym::Past, past);
            sizes.with(Sym::Outputs, 1).with(Sym::Visual, visual.max(1)).with(Sym::Prefix, 0)
        };
        let prefill = |tokens: usize, past| -> Result<Work, DeviceError> {
            let mut sum = Work::default();
            for from in (0..tokens).step_by(BATCH_TOKENS) {
                sum += text.work(&bind(BATCH_TOKENS.min(tokens - from), past + from))?.without_head();
            }
            Ok(sum)
        };
        works[Step::PrefillImage as usize] = prefill(visual, prefix)?;
        let mut prompt = prefill(prompt_tokens, visual)?;
        let whole = text.work(&bind(1, 0))?;
        // The first token of the answer comes out of the prefill.
        prompt.pieces[Part::Head as usize] = whole.pieces[Part::Head as usize];
        works[Step::PrefillText as usize] = prompt;
        let later = answer_tokens.saturating_sub(1);
        // The cost of a token grows with the tokens before it in a straight line: the middle one is the mean.
        let middle = text.work(&bind(1, visual + prompt_tokens + later / 2))?;
        works[Step::Decode as usize] = middle.times(later as f64);
        let per_token = programs.text.cache_elements(1) as f64;
        Ok(Workload {
            name: name.to_owned(),
            query,
            weight_bytes: stored.values().sum(),
            cache_bytes_per_token: per_token * cache_element_bytes,
            head_dim: programs.text.caches().first().map_or(0, |cache| cache.head_dim),
            works,
            prefix: if prompt_tokens == 0 { 0.0 } else { prefix as f64 / prompt_tokens as f64 },
        })
    }

    /// Work of a stage; of `Load` nothing.
    pub fn work(&self, step: Step) -> &Work {
        &self.works[step as usize]
    }

    /// The same with keys and values of another size.
    #[must_use]
    pub(crate) fn with_cache(mut self, factor: f64) -> Self {
        self.cache_bytes_per_token *= factor;
        let pieces = self.works.iter_mut().flat_map(|work| &mut work.pieces);
        pieces.for_each(|p| p.cache_bytes *= factor);
        self
    }

    /// Weights, and keys and values of so many tokens.
    pub fn bytes(&self, context_tokens: usize) -> f64 {
        self.weight_bytes + self.cache_bytes_per_token * context_tokens as f64
    }

    /// Tokens in the cache at the end.
    pub fn context_tokens(&self) -> usize {
        self.query.visual_tokens + self.query.prompt_tokens + self.query.answer_tokens
    }
}

impl std::ops::AddAssign for Work {
    fn add_assign(&mut self, other: Work) {
        for (a, b) in self.pieces.iter_mut().zip(other.pieces) {
            a.operations += b.operations;
            a.weight_bytes += b.weight_bytes;
            a.cache_bytes += b.cache_bytes;
            a.launches += b.launches;
        }
    }
}

/// A program with the bytes of its weights.
struct Counter<'a> {
    program: &'a Program,
    /// Of each weight.
    bytes: Vec<f64>,
    cache_element_bytes: f64,
}

impl<'a> Counter<'a> {
    fn new(
        program: &'a Program,
        format: &dyn Fn(&Program, &WeightSpec) -> DType,
        cache_element_bytes: f64,
    ) -> Self {
        let size = |spec: &WeightSpec| {
            let dtype = format(program, spec);
            elements(spec) / dtype.block_elements() as f64 * dtype.block_bytes() as f64
        };
        Counter { program, bytes: program.weights().iter().map(size).collect(), cache_element_bytes }
    }

    /// A weight that several programs read is stored once.
    fn store(&self, stored: &mut BTreeMap<&'a str, f64>) {
        for (spec, bytes) in self.program.weights().iter().zip(&self.bytes) {
            stored.insert(&spec.name, *bytes);
        }
    }

    fn work(&self, sizes: &Bindings) -> Result<Work, DeviceError> {
        let mut work = Work::default();
        for node in self.program.nodes().iter().filter(|node| !matches!(node.op, Op::Input)) {
            let cost = node_cost(self.program, node, sizes)?;
            let weights = node.op.weights();
            let (mut whole, mut bytes) = (0.0, 0.0);
            for id in &weights {
                whole += elements(self.program.weight(*id));
                bytes += self.bytes[id.index()];
            }
            let is_head = |role| matches!(role, Role::Output | Role::TokenEmbedding);
            let part = match &node.op {
                Op::Attention(_) => Part::Attention,
                Op::Linear(linear) if is_head(self.program.weight(linear.weight).role) => Part::Head,
                _ => Part::Body,
            };
            let piece = &mut work.pieces[part as usize];
            piece.operations += cost.operations as f64;
            piece.weight_bytes += if whole > 0.0 { cost.weight_elements as f64 * bytes / whole } else { 0.0 };
            piece.cache_bytes += cost.cache_elements as f64 * self.cache_element_bytes;
            piece.launches += 1.0;
        }
        Ok(work)
    }
}

fn elements(spec: &WeightSpec) -> f64 {
    spec.shape.elements().unwrap_or(usize::MAX) as f64
}
