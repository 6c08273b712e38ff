//! Qwen3: text only.

use super::{Family, Published, text_only};
use crate::{PromptStyle, decoder};

pub(super) const QWEN3: Family = Family {
    id: "qwen3",
    summary: "Qwen3, 0.6B to 32B: text",
    hf: &["qwen3"],
    gguf: &[("qwen3", None)],
    prompt: PromptStyle::new("chatml_bare", &[]),
    vision: None,
    verified: "transformers Qwen3ForCausalLM",
    published: &[Published::text("Qwen3 0.6B, 1.7B, 4B, 8B", "Qwen3")],
    read_hf: |config, _| text_only(&QWEN3, config),
    rename: |config, name| decoder::rename(&config.text, name),
};
