//! Phi-1.5 and Phi-2: text only.

use super::{Family, text_only};
use crate::{PromptStyle, decoder};

pub(super) const PHI: Family = Family {
    id: "phi",
    summary: "Phi-1.5 and Phi-2: text",
    hf: &["phi", "phi-msft"],
    gguf: &[("phi2", None)],
    prompt: PromptStyle { template: "plain", image_mark: "<image>", stops: &[] },
    image: None,
    verified: "transformers PhiForCausalLM",
    read_hf: |config, _| text_only(&PHI, config),
    rename: |config, name| decoder::rename(&config.text, name),
};
