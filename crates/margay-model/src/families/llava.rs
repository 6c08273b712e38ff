//! LLaVA-1.5: CLIP ViT-L/14-336, a two-layer MLP, Vicuna; and its like with a SigLIP tower. Both namings: the original
//! repository's, which pads pictures to a square, and `llava-hf`, which crops them.
//! Source: haotian-liu/LLaVA; transformers `modeling_llava.py`.

use super::{Family, LLAVA_VISION, Published, processor_image, rename_vlm};
use crate::{
    Features, HfConfig, ModelConfig, ModelError, Outliers, PromptStyle, VisionConfig, decoder,
    hf::{clip_l14_336, siglip_so400m_14_384},
    projector, vision,
};
use serde_json::Value;

pub(super) const LLAVA: Family = Family {
    id: "llava",
    summary: "LLaVA-1.5 and its like: CLIP ViT-L/14-336 or SigLIP + MLP + Vicuna, 576 or 729 visual tokens",
    hf: &["llava", "llava_llama", "llava_phi", "llava_gemma"],
    gguf: &[("llama", Some("mlp")), ("phi2", Some("mlp")), ("gemma", Some("mlp"))],
    prompt: VICUNA,
    vision: Some(LLAVA_VISION),
    verified: "transformers LlavaForConditionalGeneration",
    published: &[
        Published {
            name: "LLaVA-1.5 7B",
            vision: "CLIP ViT-L/14-336",
            projector: "MLP",
            decoder: "Vicuna 7B",
            picture_tokens: "576",
        },
        Published {
            name: "LLaVA-1.5 13B",
            vision: "CLIP ViT-L/14-336",
            projector: "MLP",
            decoder: "Vicuna 13B",
            picture_tokens: "576",
        },
    ],
    read_hf,
    rename: rename_vlm,
};

/// Source: LLaVA `conversation.py`, `conv_vicuna_v1`.
pub(super) const VICUNA: PromptStyle = PromptStyle::new("vicuna_v1", &["</s>", "USER:"]);

fn read_hf(config: &HfConfig<'_>, parts: &super::HfParts<'_>) -> Result<ModelConfig, ModelError> {
    let Some(text) = config.object("text_config") else {
        // "llava_phi" is LLaVA with the decoder of "phi".
        let decoder = config.str("model_type").and_then(|t| t.strip_prefix("llava_")).unwrap_or("llama");
        return original(LLAVA.id, config, decoder, parts);
    };
    let vision = config.object("vision_config").ok_or_else(|| config.bad("vision_config", "is missing"))?;
    let select = config.get("vision_feature_layer").map_or(Some(-2), |v| v.as_i64());
    let select = select.ok_or_else(|| config.bad("vision_feature_layer", "is no single layer"))?;
    let tower = vision::read_hf(&vision, Features::Hidden(select))?;
    // "default" drops the first row, whatever it is: SigLIP has no class token to drop.
    let wanted = if tower.class_token() { "default" } else { "full" };
    match config.str("vision_feature_select_strategy").unwrap_or("default") {
        strategy if strategy == wanted => {}
        other => {
            let what = format!("{other:?} is not supported with this tower, expected {wanted:?}");
            return Err(config.bad("vision_feature_select_strategy", &what));
        }
    }
    match config.str("projector_hidden_act").unwrap_or("gelu") {
        "gelu" => {}
        other => return Err(config.bad("projector_hidden_act", &format!("{other:?} is not supported"))),
    }
    let image = processor_image(false, tower.image(), parts)?;
    let projector = projector::by_id("mlp").expect("invariant: the MLP is registered");
    let vision =
        VisionConfig { tower, projector, fold: 1, hidden: 0, queries: 0, image }.checked(config.place())?;
    Ok(ModelConfig {
        family: LLAVA.id,
        name: "llava".to_owned(),
        text: decoder::from_hf(&text)?,
        vision: Some(vision),
        prompt: LLAVA.prompt,
        chat_template: None,
        outliers: Outliers::default(),
    })
}

/// The layout of the original LLaVA repository, which MobileVLM and Imp share: the fields of the decoder, whose own
/// `model_type` would be `decoder`, at the top, the vision side in `mm_*` fields.
pub(super) fn original(
    family: &'static str,
    config: &HfConfig<'_>,
    decoder: &str,
    parts: &super::HfParts<'_>,
) -> Result<ModelConfig, ModelError> {
    let kind = config.str("mm_projector_type").unwrap_or("linear");
    let projector = projector::by_hf(kind).ok_or_else(|| {
        let known: Vec<_> = crate::PROJECTORS.iter().filter_map(|p| p.hf).collect();
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
    let select = config.get("mm_vision_select_layer").map_or(Some(-2), |v| v.as_i64());
    let select = select.ok_or_else(|| config.bad("mm_vision_select_layer", "is no whole number"))?;
    let features = Features::Hidden(select);
    let tower = match config.object("vision_config") {
        Some(own) if own.get("model_type").is_some() => vision::read_hf(&own, features)?,
        // What it leaves out is the named tower's.
        own => {
            let mut named = known_tower(config)?;
            for (field, value) in own.iter().flat_map(HfConfig::fields) {
                named[field] = value.clone();
            }
            vision::read_hf(&config.within("vision_config", &named), features)?
        }
    };
    let image = processor_image(pad, tower.image(), parts)?;
    let vision =
        VisionConfig { tower, projector, fold: 1, hidden: 0, queries: 0, image }.checked(config.place())?;
    Ok(ModelConfig {
        family,
        name: config.str("_name_or_path").filter(|n| !n.is_empty()).unwrap_or(family).to_owned(),
        text: decoder::from_hf_as(config, decoder)?,
        vision: Some(vision),
        prompt: VICUNA,
        chat_template: None,
        outliers: Outliers::default(),
    })
}

/// The tower of a checkpoint that only names it.
fn known_tower(config: &HfConfig<'_>) -> Result<Value, ModelError> {
    match config.str("mm_vision_tower") {
        None => Ok(clip_l14_336()),
        Some(name) if name.contains("clip-vit-large-patch14-336") => Ok(clip_l14_336()),
        Some(name) if name.contains("siglip-so400m-patch14-384") => Ok(siglip_so400m_14_384()),
        Some(name) if name.starts_with("mobileclip_l_") => {
            let side = name.rsplit('_').next().and_then(|side| side.parse::<u32>().ok());
            let side = side.ok_or_else(|| config.bad("mm_vision_tower", "names no number of pixels"))?;
            Ok(serde_json::json!({ "model_type": "fastvithd", "image_size": side }))
        }
        Some(name) => {
            let what = format!("{name:?} is not known; put its own config.json here as vision_config");
            Err(config.bad("mm_vision_tower", &what))
        }
    }
}
