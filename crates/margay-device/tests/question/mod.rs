//! A question to a published shape, as the tests of this crate ask it.

use margay_device::{Programs, Query, Workload};
use margay_graph::{Program, WeightSpec};
use margay_model::ModelConfig;
use margay_tensor::DType;

/// Tokens of a question and its answer.
#[derive(Clone, Copy)]
pub(crate) struct Tokens {
    pub prefix: usize,
    pub prompt: usize,
    pub answer: usize,
}

/// The model of a shape that sees.
pub(crate) fn seeing(shape: &str) -> ModelConfig {
    let config = margay_model::shapes::shape(shape).unwrap().config().unwrap();
    assert!(config.vision.is_some(), "{shape}");
    config
}

/// What a question about one picture of the tower's own size costs; `element` is bytes of a number of the cache.
pub(crate) fn workload(
    name: &str,
    config: &ModelConfig,
    tokens: Tokens,
    format: &dyn Fn(&Program, &WeightSpec) -> DType,
    element: f64,
) -> Workload {
    let programs = config.programs().unwrap();
    let vision = config.vision.as_ref().unwrap();
    let (width, height) = vision.image.size;
    let query = Query {
        picture: vision.sizes(width, height).unwrap(),
        tiles: 1,
        projections: 1,
        visual_tokens: vision.tile_tokens(),
        prefix_tokens: tokens.prefix,
        prompt_tokens: tokens.prompt,
        answer_tokens: tokens.answer,
    };
    let parts = [programs.encode.as_ref().unwrap(), programs.project.as_ref().unwrap()];
    let programs = Programs { vision: Some(parts), text: &programs.text };
    Workload::count(name, programs, format, element, query).unwrap()
}
