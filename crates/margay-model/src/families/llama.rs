//! LLaMA 2 and 3 and their like (MobileLLaMA, Vicuna, TinyLlama, Mixtral): text only.

use super::{Family, Published, text_only};
use crate::{PromptStyle, decoder};

pub(super) const LLAMA: Family = Family {
    id: "llama",
    summary: "LLaMA 2 and 3, Vicuna, TinyLlama, MobileLLaMA, Mixtral: text",
    hf: &["llama", "mixtral"],
    gguf: &[("llama", None)],
    prompt: PromptStyle::new("plain", &[]),
    vision: None,
    verified: "transformers LlamaForCausalLM, MixtralForCausalLM",
    published: &[
        Published::text("TinyLlama 1.1B", "LLaMA"),
        Published::text("LLaMA 3.2 1B, 3B", "LLaMA 3"),
        Published::text("MobileLLaMA 1.4B, 2.7B", "LLaMA"),
        Published::text("Vicuna-v1.5 7B", "LLaMA 2"),
        Published::text("LLaMA 2 7B", "LLaMA 2"),
        Published::text("LLaMA 3 8B", "LLaMA 3"),
        Published::text("Mixtral 8x7B", "Mixtral, 2 of 8 experts"),
    ],
    read_hf: |config, _| text_only(&LLAMA, config),
    rename: |config, name| decoder::rename(&config.text, name),
};
