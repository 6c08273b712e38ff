//! The families: one file each, one line in [`FAMILIES`].

mod fastvlm;
mod gemma;
mod imp;
mod llama;
mod llava;
mod minicpmv;
mod mobilevlm;
mod moondream;
mod moondream2024;
mod olmoe;
mod phi;
mod qwen2;
mod qwen2moe;
mod qwen2vl;
mod qwen3;
mod qwen3moe;
mod smolvlm;
mod tinyllava;

use crate::{
    Extra, Features, HfConfig, ModelConfig, ModelError, Outliers, PromptStyle, Rename, TowerConfig, decoder,
    projector, vision,
};
use margay_file::{TensorSource, gguf::Metadata};
use margay_graph::{Program, Sym};
use margay_prompt::image::{Filter, Fit, ImageSpec};
use serde_json::Value;

/// All families.
pub const FAMILIES: &[&Family] = &[
    &llama::LLAMA,
    &phi::PHI,
    &qwen2::QWEN2,
    &qwen2moe::QWEN2MOE,
    &qwen3::QWEN3,
    &qwen3moe::QWEN3MOE,
    &olmoe::OLMOE,
    &gemma::GEMMA,
    &llava::LLAVA,
    &mobilevlm::MOBILEVLM,
    &imp::IMP,
    &tinyllava::TINYLLAVA,
    &smolvlm::SMOLVLM,
    &qwen2vl::QWEN2VL,
    &fastvlm::FASTVLM,
    &moondream::MOONDREAM,
    &moondream2024::MOONDREAM2024,
    &minicpmv::MINICPMV,
];

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
    /// What a file that does not say it means on the vision side; `None` for text.
    pub vision: Option<VisionDefaults>,
    /// Against what it was compared, stage by stage.
    pub verified: &'static str,
    /// Published models of this family, smallest first.
    pub published: &'static [Published],
    pub(crate) read_hf: fn(&HfConfig<'_>, &HfParts<'_>) -> Result<ModelConfig, ModelError>,
    /// Name and reordering of a checkpoint's weight in a GGUF file; `None` for weights that are not needed. A name that
    /// is a GGUF name already is no checkpoint name and gives `None`.
    pub(crate) rename: fn(&ModelConfig, &str) -> Option<Rename>,
}

/// What a family means by a vision file that does not say it.
#[derive(Clone, Copy, Debug)]
pub struct VisionDefaults {
    /// Picture to pixels, for that tower.
    pub image: fn(&dyn TowerConfig) -> ImageSpec,
    /// Which of the tower's values are projected.
    pub features: Features,
    /// Id of the projector where `clip.projector_type` names another.
    pub projector: Option<&'static str>,
}

/// A published model, for `margay list` and `docs/models.md`. A fact about what there is, not what was downloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Name as its authors write it, with its size.
    pub name: &'static str,
    /// Tower or picture encoder; empty for text models.
    pub vision: &'static str,
    /// Projector; empty for text models.
    pub projector: &'static str,
    /// Decoder.
    pub decoder: &'static str,
    /// Visual tokens of a picture; empty for text models. Where they depend on the picture, words: `64 to 640`.
    pub picture_tokens: &'static str,
}

impl Published {
    /// A model without pictures.
    const fn text(name: &'static str, decoder: &'static str) -> Self {
        Published { name, vision: "", projector: "", decoder, picture_tokens: "" }
    }
}

/// What a Hugging Face folder holds beside its `config.json`.
pub struct HfParts<'a> {
    /// `preprocessor_config.json`
    pub preprocessor: Option<&'a Value>,
    /// Its weights.
    pub tensors: &'a dyn TensorSource,
    /// Any other small file of the folder, where it is there.
    pub file: &'a dyn Fn(&str) -> Option<Vec<u8>>,
}

/// A checkpoint without weights.
pub(crate) struct NoTensors;

impl TensorSource for NoTensors {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(std::iter::empty())
    }
    fn info(&self, _: &str) -> Option<margay_file::TensorInfo> {
        None
    }
    fn tensor(&self, name: &str) -> Result<margay_tensor::Tensor, margay_file::FileError> {
        Err(margay_file::FileError::MissingTensor { name: name.to_owned() })
    }
}

/// The GGUF files of a model.
pub struct GgufParts<'a> {
    /// The text file.
    pub text: GgufPart<'a>,
    /// The vision file; the text file itself where it holds both.
    pub vision: Option<GgufPart<'a>>,
}

/// A GGUF file.
#[derive(Clone, Copy)]
pub struct GgufPart<'a> {
    /// Its metadata.
    pub metadata: &'a Metadata,
    /// Its weights.
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
        self.programs_with(Extra::default())
    }

    /// As [`ModelConfig::programs`], with vision programs that do more.
    ///
    /// # Errors
    /// [`ModelError::Extra`] where tower or projector cannot; else as [`ModelConfig::programs`].
    pub fn programs_with(&self, extra: Extra) -> Result<ModelPrograms, ModelError> {
        let text = decoder::text(&self.text, self.vision.is_some())?;
        let plain =
            match &self.vision {
                None => ModelPrograms { encode: None, project: None, text },
                Some(vision) => {
                    let cannot = |part: &'static str, id: &'static str, needs: &'static str| {
                        ModelError::Extra { model: self.name.clone(), part, id, needs }
                    };
                    let mut sizes = vision.project_sizes(self.text.width);
                    if extra.some_patches {
                        if !vision.projector.each || vision.square() != Some(1) {
                            let needs = "a projector that makes one token of each patch (mlp)";
                            return Err(cannot("projector", vision.projector.id, needs));
                        }
                        sizes.patches = Sym::Patches.into();
                    }
                    if extra.changed_patches && vision.square().is_none() {
                        let needs = "visual tokens that lie on the patches of one tile";
                        return Err(cannot("projector", vision.projector.id, needs));
                    }
                    let project = (vision.projector.build)(&sizes)?;
                    let encode = vision.tower.encode_with(extra)?;
                    let needs = "a tower of equal patches (vit: CLIP, SigLIP)";
                    let encode = encode.ok_or_else(|| cannot("tower", vision.tower.tower().id, needs))?;
                    ModelPrograms { encode: Some(encode), project: Some(project), text }
                }
            };
        self.outliers.apply(plain)
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
    let arch = parts.text.metadata.str("general.architecture")?;
    let projector = parts.vision.map(|part| crate::gguf::projector_type(part.metadata)).transpose()?;
    let named = parts.text.metadata.opt_str(crate::gguf::FAMILY_KEY)?;
    let fitting = || FAMILIES.iter().copied().filter(|f| f.gguf.contains(&(arch, projector)));
    let family = match fitting().find(|f| named == Some(f.id)) {
        None if fitting().any(|f| f.id == moondream2024::MOONDREAM2024.id) => moondream2024::or_imp(parts)?,
        None => fitting().next(),
        named => named,
    };
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

/// A text model from its `config.json`.
fn text_only(family: &'static Family, config: &HfConfig<'_>) -> Result<ModelConfig, ModelError> {
    Ok(ModelConfig {
        family: family.id,
        name: config.str("_name_or_path").filter(|n| !n.is_empty()).unwrap_or(family.id).to_owned(),
        text: decoder::from_hf(config)?,
        vision: None,
        prompt: family.prompt,
        chat_template: None,
        outliers: Outliers::default(),
    })
}

/// A GGUF name of any weight of this model for a name in a checkpoint.
fn rename_vlm(config: &ModelConfig, name: &str) -> Option<Rename> {
    if let Some(vision) = &config.vision {
        if let Some(inner) = projector::inner_name(name) {
            return (vision.projector.rename)(inner)
                .map(|to| Rename { to, transform: crate::Transform::None });
        }
        if let Some(inner) = vision::inner_name(name) {
            return vision.tower.rename(inner);
        }
    }
    decoder::rename(&config.text, name)
}

/// What LLaVA and its like mean: the hidden state before the last block, pictures as the authors run them.
const LLAVA_VISION: VisionDefaults =
    VisionDefaults { image: authors_image, features: Features::Hidden(-2), projector: None };

/// The image front end of a tower as LLaVA's authors run it: padded squares for a tower that crops (CLIP).
fn authors_image(tower: &dyn TowerConfig) -> ImageSpec {
    let spec = tower.image();
    let crops = matches!(spec.fit, Fit::ShortestEdgeCrop { .. });
    if crops { padded(spec) } else { spec }
}

fn padded(spec: ImageSpec) -> ImageSpec {
    ImageSpec { fit: Fit::PadToSquare { fill: spec.mean.map(|m| (m * 255.0) as u8) }, ..spec }
}

/// The image front end of a checkpoint: the processor's numbers, and padding where the checkpoint asks for it.
fn processor_image(pad: bool, spec: ImageSpec, parts: &HfParts<'_>) -> Result<ImageSpec, ModelError> {
    let mut spec = spec;
    let bad = bad_processor;
    let said = |field: &str| parts.preprocessor?.get(field).filter(|v| !v.is_null());
    for (field, slot) in [("image_mean", &mut spec.mean), ("image_std", &mut spec.std)] {
        let Some(values) = said(field) else { continue };
        let values: Option<Vec<f32>> =
            values.as_array().and_then(|a| a.iter().map(|v| v.as_f64().map(|v| v as f32)).collect());
        *slot = values
            .and_then(|v| v.try_into().ok())
            .ok_or_else(|| bad(field, "is no list of three numbers"))?;
    }
    if !spec.std.iter().all(|s| *s > 0.0) {
        return Err(bad("image_std", "must be positive"));
    }
    if let Some(resample) = said("resample") {
        spec.filter = resampling(resample)
            .ok_or_else(|| bad("resample", &format!("{resample} is not supported; known are 0 to 4")))?;
    }
    Ok(if pad { padded(spec) } else { spec })
}

fn bad_processor(field: &str, what: &str) -> ModelError {
    ModelError::Field { place: "preprocessor_config.json".into(), field: field.into(), what: what.into() }
}

/// Source: Pillow `Image.py`, `Resampling`.
fn resampling(number: &Value) -> Option<Filter> {
    const NUMBERED: [Filter; 5] =
        [Filter::Nearest, Filter::Lanczos3, Filter::Bilinear, Filter::Bicubic, Filter::Box];
    NUMBERED.get(usize::try_from(number.as_u64()?).ok()?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_says_how_its_pictures_are_resized() {
        assert_eq!(resampling(&2.into()), Some(Filter::Bilinear));
        assert_eq!(resampling(&3.into()), Some(Filter::Bicubic));
        for unknown in [Value::from(5), Value::from(-1), Value::from("bicubic")] {
            assert_eq!(resampling(&unknown), None, "{unknown}");
        }
    }

    #[test]
    fn every_family_lists_what_is_published_and_pictures_have_tokens() {
        for family in FAMILIES {
            assert!(!family.published.is_empty(), "{}", family.id);
            for model in family.published {
                let sees = family.vision.is_some();
                for part in [model.vision, model.projector, model.picture_tokens] {
                    assert_eq!(!part.is_empty(), sees, "{}: {model:?}", family.id);
                }
                assert!(!model.name.is_empty() && !model.decoder.is_empty(), "{model:?}");
            }
        }
    }

    #[test]
    fn published_tokens_are_those_of_the_published_configurations() {
        let parts = HfParts { preprocessor: None, tensors: &NoTensors, file: &|_| None };
        let clip = "openai/clip-vit-large-patch14-336";
        let siglip = "google/siglip-so400m-patch14-384";
        for (model_type, projector, tower, name) in [
            ("llava_llama", "mlp2x_gelu", clip, "LLaVA-1.5 7B"),
            ("mobilevlm", "ldpnet", clip, "MobileVLM 3B"),
            ("mobilevlm", "ldpnetv2", clip, "MobileVLM V2 1.7B"),
            ("imp", "mlp2x_gelu", siglip, "Imp-v1.5-3B"),
            ("llava_qwen2", "mlp2x_gelu", "mobileclip_l_1024", "FastVLM 0.5B"),
        ] {
            let config = serde_json::json!({
                "model_type": model_type, "mm_projector_type": projector, "mm_vision_tower": tower,
            });
            let (family, model) = from_hf(&config, &parts).unwrap();
            let listed = family.published.iter().find(|p| p.name == name).unwrap();
            let tokens = model.vision.unwrap().tile_tokens();
            assert_eq!(listed.picture_tokens, tokens.to_string(), "{name}");
        }
    }

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
