//! Imp-v1.5: SigLIP-so400m/14-384, a two-layer MLP, Phi-2. The layout of its training repository, which is LLaVA's.
//! Source: MILVLG/imp.

use super::{Family, authors_image, llava, rename_vlm};

pub(super) const IMP: Family = Family {
    id: "imp",
    summary: "Imp-v1.5 and its like: SigLIP-so400m/14-384 + MLP + Phi-2, 729 visual tokens",
    hf: &["imp"],
    gguf: &[("phi2", Some("mlp"))],
    prompt: llava::VICUNA,
    image: Some(authors_image),
    verified: "transformers SiglipVisionModel and PhiForCausalLM",
    read_hf: |config, parts| llava::original(IMP.id, config, "phi", parts),
    rename: rename_vlm,
};
