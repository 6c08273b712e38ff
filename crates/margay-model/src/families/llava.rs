//! LLaVA-1.5: CLIP ViT-L/14-336, a two-layer MLP, Vicuna. Both namings: the original repository's, which pads pictures
//! to a square, and `llava-hf`, which crops them. Source: haotian-liu/LLaVA; transformers `modeling_llava.py`.

use super::{Family, clip_image, rename_vlm};
use crate::{
    HfConfig, ModelConfig, ModelError, PromptStyle, VisionConfig,
    hf::{clip_l14_336, clip_vit, llama_text},
    projector,
};
use margay_prompt::image::ImageSpec;

pub(super) const LLAVA: Family = Family {
    id: "llava",
    summary: "LLaVA-1.5: CLIP ViT-L/14-336 + MLP + Vicuna, 576 visual tokens",
    hf: &["llava", "llava_llama"],
    gguf: &[("llama", Some("mlp"))],
    prompt: VICUNA,
    image: Some(ImageSpec::llava_pad),
    verified: "transformers LlavaForConditionalGeneration",
    read_hf,
    rename: rename_vlm,
};

/// Source: LLaVA `conversation.py`, `conv_vicuna_v1`.
pub(super) const VICUNA: PromptStyle =
    PromptStyle { template: "vicuna_v1", image_mark: "<image>", stops: &["</s>", "USER:"] };

fn read_hf(config: &HfConfig<'_>, parts: &super::HfParts<'_>) -> Result<ModelConfig, ModelError> {
    let Some(text) = config.object("text_config") else {
        return original(LLAVA.id, config, parts);
    };
    let tower = config.object("vision_config").ok_or_else(|| config.bad("vision_config", "is missing"))?;
    let select = config.get("vision_feature_layer").map_or(Some(-2), |v| v.as_i64());
    let select = select.ok_or_else(|| config.bad("vision_feature_layer", "is no single layer"))?;
    match config.str("vision_feature_select_strategy").unwrap_or("default") {
        "default" => {}
        other => {
            return Err(config.bad("vision_feature_select_strategy", &format!("{other:?} is not supported")));
        }
    }
    match config.str("projector_hidden_act").unwrap_or("gelu") {
        "gelu" => {}
        other => return Err(config.bad("projector_hidden_act", &format!("{other:?} is not supported"))),
    }
    let vit = clip_vit(&tower, select)?;
    let image = clip_image(false, vit.image, parts)?;
    let projector = projector::by_id("mlp").expect("invariant: the MLP is registered");
    Ok(ModelConfig {
        family: LLAVA.id,
        name: "llava".to_owned(),
        text: llama_text(&text)?,
        vision: Some(VisionConfig { vit, projector, image }),
        prompt: LLAVA.prompt,
    })
}

/// The tower that checkpoints mean when they only name it, by the end of its name.
const KNOWN_TOWER: &str = "clip-vit-large-patch14-336";

/// The layout of the original LLaVA repository, which MobileVLM shares: the decoder's fields at the top, the vision
/// side in `mm_*` fields.
pub(super) fn original(
    family: &'static str,
    config: &HfConfig<'_>,
    parts: &super::HfParts<'_>,
) -> Result<ModelConfig, ModelError> {
    let kind = config.str("mm_projector_type").unwrap_or("linear");
    let projector = projector::by_hf(kind).ok_or_else(|| {
        let known: Vec<_> = crate::PROJECTORS.iter().map(|p| p.hf).collect();
        config.bad("mm_projector_type", &format!("{kind:?} is not supported; known are {}", known.join(", ")))
    })?;
    match config.str("mm_vision_select_feature").unwrap_or("patch") {
        "patch" => {}
        other => return Err(config.bad("mm_vision_select_feature", &format!("{other:?} is not supported"))),
    }
    let pad = match config.str("image_aspect_ratio").unwrap_or("square") {
        "pad" => true,
        "square" => false,
        other => {
            let what = format!("{other:?} is not supported; known are pad and square (LLaVA-1.6 cuts tiles)");
            return Err(config.bad("image_aspect_ratio", &what));
        }
    };
    if let Some(other) = config.str("mm_patch_merge_type").filter(|merge| *merge != "flat") {
        return Err(config.bad("mm_patch_merge_type", &format!("{other:?} is not supported")));
    }
    if config.bool("mm_use_im_start_end", false)? {
        return Err(config.bad("mm_use_im_start_end", "marks around the picture are not supported"));
    }
    let named_tower = config.str("mm_vision_tower").unwrap_or(KNOWN_TOWER);
    if config.object("vision_config").is_none() && !named_tower.contains(KNOWN_TOWER) {
        let what = format!("{named_tower:?} is not known; put its own config.json here as vision_config");
        return Err(config.bad("mm_vision_tower", &what));
    }
    let select = config.get("mm_vision_select_layer").map_or(Some(-2), |v| v.as_i64());
    let select = select.ok_or_else(|| config.bad("mm_vision_select_layer", "is no whole number"))?;
    let named = clip_l14_336();
    let tower = match config.object("vision_config") {
        Some(tower) => tower,
        None => HfConfig::new(&named),
    };
    let vit = clip_vit(&tower, select)?;
    let image = clip_image(pad, vit.image, parts)?;
    Ok(ModelConfig {
        family,
        name: config.str("_name_or_path").filter(|n| !n.is_empty()).unwrap_or(family).to_owned(),
        text: llama_text(config)?,
        vision: Some(VisionConfig { vit, projector, image }),
        prompt: VICUNA,
    })
}
