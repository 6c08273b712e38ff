//! MobileVLM V1 (LDP) and V2 (LDPv2): CLIP ViT-L/14-336, a projector that quarters the visual tokens, MobileLLaMA.
//! Source: Meituan-AutoML/MobileVLM.

use super::{Family, LLAVA_VISION, Published, llava, rename_vlm};

pub(super) const MOBILEVLM: Family = Family {
    id: "mobilevlm",
    summary: "MobileVLM V1 and V2: CLIP ViT-L/14-336 + LDP or LDPv2 + MobileLLaMA, 144 visual tokens; margay-nano",
    hf: &["mobilevlm"],
    gguf: &[("llama", Some("ldp")), ("llama", Some("ldpv2"))],
    prompt: llava::VICUNA,
    vision: Some(LLAVA_VISION),
    verified: "transformers CLIP and LLaMA; PyTorch modules of the LDP and LDPv2 projectors",
    published: &[
        Published {
            name: "MobileVLM 1.7B",
            vision: "CLIP ViT-L/14-336",
            projector: "LDP",
            decoder: "MobileLLaMA 1.4B",
            picture_tokens: "144",
        },
        Published {
            name: "MobileVLM 3B",
            vision: "CLIP ViT-L/14-336",
            projector: "LDP",
            decoder: "MobileLLaMA 2.7B",
            picture_tokens: "144",
        },
        Published {
            name: "MobileVLM V2 1.7B",
            vision: "CLIP ViT-L/14-336",
            projector: "LDPv2",
            decoder: "MobileLLaMA 1.4B",
            picture_tokens: "144",
        },
        Published {
            name: "MobileVLM V2 3B",
            vision: "CLIP ViT-L/14-336",
            projector: "LDPv2",
            decoder: "MobileLLaMA 2.7B",
            picture_tokens: "144",
        },
        Published {
            name: "MobileVLM V2 7B",
            vision: "CLIP ViT-L/14-336",
            projector: "LDPv2",
            decoder: "Vicuna 7B",
            picture_tokens: "144",
        },
    ],
    read_hf: |config, parts| llava::original(MOBILEVLM.id, config, "llama", parts),
    rename: rename_vlm,
};
