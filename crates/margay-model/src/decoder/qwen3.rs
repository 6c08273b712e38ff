//! The Qwen3 decoder: LLaMA's block with norms on each head of queries and keys, and rotary pairs half a head apart.
//! Weights by the names of `qwen3` GGUF files. Source: transformers `modeling_qwen3.py`.

use super::{Decoder, QkNorms, llama};
use crate::hf::{TextDefaults, text};
use margay_graph::RopeStyle;

pub(crate) const QWEN3: Decoder = Decoder {
    arch: "qwen3",
    rope: RopeStyle::Half,
    hf: &["qwen3"],
    read_hf: |config| text(config, &QWEN3, &DEFAULTS),
    qk_norms: QkNorms::Heads,
    experts: false,
    ..llama::LLAMA
};

/// Source: transformers `Qwen3Config`.
const DEFAULTS: TextDefaults = TextDefaults {
    vocabulary: 151936,
    width: 4096,
    layers: 32,
    ffn: 22016,
    heads: 32,
    kv_heads: Some(32),
    head_dim: Some(128),
    context: 32768,
    ..TextDefaults::BASE
};
