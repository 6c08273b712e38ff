//! The OLMoE decoder: LLaMA's block with experts throughout, norms on whole queries and keys, rotary pairs half a head apart.
//! Weights by the names of `olmoe` GGUF files. Source: transformers `modeling_olmoe.py`.

use super::{Decoder, QkNorms, llama};
use crate::{
    HfConfig, Mixture, ModelError, TextConfig,
    hf::{TextDefaults, text},
};
use margay_graph::RopeStyle;

pub(crate) const OLMOE: Decoder = Decoder {
    arch: "olmoe",
    rope: RopeStyle::Half,
    hf: &["olmoe"],
    read_hf,
    qk_norms: QkNorms::Whole,
    shares_add_up: false,
    ..llama::LLAMA
};

/// Source: transformers `OlmoeConfig`.
const DEFAULTS: TextDefaults = TextDefaults {
    vocabulary: 50304,
    width: 2048,
    layers: 16,
    ffn: 2048,
    heads: 16,
    norm_eps: 1e-5,
    context: 4096,
    experts: Some(Mixture { experts: 64, used: 8, ffn: 0, shared: None }),
    ..TextDefaults::BASE
};

fn read_hf(config: &HfConfig<'_>) -> Result<TextConfig, ModelError> {
    if config.get("clip_qkv").is_some() {
        return Err(config.bad("clip_qkv", "bounds on queries, keys and values are not supported"));
    }
    // GGUF files do not say it, and their readers take it for granted.
    if config.bool("norm_topk_prob", false)? {
        return Err(config.bad("norm_topk_prob", "shares that add up to 1 are not supported"));
    }
    text(config, &OLMOE, &DEFAULTS)
}
