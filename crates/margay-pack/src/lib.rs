//! A checkpoint into a model file: read, quantize, write.
//!
//! Tensors are streamed one by one, so that memory stays at one tensor whatever the model's size; files appear under
//! their names only when they are whole.
#![forbid(unsafe_code)]

mod convert;
mod error;
mod prepack;
mod vocabulary;

pub use convert::{ConvertOptions, ConvertReport, Progress, convert, mmproj_path};
pub use error::PackError;
pub use prepack::{PrepackOutcome, PrepackProgress, Prepacked, prepack, verify_packed};
