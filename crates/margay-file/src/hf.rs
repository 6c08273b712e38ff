//! A checkpoint folder as Hugging Face's tools write it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path, PathBuf},
};

use margay_tensor::Tensor;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    FileError, Origin, SafeTensors, TensorInfo, TensorSource,
    error::{Quoted, clip},
    limits,
    packed4::{PackedWeight, Packing},
    read_file,
    safetensors::json_offset,
};

const INDEX_FILE: &str = "model.safetensors.index.json";
const SINGLE_FILE: &str = "model.safetensors";

/// An open checkpoint folder: `config.json`, the tensors of all shards, and what lies beside them.
#[derive(Clone, Debug)]
pub struct HfFolder {
    folder: PathBuf,
    config: Value,
    /// The files of tensors and their names.
    shards: Vec<(String, SafeTensors)>,
    /// Which shard holds a tensor.
    places: BTreeMap<String, usize>,
    /// Matrices in the parts of four-bit formats, by the name of the whole.
    packed: BTreeMap<String, PackedWeight>,
    /// Names of what can be read: of a packed matrix the whole, not its parts.
    names: Vec<String>,
}

impl HfFolder {
    /// Opens `config.json` and all shards; the other files are read when asked for.
    ///
    /// # Errors
    /// [`FileError`] where a file is absent, too large or broken.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, FileError> {
        let folder = folder.as_ref().to_owned();
        let config = read_json(&folder, "config.json")?.ok_or_else(|| FileError::Folder {
            path: folder.clone(),
            why: "holds no config.json; a checkpoint folder has one beside its *.safetensors files"
                .to_owned(),
        })?;
        let shards = open_shards(&folder)?;
        let mut places = BTreeMap::new();
        for (i, (_, shard)) in shards.iter().enumerate() {
            for name in shard.names() {
                if places.insert(name.to_owned(), i).is_some() {
                    return Err(folder_error(&folder, format!("tensor {} is in two shards", Quoted(name))));
                }
            }
        }
        let mut opened = HfFolder { folder, config, shards, places, packed: BTreeMap::new(), names: vec![] };
        opened.unpack()?;
        Ok(opened)
    }

    /// Finds packed matrices, where the configuration says that there are any.
    fn unpack(&mut self) -> Result<(), FileError> {
        let path = self.folder.join("config.json");
        let packing = Packing::of(&self.config).map_err(|why| folder_error(&path, why))?;
        let weights = packing.map(|packing| packing.weights(&Stored(self))).transpose()?.unwrap_or_default();
        let parts: BTreeSet<String> = weights.iter().flat_map(PackedWeight::parts).collect();
        let whole = |name: &String| !parts.contains(name);
        self.names = Stored(self).names().map(str::to_owned).filter(whole).collect();
        for weight in weights {
            let name = weight.name();
            if self.places.contains_key(&name) || self.packed.insert(name.clone(), weight).is_some() {
                return Err(folder_error(
                    &path,
                    format!("tensor {} is there packed and whole", Quoted(&name)),
                ));
            }
            self.names.push(name);
        }
        Ok(())
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// What tells the present state of its tensors from another, a shard each.
    ///
    /// # Errors
    /// [`FileError::Io`] where the system does not say when a file was changed.
    pub fn origins(&self) -> Result<Vec<Origin>, FileError> {
        let origin = |(name, shard): &(String, SafeTensors)| {
            Origin::of_bytes(&self.folder.join(name), shard.bytes(), shard.head_bytes())
        };
        self.shards.iter().map(origin).collect()
    }

    /// Texts in the heads of the shards (`__metadata__`).
    pub fn tensor_metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        self.shards
            .iter()
            .flat_map(|(_, shard)| shard.metadata().iter().map(|(key, value)| (key.as_str(), value.as_str())))
    }

    /// `tokenizer.json`, where it is there.
    ///
    /// # Errors
    /// [`FileError`] where it cannot be read or is too large.
    pub fn tokenizer_json(&self) -> Result<Option<Vec<u8>>, FileError> {
        read_optional(&self.folder, "tokenizer.json", limits::MAX_TOKENIZER_BYTES)
    }

    /// `tokenizer.model` (see [`crate::tokenizer_model`]), where it is there.
    ///
    /// # Errors
    /// [`FileError`] where it cannot be read or is too large.
    pub fn tokenizer_model(&self) -> Result<Option<Vec<u8>>, FileError> {
        read_optional(&self.folder, "tokenizer.model", limits::MAX_TOKENIZER_BYTES)
    }

    /// `tokenizer_config.json`, where it is there.
    ///
    /// # Errors
    /// [`FileError`] where it cannot be read, is too large or no JSON.
    pub fn tokenizer_config(&self) -> Result<Option<Value>, FileError> {
        read_json(&self.folder, "tokenizer_config.json")
    }

    /// `special_tokens_map.json`, where it is there.
    ///
    /// # Errors
    /// As [`HfFolder::tokenizer_config`].
    pub fn special_tokens_map(&self) -> Result<Option<Value>, FileError> {
        read_json(&self.folder, "special_tokens_map.json")
    }

    /// `generation_config.json`, where it is there.
    ///
    /// # Errors
    /// As [`HfFolder::tokenizer_config`].
    pub fn generation_config(&self) -> Result<Option<Value>, FileError> {
        read_json(&self.folder, "generation_config.json")
    }

    /// `preprocessor_config.json`, where it is there.
    ///
    /// # Errors
    /// As [`HfFolder::tokenizer_config`].
    pub fn preprocessor_config(&self) -> Result<Option<Value>, FileError> {
        read_json(&self.folder, "preprocessor_config.json")
    }

    /// `processor_config.json`, where it is there.
    ///
    /// # Errors
    /// As [`HfFolder::tokenizer_config`].
    pub fn processor_config(&self) -> Result<Option<Value>, FileError> {
        read_json(&self.folder, "processor_config.json")
    }

    /// The chat template's text: `chat_template.jinja`, else `chat_template.json`, else that of
    /// `tokenizer_config.json`. Where several are named, the one called `default`.
    ///
    /// # Errors
    /// [`FileError`] where a file cannot be read, is too large or broken.
    pub fn chat_template(&self) -> Result<Option<String>, FileError> {
        const JINJA: &str = "chat_template.jinja";
        if let Some(bytes) = read_optional(&self.folder, JINJA, limits::MAX_CONFIG_BYTES)? {
            let text = String::from_utf8(bytes);
            return text
                .map(Some)
                .map_err(|e| folder_error(&self.folder.join(JINJA), format!("is no UTF-8 ({e})")));
        }
        for name in ["chat_template.json", "tokenizer_config.json"] {
            let found = read_json(&self.folder, name)?.and_then(|value| template_of(&value));
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Any other small file of the folder, where it is there: `added_tokens.json`, `vocab.json`, `merges.txt`.
    ///
    /// # Errors
    /// [`FileError`] where it cannot be read, is larger than a tokenizer may be, or `name` is no plain file name.
    pub fn file(&self, name: &str) -> Result<Option<Vec<u8>>, FileError> {
        check_plain_name(&self.folder, name)?;
        read_optional(&self.folder, name, limits::MAX_TOKENIZER_BYTES)
    }
}

/// All tensors; those that are packed in four bits as the numbers they stand for.
impl TensorSource for HfFolder {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.names.iter().map(String::as_str))
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        match self.packed.get(name) {
            Some(weight) => Some(weight.info()),
            None => Stored(self).info(name),
        }
    }

    fn tensor(&self, name: &str) -> Result<Tensor, FileError> {
        match self.packed.get(name) {
            Some(weight) => weight.tensor(&Stored(self)),
            None => Stored(self).tensor(name),
        }
    }
}

/// The tensors of a folder as its files hold them.
struct Stored<'a>(&'a HfFolder);

impl TensorSource for Stored<'_> {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.0.shards.iter().flat_map(|(_, shard)| shard.names()))
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.0.shards[*self.0.places.get(name)?].1.info(name)
    }

    fn tensor(&self, name: &str) -> Result<Tensor, FileError> {
        let place = self.0.places.get(name).ok_or_else(|| FileError::missing_tensor(name))?;
        self.0.shards[*place].1.tensor(name)
    }
}

/// The part of `model.safetensors.index.json` that matters.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn open_shards(folder: &Path) -> Result<Vec<(String, SafeTensors)>, FileError> {
    let open = |name: &str| Ok((name.to_owned(), SafeTensors::open(folder.join(name))?));
    if let Some(index) = read_optional(folder, INDEX_FILE, limits::MAX_CONFIG_BYTES)? {
        return open_indexed(folder, &index);
    }
    if folder.join(SINGLE_FILE).exists() {
        return Ok(vec![open(SINGLE_FILE)?]);
    }
    let names = file_names(folder)?;
    let others: Vec<_> = names.iter().filter(|name| name.ends_with(".safetensors")).collect();
    match others[..] {
        [only] => Ok(vec![open(only)?]),
        [] => Err(folder_error(folder, without_safetensors(&names))),
        _ => {
            let why = format!(
                "holds {} *.safetensors files and no {INDEX_FILE}; copy it from where they came",
                others.len()
            );
            Err(folder_error(folder, why))
        }
    }
}

/// What to tell about a folder without safetensors files.
fn without_safetensors(names: &[String]) -> String {
    let pickled = |name: &&String| {
        let torch = name.starts_with("pytorch_model") && name.ends_with(".bin");
        torch || [".pt", ".pth", ".ckpt"].iter().any(|end| name.ends_with(end))
    };
    match names.iter().find(pickled) {
        Some(name) => format!(
            "holds {} and no *.safetensors; a pickled checkpoint runs code when it is read, so it is not: convert it \
             with transformers (model.save_pretrained(folder, safe_serialization=True))",
            Quoted(name)
        ),
        None => format!("holds no {SINGLE_FILE} and no {INDEX_FILE}"),
    }
}

fn open_indexed(folder: &Path, index: &[u8]) -> Result<Vec<(String, SafeTensors)>, FileError> {
    let path = folder.join(INDEX_FILE);
    let Index { weight_map } = serde_json::from_slice(index).map_err(|e| json_error(&path, index, &e))?;
    let mut shards: BTreeMap<&str, usize> = BTreeMap::new();
    let mut opened: Vec<(String, SafeTensors)> = Vec::new();
    for (name, file) in &weight_map {
        let at = match shards.get(file.as_str()) {
            Some(&at) => at,
            None => {
                check_plain_name(&path, file)?;
                if opened.len() == limits::MAX_SHARDS {
                    return Err(folder_error(
                        &path,
                        format!("names more than {} shards", limits::MAX_SHARDS),
                    ));
                }
                opened.push((file.clone(), SafeTensors::open(folder.join(file))?));
                shards.insert(file, opened.len() - 1);
                opened.len() - 1
            }
        };
        if opened[at].1.info(name).is_none() {
            let why = format!(
                "says that tensor {} is in {}, which holds none of that name",
                Quoted(name),
                Quoted(file)
            );
            return Err(folder_error(&path, why));
        }
    }
    Ok(opened)
}

/// A name from an index must lead to a file of the same folder.
fn check_plain_name(path: &Path, name: &str) -> Result<(), FileError> {
    let mut parts = Path::new(name).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(part)), None) if part == name && !name.contains(['/', '\\', ':', '\0']) => {
            Ok(())
        }
        _ => {
            Err(folder_error(path, format!("names the file {}, which leads out of the folder", Quoted(name))))
        }
    }
}

fn read_optional(folder: &Path, name: &str, limit_bytes: u64) -> Result<Option<Vec<u8>>, FileError> {
    let path = folder.join(name);
    if !path.exists() {
        return Ok(None);
    }
    read_file(&path, limit_bytes).map(Some)
}

fn read_json(folder: &Path, name: &str) -> Result<Option<Value>, FileError> {
    let Some(bytes) = read_optional(folder, name, limits::MAX_CONFIG_BYTES)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| json_error(&folder.join(name), &bytes, &e))
}

fn json_error(path: &Path, bytes: &[u8], e: &serde_json::Error) -> FileError {
    let offset = json_offset(bytes, e) as u64;
    let field = format!("line {} column {}", e.line(), e.column());
    FileError::Malformed { format: "JSON", field, offset, why: clip(&e.to_string()) }.in_file(path)
}

fn template_of(value: &Value) -> Option<String> {
    let template = value.get("chat_template").unwrap_or(value);
    let named = |entry: &&Value| entry.get("name").and_then(Value::as_str) == Some("default");
    let text = match template {
        Value::Array(entries) => entries.iter().find(named).or(entries.first())?.get("template")?,
        other => other,
    };
    text.as_str().map(str::to_owned)
}

fn folder_error(path: &Path, why: String) -> FileError {
    FileError::Folder { path: path.to_owned(), why }
}

/// Names of the files in a folder, sorted.
pub(crate) fn file_names(folder: &Path) -> Result<Vec<String>, FileError> {
    let entries = std::fs::read_dir(folder).map_err(|e| FileError::io("list", folder, e))?;
    let mut names = Vec::new();
    for entry in entries.take(limits::MAX_FOLDER_ENTRIES) {
        let entry = entry.map_err(|e| FileError::io("list", folder, e))?;
        if entry.path().is_file() {
            names.extend(entry.file_name().into_string());
        }
    }
    names.sort();
    Ok(names)
}
