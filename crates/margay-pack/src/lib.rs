//! A checkpoint into a model file: read, quantize, write.
//!
//! Tensors are streamed one by one and in pieces, so that memory stays small whatever the model's size; files appear
//! under their names only when they are whole, and a conversion that was killed goes on where it stopped.
#![forbid(unsafe_code)]

mod convert;
mod error;
mod prepack;
mod vocabulary;

pub use convert::{ConvertOptions, ConvertReport, Progress, convert, mmproj_path};
pub use error::PackError;
pub use prepack::{PrepackOutcome, PrepackProgress, Prepacked, prepack, verify_packed};
