//! The Gemma decoder: LLaMA's block with wide heads, a tanh GELU in its gate, norms that multiply by `1 + w`, and
//! embeddings that are scaled on their way in but not where they are the head.
//! Weights by the names of `gemma` GGUF files. Source: transformers `modeling_gemma.py`.

use super::{Decoder, llama};
use crate::hf::{TextDefaults, text};
use margay_graph::{Activation, RopeStyle};

pub(crate) const GEMMA: Decoder = Decoder {
    arch: "gemma",
    rope: RopeStyle::Half,
    hf: &["gemma"],
    read_hf: |config| text(config, &GEMMA, &DEFAULTS),
    activation: Activation::GeluTanh,
    scaled_embeddings: true,
    norms_from_one: true,
    experts: false,
    ..llama::LLAMA
};

/// Source: transformers `GemmaConfig`; the first release says "gelu" and means the tanh form.
const DEFAULTS: TextDefaults = TextDefaults {
    activations: &["gelu_pytorch_tanh", "gelu_new", "gelu"],
    vocabulary: 256000,
    width: 3072,
    layers: 28,
    ffn: 24576,
    heads: 16,
    kv_heads: Some(16),
    head_dim: Some(256),
    context: 8192,
    tied: true,
    ..TextDefaults::BASE
};
