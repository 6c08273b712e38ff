//! Model families: what a model is, said once.
//!
//! A [`Family`] reads a configuration (a Hugging Face `config.json` or GGUF metadata) into a [`ModelConfig`], says how
//! checkpoints name their weights, and describes the model as [`ModelPrograms`]. It never computes, and knows no
//! backend and no block format. Adding a family is one file in `families/` and one line in [`FAMILIES`].
#![forbid(unsafe_code)]

mod branches;
mod config;
mod decoder;
mod error;
mod families;
pub mod gguf;
mod hf;
mod outlier;
mod projector;
#[cfg(test)]
mod renames;
pub mod shapes;
mod vision;
mod weights;

pub use branches::{Branch, BranchPart};
pub use config::{Mixture, ModelConfig, PromptStyle, RopeScaling, TextConfig, VisionConfig};
pub use decoder::{DECODERS, Decoder};
pub use error::ModelError;
pub use families::{
    FAMILIES, Family, GgufPart, GgufParts, HfParts, ModelPrograms, Published, VisionDefaults, family,
    from_gguf, from_hf,
};
pub use hf::HfConfig;
pub use outlier::Outliers;
pub use projector::{PROJECTORS, Projector};
pub use vision::{Extra, Features, Feed, KeptRows, TOWERS, Tower, TowerConfig};
pub use weights::{Canonical, Rename, Transform, rope_factors};
