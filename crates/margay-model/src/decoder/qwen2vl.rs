//! The decoder of Qwen2-VL and Qwen2.5-VL: Qwen2 whose rotary pairs follow time, row or column of a token.
//! Weights by the names of `qwen2vl` GGUF files. Source: transformers `modeling_qwen2_vl.py`.

use super::{Decoder, qwen2};
use crate::hf::{TextDefaults, text};

pub(crate) const QWEN2VL: Decoder = Decoder {
    arch: "qwen2vl",
    hf: &["qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"],
    read_hf: |config| text(config, &QWEN2VL, &DEFAULTS),
    rope_sections: Some([16, 24, 24]),
    ..qwen2::QWEN2
};

/// Source: transformers `Qwen2VLTextConfig`.
const DEFAULTS: TextDefaults = TextDefaults {
    vocabulary: 152064,
    width: 8192,
    layers: 80,
    ffn: 29568,
    heads: 64,
    kv_heads: Some(8),
    norm_eps: 1e-5,
    context: 32768,
    ..TextDefaults::BASE
};
