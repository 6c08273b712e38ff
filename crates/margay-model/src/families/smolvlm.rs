//! SmolVLM and Idefics3: SigLIP to its last layer, pixel shuffle and one linear layer, a LLaMA decoder. A picture is cut
//! into tiles, each marked with its row and column, and stands behind them once more as a whole.
//! Source: transformers `processing_smolvlm.py`, `image_processing_pil_smolvlm.py`, `modeling_smolvlm.py`.

use super::{Family, HfParts, Published, VisionDefaults, bad_processor, processor_image, rename_vlm};
use crate::{
    Features, HfConfig, ModelConfig, ModelError, Outliers, PromptStyle, TowerConfig, VisionConfig, decoder,
    projector, vision,
};
use margay_prompt::image::{Alpha, Around, Filter, ImageSpec, Marks, Tiling};

pub(super) const SMOLVLM: Family = Family {
    id: "smolvlm",
    summary: "SmolVLM, SmolVLM2 and Idefics3: SigLIP + pixel shuffle + LLaMA, 64 visual tokens a tile of 512 pixels",
    hf: &["smolvlm", "idefics3"],
    gguf: &[("llama", Some("idefics3"))],
    prompt: PromptStyle::new("smolvlm", &["<end_of_utterance>"]),
    vision: Some(VisionDefaults { image, features: Features::Final, projector: None }),
    verified: "transformers SmolVLMForConditionalGeneration and SmolVLMProcessor",
    published: &[
        Published {
            name: "SmolVLM 256M",
            vision: "SigLIP-B/16-512",
            projector: "pixel shuffle",
            decoder: "SmolLM2 135M",
            picture_tokens: "64 a tile, 64 to 1088",
        },
        Published {
            name: "SmolVLM 500M",
            vision: "SigLIP-B/16-512",
            projector: "pixel shuffle",
            decoder: "SmolLM2 360M",
            picture_tokens: "64 a tile, 64 to 1088",
        },
    ],
    read_hf,
    rename: rename_vlm,
};

fn read_hf(config: &HfConfig<'_>, parts: &HfParts<'_>) -> Result<ModelConfig, ModelError> {
    let part = |name: &str| config.object(name).ok_or_else(|| config.bad(name, "is missing"));
    let mut text = decoder::from_hf(&part("text_config")?)?;
    text.tied = config.bool("tie_word_embeddings", text.tied)?;
    let tower = vision::read_hf(&part("vision_config")?, Features::Final)?;
    let projector = projector::by_id("idefics3").expect("invariant: the connector is registered");
    let image = tiled(processor_image(false, image(&*tower), parts)?, parts)?;
    let fold = config.usize("scale_factor", 2)?;
    let vision =
        VisionConfig { tower, projector, fold, hidden: 0, queries: 0, image }.checked(config.place())?;
    Ok(ModelConfig {
        family: SMOLVLM.id,
        name: config.str("_name_or_path").filter(|n| !n.is_empty()).unwrap_or("smolvlm").to_owned(),
        text,
        vision: Some(vision),
        prompt: SMOLVLM.prompt,
        chat_template: None,
        outliers: Outliers::default(),
    })
}

/// Tiles of the tower's size out of four times that length.
fn image(tower: &dyn TowerConfig) -> ImageSpec {
    let spec = tower.image();
    let around = |before: &str, after: &str| Around { before: before.to_owned(), after: after.to_owned() };
    let (fake, whole) = ("<fake_token_around_image>", "<fake_token_around_image><global-img>");
    ImageSpec {
        filter: Filter::Lanczos3,
        alpha: Alpha::Over([255; 3]),
        tiling: Some(Tiling::Grid { longest_edge: spec.size.0.saturating_mul(4), split: true }),
        marks: Marks {
            single: around(whole, fake),
            tile: around("<fake_token_around_image><row_{row}_col_{column}>", ""),
            row_end: "\n".to_owned(),
            overview: around(&format!("\n{whole}"), fake),
        },
        ..spec
    }
}

/// The processor's own sizes.
fn tiled(mut spec: ImageSpec, parts: &HfParts<'_>) -> Result<ImageSpec, ModelError> {
    let said = |field: &str| parts.preprocessor?.get(field).filter(|v| !v.is_null());
    let edge = |field: &str| match said(field) {
        None => Ok(None),
        Some(size) => size["longest_edge"]
            .as_u64()
            .and_then(|edge| u32::try_from(edge).ok())
            .map(Some)
            .ok_or_else(|| bad_processor(field, "has no longest_edge that is a number of pixels")),
    };
    if let Some(tile) = edge("max_image_size")?.filter(|tile| *tile != spec.size.0) {
        let what = format!("tiles of {tile} pixels do not fit a tower of {}", spec.size.0);
        return Err(bad_processor("max_image_size", &what));
    }
    let size = edge("size")?;
    if let Some(Tiling::Grid { longest_edge, split }) = &mut spec.tiling {
        *longest_edge = size.unwrap_or(*longest_edge);
        *split = said("do_image_splitting").is_none_or(|v| v.as_bool() != Some(false));
    }
    Ok(spec)
}
