//! MobileVLM V1 (LDP) and V2 (LDPv2): CLIP ViT-L/14-336, a projector that quarters the visual tokens, MobileLLaMA.
//! Source: Meituan-AutoML/MobileVLM.

use super::{Family, authors_image, llava, rename_vlm};

pub(super) const MOBILEVLM: Family = Family {
    id: "mobilevlm",
    summary: "MobileVLM V1 and V2: CLIP ViT-L/14-336 + LDP or LDPv2 + MobileLLaMA, 144 visual tokens; margay-nano",
    hf: &["mobilevlm"],
    gguf: &[("llama", Some("ldp")), ("llama", Some("ldpv2"))],
    prompt: llava::VICUNA,
    image: Some(authors_image),
    verified: "transformers CLIP and LLaMA; PyTorch modules of the LDP and LDPv2 projectors",
    read_hf: |config, parts| llava::original(MOBILEVLM.id, config, "llama", parts),
    rename: rename_vlm,
};
