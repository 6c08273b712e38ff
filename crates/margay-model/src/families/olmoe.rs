//! OLMoE: text only.

use super::{Family, Published, text_only};
use crate::{PromptStyle, decoder};

pub(super) const OLMOE: Family = Family {
    id: "olmoe",
    summary: "OLMoE-1B-7B and its like: text, a mixture of experts",
    hf: &["olmoe"],
    gguf: &[("olmoe", None)],
    prompt: PromptStyle::new("plain", &[]),
    vision: None,
    verified: "transformers OlmoeForCausalLM",
    published: &[Published::text("OLMoE-1B-7B", "OLMoE, 8 of 64 experts")],
    read_hf: |config, _| text_only(&OLMOE, config),
    rename: |config, name| decoder::rename(&config.text, name),
};
