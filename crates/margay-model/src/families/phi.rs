//! Phi-1.5 and Phi-2: text only.

use super::{Family, Published};
use crate::{ModelConfig, PromptStyle, decoder, hf::phi_text};

pub(super) const PHI: Family = Family {
    id: "phi",
    summary: "Phi-1.5 and Phi-2: text",
    hf: &["phi"],
    gguf: &[("phi2", None)],
    prompt: PromptStyle { template: "plain", image_mark: "<image>", stops: &[] },
    vision: None,
    verified: "transformers PhiForCausalLM",
    published: &[Published::text("Phi-1.5 1.3B", "Phi"), Published::text("Phi-2 2.7B", "Phi")],
    read_hf: |config, _| {
        Ok(ModelConfig {
            family: PHI.id,
            name: config.str("_name_or_path").filter(|n| !n.is_empty()).unwrap_or("phi").to_owned(),
            text: phi_text(config)?,
            vision: None,
            prompt: PHI.prompt,
        })
    },
    rename: |config, name| decoder::rename(&config.text, name),
};
