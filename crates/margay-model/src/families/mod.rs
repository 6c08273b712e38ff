//! The families: one file each, one line in [`FAMILIES`].

mod llama;
mod llava;
mod mobilevlm;

use crate::{
    HfConfig, ModelConfig, ModelError, PromptStyle, Rename, VisionConfig, decoder, projector, vision,
};
use margay_file::{TensorSource, gguf::Metadata};
use margay_graph::Program;
use margay_prompt::image::ImageSpec;
use serde_json::Value;

/// All families.
pub const FAMILIES: &[&Family] = &[&llama::LLAMA, &llava::LLAVA, &mobilevlm::MOBILEVLM];

/// One model family.
#[derive(Debug)]
pub struct Family {
    /// Short lower-case id.
    pub id: &'static str,
    /// One line for people.
    pub summary: &'static str,
    /// `model_type`s in a checkpoint's `config.json`.
    pub hf: &'static [&'static str],
    /// In GGUF files: architecture of the text file, and `clip.projector_type` of the vision file.
    pub gguf: &'static [(&'static str, Option<&'static str>)],
    /// How prompts are written.
    pub prompt: PromptStyle,
    /// Picture to pixels where the file does not say, for a tower of that many pixels a side.
    pub image: Option<fn(side: u32) -> ImageSpec>,
    /// Against what it was compared, stage by stage.
    pub verified: &'static str,
    pub(crate) read_hf: fn(&HfConfig<'_>, &HfParts<'_>) -> Result<ModelConfig, ModelError>,
    /// Name and reordering of a checkpoint's weight in a GGUF file; `None` for weights that are not needed. A name that
    /// is a GGUF name already is no checkpoint name and gives `None`.
    pub(crate) rename: fn(&ModelConfig, &str) -> Option<Rename>,
}

/// What a Hugging Face folder holds beside its `config.json`.
pub struct HfParts<'a> {
    /// `preprocessor_config.json`
    pub preprocessor: Option<&'a Value>,
    /// Its weights.
    pub tensors: &'a dyn TensorSource,
}

/// The GGUF files of a model.
pub struct GgufParts<'a> {
    /// Metadata of the text file.
    pub text: &'a Metadata,
    /// Metadata of the vision file; the text file's own where it holds both.
    pub vision: Option<&'a Metadata>,
    /// The weights of both.
    pub tensors: &'a dyn TensorSource,
}

/// What a model computes.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelPrograms {
    /// `pixels` to `encode`.
    pub encode: Option<Program>,
    /// `features` to `project`.
    pub project: Option<Program>,
    /// `ids`, `positions`, `rows` (and `visual`) to `logits`.
    pub text: Program,
}

impl ModelConfig {
    /// Describes the model.
    ///
    /// # Errors
    /// [`ModelError::Graph`] where its sizes do not fit together.
    pub fn programs(&self) -> Result<ModelPrograms, ModelError> {
        let text = decoder::llama::text(&self.text, self.vision.is_some())?;
        let Some(VisionConfig { vit, projector, .. }) = &self.vision else {
            return Ok(ModelPrograms { encode: None, project: None, text });
        };
        let encode = vision::vit::encode(vit)?;
        let project = (projector.build)(vit.grid(), vit.width, self.text.width)?;
        Ok(ModelPrograms { encode: Some(encode), project: Some(project), text })
    }
}

/// The family of that id.
pub fn family(id: &str) -> Option<&'static Family> {
    FAMILIES.iter().copied().find(|f| f.id == id)
}

/// Reads a Hugging Face `config.json`.
///
/// # Errors
/// [`ModelError`] where no family reads it or a field is wrong.
pub fn from_hf(config: &Value, parts: &HfParts<'_>) -> Result<(&'static Family, ModelConfig), ModelError> {
    let config = HfConfig::new(config);
    let model_type = config.str("model_type").ok_or_else(|| config.bad("model_type", "is missing"))?;
    let family = FAMILIES.iter().copied().find(|f| f.hf.contains(&model_type));
    let family = family.ok_or_else(|| unknown(format!("the checkpoint (model_type {model_type:?})")))?;
    let mut model = (family.read_hf)(&config, parts)?;
    // Some checkpoints say "tied" and still bring a head of their own, which then counts.
    let has_head = parts.tensors.names().any(|n| n.ends_with("lm_head.weight"));
    model.text.tied &= !has_head;
    Ok((family, model))
}

/// Reads the metadata of GGUF files.
///
/// # Errors
/// [`ModelError`] where no family reads it or a key is wrong.
pub fn from_gguf(parts: &GgufParts<'_>) -> Result<(&'static Family, ModelConfig), ModelError> {
    let arch = parts.text.str("general.architecture")?;
    let projector = parts.vision.map(crate::gguf::projector_type).transpose()?;
    let family = FAMILIES.iter().copied().find(|f| f.gguf.contains(&(arch, projector)));
    let family = family.ok_or_else(|| match projector {
        Some(projector) => unknown(format!("the file (architecture {arch:?} with projector {projector:?})")),
        None => unknown(format!("the file (architecture {arch:?})")),
    })?;
    let model = crate::gguf::read(family, arch, parts)?;
    Ok((family, model))
}

fn unknown(what: String) -> ModelError {
    let known: Vec<_> = FAMILIES.iter().map(|f| f.id).collect();
    ModelError::UnknownFamily { what, known: known.join(", ") }
}

/// A GGUF name of any weight of this model for a name in a checkpoint.
fn rename_vlm(config: &ModelConfig, name: &str) -> Option<Rename> {
    if let Some(vision) = &config.vision
        && let Some(inner) = projector::inner_name(name)
    {
        return (vision.projector.rename)(inner).map(|to| Rename { to, transform: crate::Transform::None });
    }
    vision::vit::rename(name).or_else(|| decoder::llama::rename(&config.text, name))
}

/// The image front end of a CLIP tower: the processor's numbers, and padding where the checkpoint asks for it.
fn clip_image(pad: bool, side: usize, parts: &HfParts<'_>) -> Result<ImageSpec, ModelError> {
    let side = u32::try_from(side).unwrap_or(u32::MAX);
    let mut spec = if pad { ImageSpec::llava_pad(side) } else { ImageSpec::clip_crop(side) };
    let Some(processor) = parts.preprocessor else { return Ok(spec) };
    let bad = |field: &str, what: &str| ModelError::Field {
        place: "preprocessor_config.json".into(),
        field: field.into(),
        what: what.into(),
    };
    for (field, slot) in [("image_mean", &mut spec.mean), ("image_std", &mut spec.std)] {
        let Some(values) = processor.get(field).filter(|v| !v.is_null()) else { continue };
        let values: Option<Vec<f32>> =
            values.as_array().and_then(|a| a.iter().map(|v| v.as_f64().map(|v| v as f32)).collect());
        *slot = values
            .and_then(|v| v.try_into().ok())
            .ok_or_else(|| bad(field, "is no list of three numbers"))?;
    }
    if !spec.std.iter().all(|s| *s > 0.0) {
        return Err(bad("image_std", "must be positive"));
    }
    if pad {
        spec.fit = margay_prompt::image::Fit::PadToSquare { fill: spec.mean.map(|m| (m * 255.0) as u8) };
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_files_agree() {
        let mut listed: Vec<_> = FAMILIES.iter().map(|f| f.id.to_owned()).collect();
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/families");
        let mut files: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .filter(|stem| stem != "mod")
            .collect();
        listed.sort();
        files.sort();
        assert_eq!(listed, files);
    }
}
