//! Moondream as it was published in GGUF files early in 2024: a ViT with its final norm over the picture as one square, two
//! linear layers, Phi-1.5 whose mask is causal throughout. Its files are taken for those of others by their parts alone.
//! Source: vikhyat/moondream of 2024-03, `vision_encoder.py`, `moondream.py`; the log of `moondream2-text-model-f16.gguf` and
//! its mmproj in ggml-org/llama.cpp issue 9066 (names, counts of tensors).

use super::{Family, Published, VisionDefaults, imp, moondream};
use crate::{Features, GgufParts, ModelError, gguf};
use margay_prompt::image::ImageSpec;

pub(super) const MOONDREAM2024: Family = Family {
    id: "moondream2024",
    summary: "Moondream 2 in the GGUF files of early 2024: SigLIP over one square + MLP + Phi-1.5, 729 visual tokens",
    hf: &[],
    gguf: &[("phi2", Some("mlp")), ("phi2", Some("mlp_gelu_tanh"))],
    prompt: moondream::MOONDREAM.prompt,
    vision: Some(VisionDefaults {
        image: |tower| ImageSpec::siglip_squash(tower.side() as u32),
        // Files hold 28 blocks of 27.
        features: Features::FinalBeforeSpare,
        projector: Some("mlp_gelu_tanh"),
    }),
    verified: "nothing but its published description",
    published: &[Published {
        name: "Moondream 2 (2024-03)",
        vision: "SigLIP-so400m/14-378",
        projector: "MLP",
        decoder: "Phi-1.5",
        picture_tokens: "729",
    }],
    read_hf: |config, _| Err(config.bad("model_type", "this family is read from GGUF files")),
    rename: |_, _| None,
};

/// Side of its pictures, which no other model of these parts has.
const SIDE: usize = 378;

/// Imp, or this one: its files say so by their names. Without one, a picture's side decides what can be meant.
pub(super) fn or_imp(parts: &GgufParts<'_>) -> Result<Option<&'static Family>, ModelError> {
    let mut side = None;
    for part in [Some(parts.text), parts.vision].into_iter().flatten() {
        if part.metadata.opt_str("general.name")?.is_some_and(|n| n.to_lowercase().contains("moondream")) {
            return Ok(Some(&MOONDREAM2024));
        }
        side = part.metadata.opt_usize("clip.vision.image_size")?.or(side);
    }
    if side == Some(SIDE) {
        let what = format!(
            "{SIDE} pixels with this decoder are Moondream's, but no file names it; set {} of the text file to {:?}, or to {:?}",
            gguf::FAMILY_KEY,
            MOONDREAM2024.id,
            imp::IMP.id,
        );
        return Err(gguf::field("clip.vision.image_size", what));
    }
    Ok(Some(&imp::IMP))
}
