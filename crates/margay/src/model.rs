//! A loaded model.

use crate::{
    AskOptions, Error, Eviction, Image, LoadOptions, ModelSource, Reduction, Session, backends,
    default_context, digest::sampled_digest, draft::Payoff, engine::Engine, image_cache::ImageCache,
    sample::Sampler,
};
use margay_graph::{Backend, MemoryUse};
use margay_model::ModelConfig;
use margay_observe::Stopwatch;
use margay_prompt::{
    layout::PictureLayout,
    text::{Forms, Tokenizer},
};
use margay_tensor::Storage;
use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
    time::Duration,
};

/// The model that ships inside the program.
static NANO: &[u8] = include_bytes!("../assets/margay-nano.gguf");

/// Tokens of context at most: positions stay exact far beyond, and a size typed wrong is caught.
const MOST_CONTEXT: usize = 1 << 24;

/// A loaded model. Cloning shares it; sessions on one model take turns, token by token.
#[derive(Clone)]
pub struct Model {
    inner: Arc<Inner>,
}

struct Inner {
    source: ModelSource,
    backend: Box<dyn Backend>,
    engine: Mutex<Engine>,
    images: Mutex<ImageCache>,
    payoff: Mutex<Payoff>,
    reduction: Option<Reduction>,
    eviction: Option<Eviction>,
    /// Settings that change what is computed.
    settings: String,
    identity: OnceLock<String>,
    forms: OnceLock<Forms>,
    context: usize,
    load: Duration,
}

impl Model {
    /// Loads a GGUF file (its mmproj is found beside it) or a Hugging Face folder.
    ///
    /// # Errors
    /// [`Error`] saying what is wrong with the file, and what to do.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::load_with(path, &LoadOptions::default())
    }

    /// As [`Model::load`], with options.
    ///
    /// # Errors
    /// As [`Model::load`]; [`Error::Option`] for options out of range.
    pub fn load_with(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Self, Error> {
        let clock = Stopwatch::start();
        let source = ModelSource::open(path.as_ref(), options.mmproj.as_deref())?;
        Self::build(source, options, clock)
    }

    /// The model that ships inside the program: margay-nano, for pictures of coloured shapes and short signs.
    ///
    /// # Errors
    /// [`Error::Backend`] where the machine lacks memory for it.
    pub fn nano() -> Result<Self, Error> {
        Self::nano_with(&LoadOptions::default())
    }

    /// As [`Model::nano`], with options.
    ///
    /// # Errors
    /// As [`Model::nano`]; [`Error::Option`] for options out of range.
    pub fn nano_with(options: &LoadOptions) -> Result<Self, Error> {
        let clock = Stopwatch::start();
        let source = Self::nano_source()?;
        Self::build(source, options, clock)
    }

    /// What the files of the model inside the program say.
    ///
    /// # Errors
    /// None with a sound build.
    pub fn nano_source() -> Result<ModelSource, Error> {
        ModelSource::from_bytes(Storage::from_owner(Arc::new(NANO)))
    }

    /// The model of an opened source.
    ///
    /// # Errors
    /// As [`Model::load_with`].
    pub fn from_source(source: ModelSource, options: &LoadOptions) -> Result<Self, Error> {
        Self::build(source, options, Stopwatch::start())
    }

    fn build(source: ModelSource, options: &LoadOptions, clock: Stopwatch) -> Result<Self, Error> {
        let source = match options.dtype {
            Some(dtype) => source.with_types(dtype, options.vision_dtype)?,
            None => source,
        };
        let source = match options.max_image_tokens {
            Some(tokens) => source.with_max_image_tokens(tokens)?,
            None => source,
        };
        let context = options.context.unwrap_or_else(|| default_context(&source.config));
        if context == 0 {
            return Err(Error::Option { option: "context", what: "0 tokens hold no question".to_owned() });
        }
        if context > MOST_CONTEXT {
            let what =
                format!("{context} tokens are more than any model was trained for; at most {MOST_CONTEXT}");
            return Err(Error::Option { option: "context", what });
        }
        if let Some(reduction) = &options.reduction {
            reduction.check()?;
            if source.config.text.rope_sections.is_some() {
                let what = format!(
                    "{} asks where in the picture a token lies, so that all have to stay",
                    source.config.name
                );
                return Err(Error::Option { option: "share of image tokens", what });
            }
        }
        if let Some(eviction) = options.eviction {
            eviction.check(context)?;
        }
        let width = source.config.text.width;
        let images = ImageCache::new(options.image_cache_type, width, options.image_cache)?;
        let backend = backends::backend(options)?;
        let engine = Engine::new(&source, backend.as_ref(), options, context)?;
        let load = clock.elapsed();
        let payoff = Mutex::new(Payoff::new(engine.outputs().saturating_sub(1)));
        let (engine, images) = (Mutex::new(engine), Mutex::new(images));
        let settings = format!(
            "{:?}",
            (options.dtype, options.vision_dtype, options.max_image_tokens, options.int8_encoder)
        ) + &format!(
            "{:?}",
            (options.bf16_encoder, options.image_cache_type, &options.reduction, backend.id())
        );
        let (identity, forms) = (OnceLock::new(), OnceLock::new());
        let reduction = options.reduction.clone();
        let inner = Inner {
            source,
            backend,
            engine,
            images,
            payoff,
            reduction,
            eviction: options.eviction,
            settings,
            identity,
            forms,
            context,
            load,
        };
        Ok(Model { inner: Arc::new(inner) })
    }

    /// A new conversation.
    ///
    /// # Errors
    /// [`Error::Backend`] where its KV cache cannot be made.
    pub fn session(&self) -> Result<Session, Error> {
        Session::new(self.clone())
    }

    /// What tells it apart from other models, and from itself under settings that change what is computed.
    pub(crate) fn identity(&self) -> Result<String, Error> {
        if let Some(known) = self.inner.identity.get() {
            return Ok(known.clone());
        }
        let identity = format!("{} {}", sampled_digest(self.source())?, self.inner.settings);
        Ok(self.inner.identity.get_or_init(|| identity).clone())
    }

    /// Refuses options that no answer could be made with.
    pub(crate) fn check(&self, options: &AskOptions) -> Result<(), Error> {
        self.sampler(options).map(|_| ())
    }

    pub(crate) fn sampler(&self, options: &AskOptions) -> Result<Sampler, Error> {
        let form = match &options.form {
            Some(form) => Some(self.forms()?.begin(form)?),
            None => None,
        };
        Sampler::new(options, self.config().text.vocabulary, form)
    }

    /// Made for the first answer that has a form.
    fn forms(&self) -> Result<&Forms, Error> {
        if let Some(forms) = self.inner.forms.get() {
            return Ok(forms);
        }
        let forms = Forms::new(self.tokenizer())?;
        Ok(self.inner.forms.get_or_init(|| forms))
    }

    /// What a picture becomes in a prompt.
    ///
    /// # Errors
    /// As [`ModelSource::picture_layout`].
    pub fn picture_layout(&self, image: &Image) -> Result<PictureLayout, Error> {
        let layout = self.source().picture_layout(image)?;
        Ok(match &self.inner.reduction {
            Some(reduction) => layout.with_tokens(|tokens| reduction.kept(tokens)),
            None => layout,
        })
    }

    pub(crate) fn eviction(&self) -> Option<Eviction> {
        self.inner.eviction
    }

    pub(crate) fn reduction(&self) -> Option<&Reduction> {
        self.inner.reduction.as_ref()
    }

    /// The model's numbers.
    pub fn config(&self) -> &ModelConfig {
        &self.inner.source.config
    }

    /// What its files say.
    pub fn source(&self) -> &ModelSource {
        &self.inner.source
    }

    /// Its vocabulary.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.inner.source.tokenizer
    }

    /// The backend it runs on.
    pub fn backend(&self) -> &dyn Backend {
        self.inner.backend.as_ref()
    }

    /// Tokens of context of its sessions.
    pub fn context(&self) -> usize {
        self.inner.context
    }

    /// How long loading took.
    pub fn load_time(&self) -> Duration {
        self.inner.load
    }

    /// Bytes held by weights and buffers, KV caches not counted.
    ///
    /// # Errors
    /// [`Error::Poisoned`] after a failure in the middle of an answer.
    pub fn memory(&self) -> Result<MemoryUse, Error> {
        Ok(self.engine()?.memory())
    }

    /// What loading passed over and a person should know: packed files that do not fit and weights
    /// that could not take the type asked for, and why.
    ///
    /// # Errors
    /// [`Error::Poisoned`] after a failure in the middle of an answer.
    pub fn notes(&self) -> Result<Vec<String>, Error> {
        let mut notes = self.source().formats.notes();
        notes.extend(self.engine()?.notes());
        Ok(notes)
    }

    /// Bytes of visual tokens that are kept of pictures seen before.
    ///
    /// # Errors
    /// [`Error::Poisoned`] after a failure in the middle of an answer.
    pub fn image_cache_bytes(&self) -> Result<usize, Error> {
        Ok(self.images()?.bytes())
    }

    pub(crate) fn payoff(&self) -> Result<MutexGuard<'_, Payoff>, Error> {
        self.inner.payoff.lock().map_err(|_| Error::Poisoned)
    }

    pub(crate) fn images(&self) -> Result<MutexGuard<'_, ImageCache>, Error> {
        self.inner.images.lock().map_err(|_| Error::Poisoned)
    }

    pub(crate) fn engine(&self) -> Result<MutexGuard<'_, Engine>, Error> {
        self.inner.engine.lock().map_err(|_| Error::Poisoned)
    }
}
