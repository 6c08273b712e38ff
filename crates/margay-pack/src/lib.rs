//! A checkpoint into a model file: read, calibrate, quantize, write.
//!
//! Tensors are streamed one by one and in pieces, so that memory stays small whatever the model's size; files appear
//! under their names only when they are whole, and a run that was killed goes on where it stopped.
//!
//! A [`Recipe`] says which format each weight takes, a [`Method`] how its values are found, and a [`Calibration`] what its
//! inputs look like.
#![forbid(unsafe_code)]
#![cfg_attr(not(feature = "calibrate"), allow(dead_code, unused_imports, reason = "what only a walk uses"))]

mod auto;
#[cfg(feature = "calibrate")]
mod backward;
#[cfg(feature = "calibrate")]
mod calibrate;
mod calibration;
mod convert;
mod error;
#[cfg(feature = "calibrate")]
mod floor;
#[cfg(feature = "calibrate")]
mod flow;
mod fold;
mod html;
#[cfg(feature = "calibrate")]
mod importance;
mod method;
mod outlier;
mod output;
mod piece;
mod plan;
mod prepack;
mod prune;
mod quantize;
mod questions;
mod random;
mod recipe;
mod report;
#[cfg(feature = "calibrate")]
mod sequential;
mod vocabulary;

pub use auto::{Choice, Sensitivities, Sensitivity, parse_size, sensitivities};
#[cfg(feature = "calibrate")]
pub use calibrate::{CalibrateOptions, calibrate, logits};
pub use calibration::Calibration;
pub use convert::{ConvertOptions, convert};
pub use error::PackError;
#[cfg(feature = "calibrate")]
pub use floor::{Floored, keep_below};
pub use fold::{Fold, Folds, Group, groups};
pub use html::page;
pub use method::Method;
pub use output::mmproj_path;
pub use prepack::{PrepackOutcome, PrepackProgress, Prepacked, prepack, verify_packed};
pub use prune::{
    Amount, Kept, Parts, PruneMethod, PruneOptions, PruneReport, PruneTarget, PrunedTensor, parse_pattern,
    prune,
};
pub use quantize::{OnProgress, Progress, QuantizeOptions, QuantizeReport, quantize};
pub use questions::{OnStep, Question, WalkProgress, answer, load, prompts};
pub use random::{RandomOptions, random};
pub use recipe::{Place, Recipe};
pub use report::TensorReport;
