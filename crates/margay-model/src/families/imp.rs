//! Imp-v1.5: SigLIP-so400m/14-384, a two-layer MLP, Phi-2. The layout of its training repository, which is LLaVA's.
//! Source: MILVLG/imp.

use super::{Family, LLAVA_VISION, Published, llava, rename_vlm};
use crate::hf::phi_text;

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
    read_hf: |config, parts| llava::original(IMP.id, config, phi_text(config)?, parts),
    rename: rename_vlm,
};
