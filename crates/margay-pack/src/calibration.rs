//! What calibration saw of a model's inputs, in memory and as a file.

use crate::PackError;
use margay::ModelSource;
use margay_file::{
    Gguf, SafeTensors, TensorSource,
    gguf::{Metadata, write_gguf},
    safetensors::write_safetensors,
};
use margay_quant::{InputStats, TokenStats, decode_tensor, encode_tensor};
use margay_tensor::{DType, Shape, Storage, Tensor};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// Key of the description beside the tensors.
const KEY: &str = "margay.calibration";
/// Layout of the file; another one is refused.
const VERSION: u32 = 1;
/// Beyond it a half overflows; such rows stay float32.
const MOST_HALF: f32 = 60000.0;

/// The statistics of the input of every linear layer, of one model.
#[derive(Clone, Debug)]
pub struct Calibration {
    about: About,
    tensors: BTreeMap<String, Tensor>,
}

/// The description inside the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    version: u32,
    /// Digest of the model; `None` in a matrix of importances that another tool wrote.
    model: Option<String>,
    /// What it was made from, for people.
    made_from: String,
    /// What is known of each input, by its name: the weight that reads it first.
    inputs: BTreeMap<String, Input>,
    /// Which input each weight reads.
    weights: BTreeMap<String, Reader>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    columns: usize,
    text_tokens: u64,
    visual_tokens: u64,
    sample_rows: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reader {
    input: String,
    visual_weight: f32,
    /// How much the errors at the sample's rows matter, where a backward pass said it.
    has_importance: bool,
}

impl Calibration {
    /// Nothing seen yet.
    pub(crate) fn new(source: &ModelSource, made_from: String) -> Result<Self, PackError> {
        let about = About {
            version: VERSION,
            model: Some(digest(source)?),
            made_from,
            inputs: BTreeMap::new(),
            weights: BTreeMap::new(),
        };
        Ok(Calibration { about, tensors: BTreeMap::new() })
    }

    /// Keeps what was seen of the input that the weight `name` reads first.
    pub(crate) fn insert(&mut self, name: &str, stats: &InputStats) -> Result<(), PackError> {
        let columns = stats.columns;
        let InputStats { text, visual, sample, .. } = stats;
        let vector = |values: &[f32]| plain(Shape::from([values.len()]), values);
        for (kind, seen) in [("text", text), ("visual", visual)] {
            for (part, values) in
                [("mean_abs", &seen.mean_abs), ("mean_square", &seen.mean_square), ("max_abs", &seen.max_abs)]
            {
                self.tensors.insert(format!("{name}.{kind}.{part}"), vector(values));
            }
        }
        let rows = Shape::from([sample.len(), columns]);
        let half = sample.rows.iter().all(|x| x.abs() <= MOST_HALF);
        let dtype = if half { DType::F16 } else { DType::F32 };
        let fail = |source| PackError::Quant { name: name.to_owned(), source };
        self.tensors
            .insert(format!("{name}.sample.rows"), encode_tensor(&sample.rows, rows, dtype).map_err(fail)?);
        let flags: Vec<u8> = sample.visual.iter().map(|visual| u8::from(*visual)).collect();
        let flags = Tensor::new(DType::U8, Shape::from([flags.len()]), Storage::from_bytes(&flags));
        self.tensors.insert(format!("{name}.sample.visual"), flags.expect("invariant: a byte each"));
        let input = Input {
            columns,
            text_tokens: text.tokens,
            visual_tokens: visual.tokens,
            sample_rows: sample.len(),
        };
        self.about.inputs.insert(name.to_owned(), input);
        Ok(())
    }

    /// The weight `name` reads that input; how much an error at a visual token, and at each row of the sample, matters.
    pub(crate) fn read_by(
        &mut self,
        name: &str,
        input: &str,
        visual_weight: f32,
        importance: Option<&[f32]>,
    ) {
        if let Some(importance) = importance {
            let tensor = plain(Shape::from([importance.len()]), importance);
            self.tensors.insert(format!("{name}.importance"), tensor);
        }
        let reader = Reader { input: input.to_owned(), visual_weight, has_importance: importance.is_some() };
        self.about.weights.insert(name.to_owned(), reader);
    }

    /// Names of the weights whose input was seen.
    pub fn weights(&self) -> impl Iterator<Item = &str> {
        self.about.weights.keys().map(String::as_str)
    }

    /// What it was made from, for people.
    pub fn made_from(&self) -> &str {
        &self.about.made_from
    }

    /// Whether there is more than means of squares.
    pub fn is_whole(&self) -> bool {
        self.about.model.is_some()
    }

    /// Whether it knows how much errors matter, from a backward pass.
    pub fn has_gradients(&self) -> bool {
        self.about.weights.values().any(|reader| reader.has_importance)
    }

    /// Text and visual tokens seen at the input of that weight.
    pub fn tokens(&self, name: &str) -> Option<(u64, u64)> {
        let input = self.about.inputs.get(&self.about.weights.get(name)?.input)?;
        Some((input.text_tokens, input.visual_tokens))
    }

    /// What was seen at the input of that weight; `None` where nothing was.
    ///
    /// # Errors
    /// [`PackError::Calibration`] where the file is damaged.
    pub fn input(&self, name: &str) -> Result<Option<InputStats>, PackError> {
        let Some(reader) = self.about.weights.get(name) else { return Ok(None) };
        let Some(input) = self.about.inputs.get(&reader.input) else { return Ok(None) };
        let from = &reader.input;
        let tokens = |kind: &str, tokens: u64| -> Result<TokenStats, PackError> {
            let part = |part: &str| self.numbers(&format!("{from}.{kind}.{part}"), input.columns);
            Ok(TokenStats {
                tokens,
                mean_abs: part("mean_abs")?,
                mean_square: part("mean_square")?,
                max_abs: part("max_abs")?,
            })
        };
        // Nothing is allocated by the size that a file says before it is found to be there.
        let mut stats = InputStats {
            columns: input.columns,
            text: tokens("text", input.text_tokens)?,
            visual: tokens("visual", input.visual_tokens)?,
            visual_weight: reader.visual_weight,
            ..InputStats::default()
        };
        let rows = input.sample_rows;
        if rows > 0 {
            let values = self.numbers(&format!("{from}.sample.rows"), rows.saturating_mul(input.columns))?;
            let flags = self.tensor(&format!("{from}.sample.visual"))?;
            if flags.bytes().len() != rows {
                return Err(damaged(format!(
                    "{from}.sample.visual has {} flags of {rows}",
                    flags.bytes().len()
                )));
            }
            let flags: Vec<bool> = flags.bytes().iter().map(|flag| *flag != 0).collect();
            let importance = match reader.has_importance {
                true => Some(self.numbers(&format!("{name}.importance"), rows)?),
                false => None,
            };
            let fail = |source| PackError::Quant { name: name.to_owned(), source };
            stats.keep(&values, &flags, importance.as_deref()).map_err(fail)?;
        }
        Ok(Some(stats))
    }

    fn tensor(&self, name: &str) -> Result<&Tensor, PackError> {
        self.tensors.get(name).ok_or_else(|| damaged(format!("{name} is missing")))
    }

    /// So many finite numbers.
    fn numbers(&self, name: &str, count: usize) -> Result<Vec<f32>, PackError> {
        let tensor = self.tensor(name)?;
        if tensor.shape().elements() != Some(count) {
            return Err(damaged(format!("{name} is {}, expected {count} numbers", tensor.shape())));
        }
        let values = decode_tensor(tensor).map_err(|e| damaged(format!("{name}: {e}")))?;
        match values.iter().all(|x| x.is_finite()) {
            true => Ok(values),
            false => Err(damaged(format!("{name} holds numbers that are none"))),
        }
    }

    /// Writes a safetensors file, or, where the name ends in `.gguf`, an importance matrix that llama.cpp's tools read.
    ///
    /// # Errors
    /// [`PackError::File`] where the disk refuses; no file then stands under the name.
    pub fn write(&self, path: &Path) -> Result<(), PackError> {
        if is_gguf(path) {
            return self.write_imatrix(path);
        }
        let about = serde_json::to_string(&self.about).expect("invariant: plain data");
        let tensors: Vec<(&str, &Tensor)> = self.tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
        Ok(write_safetensors(path, &tensors, &BTreeMap::from([(KEY.to_owned(), about)]))?)
    }

    /// Reads what [`Calibration::write`] wrote, for that model.
    ///
    /// # Errors
    /// [`PackError::Calibration`] where it is none, is damaged, or was made from another model; [`PackError::File`].
    pub fn open(path: &Path, source: &ModelSource) -> Result<Self, PackError> {
        let named = |what: String| damaged(format!("{}: {what}", path.display()));
        if is_gguf(path) {
            return Self::read_imatrix(path);
        }
        let file = SafeTensors::open(path)?;
        let about = file.metadata().get(KEY).ok_or_else(|| named("is no calibration".into()))?;
        let about: About = serde_json::from_str(about).map_err(|e| named(e.to_string()))?;
        if about.version != VERSION {
            return Err(named(format!("is of version {}, this program reads {VERSION}", about.version)));
        }
        if about.model.as_deref() != Some(digest(source)?.as_str()) {
            let what = format!(
                "was made from another model than this one ({}); run `margay calibrate` with it",
                source.config.name
            );
            return Err(named(what));
        }
        let tensors = file.tensors().map(|(name, _)| Ok((name.to_owned(), file.tensor(name)?)));
        let tensors = tensors.collect::<Result<BTreeMap<_, _>, margay_file::FileError>>()?;
        Ok(Calibration { about, tensors })
    }

    /// Source of the layout: llama.cpp `tools/imatrix/imatrix.cpp`, `save_imatrix`.
    fn write_imatrix(&self, path: &Path) -> Result<(), PackError> {
        let mut tensors = vec![];
        for name in self.weights() {
            let Some(stats) = self.input(name)? else { continue };
            let tokens = stats.tokens();
            let sums: Vec<f32> = stats.all().mean_square.iter().map(|mean| mean * tokens as f32).collect();
            tensors.push((format!("{name}.in_sum2"), plain(Shape::from([1, sums.len()]), &sums)));
            tensors.push((format!("{name}.counts"), plain(Shape::from([1, 1]), &[tokens as f32])));
        }
        let most = self.about.inputs.values().map(|i| i.text_tokens + i.visual_tokens).max().unwrap_or(0);
        let mut meta = Metadata::new();
        meta.insert("general.type", "imatrix");
        meta.insert("imatrix.datasets", vec![self.about.made_from.clone()]);
        meta.insert("imatrix.chunk_count", 1u32);
        meta.insert("imatrix.chunk_size", u32::try_from(most).unwrap_or(u32::MAX));
        let tensors: Vec<(&str, &Tensor)> = tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
        Ok(write_gguf(path, &meta, &tensors)?)
    }

    fn read_imatrix(path: &Path) -> Result<Self, PackError> {
        let named = |what: String| damaged(format!("{}: {what}", path.display()));
        let file = Gguf::open(path)?;
        if file.metadata().opt_str("general.type")? != Some("imatrix") {
            return Err(named("is no importance matrix (general.type is another)".into()));
        }
        let floats = |name: &str| -> Result<Vec<f32>, PackError> {
            let values = decode_tensor(&file.tensor(name)?).map_err(|e| named(format!("{name}: {e}")))?;
            match values.iter().all(|x| x.is_finite() && *x >= 0.0) {
                true => Ok(values),
                false => Err(named(format!("{name} holds numbers that are no sums of squares"))),
            }
        };
        let made_from = format!("the importance matrix {}", path.display());
        let mut about = About {
            version: VERSION,
            model: None,
            made_from,
            inputs: BTreeMap::new(),
            weights: BTreeMap::new(),
        };
        let mut tensors = BTreeMap::new();
        let names: BTreeSet<String> =
            file.tensors().filter_map(|(name, _)| Some(name.strip_suffix(".in_sum2")?.to_owned())).collect();
        for name in names {
            let (sums, counts) = (floats(&format!("{name}.in_sum2"))?, floats(&format!("{name}.counts"))?);
            let columns = sums.len() / counts.len().max(1);
            if columns == 0 || columns * counts.len() != sums.len() {
                return Err(named(format!("{name}: {} sums for {} counts", sums.len(), counts.len())));
            }
            // The matrices of a stack as one, each counting as often as it was passed.
            let tokens: f64 = counts.iter().map(|n| f64::from(*n)).sum();
            let mean = |at: usize| {
                let sum: f64 = sums.iter().skip(at).step_by(columns).map(|s| f64::from(*s)).sum();
                (sum / tokens.max(1.0)) as f32
            };
            let means: Vec<f32> = (0..columns).map(mean).collect();
            let zeros = vec![0.0; columns];
            for (kind, part, values) in [
                ("text", "mean_square", &means),
                ("text", "mean_abs", &zeros),
                ("text", "max_abs", &zeros),
                ("visual", "mean_square", &zeros),
                ("visual", "mean_abs", &zeros),
                ("visual", "max_abs", &zeros),
            ] {
                tensors.insert(format!("{name}.{kind}.{part}"), plain(Shape::from([columns]), values));
            }
            let input = Input { columns, text_tokens: tokens as u64, visual_tokens: 0, sample_rows: 0 };
            about.inputs.insert(name.clone(), input);
            let reader = Reader { input: name.clone(), visual_weight: 1.0, has_importance: false };
            about.weights.insert(name, reader);
        }
        Ok(Calibration { about, tensors })
    }

    /// What tells it from another, as part of what a killed run can go on with.
    pub(crate) fn fingerprint(&self) -> String {
        let mut hash = Fnv::new();
        hash.add(serde_json::to_string(&self.about).expect("invariant: plain data").as_bytes());
        for (name, tensor) in &self.tensors {
            hash.add(name.as_bytes());
            if !name.ends_with(".rows") {
                hash.add(tensor.bytes());
            }
        }
        hash.hex()
    }
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"))
}

fn plain(shape: Shape, values: &[f32]) -> Tensor {
    Tensor::from_f32(shape, values).expect("invariant: the shape counts the values")
}

fn damaged(what: String) -> PackError {
    PackError::Calibration { what }
}

/// Tells a model from another: the names, shapes and formats of its weights, and some bytes of each.
///
/// # Errors
/// [`PackError::Model`] where a weight is missing.
pub(crate) fn digest(source: &ModelSource) -> Result<String, PackError> {
    /// Places at which a weight is looked at, and bytes at each.
    const PLACES: (usize, usize) = (16, 64);
    let programs = source.config.programs()?;
    let mut hash = Fnv::new();
    let all = programs.encode.iter().chain(&programs.project).chain([&programs.text]);
    for (spec, _) in all.flat_map(crate::plan::places) {
        let tensor = source.weights.tensor(&spec.name)?;
        hash.add(format!("{} {} {};", spec.name, tensor.shape(), tensor.dtype()).as_bytes());
        let bytes = tensor.bytes();
        for place in 0..PLACES.0 {
            let at = bytes.len() / PLACES.0 * place;
            hash.add(&bytes[at..(at + PLACES.1).min(bytes.len())]);
        }
    }
    Ok(hash.hex())
}

/// FNV-1a of 64 bits: nobody gains by a collision here. Source: Fowler, Noll and Vo.
pub(crate) struct Fnv(u64);

impl Fnv {
    pub(crate) fn new() -> Self {
        Fnv(0xcbf2_9ce4_8422_2325)
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    pub(crate) fn hex(&self) -> String {
        format!("{:016x}", self.0)
    }
}
