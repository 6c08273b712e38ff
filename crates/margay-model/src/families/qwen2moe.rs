//! Qwen1.5-MoE and Qwen2-57B-A14B: text only.

use super::{Family, Published, text_only};
use crate::{PromptStyle, decoder};

pub(super) const QWEN2MOE: Family = Family {
    id: "qwen2moe",
    summary: "Qwen1.5-MoE and Qwen2-57B-A14B: text, a mixture of experts and one that every token passes",
    hf: &["qwen2_moe"],
    gguf: &[("qwen2moe", None)],
    prompt: PromptStyle::new("chatml", &[]),
    vision: None,
    verified: "transformers Qwen2MoeForCausalLM",
    published: &[
        Published::text("Qwen1.5-MoE-A2.7B", "Qwen2, 4 of 60 experts and one shared"),
        Published::text("Qwen2-57B-A14B", "Qwen2, 8 of 64 experts and one shared"),
    ],
    read_hf: |config, _| text_only(&QWEN2MOE, config),
    rename: |config, name| decoder::rename(&config.text, name),
};
