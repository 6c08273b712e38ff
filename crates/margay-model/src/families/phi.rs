//! Phi-1.5 and Phi-2: text only.

use super::{Family, Published, text_only};
use crate::{PromptStyle, decoder};

pub(super) const PHI: Family = Family {
    id: "phi",
    summary: "Phi-1.5 and Phi-2: text",
    hf: &["phi", "phi-msft"],
    gguf: &[("phi2", None)],
    prompt: PromptStyle::new("plain", &[]),
    vision: None,
    verified: "transformers PhiForCausalLM",
    published: &[Published::text("Phi-1.5 1.3B", "Phi"), Published::text("Phi-2 2.7B", "Phi")],
    read_hf: |config, _| text_only(&PHI, config),
    rename: |config, name| decoder::rename(&config.text, name),
};
