//! The parts of a model file as rows.

use margay::rooms::{
    file::{Gguf, HfFolder, ModelFiles, SafeTensors, TensorInfo, TensorSource, gguf::Value},
    graph::{Program, WeightSpec},
    model::{ModelConfig, ModelPrograms, PROJECTORS},
    observe::report::bytes,
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Characters of a value that are shown.
const SHOWN_CHARS: usize = 160;

/// A file of the model.
#[derive(Debug, Serialize)]
pub(super) struct File {
    /// `None` for the model inside the program.
    pub path: Option<PathBuf>,
    /// What it holds.
    pub holds: &'static str,
    /// Its format and version.
    pub format: String,
    /// Its size; `None` where the system does not say.
    pub bytes: Option<u64>,
}

impl std::fmt::Display for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{}", path.display())?,
            None => f.write_str(self.holds)?,
        }
        write!(f, ", {}", self.format)?;
        self.bytes.map_or(Ok(()), |size| write!(f, ", {}", bytes(size)))
    }
}

/// A key and its value.
#[derive(Debug, Serialize)]
pub(super) struct Entry {
    pub key: String,
    /// Numbers, truth values and short texts as they are; what is long as its beginning.
    pub value: serde_json::Value,
    #[serde(skip)]
    pub shown: String,
}

/// A tensor as it is stored.
#[derive(Debug, Serialize)]
pub(super) struct StoredTensor {
    pub name: String,
    #[serde(rename = "type")]
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub bytes: Option<u64>,
}

/// Weights of a stage.
#[derive(Debug, Default, Serialize)]
pub(super) struct Weights {
    pub stage: &'static str,
    pub weights: usize,
    pub parameters: u64,
    pub bytes: u64,
    pub bits_per_weight: Option<f64>,
    /// Per format: parameters.
    pub types: BTreeMap<&'static str, u64>,
}

impl Weights {
    pub(super) fn row(&self) -> Vec<String> {
        let bits = self.bits_per_weight.map_or_else(|| "-".to_owned(), |b| format!("{b:.2}"));
        let mut types: Vec<_> = self.types.iter().collect();
        types.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let types: Vec<&str> = types.into_iter().map(|(name, _)| *name).collect();
        let parameters = count(self.parameters);
        let weights = self.weights.to_string();
        vec![self.stage.to_owned(), weights, parameters, bytes(self.bytes), bits, types.join(" ")]
    }
}

/// 1234567 as `1.23 M`.
fn count(n: u64) -> String {
    match n {
        0..10_000 => n.to_string(),
        10_000..1_000_000 => format!("{:.1} k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} M", n as f64 / 1e6),
        _ => format!("{:.2} G", n as f64 / 1e9),
    }
}

/// The weights of each stage, and of all; those that two stages share count once in the sum. `info` says how a weight is
/// loaded.
pub(super) fn weights(
    programs: &ModelPrograms,
    info: &dyn Fn(&Program, &WeightSpec) -> Option<TensorInfo>,
) -> Vec<Weights> {
    let stages: Vec<(&'static str, &Program)> = [
        ("encode", programs.encode.as_ref()),
        ("project", programs.project.as_ref()),
        ("text", Some(&programs.text)),
    ]
    .into_iter()
    .filter_map(|(stage, program)| Some((stage, program?)))
    .collect();
    let infos = |program: &Program| -> BTreeMap<String, TensorInfo> {
        let weights = program.weights().iter();
        weights.filter_map(|spec| Some((spec.name.clone(), info(program, spec)?))).collect()
    };
    let mut rows: Vec<_> = stages.iter().map(|(stage, program)| sum(stage, &infos(program))).collect();
    rows.push(sum("all", &stages.iter().flat_map(|(_, program)| infos(program)).collect()));
    rows
}

fn sum(stage: &'static str, infos: &BTreeMap<String, TensorInfo>) -> Weights {
    let mut row = Weights { stage, ..Weights::default() };
    for info in infos.values() {
        let parameters = info.shape.elements().unwrap_or(0) as u64;
        row.weights += 1;
        row.parameters += parameters;
        row.bytes += info.size_bytes().unwrap_or(0) as u64;
        *row.types.entry(info.dtype.name()).or_default() += parameters;
    }
    row.bits_per_weight = (row.parameters > 0).then(|| row.bytes as f64 * 8.0 / row.parameters as f64);
    row
}

/// The model's numbers, one `name: value` a line.
pub(super) fn shape(config: &ModelConfig) -> Vec<String> {
    let t = &config.text;
    let heads = format!("{} heads of {} ({} kv)", t.heads, t.head_dim, t.kv_heads);
    let mut lines = vec![format!(
        "text: {} layers of width {}, ffn {}, {heads}, vocabulary {}, context {}",
        t.layers, t.width, t.ffn, t.vocabulary, t.context
    )];
    if let Some(vision) = &config.vision {
        lines.push(format!("vision: {}; projector {}", vision.tower.describe(), vision.projector.id));
    }
    lines
}

/// Visual tokens of a tile, from a vision part alone; `None` where they follow the picture's size.
pub(super) fn visual_tokens(file: &Gguf) -> Option<usize> {
    let meta = file.metadata();
    let number = |key| meta.opt_usize(key).ok().flatten();
    let kind = ["clip.projector_type", "clip.vision.projector_type"];
    let kind = kind.iter().find_map(|key| meta.get(key)?.as_str())?;
    let projector = PROJECTORS.iter().find(|p| p.id == kind)?;
    if let Some(queries) = number("clip.minicpmv_query_num").filter(|n| *n > 0) {
        return Some(queries);
    }
    let (image, patch) = (number("clip.vision.image_size")?, number("clip.vision.patch_size")?);
    let fold = number("clip.vision.projector.scale_factor").unwrap_or(1);
    if number("clip.vision.spatial_merge_size").is_some() {
        return None;
    }
    // A hostile file may say anything.
    let grid = image.checked_div(patch).filter(|grid| (1..=1024).contains(grid))?;
    (1..=grid).contains(&fold).then(|| (projector.tokens)((grid, grid), fold))
}

/// Whether a vision part's pictures are cut into tiles by their size.
pub(super) fn cuts_tiles(file: &Gguf) -> bool {
    let keys = ["clip.vision.preproc_image_size", "clip.minicpmv_version"];
    keys.iter().any(|key| file.metadata().get(key).is_some())
}

/// Every tensor of the sources, in the order of the files.
pub(super) fn tensors(sources: &[&dyn TensorSource]) -> Vec<StoredTensor> {
    let rows = sources.iter().flat_map(|source| {
        source.names().filter_map(|name| {
            let info = source.info(name)?;
            Some(StoredTensor {
                name: name.to_owned(),
                dtype: info.dtype.name(),
                shape: info.shape.dims().to_vec(),
                bytes: info.size_bytes().ok().map(|size| size as u64),
            })
        })
    });
    rows.collect()
}

/// Files and metadata of a model.
pub(super) fn of_files(files: &ModelFiles) -> (Vec<File>, Vec<Entry>) {
    match files {
        ModelFiles::Hf(folder) => of_folder(folder),
        ModelFiles::Gguf { text, vision } => {
            let holds = if text.path().is_some() { "model" } else { "inside the program" };
            let mut files = vec![gguf_file(text, holds)];
            let mut entries = gguf_entries(text);
            if let Some(vision) = vision.as_ref().filter(|vision| !vision.is_same(text)) {
                files.push(gguf_file(vision, "its mmproj"));
                entries.extend(gguf_entries(vision));
            }
            (files, entries)
        }
    }
}

pub(super) fn of_gguf(file: &Gguf) -> (Vec<File>, Vec<Entry>) {
    (vec![gguf_file(file, "one file")], gguf_entries(file))
}

pub(super) fn of_safetensors(path: &Path, file: &SafeTensors) -> (Vec<File>, Vec<Entry>) {
    let size = std::fs::metadata(path).ok().map(|m| m.len());
    let format = format!("safetensors, {} tensors", file.tensors().len());
    let files = vec![File { path: Some(path.to_owned()), holds: "one file", format, bytes: size }];
    let text = |value: &String| serde_json::Value::String(value.clone());
    (files, file.metadata().iter().map(|(key, value)| json_entry(key.clone(), &text(value))).collect())
}

fn gguf_file(file: &Gguf, holds: &'static str) -> File {
    let tensors = file.tensors().len();
    let format = format!("GGUF v{}, {tensors} tensors", file.version());
    File { path: file.path().map(Path::to_owned), holds, format, bytes: Some(file.size_bytes() as u64) }
}

fn gguf_entries(file: &Gguf) -> Vec<Entry> {
    file.metadata().iter().map(|(key, value)| gguf_entry(key, value)).collect()
}

fn gguf_entry(key: &str, value: &Value) -> Entry {
    let shown = cut(&value.to_string());
    let value = match value {
        Value::Bool(b) => (*b).into(),
        Value::String(s) => cut(s).into(),
        Value::Array(_) => shown.as_str().into(),
        number => match (number.as_integer(), number.as_float()) {
            (Some(n), _) => i64::try_from(n).map_or_else(|_| n.to_string().into(), serde_json::Value::from),
            (_, float) => float.into(),
        },
    };
    Entry { key: key.to_owned(), value, shown }
}

fn of_folder(folder: &HfFolder) -> (Vec<File>, Vec<Entry>) {
    let format = format!("Hugging Face folder, {} tensors", folder.names().count());
    let size = folder.names().map(|name| folder.info(name)?.size_bytes().ok()).sum::<Option<usize>>();
    let (path, bytes) = (Some(folder.path().to_owned()), size.map(|size| size as u64));
    let files = vec![File { path, holds: "checkpoint", format, bytes }];
    let mut entries = vec![];
    flatten("config", folder.config(), &mut entries);
    (files, entries)
}

/// Nested objects as keys joined by dots. The reader bounds how deep JSON nests.
fn flatten(key: &str, value: &serde_json::Value, entries: &mut Vec<Entry>) {
    match value.as_object() {
        Some(object) => {
            for (name, value) in object {
                flatten(&format!("{key}.{name}"), value, entries);
            }
        }
        None => entries.push(json_entry(key.to_owned(), value)),
    }
}

fn json_entry(key: String, value: &serde_json::Value) -> Entry {
    let shown = cut(&value.to_string());
    let short = match value {
        serde_json::Value::String(s) => cut(s).into(),
        serde_json::Value::Array(_) | serde_json::Value::Object(_) => shown.as_str().into(),
        plain => plain.clone(),
    };
    Entry { key, value: short, shown }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_read_like_a_model_card() {
        for (n, text) in [
            (0, "0"),
            (9_999, "9999"),
            (123_456, "123.5 k"),
            (1_234_567, "1.23 M"),
            (7_000_000_000, "7.00 G"),
        ] {
            assert_eq!(count(n), text);
        }
    }

    #[test]
    fn nested_configuration_becomes_dotted_keys_and_long_values_are_cut() {
        let config = serde_json::json!({ "a": { "b": 1, "c": [1, 2] }, "t": "x".repeat(1000) });
        let mut entries = vec![];
        flatten("config", &config, &mut entries);
        let keys: Vec<_> = entries.iter().map(|e| e.key.as_str()).collect();
        assert_eq!(keys, ["config.a.b", "config.a.c", "config.t"]);
        assert_eq!(entries[0].value, 1);
        assert!(entries[2].shown.len() < 200 && entries[2].shown.ends_with("..."));
    }
}
