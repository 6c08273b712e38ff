//! Imp-v1.5: SigLIP-so400m/14-384, a two-layer MLP, Phi-2. The layout of its training repository, which is LLaVA's.
//! Source: MILVLG/imp.

use super::{Family, LLAVA_VISION, Published, llava, rename_vlm};
use crate::{ModelConfig, Rename};

pub(super) const IMP: Family = Family {
    id: "imp",
    summary: "Imp-v1.5 and its like: SigLIP-so400m/14-384 + MLP + Phi-2, 729 visual tokens",
    hf: &["imp"],
    gguf: &[("phi2", Some("mlp"))],
    prompt: llava::VICUNA,
    vision: Some(LLAVA_VISION),
    verified: "transformers SiglipVisionModel and PhiForCausalLM",
    published: &[Published {
        name: "Imp-v1.5-3B",
        vision: "SigLIP-so400m/14-384",
        projector: "MLP",
        decoder: "Phi-2",
        picture_tokens: "729",
    }],
    read_hf: |config, parts| llava::original(IMP.id, config, "phi", parts),
    rename,
};

/// The published checkpoints call the whole `transformer`.
fn rename(config: &ModelConfig, name: &str) -> Option<Rename> {
    let inner = name.strip_prefix("transformer.");
    let vision =
        inner.filter(|inner| ["vision_tower.", "mm_projector."].iter().any(|p| inner.starts_with(p)));
    rename_vlm(config, vision.unwrap_or(name))
}
