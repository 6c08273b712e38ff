//! The Qwen3 decoder with experts in place of its feed-forward layers (Qwen3-30B-A3B).
//! Weights by the names of `qwen3moe` GGUF files. Source: transformers `modeling_qwen3_moe.py`.

use super::{Decoder, qwen3};
use crate::{
    HfConfig, Mixture, ModelError, TextConfig,
    hf::{TextDefaults, experts_throughout, text},
};

pub(crate) const QWEN3MOE: Decoder =
    Decoder { arch: "qwen3moe", hf: &["qwen3_moe"], read_hf, experts: true, ..qwen3::QWEN3 };

/// Source: transformers `Qwen3MoeConfig`.
const DEFAULTS: TextDefaults = TextDefaults {
    vocabulary: 151936,
    width: 2048,
    layers: 24,
    ffn: 6144,
    heads: 32,
    kv_heads: Some(4),
    context: 32768,
    experts: Some(Mixture { experts: 128, used: 8, ffn: 768, shared: None }),
    ..TextDefaults::BASE
};

fn read_hf(config: &HfConfig<'_>) -> Result<TextConfig, ModelError> {
    experts_throughout(config)?;
    // GGUF files do not say it, and their readers take it for granted.
    if !config.bool("norm_topk_prob", false)? {
        return Err(config.bad("norm_topk_prob", "shares that do not add up to 1 are not supported"));
    }
    text(config, &QWEN3MOE, &DEFAULTS)
}
