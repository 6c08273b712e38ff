//! What can be wrong with a file, with the evidence.

use std::{fmt, io, path::Path, path::PathBuf};

use margay_tensor::{DType, Shape, TensorError};

/// Why a model file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: "open", "create", ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something is wrong inside that file.
    #[error("{}: {source}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<FileError>,
    },
    /// The bytes break the rules of their format.
    #[error("broken {format}: {field} at byte {offset}: {why}")]
    Malformed {
        /// Name of the format.
        format: &'static str,
        /// Which field.
        field: String,
        /// Where it starts, in bytes from the start of the file.
        offset: u64,
        /// The rule and the value that breaks it.
        why: String,
    },
    /// The file keeps the rules of its format, and Margay cannot use it.
    #[error("unsupported {format}: {field} at byte {offset}: {why}")]
    Unsupported {
        /// Name of the format.
        format: &'static str,
        /// Which field.
        field: String,
        /// Where it starts, in bytes from the start of the file.
        offset: u64,
        /// What it is and what to do.
        why: String,
    },
    /// A metadata key that is needed is absent.
    #[error("the metadata key {key:?} is missing")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata value has another type than needed.
    #[error("the metadata key {key:?} holds {got}, expected {expected}")]
    WrongType {
        /// The key.
        key: String,
        /// Type that is needed.
        expected: &'static str,
        /// Type and value found.
        got: String,
    },
    /// A metadata number does not fit.
    #[error("the metadata key {key:?} holds {got}, which is no {expected}")]
    OutOfRange {
        /// The key.
        key: String,
        /// Type it has to fit.
        expected: &'static str,
        /// The number.
        got: String,
    },
    /// No tensor of that name.
    #[error("the tensor {name:?} is missing")]
    MissingTensor {
        /// The name.
        name: String,
    },
    /// Type, shape and bytes of a tensor do not agree.
    #[error("tensor {name:?}: {source}")]
    Tensor {
        /// The tensor's name.
        name: String,
        /// What does not agree.
        source: TensorError,
    },
    /// The tensor's type has no place in the format to be written.
    #[error("tensor {name:?}: {format} has no type for {dtype}; convert it to f32 or f16 first")]
    TypeNotInFormat {
        /// The tensor's name.
        name: String,
        /// Name of the format.
        format: &'static str,
        /// Type of the tensor.
        dtype: DType,
    },
    /// A writer was handed what it did not announce.
    #[error("cannot write tensor {name:?}: {why}")]
    WriteOrder {
        /// The tensor's name.
        name: String,
        /// What was expected.
        why: String,
    },
    /// A name, key or value that the format to be written cannot hold.
    #[error("cannot write {what}: {why}")]
    NotWritable {
        /// Which key or tensor.
        what: String,
        /// The rule it breaks.
        why: String,
    },
    /// A file is larger than anything of its kind.
    #[error("{} has {size_bytes} bytes; the limit for such a file is {limit_bytes}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
        /// The limit, from [`crate::limits`].
        limit_bytes: u64,
    },
    /// The path leads to something that is no model.
    #[error("{} is {what}, not a model; {advice}", path.display())]
    NotAModel {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: String,
        /// What to do.
        advice: String,
    },
    /// A folder holds several files that could be meant.
    #[error("{} has several {what}: {}; choose one with {advice}", path.display(), candidates.join(", "))]
    Ambiguous {
        /// The folder.
        path: PathBuf,
        /// What they are.
        what: &'static str,
        /// File names.
        candidates: Vec<String>,
        /// How to choose.
        advice: &'static str,
    },
    /// A folder lacks a file that it should hold, or holds one that it should not.
    #[error("{}: {why}", path.display())]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
}

impl FileError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        FileError::Io { action, path: path.to_owned(), source }
    }

    /// The same error, saying in which file.
    pub(crate) fn in_file(self, path: &Path) -> Self {
        match self {
            FileError::Io { .. } | FileError::InFile { .. } | FileError::TooLarge { .. } => self,
            source => FileError::InFile { path: path.to_owned(), source: Box::new(source) },
        }
    }

    /// The innermost error, without the file it is in.
    pub fn cause(&self) -> &FileError {
        match self {
            FileError::InFile { source, .. } => source.cause(),
            other => other,
        }
    }

    pub(crate) fn tensor(name: &str, source: TensorError) -> Self {
        FileError::Tensor { name: clip(name), source }
    }

    pub(crate) fn missing_tensor(name: &str) -> Self {
        FileError::MissingTensor { name: clip(name) }
    }
}

/// Characters of a name that an error message repeats. Hostile names may be long.
const SHOWN_CHARS: usize = 80;

/// `text`, cut to what a message should hold.
pub(crate) fn clip(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

/// Shows a name in quotes, escaped and cut to what a message should hold.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", clip(self.0))
    }
}

/// Shape as a message shows it, cut like names are.
pub(crate) fn shown_shape(shape: &Shape) -> String {
    clip(&shape.to_string())
}
