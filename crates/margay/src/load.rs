//! Model files to configuration, vocabulary and weights.

use crate::{Error, Image, formats::Formats, tokenizer_of};
use margay_file::{Gguf, ModelFiles, TensorSource, open_model};
use margay_model::{Canonical, Family, GgufPart, GgufParts, HfParts, ModelConfig};
use margay_prompt::{
    layout::PictureLayout,
    text::{ChatTemplate, Message, RenderOptions, RenderedPart, Tokenizer},
};
use margay_tensor::Storage;
use std::{num::NonZeroUsize, path::Path, sync::Arc};

/// Largest context taken without being asked: beyond it the KV cache of a large model fills a phone's memory.
const MOST_DEFAULT_CONTEXT: usize = 4096;

/// Tokens of context where the caller does not say: what the model was trained for, at most 4096.
pub fn default_context(config: &ModelConfig) -> usize {
    config.text.context.min(MOST_DEFAULT_CONTEXT)
}

/// An opened model: everything that its files say, nothing computed yet.
#[derive(Clone)]
pub struct ModelSource {
    /// Its family.
    pub family: &'static Family,
    /// Its numbers.
    pub config: ModelConfig,
    /// Its vocabulary.
    pub tokenizer: Arc<Tokenizer>,
    /// How conversations are written.
    pub template: ChatTemplate,
    /// Its own chat template's source; `None` where the family's built-in one is used.
    pub template_source: Option<String>,
    /// Its weights under their GGUF names.
    pub weights: Canonical,
    /// The files.
    pub files: ModelFiles,
    pub(crate) formats: Formats,
}

impl ModelSource {
    /// Opens a GGUF file (with its mmproj, given or found beside it) or a Hugging Face folder.
    ///
    /// # Errors
    /// [`Error`] where it is no model, is damaged, or is of no family that Margay knows.
    pub fn open(path: &Path, mmproj: Option<&Path>) -> Result<Self, Error> {
        Self::new(open_model(path, mmproj)?)
    }

    /// Reads a GGUF file that is in memory.
    ///
    /// # Errors
    /// As [`ModelSource::open`].
    pub fn from_bytes(bytes: Storage) -> Result<Self, Error> {
        Self::new(ModelFiles::from_bytes(bytes)?)
    }

    /// A conversation as the model's prompt, up to where its answer begins.
    pub(crate) fn render(&self, messages: &[Message]) -> Result<Vec<RenderedPart>, Error> {
        let token =
            |id: Option<u32>| id.and_then(|id| self.tokenizer.token_text(id)).unwrap_or_default().to_owned();
        let options = RenderOptions {
            add_generation_prompt: true,
            eos_id: self.tokenizer.eos(),
            bos_token: token(self.tokenizer.bos()),
            eos_token: token(self.tokenizer.eos()),
            image_mark: self.config.prompt.image_mark.to_owned(),
            image_place: self.config.prompt.image_place,
        };
        Ok(self.template.render(messages, &options)?.parts)
    }

    /// The same model, whose pictures become no more than so many visual tokens: larger ones are shrunk. One that is far
    /// longer than it is wide may become a few more.
    ///
    /// # Errors
    /// [`Error::NoVision`]; [`Error::Option`] where pictures do not become tokens by their size.
    pub fn with_max_image_tokens(mut self, tokens: NonZeroUsize) -> Result<Self, Error> {
        let no_vision = || Error::NoVision { model: self.config.name.clone() };
        let vision = self.config.vision.clone().ok_or_else(no_vision)?;
        let fixed = || Error::Option {
            option: "max-image-tokens",
            what: format!(
                "{} takes its own number of tokens for a picture, whatever its size",
                self.config.name
            ),
        };
        self.config.vision = Some(vision.with_most_tokens(tokens).ok_or_else(fixed)?);
        Ok(self)
    }

    /// What a picture becomes in a prompt: its tiles, their visual tokens, and the texts around them.
    ///
    /// # Errors
    /// [`Error::NoVision`], [`Error::Image`].
    pub fn picture_layout(&self, image: &Image) -> Result<PictureLayout, Error> {
        let no_vision = || Error::NoVision { model: self.config.name.clone() };
        let vision = self.config.vision.as_ref().ok_or_else(no_vision)?;
        let layout = vision.layout(image.width(), image.height());
        layout.map_err(|source| Error::Image { place: image.name.clone(), source })
    }

    fn new(files: ModelFiles) -> Result<Self, Error> {
        let (family, config, weights) = match &files {
            ModelFiles::Gguf { text, vision } => from_gguf(text, vision.as_ref())?,
            ModelFiles::Hf(folder) => {
                let preprocessor = match folder.preprocessor_config()? {
                    Some(config) => Some(config),
                    // transformers 5 keeps it inside the processor's own file.
                    None => folder
                        .processor_config()?
                        .and_then(|mut c| c.get_mut("image_processor").map(|p| p.take())),
                };
                let file = |name: &str| folder.file(name).ok().flatten();
                let parts = HfParts { preprocessor: preprocessor.as_ref(), tensors: folder, file: &file };
                let (family, config) = margay_model::from_hf(folder.config(), &parts)?;
                let weights = Canonical::from_hf(family, &config, Arc::new(folder.clone()))?;
                (family, config, weights)
            }
        };
        let tokenizer = Arc::new(tokenizer_of(&files)?);
        let of_folder = match &files {
            ModelFiles::Hf(folder) => folder.chat_template()?,
            ModelFiles::Gguf { .. } => None,
        };
        let template_source = config.chat_template.clone().or(of_folder);
        let template_source = template_source.or_else(|| tokenizer.chat_template().map(str::to_owned));
        let template = match &template_source {
            Some(source) => ChatTemplate::new(source)?,
            None => ChatTemplate::builtin(config.prompt.template)
                .expect("invariant: families name built-in templates"),
        };
        Ok(ModelSource {
            family,
            config,
            tokenizer,
            template,
            template_source,
            weights,
            files,
            formats: Formats::default(),
        })
    }
}

fn from_gguf(text: &Gguf, vision: Option<&Gguf>) -> Result<(&'static Family, ModelConfig, Canonical), Error> {
    let part = |file| GgufPart { metadata: Gguf::metadata(file), tensors: file };
    let parts = GgufParts { text: part(text), vision: vision.map(part) };
    let (family, config) = margay_model::from_gguf(&parts)?;
    let mut files: Vec<Arc<dyn TensorSource + Send + Sync>> = vec![Arc::new(text.clone())];
    // Where one file holds both sides, they are the same file.
    if let Some(vision) = vision.filter(|vision| !vision.is_same(text)) {
        files.push(Arc::new(vision.clone()));
    }
    let weights = Canonical::from_gguf(&config, files)?;
    Ok((family, config, weights))
}
