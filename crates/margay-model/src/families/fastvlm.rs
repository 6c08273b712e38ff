//! FastVLM: FastViTHD, a two-layer MLP, Qwen2; and LLaVA with another tower and Qwen2, which has the same layout.
//! Both namings: the original repository's, which pads pictures to a square, and transformers' `fast_vlm`.
//! Source: apple/ml-fastvlm; transformers `modeling_fast_vlm.py`.

use super::{Family, HfParts, LLAVA_VISION, Published, bad_processor, llava, processor_image, rename_vlm};
use crate::{
    Features, HfConfig, ModelConfig, ModelError, Outliers, PromptStyle, VisionConfig, decoder, projector,
    vision,
};
use serde_json::{Value, json};

pub(super) const FASTVLM: Family = Family {
    id: "fastvlm",
    summary: "FastVLM: FastViTHD at 1024 pixels + MLP + Qwen2, 256 visual tokens; LLaVA with CLIP or SigLIP + Qwen2",
    hf: &["llava_qwen2", "fast_vlm"],
    gguf: &[("qwen2", Some("mlp"))],
    // Source: apple/ml-fastvlm `conversation.py`, `conv_qwen_2`.
    prompt: PromptStyle::new("chatml", &["<|im_end|>"]),
    vision: Some(LLAVA_VISION),
    verified: "transformers FastVlmForConditionalGeneration (with timm's fastvit_mci3), and before branches are merged a PyTorch module",
    published: &[
        Published {
            name: "FastVLM 0.5B",
            vision: "FastViTHD 1024",
            projector: "MLP",
            decoder: "Qwen2 0.5B",
            picture_tokens: "256",
        },
        Published {
            name: "FastVLM 1.5B",
            vision: "FastViTHD 1024",
            projector: "MLP",
            decoder: "Qwen2 1.5B",
            picture_tokens: "256",
        },
        Published {
            name: "FastVLM 7B",
            vision: "FastViTHD 1024",
            projector: "MLP",
            decoder: "Qwen2 7B",
            picture_tokens: "256",
        },
    ],
    read_hf,
    rename: rename_vlm,
};

fn read_hf(config: &HfConfig<'_>, parts: &HfParts<'_>) -> Result<ModelConfig, ModelError> {
    let Some(text) = config.object("text_config") else {
        let model = llava::original(FASTVLM.id, config, "qwen2", parts)?;
        return Ok(ModelConfig { prompt: FASTVLM.prompt, ..model });
    };
    let own = config.get("vision_config").filter(|v| v.is_object());
    let mut own = own.ok_or_else(|| config.bad("vision_config", "is missing"))?.clone();
    own["image_size"] = side(config, parts)?.into();
    let tower = vision::read_hf(&config.within("vision_config", &own), Features::Final)?;
    for (field, only) in [
        ("vision_feature_layer", json!(-1)),
        ("vision_feature_select_strategy", json!("full")),
        ("projector_hidden_act", json!("gelu")),
        ("multimodal_projector_bias", json!(true)),
    ] {
        if let Some(other) = config.get(field).filter(|value| **value != only) {
            return Err(config.bad(field, &format!("{other} is not supported, only {only}")));
        }
    }
    let pad = parts.preprocessor.and_then(|p| p.get("do_pad")) == Some(&json!(true));
    let image = processor_image(pad, tower.image(), parts)?;
    let projector = projector::by_id("mlp").expect("invariant: the MLP is registered");
    let vision =
        VisionConfig { tower, projector, fold: 1, hidden: 0, queries: 0, image }.checked(config.place())?;
    Ok(ModelConfig {
        family: FASTVLM.id,
        name: FASTVLM.id.to_owned(),
        text: decoder::from_hf(&text)?,
        vision: Some(vision),
        prompt: FASTVLM.prompt,
        chat_template: None,
        outliers: Outliers::default(),
    })
}

/// Pixels a side, which only the processor says; else they follow from the visual tokens, of which one is 64 x 64.
fn side(config: &HfConfig<'_>, parts: &HfParts<'_>) -> Result<usize, ModelError> {
    let said = |field: &str| parts.preprocessor?.get(field).filter(|v| !v.is_null());
    let number = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
    for (field, parts) in [("crop_size", ["height", "width"]), ("size", ["shortest_edge", "shortest_edge"])] {
        let Some(size) = said(field) else { continue };
        return match parts.map(|part| number(&size[part])) {
            [Some(height), Some(width)] if height == width => Ok(height),
            _ => Err(bad_processor(field, "is no square of pixels")),
        };
    }
    let tokens = config.usize("image_seq_length", 256)?;
    Ok(tokens.isqrt().saturating_mul(64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay_prompt::image::Fit;

    struct Empty;

    impl margay_file::TensorSource for Empty {
        fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
            Box::new(std::iter::empty())
        }
        fn info(&self, _: &str) -> Option<margay_file::TensorInfo> {
            None
        }
        fn tensor(&self, _: &str) -> Result<margay_tensor::Tensor, margay_file::FileError> {
            unreachable!("a configuration alone")
        }
    }

    fn read(config: &Value) -> Result<ModelConfig, ModelError> {
        let parts = HfParts { preprocessor: None, tensors: &Empty, file: &|_| None };
        crate::from_hf(config, &parts).map(|(family, model)| {
            assert_eq!(family.id, FASTVLM.id);
            model
        })
    }

    /// Fields of the published `config.json`.
    fn original(tower: &str) -> Value {
        json!({
            "model_type": "llava_qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
            "num_hidden_layers": 24, "num_key_value_heads": 2, "mm_projector_type": "mlp2x_gelu",
            "mm_vision_tower": tower, "image_aspect_ratio": "pad", "sliding_window": 32768,
            "use_sliding_window": false, "mm_patch_merge_type": "flat",
        })
    }

    #[test]
    fn the_published_configuration_pads_with_black_and_other_towers_with_their_mean() {
        for (tower, tokens, fill) in [
            ("mobileclip_l_1024", 256, [0; 3]),
            ("mobileclip_l_1536", 576, [0; 3]),
            ("openai/clip-vit-large-patch14-336", 576, [122, 116, 104]),
            ("google/siglip-so400m-patch14-384", 729, [127; 3]),
        ] {
            let model = read(&original(tower)).unwrap();
            let vision = model.vision.unwrap();
            assert_eq!(vision.tile_tokens(), tokens, "{tower}");
            assert_eq!(vision.image.fit, Fit::PadToSquare { fill }, "{tower}");
            assert_eq!((model.prompt.template, model.text.kv_heads), ("chatml", 2));
        }
        // As some converters leave it.
        let mut config = original("mobileclip_l_1024");
        config["vision_config"] = json!({});
        assert_eq!(read(&config).unwrap().vision.unwrap().tile_tokens(), 256);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let mut transformers = json!({
            "model_type": "fast_vlm", "image_seq_length": 256, "text_config": { "model_type": "qwen2" },
            "vision_config": { "model_type": "timm_wrapper", "architecture": "fastvit_mci3" },
        });
        assert_eq!(read(&transformers).unwrap().vision.unwrap().tile_tokens(), 256);
        transformers["vision_feature_layer"] = json!(-2);
        let error = read(&transformers).unwrap_err().to_string();
        assert!(error.contains("vision_feature_layer: -2 is not supported"), "{error}");
        for (field, value, what) in [
            ("mm_vision_tower", "mobileclip_l_big", "names no number of pixels"),
            ("mm_vision_tower", "mobileclip_s_256", "is not known"),
            ("mm_vision_tower", "mobileclip_l_1000", "1000 is no multiple of 64"),
            ("image_aspect_ratio", "anyres", "is not supported"),
            ("mm_projector_type", "linear", "is not supported"),
        ] {
            let mut config = original("mobileclip_l_1024");
            config[field] = value.into();
            let error = read(&config).unwrap_err().to_string();
            assert!(error.contains(what), "{field}: {error}");
        }
    }
}
