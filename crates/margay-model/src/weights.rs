//! A model's weights under their names in a GGUF file, whatever file they lie in.

use crate::{
    Branch, Family, ModelConfig, ModelError, RopeScaling, TextConfig,
    branches::{self, Merged},
};
use margay_file::{TensorInfo, TensorSource};
use margay_graph::{BackendError, Program, WeightSource, WeightSpec};
use margay_tensor::{DType, Shape, Storage, Tensor};
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

/// What becomes of a checkpoint's weight on its way into a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rename {
    /// Name in the GGUF file.
    pub to: String,
    /// Change of its bytes.
    pub transform: Transform,
}

/// A reordering of a weight, or a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    /// None.
    None,
    /// Rows of each head from `[2, D/2]` order into `[D/2, 2]`, so that the two columns of a rotary pair are neighbours.
    InterleaveHeads {
        /// Heads in the rows.
        heads: usize,
    },
    /// One is added to each number, which becomes float32.
    AddOne,
    /// It becomes one of the matrices of a stack.
    Expert {
        /// Its place, from 0.
        number: usize,
        /// Matrices in the stack.
        of: usize,
    },
    /// The kernel of one frame of a convolution over several, `[out, C, frames, h, w]`, as `[out, C, h, w]`.
    Frame {
        /// Which, from 0.
        number: usize,
        /// Frames of the kernel.
        of: usize,
    },
    /// Rows become columns.
    Transpose,
    /// Some of its rows, as they lie there.
    Rows {
        /// The first.
        start: usize,
        /// How many.
        rows: usize,
    },
    /// It becomes a part of a layer that is stored as a sum; the name is that of the layer, whose `.weight` and `.bias`
    /// all its parts together make.
    Branch(Branch),
}

impl Transform {
    /// The tensor after the change.
    ///
    /// # Errors
    /// [`ModelError::Weight`] where the rows do not divide into heads of an even width, or are too few.
    pub fn apply(self, name: &str, tensor: Tensor) -> Result<Tensor, ModelError> {
        match self {
            // Whoever puts them together takes each as it is.
            Transform::None | Transform::Expert { .. } | Transform::Branch(_) => Ok(tensor),
            Transform::InterleaveHeads { heads } => interleave_heads(name, &tensor, heads),
            Transform::AddOne => add_one(name, &tensor),
            Transform::Frame { number, of } => frame(name, &tensor, number, of),
            Transform::Transpose => transpose(name, &tensor),
            Transform::Rows { start, rows } => some_rows(name, &tensor, start, rows),
        }
    }

    /// Type and shape after the change.
    fn info(self, mut info: TensorInfo) -> TensorInfo {
        match self {
            Transform::Rows { rows, .. } => info.shape = with_rows(&info.shape, rows),
            Transform::Frame { .. } => info.shape = without_frames(&info.shape),
            Transform::Transpose => info.shape = turned(&info.shape),
            Transform::AddOne => info.dtype = DType::F32,
            Transform::None
            | Transform::InterleaveHeads { .. }
            | Transform::Expert { .. }
            | Transform::Branch(_) => {}
        }
        info
    }
}

fn interleave_heads(name: &str, tensor: &Tensor, heads: usize) -> Result<Tensor, ModelError> {
    let rows = tensor.shape().dims().first().copied().unwrap_or(0);
    if heads == 0 || rows == 0 || !rows.is_multiple_of(2 * heads) {
        return Err(ModelError::weight(name, format!("{rows} rows are no {heads} heads of an even width")));
    }
    let row_bytes = tensor.bytes().len() / rows;
    let half = rows / heads / 2;
    let storage = Storage::build(tensor.bytes().len(), |out| {
        for (to, bytes) in out.chunks_exact_mut(row_bytes.max(1)).enumerate() {
            let (head, within) = (to / (2 * half), to % (2 * half));
            let from = head * 2 * half + (within % 2) * half + within / 2;
            bytes.copy_from_slice(&tensor.bytes()[from * row_bytes..(from + 1) * row_bytes]);
        }
    });
    // Of a mapped file, only the copy is needed from here on.
    tensor.storage().release();
    Tensor::new(tensor.dtype(), tensor.shape().clone(), storage)
        .map_err(|e| ModelError::weight(name, e.to_string()))
}

fn add_one(name: &str, tensor: &Tensor) -> Result<Tensor, ModelError> {
    let sums: Vec<f32> = floats(name, tensor)?.into_iter().map(|v| v + 1.0).collect();
    Tensor::from_f32(tensor.shape().clone(), &sums).map_err(|e| ModelError::weight(name, e.to_string()))
}

/// The numbers of a tensor that is not quantized.
pub(crate) fn floats(name: &str, tensor: &Tensor) -> Result<Vec<f32>, ModelError> {
    let bytes = tensor.bytes();
    let pairs = bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    Ok(match tensor.dtype() {
        DType::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        DType::F16 => pairs.map(|bits| half::f16::from_bits(bits).to_f32()).collect(),
        DType::BF16 => pairs.map(|bits| half::bf16::from_bits(bits).to_f32()).collect(),
        other => return Err(ModelError::weight(name, format!("{other} numbers, expected f32, f16 or bf16"))),
    })
}

/// Matrices of one type and shape, one behind the other.
fn stack(name: &str, parts: &[Tensor]) -> Result<Tensor, ModelError> {
    let first = parts.first().ok_or_else(|| missing(name))?;
    let differs = |part: &&Tensor| (part.dtype(), part.shape()) != (first.dtype(), first.shape());
    if let Some(other) = parts.iter().find(differs) {
        let (a, b) = (first.shape(), other.shape());
        let what = format!("its parts are {} {a} and {} {b}", first.dtype(), other.dtype());
        return Err(ModelError::weight(name, what));
    }
    let each = first.bytes().len();
    let storage = Storage::build(each * parts.len(), |out| {
        for (out, part) in out.chunks_exact_mut(each.max(1)).zip(parts) {
            out.copy_from_slice(part.bytes());
            part.storage().release();
        }
    });
    let dims: Vec<usize> = std::iter::once(parts.len()).chain(first.shape().dims().iter().copied()).collect();
    Tensor::new(first.dtype(), Shape::from(dims), storage)
        .map_err(|e| ModelError::weight(name, e.to_string()))
}

fn transpose(name: &str, tensor: &Tensor) -> Result<Tensor, ModelError> {
    let &[rows, columns] = tensor.shape().dims() else {
        return Err(ModelError::weight(name, format!("is {}, expected a matrix", tensor.shape())));
    };
    if tensor.dtype().is_block() {
        return Err(ModelError::weight(name, format!("{} rows cannot become columns", tensor.dtype())));
    }
    let each = tensor.bytes().len() / (rows * columns).max(1);
    let storage = Storage::build(tensor.bytes().len(), |out| {
        for (to, out) in out.chunks_exact_mut(each.max(1)).enumerate() {
            let from = (to % rows * columns + to / rows) * each;
            out.copy_from_slice(&tensor.bytes()[from..from + each]);
        }
    });
    tensor.storage().release();
    Tensor::new(tensor.dtype(), turned(tensor.shape()), storage)
        .map_err(|e| ModelError::weight(name, e.to_string()))
}

fn turned(shape: &Shape) -> Shape {
    Shape::from(shape.dims().iter().rev().copied().collect::<Vec<_>>())
}

/// A view, not a copy.
fn some_rows(name: &str, tensor: &Tensor, start: usize, rows: usize) -> Result<Tensor, ModelError> {
    let stored = tensor.shape().dims().first().copied().unwrap_or(0);
    let row_bytes = tensor.bytes().len() / stored.max(1);
    let storage = tensor.storage().slice(start * row_bytes..(start + rows) * row_bytes);
    let what = || ModelError::weight(name, format!("has {stored} rows, not {}", start + rows));
    Tensor::new(tensor.dtype(), with_rows(tensor.shape(), rows), storage.ok_or_else(what)?)
        .map_err(|e| ModelError::weight(name, e.to_string()))
}

fn frame(name: &str, tensor: &Tensor, number: usize, of: usize) -> Result<Tensor, ModelError> {
    let dims = tensor.shape().dims();
    if dims.len() != 5 || dims[2] != of || number >= of || tensor.dtype().is_block() {
        let what = format!(
            "is {} {}, expected [out, channels, {of}, height, width]",
            tensor.dtype(),
            tensor.shape()
        );
        return Err(ModelError::weight(name, what));
    }
    let each = (tensor.bytes().len() / (dims[0] * dims[1] * of).max(1)).max(1);
    let storage = Storage::build(tensor.bytes().len() / of, |out| {
        let frames = tensor.bytes().chunks_exact(each).skip(number).step_by(of);
        out.chunks_exact_mut(each).zip(frames).for_each(|(out, frame)| out.copy_from_slice(frame));
    });
    Tensor::new(tensor.dtype(), without_frames(tensor.shape()), storage)
        .map_err(|e| ModelError::weight(name, e.to_string()))
}

/// The shape of one frame's kernel.
fn without_frames(shape: &Shape) -> Shape {
    let keep = shape.dims().iter().enumerate().filter(|(at, _)| *at != 2);
    Shape::from(keep.map(|(_, size)| *size).collect::<Vec<_>>())
}

fn with_rows(shape: &Shape, rows: usize) -> Shape {
    let mut dims = shape.dims().to_vec();
    dims.iter_mut().take(1).for_each(|first| *first = rows);
    Shape::from(dims)
}

/// The weights of a model under GGUF names: renamed, reordered and completed on the fly.
#[derive(Clone)]
pub struct Canonical {
    sources: Vec<Arc<dyn TensorSource + Send + Sync>>,
    entries: BTreeMap<String, Entry>,
    unused: Vec<String>,
}

#[derive(Clone)]
enum Entry {
    Stored {
        source: usize,
        name: String,
        transform: Transform,
    },
    Made(Tensor),
    /// The matrices of a stack, each stored by itself.
    Stacked {
        source: usize,
        parts: Vec<Option<String>>,
    },
    /// One of the two tensors of a layer that is stored as a sum.
    Merged {
        source: usize,
        parts: Arc<branches::Parts>,
        which: Merged,
    },
}

impl Canonical {
    /// The weights of a Hugging Face checkpoint.
    ///
    /// # Errors
    /// [`ModelError::Weight`] where two weights end under one name, or one is not known that would change the answers.
    pub fn from_hf(
        family: &Family,
        config: &ModelConfig,
        source: Arc<dyn TensorSource + Send + Sync>,
    ) -> Result<Self, ModelError> {
        let mut entries = BTreeMap::new();
        let mut unused = vec![];
        let mut sums: BTreeMap<String, branches::Parts> = BTreeMap::new();
        for name in source.names() {
            let Some(Rename { to, transform }) = (family.rename)(config, name) else {
                unused.push(name.to_owned());
                continue;
            };
            let both = |other: &str| {
                ModelError::weight(&to, format!("both {other} and {name} of the checkpoint end here"))
            };
            if let Transform::Branch(branch) = transform {
                let parts = sums.entry(to.clone()).or_default();
                let same = |(known, _): &&(Branch, String)| {
                    (known.number, known.part) == (branch.number, branch.part)
                };
                if let Some((_, other)) = parts.iter().find(same) {
                    return Err(both(other));
                }
                parts.push((branch, name.to_owned()));
                continue;
            }
            if let Transform::Expert { number, of } = transform {
                let empty = || Entry::Stacked { source: 0, parts: vec![None; of] };
                let Entry::Stacked { parts, .. } = entries.entry(to.clone()).or_insert_with(empty) else {
                    return Err(both("a whole stack"));
                };
                let place = parts.get_mut(number).ok_or_else(|| {
                    ModelError::weight(name, format!("is expert {number} of {of}, counted from 0"))
                })?;
                if let Some(other) = place.replace(name.to_owned()) {
                    return Err(both(&other));
                }
                continue;
            }
            let entry = Entry::Stored { source: 0, name: name.to_owned(), transform };
            match entries.insert(to.clone(), entry) {
                Some(Entry::Stored { name: other, .. }) => return Err(both(&other)),
                Some(_) => return Err(both("a part of a stack")),
                None => {}
            }
        }
        for (name, entry) in &entries {
            if let Entry::Stacked { parts, .. } = entry
                && let Some(missing) = parts.iter().position(Option::is_none)
            {
                return Err(ModelError::weight(name, format!("the checkpoint lacks its expert {missing}")));
            }
        }
        for (layer, parts) in sums {
            let parts = Arc::new(parts);
            for (which, kind) in [(Merged::Weight, "weight"), (Merged::Bias, "bias")] {
                let entry = Entry::Merged { source: 0, parts: parts.clone(), which };
                if entries.insert(format!("{layer}.{kind}"), entry).is_some() {
                    let what = "the checkpoint holds it both whole and as a sum";
                    return Err(ModelError::weight(format!("{layer}.{kind}"), what));
                }
            }
        }
        let mut weights = Canonical { sources: vec![source.clone()], entries, unused };
        weights.part(config)?;
        weights.complete(config);
        weights.note_undeclared(config)?;
        weights.refuse_unknown(config)?;
        Ok(weights)
    }

    /// The weights of a GGUF file, or of a text file and its mmproj.
    ///
    /// # Errors
    /// [`ModelError::Weight`] where there are weights that the family does not know and that would change the answers.
    pub fn from_gguf(
        config: &ModelConfig,
        files: Vec<Arc<dyn TensorSource + Send + Sync>>,
    ) -> Result<Self, ModelError> {
        let mut entries = BTreeMap::new();
        for (source, file) in files.iter().enumerate() {
            for name in file.names() {
                let entry = Entry::Stored { source, name: name.to_owned(), transform: Transform::None };
                entries.entry(name.to_owned()).or_insert(entry);
            }
        }
        let mut weights = Canonical { sources: files, entries, unused: vec![] };
        weights.exchange(config);
        weights.part(config)?;
        weights.complete(config);
        weights.note_undeclared(config)?;
        weights.refuse_unknown(config)?;
        Ok(weights)
    }

    /// Names of all weights, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Type and shape as stored.
    pub fn info(&self, name: &str) -> Option<TensorInfo> {
        match self.entries.get(name)? {
            Entry::Stored { source, name, transform } => {
                self.sources[*source].info(name).map(|info| transform.info(info))
            }
            Entry::Made(tensor) => Some(TensorInfo::from(tensor)),
            Entry::Stacked { source, parts } => {
                let mut info = self.sources[*source].info(parts.first()?.as_ref()?)?;
                let dims = std::iter::once(parts.len()).chain(info.shape.dims().iter().copied());
                info.shape = Shape::from(dims.collect::<Vec<_>>());
                Some(info)
            }
            Entry::Merged { source, parts, which } => {
                branches::info(parts, *which, &|name| self.sources[*source].info(name))
            }
        }
    }

    /// The weight of that name in its stored format and shape.
    ///
    /// # Errors
    /// [`ModelError::Weight`] where it is missing or cannot be reordered, [`ModelError::File`] where it is unreadable.
    pub fn tensor(&self, name: &str) -> Result<Tensor, ModelError> {
        match self.entries.get(name) {
            Some(Entry::Made(tensor)) => Ok(tensor.clone()),
            Some(Entry::Stored { source, name: stored, transform }) => {
                transform.apply(name, self.sources[*source].tensor(stored)?)
            }
            Some(Entry::Stacked { source, parts }) => {
                let parts = parts.iter().flatten().map(|part| self.sources[*source].tensor(part));
                stack(name, &parts.collect::<Result<Vec<_>, _>>()?)
            }
            Some(Entry::Merged { source, parts, which }) => {
                branches::tensor(name, parts, *which, &|part| Ok(self.sources[*source].tensor(part)?))
            }
            None => Err(missing(name)),
        }
    }

    /// Which file (counted as they were given) holds the bytes of that weight, and a name that no other weight of that
    /// file has: the stored one, or its own where it is a part of a stored one. `None` where it is reordered on its way, or
    /// follows from the configuration.
    pub fn stored(&self, name: &str) -> Option<(usize, &str)> {
        match self.entries.get_key_value(name)? {
            (_, Entry::Stored { source, name, transform: Transform::None }) => Some((*source, name)),
            (part, Entry::Stored { source, transform: Transform::Rows { .. }, .. }) => Some((*source, part)),
            _ => None,
        }
    }

    /// Weights of the checkpoint that the model does not use.
    pub fn unused(&self) -> &[String] {
        &self.unused
    }

    /// Adds the weights that no program declares to those unused.
    fn note_undeclared(&mut self, config: &ModelConfig) -> Result<(), ModelError> {
        let programs = config.programs()?;
        let all = programs.encode.iter().chain(&programs.project).chain(std::iter::once(&programs.text));
        let declared: HashSet<&str> = all.flat_map(|p| p.weights()).map(|spec| spec.name.as_str()).collect();
        for (name, entry) in &self.entries {
            let stored = match entry {
                Entry::Stored { name, .. } => Some(name),
                Entry::Stacked { parts, .. } => parts.first().and_then(Option::as_ref),
                Entry::Merged { parts, .. } => parts.first().map(|(_, name)| name),
                Entry::Made(_) => None,
            };
            if !declared.contains(name.as_str()) {
                self.unused.extend(stored.cloned());
            }
        }
        Ok(())
    }

    /// A weight that nobody reads belongs to another model than this is taken for, unless it is one of those that are
    /// known to do nothing.
    fn refuse_unknown(&self, config: &ModelConfig) -> Result<(), ModelError> {
        let idles = |name: &str| config.vision.as_ref().is_some_and(|v| v.tower.idles(name));
        let matters = |name: &str| would_matter(name) && !idles(name) && !self.is_zero_bias(name);
        match self.unused.iter().find(|name| matters(name)) {
            None => Ok(()),
            Some(name) => {
                let family = config.family;
                let what = format!("the {family} family does not know it, and leaving it out would be wrong");
                Err(ModelError::weight(name, what))
            }
        }
    }

    /// GPTQ tools add biases of zeros, which change nothing.
    fn is_zero_bias(&self, name: &str) -> bool {
        let stored = || self.sources.iter().find_map(|source| source.tensor(name).ok());
        name.ends_with(".bias")
            && stored().is_some_and(|t| !t.dtype().is_block() && t.bytes().iter().all(|byte| *byte == 0))
    }

    /// Weights that follow from the configuration alone.
    fn complete(&mut self, config: &ModelConfig) {
        if let Some(vision) = &config.vision {
            let made = (vision.projector.weights)(&vision.project_sizes(config.text.width));
            self.entries.extend(made.tables.into_iter().map(|(name, table)| (name, Entry::Made(table))));
        }
        if let Some(factors) = rope_factors(&config.text) {
            let tensor =
                Tensor::from_f32(Shape::from([factors.len()]), &factors).expect("invariant: one row");
            self.entries.entry("rope_freqs.weight".to_owned()).or_insert(Entry::Made(tensor));
        }
    }

    /// Gives weights that stand under each other's name their own.
    fn exchange(&mut self, config: &ModelConfig) {
        let Some(vision) = &config.vision else { return };
        for (one, other) in vision.tower.exchanged(&|name| self.info(name)) {
            let (a, b) = (self.entries.remove(&one), self.entries.remove(&other));
            self.entries.extend(b.map(|b| (one, b)));
            self.entries.extend(a.map(|a| (other, a)));
        }
    }

    /// Parts what a file holds as one: the queries, keys and values of a block, which some converters write as one matrix,
    /// in that order (llama.cpp `llama-model.cpp`, `attn_qkv`), and what the tower says.
    fn part(&mut self, config: &ModelConfig) -> Result<(), ModelError> {
        let text = &config.text;
        let (q, kv) = (text.heads * text.head_dim, text.kv_heads * text.head_dim);
        for (layer, kind) in (0..text.layers).flat_map(|layer| [(layer, "weight"), (layer, "bias")]) {
            let parts = [("attn_q", 0, q), ("attn_k", q, kv), ("attn_v", q + kv, kv)];
            let parts = parts.map(|(part, start, rows)| {
                (format!("blk.{layer}.{part}.{kind}"), Transform::Rows { start, rows })
            });
            self.part_one(&format!("blk.{layer}.attn_qkv.{kind}"), &parts)?;
        }
        if let Some(vision) = &config.vision {
            let projector = (vision.projector.weights)(&vision.project_sizes(text.width)).parts;
            for (whole, parts) in vision.tower.parts().iter().chain(&projector) {
                self.part_one(whole, parts)?;
            }
        }
        Ok(())
    }

    fn part_one(&mut self, whole: &str, parts: &[(String, Transform)]) -> Result<(), ModelError> {
        let Some(info) = self.info(whole) else { return Ok(()) };
        let rows = info.shape.dims().first().copied().unwrap_or(0);
        let rows_of = |(_, transform): &(String, Transform)| match transform {
            Transform::Rows { rows, .. } => *rows,
            _ => 0,
        };
        let expected: usize = parts.iter().map(rows_of).sum();
        if expected > 0 && rows != expected {
            return Err(ModelError::weight(whole, format!("has {rows} rows, expected {expected}")));
        }
        let Some(Entry::Stored { source, name, .. }) = self.entries.remove(whole) else { return Ok(()) };
        for (part, transform) in parts {
            let entry = Entry::Stored { source, name: name.clone(), transform: *transform };
            if self.entries.insert(part.clone(), entry).is_some() {
                return Err(ModelError::weight(part, format!("is there beside {whole}")));
            }
        }
        Ok(())
    }

    /// The weight as a program declares it: its shape checked. A plain tensor may be stored with its sizes split
    /// otherwise (a patch kernel as `[out, 3, p, p]`, a squeezed convolution), as long as the rows are the same; one of
    /// blocks where the blocks lie in the same rows.
    ///
    /// # Errors
    /// [`ModelError::Weight`] where it is missing or of another shape.
    pub fn declared(&self, spec: &WeightSpec) -> Result<Tensor, ModelError> {
        self.check(spec)?;
        let tensor = self.tensor(&spec.name)?;
        tensor.reshape(spec.shape.clone()).map_err(|e| ModelError::weight(&spec.name, e.to_string()))
    }

    /// Checks that a declared weight is there and fits, without reading it.
    ///
    /// # Errors
    /// As [`Canonical::declared`].
    pub fn check(&self, spec: &WeightSpec) -> Result<(), ModelError> {
        let info = self.info(&spec.name).ok_or_else(|| missing(&spec.name))?;
        // Sizes of 1 in front say nothing: `[1, positions, width]`.
        let rows = |shape: &Shape| shape.dims().iter().copied().find(|size| *size != 1);
        let fits = info.shape == spec.shape
            || ((!info.dtype.is_block() || info.shape.row() == spec.shape.row())
                && info.shape.elements() == spec.shape.elements()
                && rows(&info.shape) == rows(&spec.shape));
        if !fits {
            return Err(ModelError::weight(
                &spec.name,
                format!("is {}, expected {}", info.shape, spec.shape),
            ));
        }
        Ok(())
    }

    /// Checks every weight of a program.
    ///
    /// # Errors
    /// As [`Canonical::declared`], for the first that does not fit.
    pub fn check_program(&self, program: &Program) -> Result<(), ModelError> {
        program.weights().iter().try_for_each(|spec| self.check(spec))
    }

    /// The weights as `program` declares them, for a backend.
    pub fn for_program<'a>(&'a self, program: &'a Program) -> impl WeightSource + 'a {
        ProgramWeights { weights: self, program }
    }
}

/// Whether leaving this weight out may change the answers of a model, all of whose parts run.
fn would_matter(name: &str) -> bool {
    // A table that follows from the sizes.
    if name.contains("rotary_emb.inv_freq") {
        return false;
    }
    let places = [
        "blk.",
        "v.",
        "mm.",
        "model.layers.",
        "mm_projector",
        "multi_modal_projector",
        "vision_tower",
        "vision_model",
        "visual.",
        "vpm.",
        "resampler.",
        "llm.",
        "connector",
        "newline",
        "output.bias",
        "lm_head.bias",
    ];
    places.iter().any(|place| name.starts_with(place) || (place.len() > 4 && name.contains(place)))
}

pub(crate) fn missing(name: &str) -> ModelError {
    ModelError::weight(name, "the file does not hold it; is it complete, and of the family it says?")
}

struct ProgramWeights<'a> {
    weights: &'a Canonical,
    program: &'a Program,
}

impl WeightSource for ProgramWeights<'_> {
    fn weight(&self, name: &str) -> Result<Tensor, BackendError> {
        let bad = |what: String| BackendError::Weight { name: name.to_owned(), what };
        let spec = self.program.weights().iter().find(|spec| spec.name == name);
        let spec = spec.ok_or_else(|| bad("the program does not declare it".into()))?;
        self.weights.declared(spec).map_err(|e| match e {
            ModelError::Weight { what, .. } => bad(what),
            other => bad(other.to_string()),
        })
    }
}

/// Divisors of the rotary frequencies that a configuration asks for; `None` where they stay, or where the file holds
/// them. Source: transformers `modeling_rope_utils.py`, `_compute_llama3_parameters`.
pub fn rope_factors(text: &TextConfig) -> Option<Vec<f32>> {
    let pairs = text.rotary / 2;
    match text.rope_scaling {
        RopeScaling::None | RopeScaling::Factors => None,
        RopeScaling::Linear(factor) => Some(vec![factor; pairs]),
        RopeScaling::Llama3 { factor, low, high, original } => {
            let (longest, shortest) = (original / low, original / high);
            let factor_of = |pair: usize| {
                let frequency =
                    f64::from(text.rope_base).powf(-2.0 * pair as f64 / text.rotary as f64) as f32;
                let wavelength = std::f32::consts::TAU / frequency;
                if wavelength < shortest {
                    1.0
                } else if wavelength > longest {
                    factor
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    1.0 / ((1.0 - smooth) / factor + smooth)
                }
            };
            Some((0..pairs).map(factor_of).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_change_answers_is_told_from_what_would_not() {
        let tower = serde_json::json!({ "num_hidden_layers": 3 });
        let tower =
            crate::vision::read_hf(&crate::HfConfig::new(&tower), crate::Features::Hidden(-2)).unwrap();
        let matters = |name: &str| would_matter(name) && !tower.idles(name);
        for name in [
            "blk.0.attn_q.bias",
            "output.bias",
            "language_model.lm_head.bias",
            "v.patch_embd.bias",
            "v.blk.1.attn_norm.weight",
            "mm.2.weight",
            "model.image_newline",
            "model.layers.0.self_attn.q_proj.bias",
            "language_model.model.layers.3.self_attn.q_norm.weight",
            "model.mm_projector.4.weight",
            "model.vision_tower.vision_tower.vision_model.embeddings.patch_embedding.bias",
            "vision_tower.encoder.layers.1.mlp.gate.weight",
        ] {
            assert!(matters(name), "{name}");
        }
        for name in [
            "v.blk.2.attn_q.weight",
            "v.post_ln.bias",
            "vision_tower.vision_model.encoder.layers.2.mlp.fc1.weight",
            "model.vision_tower.vision_tower.vision_model.post_layernorm.weight",
            "model.vision_tower.vision_tower.vision_model.embeddings.position_ids",
            "vision_tower.vision_model.head.attention.in_proj_weight",
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            "output.weight",
            "lm_head.weight",
        ] {
            assert!(!matters(name), "{name}");
        }
    }

    #[test]
    fn rows_become_columns_of_any_plain_type() {
        let stored = Tensor::from_f32(Shape::from([2, 3]), &[1., 2., 3., 4., 5., 6.]).unwrap();
        let expected = Tensor::from_f32(Shape::from([3, 2]), &[1., 4., 2., 5., 3., 6.]).unwrap();
        let got = Transform::Transpose.apply("w", stored.clone()).unwrap();
        assert_eq!((got.shape(), got.bytes()), (expected.shape(), expected.bytes()));
        let half =
            Tensor::new(DType::F16, Shape::from([2, 2]), Storage::from_bytes(&[1, 1, 2, 2, 3, 3, 4, 4]));
        assert_eq!(Transform::Transpose.apply("w", half.unwrap()).unwrap().bytes(), [1, 1, 3, 3, 2, 2, 4, 4]);
        let vector = Tensor::from_f32(Shape::from([3]), &[1., 2., 3.]).unwrap();
        assert!(Transform::Transpose.apply("w", vector).is_err());
    }

    #[test]
    fn one_is_added_in_float32_whatever_is_stored() {
        for (dtype, bytes) in [
            (DType::F32, [0.5f32, -3.0].map(f32::to_le_bytes).concat()),
            (DType::F16, [0x3800u16, 0xc200].map(u16::to_le_bytes).concat()),
            (DType::BF16, [0x3f00u16, 0xc040].map(u16::to_le_bytes).concat()),
        ] {
            let stored = Tensor::new(dtype, Shape::from([2]), Storage::from_bytes(&bytes)).unwrap();
            let expected = Tensor::from_f32(Shape::from([2]), &[1.5, -2.0]).unwrap();
            let got = Transform::AddOne.apply("norm", stored).unwrap();
            assert_eq!((got.dtype(), got.bytes()), (DType::F32, expected.bytes()), "{dtype}");
        }
    }

    #[test]
    fn interleaving_puts_rotary_pairs_side_by_side() {
        // Two heads of four rows, one column: 0 1 | 2 3 are the halves of head 0.
        let t = Tensor::from_f32(Shape::from([8, 1]), &[0., 1., 2., 3., 4., 5., 6., 7.]).unwrap();
        let t = Transform::InterleaveHeads { heads: 2 }.apply("q", t).unwrap();
        let got: Vec<f32> = t.bytes().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(got, [0., 2., 1., 3., 4., 6., 5., 7.]);
        let odd = Tensor::from_f32(Shape::from([3, 1]), &[0.; 3]).unwrap();
        assert!(Transform::InterleaveHeads { heads: 1 }.apply("q", odd).is_err());
    }
}
