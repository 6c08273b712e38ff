//! Gemma 2B and 7B: text only.

use super::{Family, text_only};
use crate::{PromptStyle, decoder};

pub(super) const GEMMA: Family = Family {
    id: "gemma",
    summary: "Gemma 2B and 7B: text",
    hf: &["gemma"],
    gguf: &[("gemma", None)],
    prompt: PromptStyle { template: "gemma", image_mark: "<image>", stops: &[] },
    image: None,
    verified: "transformers GemmaForCausalLM",
    read_hf: |config, _| text_only(&GEMMA, config),
    rename: |config, name| decoder::rename(&config.text, name),
};
