//! GGUF, safetensors and Hugging Face folders: bytes on disk to named tensors and metadata, and back.
//!
//! [`open_model`] opens whatever a person hands over as a model. [`gguf`] and [`safetensors`] read and write the two
//! formats, [`HfFolder`] a checkpoint folder, [`tokenizer_model`] the vocabulary of SentencePiece. All of them treat
//! their input as hostile: every length, offset, product and type is checked against [`limits`] and against the bytes
//! that are there, and an error names the field and its offset.
#![deny(unsafe_code)]

mod atomic;
mod cursor;
mod error;
pub mod gguf;
mod hf;
pub mod limits;
mod mmap;
mod open;
mod packed;
mod packed4;
pub mod safetensors;
mod source;
pub mod tokenizer_model;

pub use atomic::{is_half_written, write_file};
pub use error::FileError;
pub use gguf::Gguf;
pub use hf::HfFolder;
pub use mmap::{map_file, read_file};
pub use open::{ModelFiles, open_model};
pub use packed::{Origin, PackedFile, PackedWriter, packed_path};
pub use safetensors::SafeTensors;
pub use source::{TensorInfo, TensorSource};
