//! LLaMA 2 and 3 and their like (MobileLLaMA, Vicuna, TinyLlama): text only.

use super::{Family, Published};
use crate::{ModelConfig, PromptStyle, decoder, hf::llama_text};

pub(super) const LLAMA: Family = Family {
    id: "llama",
    summary: "LLaMA 2 and 3, Vicuna, TinyLlama, MobileLLaMA: text",
    hf: &["llama"],
    gguf: &[("llama", None)],
    prompt: PromptStyle { template: "plain", image_mark: "<image>", stops: &[] },
    vision: None,
    verified: "transformers LlamaForCausalLM",
    published: &[
        Published::text("TinyLlama 1.1B", "LLaMA"),
        Published::text("LLaMA 3.2 1B, 3B", "LLaMA 3"),
        Published::text("MobileLLaMA 1.4B, 2.7B", "LLaMA"),
        Published::text("Vicuna-v1.5 7B", "LLaMA 2"),
        Published::text("LLaMA 2 7B", "LLaMA 2"),
        Published::text("LLaMA 3 8B", "LLaMA 3"),
    ],
    read_hf: |config, _| {
        Ok(ModelConfig {
            family: LLAMA.id,
            name: config.str("_name_or_path").filter(|n| !n.is_empty()).unwrap_or("llama").to_owned(),
            text: llama_text(config)?,
            vision: None,
            prompt: LLAMA.prompt,
        })
    },
    rename: |config, name| decoder::rename(&config.text, name),
};
