//! TinyLLaVA: CLIP or SigLIP, a two-layer MLP, and a small decoder: Phi-2, TinyLlama, Gemma or Qwen2.
//! Source: TinyLLaVA/TinyLLaVA_Factory.

use super::{Family, HfParts, LLAVA_VISION, Published, llava, processor_image, rename_vlm};
use crate::{
    Features, HfConfig, ModelConfig, ModelError, Outliers, Rename, VisionConfig, decoder, projector, vision,
};

pub(super) const TINYLLAVA: Family = Family {
    id: "tinyllava",
    summary: "TinyLLaVA: SigLIP or CLIP + MLP + Phi-2, TinyLlama, Gemma or Qwen2, 728 or 576 visual tokens",
    hf: &["tinyllava"],
    gguf: &[
        ("qwen2", Some("mlp")),
        ("gemma", Some("mlp")),
        ("qwen2", Some("mlp_tail")),
        ("gemma", Some("mlp_tail")),
        ("llama", Some("mlp_tail")),
        ("phi2", Some("mlp_tail")),
    ],
    prompt: llava::VICUNA,
    vision: Some(LLAVA_VISION),
    verified: "transformers SiglipVisionModel and CLIPVisionModel; Qwen2, Phi, LLaMA and Gemma ForCausalLM",
    published: &[
        Published {
            name: "TinyLLaVA 0.89B",
            vision: "SigLIP-so400m/14-384",
            projector: "MLP",
            decoder: "Qwen2 0.5B",
            picture_tokens: "728",
        },
        Published {
            name: "TinyLLaVA 1.5B",
            vision: "SigLIP-so400m/14-384",
            projector: "MLP",
            decoder: "TinyLlama 1.1B",
            picture_tokens: "728",
        },
        Published {
            name: "TinyLLaVA 2.4B",
            vision: "SigLIP-so400m/14-384",
            projector: "MLP",
            decoder: "Gemma 2B",
            picture_tokens: "728",
        },
        Published {
            name: "TinyLLaVA 3.1B",
            vision: "SigLIP-so400m/14-384",
            projector: "MLP",
            decoder: "Phi-2",
            picture_tokens: "728",
        },
    ],
    read_hf,
    rename,
};

fn read_hf(config: &HfConfig<'_>, parts: &HfParts<'_>) -> Result<ModelConfig, ModelError> {
    let part = |field: &str| config.object(field).ok_or_else(|| config.bad(field, "is missing"));
    let (text, tower) = (part("text_config")?, part("vision_config")?);
    let select = config.get("vision_feature_layer").map_or(Some(-2), |v| v.as_i64());
    let select = select.ok_or_else(|| config.bad("vision_feature_layer", "is no single layer"))?;
    let tower = vision::read_hf(&tower, Features::Hidden(select))?;
    match config.str("connector_type").unwrap_or("mlp2x_gelu") {
        "mlp2x_gelu" => {}
        other => return Err(config.bad("connector_type", &format!("{other:?} is not supported"))),
    }
    // "patch" drops the first row, whatever it is: of SigLIP's 729 rows 728 are left.
    let projector =
        match (config.str("vision_feature_select_strategy").unwrap_or("patch"), tower.class_token()) {
            ("patch", true) | ("cls_patch", false) => "mlp",
            ("patch", false) => "mlp_tail",
            (other, _) => {
                let what = format!("{other:?} is not supported with this tower");
                return Err(config.bad("vision_feature_select_strategy", &what));
            }
        };
    let projector = projector::by_id(projector).expect("invariant: both are registered");
    let pad = match config.str("image_aspect_ratio").unwrap_or("square") {
        "square" => false,
        "pad" => true,
        other => return Err(config.bad("image_aspect_ratio", &format!("{other:?} is not supported"))),
    };
    let image = processor_image(pad, tower.image(), parts)?;
    let vision =
        VisionConfig { tower, projector, fold: 1, hidden: 0, queries: 0, image }.checked(config.place())?;
    Ok(ModelConfig {
        family: TINYLLAVA.id,
        name: TINYLLAVA.id.to_owned(),
        text: decoder::from_hf(&text)?,
        vision: Some(vision),
        prompt: TINYLLAVA.prompt,
        chat_template: None,
        outliers: Outliers::default(),
    })
}

fn rename(config: &ModelConfig, name: &str) -> Option<Rename> {
    const PLACES: [(&str, &str); 2] =
        [("vision_tower._vision_tower.", "vision_tower."), ("connector._connector.", "mm_projector.")];
    let usual = PLACES.iter().find_map(|(own, usual)| Some(format!("{usual}{}", name.strip_prefix(own)?)));
    rename_vlm(config, usual.as_deref().unwrap_or(name))
}
