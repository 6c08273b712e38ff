//! safetensors: a JSON head and the bytes of named tensors. Source of the layout: the `safetensors` repository's README.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt::{self, Write as _},
    ops::Range,
    path::Path,
    sync::Arc,
};

use margay_tensor::{DType, Shape, Storage, Tensor};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{
    FileError, TensorInfo, TensorSource,
    atomic::AtomicFile,
    cursor::Cursor,
    error::{Quoted, clip, shown_shape},
    gguf::first_duplicate,
    limits, map_file,
};

/// The name of this format in messages.
const FORMAT: &str = "safetensors";

/// Key of the texts beside the tensors.
const METADATA_KEY: &str = "__metadata__";

/// Bytes of the number before the head.
const LENGTH_BYTES: usize = 8;

/// The head is padded with spaces so that the data starts at a multiple of this; a mapped file's numbers are then
/// aligned for vector registers. The format itself asks for nothing.
const DATA_ALIGNMENT: usize = 64;

const TYPES: &[(&str, DType)] = &[
    ("F64", DType::F64),
    ("F32", DType::F32),
    ("F16", DType::F16),
    ("BF16", DType::BF16),
    ("I64", DType::I64),
    ("I32", DType::I32),
    ("I16", DType::I16),
    ("I8", DType::I8),
    ("U8", DType::U8),
    ("BOOL", DType::Bool),
];

/// An open safetensors file. Its tensors are views into the file; cloning copies nothing.
#[derive(Clone, Debug)]
pub struct SafeTensors {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    bytes: Storage,
    metadata: BTreeMap<String, String>,
    tensors: Vec<Entry>,
    /// Places in `tensors`, sorted by name.
    by_name: Vec<u32>,
}

#[derive(Debug)]
struct Entry {
    name: Box<str>,
    info: TensorInfo,
    /// Where its bytes lie in the file.
    range: Range<usize>,
    /// Where it is described in the file.
    described_at: usize,
}

impl SafeTensors {
    /// Maps and checks a file.
    ///
    /// # Errors
    /// [`FileError`] where it cannot be opened or breaks the format.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FileError> {
        let path = path.as_ref();
        Self::from_bytes(map_file(path)?).map_err(|e| e.in_file(path))
    }

    /// Checks a file that is in memory already.
    ///
    /// # Errors
    /// [`FileError`] where the bytes break the format.
    pub fn from_bytes(bytes: Storage) -> Result<Self, FileError> {
        Ok(SafeTensors { inner: Arc::new(read(bytes)?) })
    }

    /// Texts beside the tensors (`__metadata__`).
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.inner.metadata
    }

    /// Tensors in the order of the head.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, &TensorInfo)> {
        self.inner.tensors.iter().map(|entry| (&*entry.name, &entry.info))
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> &Storage {
        &self.inner.bytes
    }

    /// Bytes before the first tensor's data.
    pub(crate) fn head_bytes(&self) -> usize {
        let starts = self.inner.tensors.iter().map(|entry| entry.range.start);
        starts.min().unwrap_or(self.inner.bytes.len())
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        let Inner { tensors, by_name, .. } = &*self.inner;
        let at = by_name.binary_search_by(|&i| (*tensors[i as usize].name).cmp(name)).ok()?;
        Some(&tensors[by_name[at] as usize])
    }
}

impl TensorSource for SafeTensors {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.tensors().map(|(name, _)| name))
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.entry(name).map(|entry| entry.info.clone())
    }

    fn tensor(&self, name: &str) -> Result<Tensor, FileError> {
        let entry = self.entry(name).ok_or_else(|| FileError::missing_tensor(name))?;
        let bytes =
            self.inner.bytes.slice(entry.range.clone()).expect("invariant: ranges were checked on opening");
        Tensor::new(entry.info.dtype, entry.info.shape.clone(), bytes).map_err(|e| FileError::tensor(name, e))
    }
}

fn read(bytes: Storage) -> Result<Inner, FileError> {
    let mut cursor = Cursor::new(FORMAT, bytes.as_bytes());
    let length = cursor.u64(format_args!("header length"))?;
    if length > cursor.remaining() {
        let why = format!("is {length} bytes, the file has {} left", cursor.remaining());
        return Err(cursor.malformed(0, "header length", why));
    }
    if length > limits::MAX_SAFETENSORS_HEADER_BYTES {
        let why = format!("is {length} bytes, the limit is {}", limits::MAX_SAFETENSORS_HEADER_BYTES);
        return Err(cursor.malformed(0, "header length", why));
    }
    let text = cursor.take(length, format_args!("header"))?;
    let mut head = Head {
        cursor: &cursor,
        text,
        file_len: bytes.len(),
        metadata: BTreeMap::new(),
        tensors: Vec::new(),
        error: None,
    };
    head.read()?;
    let Head { metadata, tensors, .. } = head;
    check_coverage(&cursor, bytes.len(), &tensors)?;
    let by_name = sort_by_name(&cursor, &tensors)?;
    Ok(Inner { metadata, tensors, by_name, bytes })
}

/// Reads the JSON head in one pass without building a document, so that what it takes is bounded by what it says.
struct Head<'a> {
    cursor: &'a Cursor<'a>,
    text: &'a [u8],
    file_len: usize,
    metadata: BTreeMap<String, String>,
    tensors: Vec<Entry>,
    /// Our own error, kept while serde_json's passes by.
    error: Option<FileError>,
}

/// What the head says of one tensor.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Description<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Dims,
    data_offsets: [u64; 2],
}

impl<'a> Head<'a> {
    fn read(&mut self) -> Result<(), FileError> {
        self.check_nesting()?;
        let mut parser = serde_json::Deserializer::from_slice(self.text);
        let parsed = HeadSeed(self).deserialize(&mut parser).and_then(|()| parser.end());
        match (self.error.take(), parsed) {
            (Some(error), _) => Err(error),
            (None, Err(e)) => Err(self.broken_json(0, "header", &e)),
            (None, Ok(())) => Ok(()),
        }
    }

    /// The parser remembers each open bracket: what it takes must not depend on what the file says.
    fn check_nesting(&self) -> Result<(), FileError> {
        let (mut depth, mut in_text, mut escaped) = (0usize, false, false);
        for (i, &byte) in self.text.iter().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_text => escaped = true,
                b'"' => in_text = !in_text,
                b'{' | b'[' if !in_text => depth += 1,
                b'}' | b']' if !in_text => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth > limits::MAX_SAFETENSORS_NESTING {
                let why = format!("is nested deeper than {}", limits::MAX_SAFETENSORS_NESTING);
                return Err(self.cursor.malformed(LENGTH_BYTES + i, "header", why));
            }
        }
        Ok(())
    }

    fn broken_json(&self, base: usize, field: impl fmt::Display, e: &serde_json::Error) -> FileError {
        let at = base + json_offset(&self.text[base..], e);
        self.cursor.malformed(
            LENGTH_BYTES + at,
            field,
            format_args!("is not the JSON of this format: {}", clip(&e.to_string())),
        )
    }

    fn add(&mut self, name: &str, raw: &'a RawValue) -> Result<(), FileError> {
        // Where the value starts in the head: `raw` borrows from it.
        let base =
            (raw.get().as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize).min(self.text.len());
        let broken = |what: &str, why: &dyn fmt::Display| {
            self.cursor.malformed(LENGTH_BYTES + base, format_args!("{what} of {}", Quoted(name)), why)
        };
        if name == METADATA_KEY {
            let texts: Texts =
                serde_json::from_str(raw.get()).map_err(|e| self.broken_json(base, METADATA_KEY, &e))?;
            self.metadata = texts.0;
            return Ok(());
        }
        if self.tensors.len() as u64 == limits::MAX_TENSORS {
            return Err(broken(
                "description",
                &format_args!("is one more than the limit of {} tensors", limits::MAX_TENSORS),
            ));
        }
        let description: Description<'_> = serde_json::from_str(raw.get())
            .map_err(|e| self.broken_json(base, format_args!("description of {}", Quoted(name)), &e))?;
        let Some(&(_, dtype)) = TYPES.iter().find(|row| row.0 == description.dtype) else {
            let known: Vec<_> = TYPES.iter().map(|row| row.0).collect();
            return Err(FileError::Unsupported {
                format: FORMAT,
                field: format!("dtype of {}", Quoted(name)),
                offset: (LENGTH_BYTES + base) as u64,
                why: format!("is {}; supported are {}", Quoted(&description.dtype), known.join(", ")),
            });
        };
        let info = TensorInfo { dtype, shape: Shape::from(description.shape.0) };
        let size = info.size_bytes().map_err(|e| broken("shape", &e))?;
        let [begin, end] = description.data_offsets;
        let claimed = end.checked_sub(begin);
        if claimed != Some(size as u64) {
            let shape = shown_shape(&info.shape);
            let why = format!("are [{begin}, {end}]; {dtype} {shape} takes {size} bytes");
            return Err(broken("data_offsets", &why));
        }
        let data_start = LENGTH_BYTES + self.text.len();
        let data_len = (self.file_len - data_start) as u64;
        if end > data_len {
            let why = format!("are [{begin}, {end}], the file has {data_len} bytes of data (is it cut off?)");
            return Err(broken("data_offsets", &why));
        }
        // Both are at most the length of a slice, hence fit usize.
        let range = data_start + begin as usize..data_start + end as usize;
        self.tensors.push(Entry { name: name.into(), info, range, described_at: LENGTH_BYTES + base });
        Ok(())
    }
}

struct HeadSeed<'h, 'a>(&'h mut Head<'a>);

impl<'a> DeserializeSeed<'a> for HeadSeed<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for HeadSeed<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensor descriptions")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(name) = map.next_key::<Cow<'a, str>>()? {
            let raw: &'a RawValue = map.next_value()?;
            if let Err(error) = self.0.add(&name, raw) {
                self.0.error = Some(error);
                return Err(M::Error::custom("see Head::error"));
            }
        }
        Ok(())
    }
}

/// Sizes of a tensor, no more than [`limits::MAX_SAFETENSORS_DIMS`].
struct Dims(Vec<usize>);

impl<'de> Deserialize<'de> for Dims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sizes;
        impl<'de> Visitor<'de> for Sizes {
            type Value = Dims;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a shape of at most {} sizes", limits::MAX_SAFETENSORS_DIMS)
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Dims, S::Error> {
                let mut dims = Vec::new();
                while let Some(dim) = seq.next_element()? {
                    if dims.len() == limits::MAX_SAFETENSORS_DIMS {
                        return Err(S::Error::invalid_length(dims.len() + 1, &self));
                    }
                    dims.push(dim);
                }
                Ok(Dims(dims))
            }
        }
        deserializer.deserialize_seq(Sizes)
    }
}

/// Texts by name, no more than [`limits::MAX_METADATA_ENTRIES`].
struct Texts(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an object of at most {} texts", limits::MAX_METADATA_ENTRIES)
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Texts, M::Error> {
                let mut texts = BTreeMap::new();
                while let Some((key, value)) = map.next_entry()? {
                    if texts.len() as u64 == limits::MAX_METADATA_ENTRIES {
                        return Err(M::Error::invalid_length(texts.len() + 1, &self));
                    }
                    texts.insert(key, value);
                }
                Ok(Texts(texts))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// Bytes from the start of `text` to the last one that serde_json looked at.
pub(crate) fn json_offset(text: &[u8], e: &serde_json::Error) -> usize {
    let line_start = match e.line() {
        0 | 1 => 0,
        line => text.iter().enumerate().filter(|&(_, &b)| b == b'\n').nth(line - 2).map_or(0, |(i, _)| i + 1),
    };
    (line_start + e.column().saturating_sub(1)).min(text.len())
}

/// The data is used up by the tensors, without holes or overlaps: the format asks for it, and it leaves no room for
/// bytes that nobody looks at.
fn check_coverage(cursor: &Cursor<'_>, file_len: usize, tensors: &[Entry]) -> Result<(), FileError> {
    let mut order: Vec<u32> = (0..tensors.len() as u32).collect();
    order.sort_unstable_by_key(|&i| (tensors[i as usize].range.start, tensors[i as usize].range.end));
    let mut end = cursor.at();
    for &i in &order {
        let entry = &tensors[i as usize];
        if entry.range.start != end {
            let what =
                if entry.range.start < end { "overlap the tensor before" } else { "leave a hole before" };
            let (begin, expected) = (entry.range.start - cursor.at(), end - cursor.at());
            let why = format!("start at {begin} and {what}: expected {expected}");
            return Err(cursor.malformed(
                entry.described_at,
                format_args!("data_offsets of {}", Quoted(&entry.name)),
                why,
            ));
        }
        end = entry.range.end;
    }
    if end != file_len {
        return Err(cursor.malformed(
            end,
            "data",
            format_args!("has {} bytes that belong to no tensor", file_len - end),
        ));
    }
    Ok(())
}

fn sort_by_name(cursor: &Cursor<'_>, tensors: &[Entry]) -> Result<Vec<u32>, FileError> {
    let name = |i: u32| &*tensors[i as usize].name;
    let mut order: Vec<u32> = (0..tensors.len() as u32).collect();
    order.sort_unstable_by_key(|&i| (name(i), i));
    for pair in order.windows(2) {
        if name(pair[0]) == name(pair[1]) {
            let at = tensors[pair[1] as usize].described_at;
            return Err(cursor.malformed(at, format_args!("name {}", Quoted(name(pair[0]))), "occurs twice"));
        }
    }
    Ok(order)
}

/// Writes tensors and texts to a file, which appears whole or not at all. Wider types come first, so that each
/// tensor's numbers are aligned; within a type the order given is kept.
///
/// # Errors
/// [`FileError::TypeNotInFormat`] for block types, [`FileError::NotWritable`] for a name that occurs twice,
/// [`FileError::Io`] where the disk refuses.
pub fn write_safetensors(
    path: impl AsRef<Path>,
    tensors: &[(&str, &Tensor)],
    metadata: &BTreeMap<String, String>,
) -> Result<(), FileError> {
    let (head, order) = layout(tensors, metadata)?;
    let mut file = AtomicFile::create(path.as_ref())?;
    file.write(&head)?;
    for tensor in order {
        file.write(tensor.bytes())?;
    }
    file.commit()
}

/// The same file in memory.
///
/// # Errors
/// As [`write_safetensors`], but for the disk.
pub fn to_bytes(
    tensors: &[(&str, &Tensor)],
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, FileError> {
    let (mut out, order) = layout(tensors, metadata)?;
    for tensor in order {
        out.extend_from_slice(tensor.bytes());
    }
    Ok(out)
}

/// The head, and the tensors in the order of their data.
fn layout<'t>(
    tensors: &[(&str, &'t Tensor)],
    metadata: &BTreeMap<String, String>,
) -> Result<(Vec<u8>, Vec<&'t Tensor>), FileError> {
    let names = tensors.iter().map(|(name, _)| *name);
    if let Some(name) = first_duplicate(names.chain([METADATA_KEY])) {
        let why = "its name occurs twice or is reserved".to_owned();
        return Err(FileError::NotWritable { what: format!("tensor {}", Quoted(name)), why });
    }
    let mut order = tensors.to_vec();
    order.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype().block_bytes()));
    let mut text = String::from("{");
    if !metadata.is_empty() {
        let texts = serde_json::json!(metadata);
        let _ = write!(text, "\"{METADATA_KEY}\":{texts}{}", if tensors.is_empty() { "" } else { "," });
    }
    let mut begin = 0;
    for (i, (name, tensor)) in order.iter().enumerate() {
        let dtype = TYPES.iter().find(|row| row.1 == tensor.dtype()).map(|row| row.0);
        let dtype = dtype.ok_or_else(|| FileError::TypeNotInFormat {
            name: clip(name),
            format: FORMAT,
            dtype: tensor.dtype(),
        })?;
        let end = begin + tensor.bytes().len();
        let (comma, name, shape) =
            (if i == 0 { "" } else { "," }, serde_json::json!(name), tensor.shape().dims());
        let _ = write!(
            text,
            "{comma}{name}:{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{begin},{end}]}}"
        );
        begin = end;
    }
    text.push('}');
    let padded = (LENGTH_BYTES + text.len()).next_multiple_of(DATA_ALIGNMENT);
    let mut head = ((padded - LENGTH_BYTES) as u64).to_le_bytes().to_vec();
    head.extend(text.bytes());
    head.resize(padded, b' ');
    Ok((head, order.into_iter().map(|(_, tensor)| tensor).collect()))
}
