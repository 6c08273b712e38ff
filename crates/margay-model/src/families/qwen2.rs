//! Qwen2 and Qwen2.5: text only.

use super::{Family, Published, text_only};
use crate::{PromptStyle, decoder};

pub(super) const QWEN2: Family = Family {
    id: "qwen2",
    summary: "Qwen2 and Qwen2.5: text",
    hf: &["qwen2"],
    gguf: &[("qwen2", None)],
    prompt: PromptStyle::new("chatml", &[]),
    vision: None,
    verified: "transformers Qwen2ForCausalLM",
    published: &[
        Published::text("Qwen2 0.5B, 1.5B, 7B", "Qwen2"),
        Published::text("Qwen2.5 0.5B, 1.5B, 3B, 7B", "Qwen2"),
    ],
    read_hf: |config, _| text_only(&QWEN2, config),
    rename: |config, name| decoder::rename(&config.text, name),
};
