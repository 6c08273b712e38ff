//! The decoder of Qwen1.5-MoE and Qwen2-57B-A14B: Qwen2 with experts in place of its feed-forward layers, and one more that
//! every token passes.
//! Weights by the names of `qwen2moe` GGUF files. Source: transformers `modeling_qwen2_moe.py`.

use super::{Decoder, qwen2};
use crate::{
    HfConfig, Mixture, ModelError, TextConfig,
    hf::{TextDefaults, experts_throughout, text},
};

pub(crate) const QWEN2MOE: Decoder = Decoder {
    arch: "qwen2moe",
    hf: &["qwen2_moe"],
    read_hf,
    experts: true,
    shares_add_up: false,
    ..qwen2::QWEN2
};

/// Source: transformers `Qwen2MoeConfig`.
const DEFAULTS: TextDefaults = TextDefaults {
    vocabulary: 151936,
    width: 2048,
    layers: 24,
    ffn: 5632,
    heads: 16,
    kv_heads: Some(16),
    context: 32768,
    experts: Some(Mixture { experts: 60, used: 4, ffn: 1408, shared: Some(5632) }),
    ..TextDefaults::BASE
};

fn read_hf(config: &HfConfig<'_>) -> Result<TextConfig, ModelError> {
    experts_throughout(config)?;
    // GGUF files do not say it, and their readers take it for granted.
    if config.bool("norm_topk_prob", false)? {
        return Err(config.bad("norm_topk_prob", "shares that add up to 1 are not supported"));
    }
    if !config.bool("qkv_bias", true)? {
        return Err(config.bad("qkv_bias", "queries, keys and values without biases are not supported"));
    }
    text(config, &QWEN2MOE, &DEFAULTS)
}
