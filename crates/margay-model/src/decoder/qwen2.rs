//! The Qwen2 decoder: LLaMA's block with biases on queries, keys and values, and rotary pairs half a head apart.
//! Weights by the names of `qwen2` GGUF files. Source: transformers `modeling_qwen2.py`.

use super::{Decoder, llama};
use crate::hf::{TextDefaults, text};
use margay_graph::RopeStyle;

pub(crate) const QWEN2: Decoder = Decoder {
    arch: "qwen2",
    rope: RopeStyle::Half,
    hf: &["qwen2"],
    read_hf: |config| text(config, &QWEN2, &DEFAULTS),
    qkv_biases: true,
    experts: false,
    ..llama::LLAMA
};

/// Source: transformers `Qwen2Config`.
const DEFAULTS: TextDefaults = TextDefaults {
    vocabulary: 151936,
    width: 4096,
    layers: 32,
    ffn: 22016,
    heads: 32,
    kv_heads: Some(32),
    context: 32768,
    ..TextDefaults::BASE
};
