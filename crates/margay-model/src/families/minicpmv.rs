//! MiniCPM-V 2.6: SigLIP over pictures and slices of any shape, a resampler to 64 visual tokens each, Qwen2. Pictures are
//! numbered through the conversation. Source: `configuration_minicpm.py`, `modeling_minicpmv.py`, `processing_minicpmv.py`
//! and `image_processing_minicpmv.py` of `openbmb/MiniCPM-V-2_6`.

use super::{Family, HfParts, Published, VisionDefaults, bad_processor, processor_image};
use crate::{
    Features, HfConfig, ModelConfig, ModelError, Outliers, PromptStyle, Rename, TowerConfig, Transform,
    VisionConfig, decoder, projector, vision,
};
use margay_prompt::{
    image::{Around, ImageSpec, Marks, Tiling},
    text::ImagePlace,
};
use serde_json::Value;

pub(super) const MINICPMV: Family = Family {
    id: "minicpmv",
    summary: "MiniCPM-V 2.6: SigLIP over slices of any shape + resampler + Qwen2, 64 visual tokens a slice",
    hf: &["minicpmv"],
    gguf: &[("qwen2", Some("resampler"))],
    prompt: PromptStyle {
        template: "chatml",
        image_mark: "(<image>./</image>)",
        image_place: ImagePlace::Lines,
        stops: &["<|im_end|>", "<|endoftext|>"],
    },
    vision: Some(VisionDefaults { image, features: Features::Final, projector: None }),
    verified: "a PyTorch module written after openbmb/MiniCPM-V-2_6 and vLLM over transformers' Siglip and Qwen2, and Pillow",
    published: &[Published {
        name: "MiniCPM-V 2.6 8B",
        vision: "SigLIP-so400m/14-980 NaViT",
        projector: "resampler",
        decoder: "Qwen2 7B",
        picture_tokens: "64 a slice, 64 to 640",
    }],
    read_hf,
    rename,
};

/// Of the published model. Source: its `preprocessor_config.json`.
const RESOLUTION: u32 = 448;
const MOST_SLICES: u32 = 9;

fn read_hf(config: &HfConfig<'_>, parts: &HfParts<'_>) -> Result<ModelConfig, ModelError> {
    // Older generations do not say it, and have other decoders and prompts.
    let version = config.get("version").map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned));
    if version.as_deref() != Some("2.6") {
        let said = version.as_deref().unwrap_or("none");
        return Err(config.bad("version", &format!("{said} is not supported, expected 2.6")));
    }
    if config.bool("drop_vision_last_layer", false)? {
        return Err(config.bad("drop_vision_last_layer", "true is not supported"));
    }
    let text = decoder::from_hf_as(config, "qwen2")?;
    let see = config.object("vision_config").ok_or_else(|| config.bad("vision_config", "is missing"))?;
    let tower = vision::read_hf_as(&see, MINICPMV.hf[0], Features::Final)?;
    let image = sized(processor_image(false, image(&*tower), parts)?, parts)?;
    let projector = projector::by_id("resampler").expect("invariant: the resampler is registered");
    let queries = config.usize("query_num", 64)?;
    if queries == 0 {
        return Err(config.bad("query_num", "must be positive"));
    }
    let vision =
        VisionConfig { tower, projector, fold: 1, hidden: 0, queries, image }.checked(config.place())?;
    Ok(ModelConfig {
        family: MINICPMV.id,
        name: config.str("_name_or_path").filter(|n| !n.is_empty()).unwrap_or(MINICPMV.id).to_owned(),
        text,
        vision: Some(vision),
        prompt: MINICPMV.prompt,
        chat_template: None,
        outliers: Outliers::default(),
    })
}

fn image(tower: &dyn TowerConfig) -> ImageSpec {
    let spec = tower.image();
    let around = |before: &str, after: &str| Around { before: before.to_owned(), after: after.to_owned() };
    let whole = || around("<image_id>{image}</image_id><image>", "</image>");
    ImageSpec {
        tiling: Some(Tiling::Slices { resolution: RESOLUTION, of: spec.size.0, most: MOST_SLICES }),
        marks: Marks {
            single: whole(),
            tile: around("<slice>", "</slice>"),
            row_end: "\n".to_owned(),
            overview: whole(),
        },
        ..spec
    }
}

/// The processor's own numbers and marks.
fn sized(mut spec: ImageSpec, parts: &HfParts<'_>) -> Result<ImageSpec, ModelError> {
    let said = |field: &str| parts.preprocessor?.get(field).filter(|v| !v.is_null());
    for (field, slot) in [("norm_mean", &mut spec.mean), ("norm_std", &mut spec.std)] {
        let Some(values) = said(field) else { continue };
        let values: Option<Vec<f32>> =
            values.as_array().and_then(|a| a.iter().map(|v| v.as_f64().map(|v| v as f32)).collect());
        let values = values.and_then(|v| v.try_into().ok());
        *slot = values.ok_or_else(|| bad_processor(field, "is no list of three numbers"))?;
    }
    if !spec.std.iter().all(|s| *s > 0.0) {
        return Err(bad_processor("norm_std", "must be positive"));
    }
    let pixels = |field: &str, default: u32| match said(field) {
        None => Ok(default),
        Some(value) => {
            let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
            number.ok_or_else(|| bad_processor(field, &format!("{value} is no such number")))
        }
    };
    if said("slice_mode").and_then(Value::as_bool) == Some(false) {
        return Err(bad_processor("slice_mode", "false is not supported: pictures must become slices"));
    }
    if let Some(Tiling::Slices { resolution, of, most }) = &mut spec.tiling {
        *resolution = pixels("scale_resolution", *resolution)?;
        *most = pixels("max_slice_nums", *most)?;
        let patch = pixels("patch_size", *of)?;
        if patch != *of {
            let what = format!("{patch} pixels do not fit a tower of patches of {of}");
            return Err(bad_processor("patch_size", &what));
        }
    }
    if said("use_image_id").and_then(Value::as_bool) == Some(false) {
        let Marks { single, overview, .. } = &mut spec.marks;
        single.before = "<image>".to_owned();
        overview.before.clone_from(&single.before);
    }
    Ok(spec)
}

fn rename(config: &ModelConfig, name: &str) -> Option<Rename> {
    let vision = config.vision.as_ref()?;
    if let Some(inner) = name.strip_prefix("vpm.") {
        return vision.tower.rename(inner);
    }
    if let Some(inner) = name.strip_prefix("resampler.") {
        let to = (vision.projector.rename)(inner)?;
        let transform = if inner == "proj" { Transform::Transpose } else { Transform::None };
        return Some(Rename { to, transform });
    }
    decoder::rename(&config.text, name.strip_prefix("llm.")?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::NoTensors;
    use crate::from_hf;
    use margay_graph::Sym;
    use serde_json::json;

    /// `config.json` of the published model, as far as it counts.
    fn published() -> Value {
        json!({
            "version": 2.6, "model_type": "minicpmv", "hidden_size": 3584, "intermediate_size": 18944,
            "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 151_666,
            "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": false, "query_num": 64,
            "drop_vision_last_layer": false, "image_size": 448,
            "vision_config": {
                "hidden_size": 1152, "image_size": 980, "intermediate_size": 4304, "model_type": "siglip",
                "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14
            },
        })
    }

    fn read(config: &Value, processor: Option<&Value>) -> Result<ModelConfig, ModelError> {
        from_hf(config, &HfParts { preprocessor: processor, tensors: &NoTensors, file: &|_| None })
            .map(|(_, model)| model)
    }

    #[test]
    fn the_published_configuration_has_64_tokens_a_slice_and_room_for_the_longest() {
        let model = read(&published(), None).unwrap();
        let vision = model.vision.as_ref().unwrap();
        let layout = vision.layout(1920, 1080).unwrap();
        assert_eq!((layout.tiles(), layout.visual_tokens()), (9, 576));
        assert_eq!(vision.tile_grids(640, 480).unwrap(), [(28, 37), (39, 26)]);
        // A tile of a context that its tokens alone would fit is as large.
        assert!(vision.limits(64).get(Sym::Patches).unwrap() >= 37 * 28);
        assert!(vision.layout(20_100, 100).unwrap_err().to_string().contains("200 times"));
        let programs = model.programs().unwrap();
        let layers =
            programs.encode.unwrap().weights().iter().filter(|w| w.name.contains("ffn_up.w")).count();
        assert_eq!(layers, 27);
    }

    #[test]
    fn rows_are_joined_by_line_breaks_and_the_whole_stands_first() {
        use margay_prompt::layout::Piece;
        let model = read(&published(), None).unwrap();
        let layout = model.vision.unwrap().layout(900, 900).unwrap();
        let texts = layout.pieces().iter().map(|piece| match piece {
            Piece::Text(text) => text.as_str(),
            Piece::Tile { .. } => "#",
        });
        // 4.03 squares: of 4, 5 and 6 slices, 2 x 2 is the nearest to a square.
        assert_eq!(
            texts.collect::<String>(),
            "<image_id>{image}</image_id><image>#</image><slice>#</slice><slice>#</slice>\n\
             <slice>#</slice><slice>#</slice>"
        );
    }

    #[test]
    fn a_configuration_that_does_not_fit_is_named() {
        for (field, value, why) in [
            ("version", json!(2.5), "2.5 is not supported"),
            ("version", json!(null), "none is not supported"),
            ("drop_vision_last_layer", json!(true), "drop_vision_last_layer"),
            ("query_num", json!(0), "query_num"),
            ("query_num", json!(1u64 << 40), "queries"),
            ("hidden_size", json!(3600), "no heads of 128"),
            ("vision_config", json!(7), "vision_config"),
            ("vision_config", json!({ "num_attention_heads": 7 }), "vision heads"),
            ("vision_config", json!({ "patch_size": 0 }), "patch size"),
        ] {
            let mut config = published();
            config[field] = value.clone();
            let error = read(&config, None).and_then(|model| model.programs().map(|_| ()));
            let error = error.unwrap_err().to_string();
            assert!(error.contains(why), "{field} {value}: {error}");
        }
        for (field, value, why) in [
            ("patch_size", json!(16), "patches of 14"),
            ("scale_resolution", json!(7), "slice resolution"),
            ("scale_resolution", json!(1 << 20), "slice resolution"),
            ("max_slice_nums", json!(0), "slices"),
            ("max_slice_nums", json!(1 << 20), "slices"),
            ("max_slice_nums", json!("many"), "max_slice_nums"),
            ("slice_mode", json!(false), "slice_mode"),
            ("norm_mean", json!([0.5]), "norm_mean"),
            ("norm_std", json!([0.5, 0.0, 0.5]), "norm_std"),
        ] {
            let error = read(&published(), Some(&json!({ field: value }))).unwrap_err().to_string();
            assert!(error.contains(why), "{field}: {error}");
        }
    }

    #[test]
    fn weights_of_a_checkpoint_have_their_names_in_public_files() {
        let model = read(&published(), None).unwrap();
        for (name, to) in [
            ("llm.model.embed_tokens.weight", "token_embd.weight"),
            ("llm.model.layers.3.self_attn.q_proj.bias", "blk.3.attn_q.bias"),
            ("llm.lm_head.weight", "output.weight"),
            ("vpm.embeddings.patch_embedding.bias", "v.patch_embd.bias"),
            ("vpm.encoder.layers.26.mlp.fc1.weight", "v.blk.26.ffn_up.weight"),
            ("vpm.post_layernorm.weight", "v.post_ln.weight"),
            ("resampler.kv_proj.weight", "resampler.kv.weight"),
            ("resampler.attn.out_proj.bias", "resampler.attn.out.bias"),
            ("resampler.ln_q.weight", "resampler.ln_q.weight"),
            ("resampler.query", "resampler.query"),
        ] {
            let renamed = rename(&model, name).unwrap();
            assert_eq!((renamed.to.as_str(), renamed.transform), (to, Transform::None), "{name}");
            // A name of such a file stays or is none of a checkpoint's.
            assert!(rename(&model, to).is_none_or(|again| again.to == to), "{to}");
        }
        let proj = rename(&model, "resampler.proj").unwrap();
        assert_eq!((proj.to.as_str(), proj.transform), ("resampler.proj.weight", Transform::Transpose));
        assert_eq!(rename(&model, "resampler.pos_embed"), None);
    }
}
