//! LLaMA 2 and 3 and their like (MobileLLaMA, Vicuna, TinyLlama, Mixtral): text only.

use super::{Family, text_only};
use crate::{PromptStyle, decoder};

pub(super) const LLAMA: Family = Family {
    id: "llama",
    summary: "LLaMA 2 and 3, Vicuna, TinyLlama, MobileLLaMA, Mixtral: text",
    hf: &["llama", "mixtral"],
    gguf: &[("llama", None)],
    prompt: PromptStyle { template: "plain", image_mark: "<image>", stops: &[] },
    image: None,
    verified: "transformers LlamaForCausalLM, MixtralForCausalLM",
    read_hf: |config, _| text_only(&LLAMA, config),
    rename: |config, name| decoder::rename(&config.text, name),
};
