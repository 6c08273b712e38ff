//! Moondream's decoder: Phi's block, in which the picture and what stands before it see one another. Other runtimes do not
//! know this architecture, and so do not take it for Phi.
//! Weights by the names of `phi2` GGUF files. Source: vikhyat/moondream, `moondream/torch/text.py`, `config.py`. Its rotary
//! embedding turns half-split pairs and writes them side by side, of queries and keys alike, which no product sees.

use super::{Decoder, phi2};
use crate::{
    HfConfig, ModelError, TextConfig,
    hf::{TextDefaults, text},
};
use margay_graph::Mask;

pub(crate) const MOONDREAM: Decoder =
    Decoder { arch: "moondream", hf: &["moondream1"], read_hf, mask: Mask::Prefix, ..phi2::PHI2 };

/// Source: `TextConfig`; half of a head turns (`rot_dim` 32 of 64).
const DEFAULTS: TextDefaults = TextDefaults { norm_eps: 1e-5, rotary: 0.5, ..TextDefaults::BASE };

/// Reads the object `text`.
fn read_hf(config: &HfConfig<'_>) -> Result<TextConfig, ModelError> {
    if config.get("group_size").is_some() {
        return Err(
            config.bad("group_size", "matrices packed in 4 bits are not supported; use the float checkpoint")
        );
    }
    let heads = config.usize("n_heads", 32)?;
    let ours = serde_json::json!({
        "vocab_size": config.usize("vocab_size", 51200)?,
        "hidden_size": config.usize("dim", 2048)?,
        "num_hidden_layers": config.usize("n_layers", 24)?,
        "intermediate_size": config.usize("ff_dim", 8192)?,
        "num_attention_heads": heads,
        // The published 0.5B leaves them out and means as many as heads.
        "num_key_value_heads": config.usize("n_kv_heads", heads)?,
        "max_position_embeddings": config.usize("max_context", 2048)?,
    });
    text(&HfConfig::new(&ours), &MOONDREAM, &DEFAULTS)
}
