//! Writes GGUF files, version 3: the head first, then tensors one at a time.

use std::path::Path;

use margay_tensor::Tensor;

use super::{
    ALIGNMENT_KEY, Array, DEFAULT_ALIGNMENT, MAGIC, Metadata, Value, align_up, first_duplicate,
    types::id_of_dtype,
};
use crate::{
    FileError, TensorInfo,
    atomic::AtomicFile,
    error::{Quoted, clip, shown_shape},
    limits,
};

/// Version that is written.
const VERSION: u32 = 3;

/// What a file will look like: its head, and where each tensor ends.
pub(super) struct Layout {
    /// All bytes before the first tensor, padding included.
    pub(super) header: Vec<u8>,
    /// Where each tensor's padding ends, from the start of the file.
    pub(super) ends: Vec<u64>,
}

impl Layout {
    pub(super) fn new(metadata: &Metadata, tensors: &[(&str, TensorInfo)]) -> Result<Self, FileError> {
        let alignment = alignment_of(metadata)?;
        if let Some(name) = first_duplicate(tensors.iter().map(|(name, _)| *name)) {
            return Err(not_writable(format!("tensor {}", Quoted(name)), "its name occurs twice"));
        }
        if tensors.len() as u64 > limits::MAX_TENSORS || metadata.len() as u64 > limits::MAX_METADATA_ENTRIES
        {
            let why = format!(
                "{} of them are more than this format's reader accepts",
                tensors.len().max(metadata.len())
            );
            return Err(not_writable("tensors and metadata".to_owned(), why));
        }
        let mut header = Vec::new();
        header.extend(MAGIC);
        header.extend(VERSION.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata.iter() {
            push_entry(&mut header, key, value)?;
        }
        let mut sizes = Vec::with_capacity(tensors.len());
        let mut offset = 0;
        for (name, info) in tensors {
            push_description(&mut header, name, info, offset)?;
            let size = info.size_bytes().map_err(|e| FileError::tensor(name, e))? as u64;
            let padded = align_up(size, alignment);
            let next = padded.and_then(|padded| offset.checked_add(padded));
            offset = next
                .ok_or_else(|| not_writable(format!("tensor {}", Quoted(name)), "the file size overflows"))?;
            sizes.push(offset);
        }
        // The head is in memory: its size fits usize with room to spare.
        header.resize(header.len().next_multiple_of(alignment as usize), 0);
        let ends = sizes.into_iter().map(|end| end + header.len() as u64).collect();
        Ok(Layout { header, ends })
    }
}

/// Writes a GGUF file tensor by tensor, and each in as many parts as suit, so that converting a model needs little memory.
///
/// The file appears under its name only by [`GgufWriter::finish`]; before that, or after an error, nothing is left and
/// a former file of that name is as it was.
#[derive(Debug)]
pub struct GgufWriter {
    file: AtomicFile,
    tensors: Vec<(String, TensorInfo)>,
    ends: Vec<u64>,
    next: usize,
    /// Bytes of the next tensor that are written already.
    within: u64,
    /// Where the next tensor begins.
    at: u64,
    /// Where the first one begins.
    start: u64,
}

impl GgufWriter {
    /// Starts a file at `path` which will hold `metadata` and, in this order, tensors of these names, types and shapes.
    ///
    /// # Errors
    /// [`FileError`] where the file cannot be created, or a key, name, type or size does not fit the format.
    pub fn create(
        path: impl AsRef<Path>,
        metadata: &Metadata,
        tensors: &[(String, TensorInfo)],
    ) -> Result<Self, FileError> {
        let infos: Vec<_> = tensors.iter().map(|(name, info)| (name.as_str(), info.clone())).collect();
        let layout = Layout::new(metadata, &infos)?;
        let mut file = AtomicFile::create(path.as_ref())?;
        file.write(&layout.header)?;
        let at = layout.header.len() as u64;
        Ok(GgufWriter {
            file,
            tensors: tensors.to_vec(),
            ends: layout.ends,
            next: 0,
            within: 0,
            at,
            start: at,
        })
    }

    /// As [`GgufWriter::create`], but goes on where a killed process stopped that wrote the same file from the same
    /// `inputs`: the tensors it left are kept as far as their checksums agree, and [`GgufWriter::expected`] is the first
    /// that is missing.
    ///
    /// # Errors
    /// As [`GgufWriter::create`]; [`FileError::Io`] where another process is writing this file.
    pub fn resume(
        path: impl AsRef<Path>,
        metadata: &Metadata,
        tensors: &[(String, TensorInfo)],
        inputs: &str,
    ) -> Result<Self, FileError> {
        let infos: Vec<_> = tensors.iter().map(|(name, info)| (name.as_str(), info.clone())).collect();
        let Layout { header, ends } = Layout::new(metadata, &infos)?;
        let start = header.len() as u64;
        // What is written follows from the head, which names every tensor, type and shape, and from the inputs.
        let key = format!("{start} {:08x} {inputs}", crc32fast::hash(&header));
        let (mut file, marks) = AtomicFile::resume(path.as_ref(), &key)?;
        let expected = std::iter::once(start).chain(ends.iter().copied());
        if marks.len() > ends.len() + 1 || marks.iter().zip(expected).any(|(mark, end)| *mark != end) {
            let why = "what a former conversion left does not fit and is deleted; try again".to_owned();
            return Err(FileError::WriteOrder { name: clip(&path.as_ref().to_string_lossy()), why });
        }
        if marks.is_empty() {
            file.write(&header)?;
            file.mark()?;
        }
        let next = marks.len().saturating_sub(1);
        let at = marks.last().copied().unwrap_or(start);
        Ok(GgufWriter { file, tensors: tensors.to_vec(), ends, next, within: 0, at, start })
    }

    /// Tensors that are written.
    pub fn written(&self) -> usize {
        self.next
    }

    /// Name, type and shape of the tensor to be written next, or `None` after the last.
    pub fn expected(&self) -> Option<(&str, &TensorInfo)> {
        self.tensors.get(self.next).map(|(name, info)| (name.as_str(), info))
    }

    /// Size the finished file will have.
    pub fn size_bytes(&self) -> u64 {
        self.ends.last().copied().unwrap_or(self.at)
    }

    /// Writes the next tensor.
    ///
    /// # Errors
    /// [`FileError::WriteOrder`] where name, type or shape is not what was announced, [`FileError::Io`] where the disk
    /// refuses.
    pub fn write_tensor(&mut self, name: &str, tensor: &Tensor) -> Result<(), FileError> {
        if let Some((wanted, info)) = self.expected()
            && wanted == name
            && *info != TensorInfo::from(tensor)
        {
            let (dtype, shape) = (info.dtype, shown_shape(&info.shape));
            let (got, got_shape) = (tensor.dtype(), shown_shape(tensor.shape()));
            let why = format!("{dtype} {shape} was announced, got {got} {got_shape}");
            return Err(FileError::WriteOrder { name: clip(name), why });
        }
        self.write_bytes(name, tensor.bytes())
    }

    /// Writes more bytes of the next tensor; the last of them end it. So a tensor need never be in memory as a whole.
    ///
    /// # Errors
    /// [`FileError::WriteOrder`] where another tensor was announced or these are more bytes than it has,
    /// [`FileError::Io`] where the disk refuses.
    pub fn write_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), FileError> {
        let unexpected = |why: String| FileError::WriteOrder { name: clip(name), why };
        let (wanted, info) =
            self.expected().ok_or_else(|| unexpected("all announced tensors are written".to_owned()))?;
        if wanted != name {
            return Err(unexpected(format!("{} was announced next", Quoted(wanted))));
        }
        let size = info.size_bytes().map_err(|e| FileError::tensor(name, e))? as u64;
        let within = self.within + bytes.len() as u64;
        if within > size {
            return Err(unexpected(format!("it has {size} bytes, {within} were given")));
        }
        self.file.write(bytes)?;
        self.within = within;
        if within == size {
            let end = self.ends[self.next];
            self.file.write_zeros(end - self.at - size)?;
            self.file.mark()?;
            (self.at, self.next, self.within) = (end, self.next + 1, 0);
        }
        Ok(())
    }

    /// The bytes of a tensor that is written.
    ///
    /// # Errors
    /// [`FileError::WriteOrder`] where it is not, [`FileError::Io`] where the disk refuses.
    pub fn read_back(&mut self, name: &str) -> Result<Vec<u8>, FileError> {
        let at = self.tensors[..self.next].iter().position(|(written, _)| written == name);
        let unwritten = || FileError::WriteOrder { name: clip(name), why: "it is not written".to_owned() };
        let at = at.ok_or_else(unwritten)?;
        let size = self.tensors[at].1.size_bytes().map_err(|e| FileError::tensor(name, e))?;
        let start = match at.checked_sub(1) {
            Some(before) => self.ends[before],
            None => self.start,
        };
        self.file.read_back(start, size)
    }

    /// Puts the file on the disk under its name.
    ///
    /// # Errors
    /// [`FileError::WriteOrder`] where a tensor is missing, [`FileError::Io`] where the disk refuses.
    pub fn finish(self) -> Result<(), FileError> {
        if let Some((name, _)) = self.expected() {
            return Err(FileError::WriteOrder {
                name: clip(name),
                why: "it was announced and not written".to_owned(),
            });
        }
        self.file.commit()
    }
}

/// Writes a whole file of tensors that are at hand.
///
/// # Errors
/// As [`GgufWriter`].
pub fn write_gguf(
    path: impl AsRef<Path>,
    metadata: &Metadata,
    tensors: &[(&str, &Tensor)],
) -> Result<(), FileError> {
    let infos: Vec<_> =
        tensors.iter().map(|(name, tensor)| ((*name).to_owned(), TensorInfo::from(*tensor))).collect();
    let mut writer = GgufWriter::create(path, metadata, &infos)?;
    for (name, tensor) in tensors {
        writer.write_tensor(name, tensor)?;
    }
    writer.finish()
}

fn not_writable(what: String, why: impl Into<String>) -> FileError {
    FileError::NotWritable { what, why: why.into() }
}

fn alignment_of(metadata: &Metadata) -> Result<u32, FileError> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&Value::U32(value)) if value.is_power_of_two() && value <= limits::MAX_ALIGNMENT => Ok(value),
        Some(other) => {
            let why = format!("it is {other}, expected a u32 power of two up to {}", limits::MAX_ALIGNMENT);
            Err(not_writable(format!("key {ALIGNMENT_KEY:?}"), why))
        }
    }
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn push_entry(out: &mut Vec<u8>, key: &str, value: &Value) -> Result<(), FileError> {
    let refuse = |why: String| Err(not_writable(format!("key {}", Quoted(key)), why));
    if key.is_empty() || key.len() as u64 > limits::MAX_KEY_BYTES {
        return refuse(format!("a key has 1 to {} bytes", limits::MAX_KEY_BYTES));
    }
    push_text(out, key);
    out.extend(value.value_type().id().to_le_bytes());
    let start = out.len();
    let limit = push_value(out, value);
    if (out.len() - start) as u64 > limit {
        return refuse(format!("its value takes {} bytes, the limit is {limit}", out.len() - start));
    }
    Ok(())
}

/// Appends the value; gives back the most bytes it may take.
fn push_value(out: &mut Vec<u8>, value: &Value) -> u64 {
    match value {
        Value::U8(v) => out.extend(v.to_le_bytes()),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push((*v).into()),
        Value::String(v) => {
            push_text(out, v);
            return limits::MAX_STRING_BYTES + 8;
        }
        Value::Array(v) => {
            push_array(out, v);
            return limits::MAX_ARRAY_BYTES + 12;
        }
    }
    u64::MAX
}

fn push_array(out: &mut Vec<u8>, array: &Array) {
    out.extend(array.element_type().id().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(items) => out.extend(items),
        Array::I8(items) => out.extend(items.iter().flat_map(|v| v.to_le_bytes())),
        Array::U16(items) => out.extend(items.iter().flat_map(|v| v.to_le_bytes())),
        Array::I16(items) => out.extend(items.iter().flat_map(|v| v.to_le_bytes())),
        Array::U32(items) => out.extend(items.iter().flat_map(|v| v.to_le_bytes())),
        Array::I32(items) => out.extend(items.iter().flat_map(|v| v.to_le_bytes())),
        Array::U64(items) => out.extend(items.iter().flat_map(|v| v.to_le_bytes())),
        Array::I64(items) => out.extend(items.iter().flat_map(|v| v.to_le_bytes())),
        Array::F32(items) => out.extend(items.iter().flat_map(|v| v.to_le_bytes())),
        Array::F64(items) => out.extend(items.iter().flat_map(|v| v.to_le_bytes())),
        Array::Bool(items) => out.extend(items.iter().map(|&v| u8::from(v))),
        Array::String(items) => out.extend(items.encoded()),
    }
}

fn push_description(out: &mut Vec<u8>, name: &str, info: &TensorInfo, offset: u64) -> Result<(), FileError> {
    let refuse = |why: String| Err(not_writable(format!("tensor {}", Quoted(name)), why));
    if name.is_empty() || name.len() as u64 > limits::MAX_TENSOR_NAME_BYTES || name.contains(char::is_control)
    {
        return refuse(format!(
            "a name has 1 to {} bytes, no control characters",
            limits::MAX_TENSOR_NAME_BYTES
        ));
    }
    let dims = info.shape.dims();
    if dims.len() > limits::MAX_GGUF_DIMS as usize || dims.contains(&0) {
        let why = format!(
            "its shape is {}; sizes are at least 1, dimensions at most {}",
            info.shape,
            limits::MAX_GGUF_DIMS
        );
        return refuse(why);
    }
    let id = id_of_dtype(info.dtype).ok_or_else(|| FileError::TypeNotInFormat {
        name: clip(name),
        format: super::FORMAT,
        dtype: info.dtype,
    })?;
    push_text(out, name);
    // A scalar is written as one element: readers expect a dimension.
    let dims = if dims.is_empty() { &[1] } else { dims };
    out.extend((dims.len() as u32).to_le_bytes());
    out.extend(dims.iter().rev().flat_map(|&d| (d as u64).to_le_bytes()));
    out.extend(id.to_le_bytes());
    out.extend(offset.to_le_bytes());
    Ok(())
}
