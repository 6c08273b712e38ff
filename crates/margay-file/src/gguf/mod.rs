//! GGUF: one file with metadata, a vocabulary and tensors. Versions 2 and 3 are read, version 3 is written.
//! Source of the layout: ggml's `gguf.h`.

mod metadata;
mod reader;
mod types;
mod value;
mod writer;

use std::{collections::HashSet, ops::Range, path::Path, sync::Arc};

use margay_tensor::{Storage, Tensor};

pub use metadata::Metadata;
pub use value::{Array, Strings, Value, ValueType};
pub use writer::{GgufWriter, write_gguf};

use crate::{FileError, TensorInfo, TensorSource, map_file};

/// The name of this format in messages.
pub(crate) const FORMAT: &str = "GGUF";

/// First four bytes of a file.
pub(crate) const MAGIC: [u8; 4] = *b"GGUF";

/// Alignment of tensors in a file that does not say. Source: ggml's `GGUF_DEFAULT_ALIGNMENT`.
pub(crate) const DEFAULT_ALIGNMENT: u32 = 32;

/// Key of the alignment.
pub(crate) const ALIGNMENT_KEY: &str = "general.alignment";

/// An open GGUF file. Its tensors are views into the file; cloning copies nothing.
///
/// ```
/// use margay_file::{Gguf, TensorSource, gguf::{self, Metadata}};
/// use margay_tensor::{Shape, Storage, Tensor};
///
/// let meta = Metadata::from_iter([("general.architecture", "llama")]);
/// let norm = Tensor::from_f32(Shape::from([4]), &[1.0; 4]).unwrap();
/// let bytes = gguf::to_bytes(&meta, &[("output_norm.weight", &norm)]).unwrap();
///
/// let file = Gguf::from_bytes(Storage::from_bytes(&bytes)).unwrap();
/// assert_eq!(file.architecture(), Some("llama"));
/// assert_eq!(file.tensor("output_norm.weight").unwrap().bytes(), norm.bytes());
/// ```
#[derive(Clone, Debug)]
pub struct Gguf {
    inner: Arc<Inner>,
    path: Option<Arc<Path>>,
}

#[derive(Debug)]
struct Inner {
    bytes: Storage,
    version: u32,
    alignment: u32,
    metadata: Metadata,
    tensors: Vec<Entry>,
    /// Places in `tensors`, sorted by name.
    by_name: Vec<u32>,
}

/// One tensor of a file.
#[derive(Debug)]
struct Entry {
    name: Box<str>,
    info: TensorInfo,
    /// Where its bytes lie in the file.
    range: Range<usize>,
}

impl Gguf {
    /// Maps and checks a file.
    ///
    /// # Errors
    /// [`FileError`] where it cannot be opened or breaks the format.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FileError> {
        let path = path.as_ref();
        let file = Self::from_bytes(map_file(path)?).map_err(|e| e.in_file(path))?;
        Ok(Gguf { path: Some(path.into()), ..file })
    }

    /// Checks a file that is in memory already, for instance one that is part of the program.
    ///
    /// # Errors
    /// [`FileError`] where the bytes break the format.
    pub fn from_bytes(bytes: Storage) -> Result<Self, FileError> {
        Ok(Gguf { inner: Arc::new(reader::read(bytes)?), path: None })
    }

    /// Where it was opened; `None` for one that was in memory.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.inner.version
    }

    /// Every tensor starts at a multiple of so many bytes.
    pub fn alignment(&self) -> u32 {
        self.inner.alignment
    }

    /// Size of the whole file.
    pub fn size_bytes(&self) -> usize {
        self.inner.bytes.len()
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> &Storage {
        &self.inner.bytes
    }

    /// Bytes before the first tensor's data.
    pub(crate) fn head_bytes(&self) -> usize {
        let starts = self.inner.tensors.iter().map(|entry| entry.range.start);
        starts.min().unwrap_or(self.size_bytes())
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.inner.metadata
    }

    /// `general.architecture`, where it is there and a text.
    pub fn architecture(&self) -> Option<&str> {
        self.metadata().get("general.architecture")?.as_str()
    }

    /// Tensors in the order of the file.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, &TensorInfo)> {
        self.inner.tensors.iter().map(|entry| (&*entry.name, &entry.info))
    }

    /// True where both are the same open file.
    pub fn is_same(&self, other: &Gguf) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        let Inner { tensors, by_name, .. } = &*self.inner;
        let at = by_name.binary_search_by(|&i| (*tensors[i as usize].name).cmp(name)).ok()?;
        Some(&tensors[by_name[at] as usize])
    }
}

impl TensorSource for Gguf {
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

/// A whole GGUF file in memory. Tensors are written in the order given.
///
/// # Errors
/// [`FileError`] where a key, name or type does not fit the format.
pub fn to_bytes(metadata: &Metadata, tensors: &[(&str, &Tensor)]) -> Result<Vec<u8>, FileError> {
    let infos: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, TensorInfo::from(*tensor))).collect();
    let layout = writer::Layout::new(metadata, &infos)?;
    let mut out = layout.header;
    for ((_, tensor), end) in tensors.iter().zip(layout.ends) {
        out.extend_from_slice(tensor.bytes());
        // The whole file is in memory: its size fits usize.
        out.resize(end as usize, 0);
    }
    Ok(out)
}

/// The first name that occurs twice.
pub(crate) fn first_duplicate<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut seen = HashSet::new();
    names.into_iter().find(|&name| !seen.insert(name))
}

/// `at` rounded up to a multiple of `alignment`, or `None` where that overflows.
pub(crate) fn align_up(at: u64, alignment: u32) -> Option<u64> {
    at.checked_next_multiple_of(alignment.into())
}
