//! Named shapes: published configurations without their weights, for planning, pricing and timing a model that is not here.
//!
//! A shape is a file `shapes/<name>.json` with the public `config.json` (and `preprocessor_config.json` where the family reads
//! one), read by the family as any checkpoint's is. Fields that no family reads are left out. `source` says where the text is
//! published.
//!
//! ```
//! let shape = margay_model::shapes::shape("llava-1.5-7b").expect("it is listed");
//! let model = shape.config()?;
//! assert_eq!((model.text.layers, model.text.kv_heads, model.text.head_dim), (32, 32, 128));
//! assert_eq!(model.vision.as_ref().map(|vision| vision.tile_tokens()), Some(576));
//! assert!(model.programs()?.encode.is_some());
//! # Ok::<(), margay_model::ModelError>(())
//! ```

use crate::{HfParts, ModelConfig, ModelError, families::NoTensors, from_hf};
use serde::Deserialize;
use serde_json::Value;

/// A published configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Its name, lower case.
    pub name: &'static str,
    text: &'static str,
}

macro_rules! shape {
    ($name:literal) => {
        Shape { name: $name, text: include_str!(concat!("../shapes/", $name, ".json")) }
    };
}

/// All shapes, those with pictures first.
pub const SHAPES: &[Shape] = &[
    shape!("llava-1.5-7b"),
    shape!("mobilevlm-1.7b"),
    shape!("mobilevlm-3b"),
    shape!("mobilevlm-v2-1.7b"),
    shape!("mobilevlm-v2-3b"),
    shape!("imp-v1.5-3b"),
    shape!("tinyllava-3.1b"),
    shape!("smolvlm-256m"),
    shape!("qwen2-vl-2b"),
    shape!("moondream2"),
    shape!("moondream-0.5b"),
    shape!("fastvlm-0.5b"),
    shape!("minicpm-v-2.6"),
    shape!("llama-2-7b"),
    shape!("llama-3-8b"),
    shape!("phi-2"),
    shape!("gemma-2b"),
];

/// The shape of that name.
pub fn shape(name: &str) -> Option<&'static Shape> {
    SHAPES.iter().find(|shape| shape.name == name)
}

/// The model of a `config.json` (and `preprocessor_config.json`) alone.
///
/// # Errors
/// [`ModelError`] where no family reads it, or one refuses a field.
pub fn describe(config: &Value, preprocessor: Option<&Value>) -> Result<ModelConfig, ModelError> {
    let parts = HfParts { preprocessor, tensors: &NoTensors, file: &|_| None };
    from_hf(config, &parts).map(|(_, config)| config)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    source: String,
    config: Value,
    preprocessor_config: Option<Value>,
}

impl Shape {
    /// Where its numbers are published.
    pub fn source(&self) -> String {
        self.file().source
    }

    /// The model it describes.
    ///
    /// # Errors
    /// [`ModelError`] where its family refuses a field.
    pub fn config(&self) -> Result<ModelConfig, ModelError> {
        let file = self.file();
        let config = describe(&file.config, file.preprocessor_config.as_ref())?;
        Ok(ModelConfig { name: self.name.to_owned(), ..config })
    }

    fn file(&self) -> File {
        serde_json::from_str(self.text).expect("invariant: a test reads every shape")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelPrograms;
    use margay_graph::Program;
    use std::collections::BTreeMap;

    /// Parameters of a weight that two programs read count once.
    fn parameters(programs: &ModelPrograms) -> (u64, u64) {
        let of = |programs: &[&Program]| {
            let weights = programs.iter().flat_map(|program| program.weights());
            let sizes: BTreeMap<_, _> =
                weights.map(|w| (w.name.clone(), w.shape.elements().unwrap_or(0) as u64)).collect();
            sizes.values().sum()
        };
        let vision: Vec<_> = programs.encode.iter().chain(&programs.project).collect();
        (of(&vision), of(&[&programs.text]))
    }

    #[test]
    fn the_list_is_the_folder() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("shapes");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .filter_map(|e| Some(e.unwrap().file_name().to_str()?.strip_suffix(".json")?.to_owned()))
            .collect();
        let mut listed: Vec<_> = SHAPES.iter().map(|shape| shape.name.to_owned()).collect();
        files.sort();
        listed.sort();
        assert_eq!(files, listed);
    }

    /// Sizes as the authors publish them, in millions. Source: model cards; LLaMA papers; the tower's part is that which is
    /// run, for LLaVA and its like without the last block.
    #[test]
    fn shapes_have_the_published_numbers_of_parameters() {
        for (name, text) in [
            ("llava-1.5-7b", 6738),
            ("llama-2-7b", 6738),
            ("llama-3-8b", 8030),
            ("mobilevlm-1.7b", 1364),
            ("mobilevlm-v2-3b", 2702),
            ("phi-2", 2780),
            ("gemma-2b", 2506),
            ("qwen2-vl-2b", 1544),
            // SmolLM2 135M with a head of its own, and a vocabulary that is 128 larger.
            ("smolvlm-256m", 135 + 28),
        ] {
            let (_, counted) = parameters(&shape(name).unwrap().config().unwrap().programs().unwrap());
            assert_eq!(counted.div_ceil(500_000) / 2, text, "{name}: {counted}");
        }
    }

    #[test]
    fn every_shape_describes_a_model_and_says_whence() {
        for shape in SHAPES {
            let model = shape.config().unwrap_or_else(|e| panic!("{}: {e}", shape.name));
            let programs = model.programs().unwrap_or_else(|e| panic!("{}: {e}", shape.name));
            assert_eq!(model.name, shape.name);
            assert!(shape.source().contains('/'), "{}: names a repository", shape.name);
            assert_eq!(programs.encode.is_some(), model.vision.is_some(), "{}", shape.name);
            let (vision, text) = parameters(&programs);
            assert!(
                text > 100_000_000 && (vision == 0 || vision > 80_000_000),
                "{}: {vision} {text}",
                shape.name
            );
        }
        assert!(shape("llava-2").is_none());
    }
}
