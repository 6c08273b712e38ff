//! Qwen2-VL and Qwen2.5-VL: a tower that takes pictures of any size, a patch merger, and Qwen2 with positions in time,
//! row and column. Old folders keep the decoder's fields at the top and name the towers' weights `visual.*`; transformers 5
//! nests both. Source: transformers `modeling_qwen2_vl.py`, `modeling_qwen2_5_vl.py`,
//! `image_processing_pil_qwen2_vl.py`; `chat_template.json` of `Qwen/Qwen2-VL-2B-Instruct`.

use super::{Family, HfParts, Published, VisionDefaults, bad_processor, processor_image, rename_vlm};
use crate::{
    Features, HfConfig, ModelConfig, ModelError, Outliers, PromptStyle, VisionConfig, decoder, projector,
    vision,
};
use margay_prompt::{
    image::{Fit, ImageSpec},
    text::ImagePlace,
};
use serde_json::Value;

pub(super) const QWEN2VL: Family = Family {
    id: "qwen2vl",
    summary: "Qwen2-VL and Qwen2.5-VL: pictures of any size, patch merger, Qwen2 with M-RoPE",
    hf: &["qwen2_vl", "qwen2_5_vl"],
    gguf: &[("qwen2vl", Some("qwen2vl_merger")), ("qwen2vl", Some("qwen2.5vl_merger")), ("qwen2vl", None)],
    prompt: PromptStyle {
        template: "qwen2_vl",
        image_mark: "<|image_pad|>",
        image_place: ImagePlace::Front,
        stops: &["<|im_end|>", "<|endoftext|>"],
    },
    vision: Some(VisionDefaults { image: |tower| tower.image(), features: Features::Final, projector: None }),
    verified: "transformers Qwen2VLForConditionalGeneration, Qwen2_5_VLForConditionalGeneration and Qwen2VLImageProcessorPil",
    published: &[
        published("Qwen2-VL 2B", "Qwen2-VL ViT", "Qwen2 1.5B"),
        published("Qwen2.5-VL 3B", "Qwen2.5-VL ViT", "Qwen2.5 3B"),
        published("Qwen2-VL 7B", "Qwen2-VL ViT", "Qwen2 7B"),
        published("Qwen2.5-VL 7B", "Qwen2.5-VL ViT", "Qwen2.5 7B"),
    ],
    read_hf,
    rename: rename_vlm,
};

const fn published(name: &'static str, vision: &'static str, decoder: &'static str) -> Published {
    let (projector, picture_tokens) = ("patch merger", "one for 28 x 28 pixels, 4 to 16384");
    Published { name, vision, projector, decoder, picture_tokens }
}

fn read_hf(config: &HfConfig<'_>, parts: &HfParts<'_>) -> Result<ModelConfig, ModelError> {
    let model_type = config.str("model_type").unwrap_or_default();
    let nested = config.object("text_config");
    let mut text = decoder::from_hf_as(nested.as_ref().unwrap_or(config), model_type)?;
    text.tied = config.bool("tie_word_embeddings", text.tied)?;
    let vision = config.object("vision_config").ok_or_else(|| config.bad("vision_config", "is missing"))?;
    // The tower's own type is missing in old folders.
    let kind = vision.str("model_type").unwrap_or(model_type);
    let tower = vision::read_hf_as(&vision, kind, Features::Final)?;
    for field in ["hidden_size", "out_hidden_size"] {
        let said = vision.usize(field, text.width)?;
        if said != text.width && (field != "hidden_size" || vision.get("embed_dim").is_some()) {
            let what = format!("{said} does not fit a decoder of width {}", text.width);
            return Err(vision.bad(field, &what));
        }
    }
    let id = if model_type == "qwen2_vl" { "qwen2vl_merger" } else { "qwen2.5vl_merger" };
    let projector = projector::by_id(id).expect("invariant: both mergers are registered");
    let image = sized(processor_image(false, tower.image(), parts)?, parts)?;
    let vision = VisionConfig { fold: tower.fold(), tower, projector, hidden: 0, queries: 0, image }
        .checked(config.place())?;
    Ok(ModelConfig {
        family: QWEN2VL.id,
        name: config.str("_name_or_path").filter(|n| !n.is_empty()).unwrap_or(QWEN2VL.id).to_owned(),
        text,
        vision: Some(vision),
        prompt: QWEN2VL.prompt,
        chat_template: None,
        outliers: Outliers::default(),
    })
}

/// The processor's own bounds: fields of their own, which count first, or those of `size`, by their old or new names.
/// What it leaves out is less than what the published folders say.
fn sized(mut spec: ImageSpec, parts: &HfParts<'_>) -> Result<ImageSpec, ModelError> {
    let Fit::Multiples { of, .. } = spec.fit else { return Ok(spec) };
    let said = |field: &str| parts.preprocessor.and_then(|p| p.get(field)).filter(|v| !v.is_null());
    let pixels = |field: &str, edge: &str, default: u64| {
        let of_size = |name: &str| said("size").and_then(|size| size.get(name)).filter(|v| !v.is_null());
        match said(field).or_else(|| of_size(edge)).or_else(|| of_size(field)) {
            None => Ok(default),
            Some(value) => {
                value.as_u64().ok_or_else(|| bad_processor(field, &format!("{value} is no number of pixels")))
            }
        }
    };
    let min_pixels = pixels("min_pixels", "shortest_edge", 56 * 56)?;
    let max_pixels = pixels("max_pixels", "longest_edge", 28 * 28 * 1280)?;
    if min_pixels == 0 || min_pixels > max_pixels {
        let what = format!("{min_pixels} and max_pixels {max_pixels} leave no size");
        return Err(bad_processor("min_pixels", &what));
    }
    if said("do_resize").and_then(Value::as_bool) == Some(false) {
        return Err(bad_processor("do_resize", "false is not supported: sides must become multiples"));
    }
    spec.fit = Fit::Multiples { of, min_pixels, max_pixels };
    Ok(spec)
}
