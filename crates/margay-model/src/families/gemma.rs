//! Gemma 2B and 7B: text only.

use super::{Family, Published, text_only};
use crate::{PromptStyle, decoder};

pub(super) const GEMMA: Family = Family {
    id: "gemma",
    summary: "Gemma 2B and 7B: text",
    hf: &["gemma"],
    gguf: &[("gemma", None)],
    prompt: PromptStyle::new("gemma", &[]),
    vision: None,
    verified: "transformers GemmaForCausalLM",
    published: &[Published::text("Gemma 2B, 7B", "Gemma")],
    read_hf: |config, _| text_only(&GEMMA, config),
    rename: |config, name| decoder::rename(&config.text, name),
};
