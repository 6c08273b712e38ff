//! Qwen3 with experts: text only.

use super::{Family, Published, text_only};
use crate::{PromptStyle, decoder};

pub(super) const QWEN3MOE: Family = Family {
    id: "qwen3moe",
    summary: "Qwen3-30B-A3B and its like: text, a mixture of experts",
    hf: &["qwen3_moe"],
    gguf: &[("qwen3moe", None)],
    prompt: PromptStyle::new("chatml_bare", &[]),
    vision: None,
    verified: "transformers Qwen3MoeForCausalLM",
    published: &[Published::text("Qwen3-30B-A3B", "Qwen3, 8 of 128 experts")],
    read_hf: |config, _| text_only(&QWEN3MOE, config),
    rename: |config, name| decoder::rename(&config.text, name),
};
