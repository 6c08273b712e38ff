//! A loaded model.

use crate::{
    AskOptions, Bounds, Error, Eviction, GovernorReport, Image, Keep, LoadOptions, ModelSource, Pruning,
    Reduction, Session, backends, default_context,
    digest::sampled_digest,
    draft::{Drafter, Payoff},
    engine::Engine,
    governed::Governed,
    image_cache::ImageCache,
    image_files::ImageFiles,
    overlap::Overlapping,
    prefix_files::PrefixFiles,
    prefixes::Prefixes,
    reduce::repeats::first_of_each,
    sample::Sampler,
};
use margay_graph::{Backend, MemoryUse};
use margay_model::{Feed, KeptRows, ModelConfig, VisionConfig};
use margay_observe::{Root, Stopwatch};
use margay_prompt::{
    image::{ImageSpec, Pixels},
    layout::PictureLayout,
    text::{Forms, Tokenizer},
};
use margay_tensor::{DType, Storage};
use std::{
    borrow::Cow,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

/// The model that ships inside the program.
static NANO: &[u8] = include_bytes!("../assets/margay-nano.gguf");

/// Tokens of context at most: positions stay exact far beyond, and a size typed wrong is caught.
const MOST_CONTEXT: usize = 1 << 24;

/// A model that guesses for another one ([`LoadOptions::draft_model`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DraftModel {
    /// Its name.
    pub name: String,
    /// Whether it sees the model's visual tokens: it is of the same family and width, and was made with a projector. Any other
    /// sees the words of a prompt alone.
    pub sees_pictures: bool,
}

/// A loaded model. Cloning shares it; sessions on one model take turns, token by token.
#[derive(Clone)]
pub struct Model {
    inner: Arc<Inner>,
}

struct Inner {
    source: ModelSource,
    backend: Box<dyn Backend>,
    engine: Mutex<Engine>,
    overlap: Overlapping,
    /// Whether visual tokens are kept as they were computed.
    rows_are_exact: bool,
    images: Mutex<ImageCache>,
    prefixes: Option<Prefixes>,
    payoff: Mutex<Payoff>,
    drafter: Option<Drafter>,
    reduction: Option<Reduction>,
    pruning: Option<Pruning>,
    governed: Mutex<Option<Arc<Governed>>>,
    repeated_patches: Option<f32>,
    /// What is known of a picture that is not a frame: nothing. Where only patches of frames that changed are encoded.
    nothing_kept: Option<KeptRows>,
    eviction: Option<Eviction>,
    embeds: bool,
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
            reduction.check(&source.config)?;
        }
        if let Some(levels) = options.repeated_patches.filter(|levels| !(0.0..=255.0).contains(levels)) {
            let what = format!("{levels} is not within 0 to 255 levels");
            return Err(Error::Option { option: "repeated patches", what });
        }
        if options.changed_patches && (options.repeated_patches.is_some() || options.reduction.is_some()) {
            let what = "frames of which only the changed patches are encoded (--changed-patches) leave out no other visual \
                        tokens; leave out --keep-image-tokens and --skip-repeated-patches"
                .to_owned();
            return Err(Error::Option { option: "changed patches", what });
        }
        if let Some(eviction) = options.eviction {
            eviction.check(context)?;
            if options.prefix_folder.is_some() && !eviction.makes_room() {
                let what = "what the end of a prompt looks at is not kept with it, and --evict chooses by that; leave one of \
                            them out"
                    .to_owned();
                return Err(Error::Option { option: "prefix folder", what });
            }
        }
        let width = source.config.text.width;
        let images = ImageCache::new(options.image_cache_type, width, options.image_cache)?;
        let backend = backends::backend(options)?;
        if let Some(pruning) = &options.pruning {
            pruning.check(&source.config, backend.as_ref(), options)?;
        }
        let overlap = Overlapping::new(options, &source.config, backend.as_ref())?;
        let engine = Engine::new(&source, backend.as_ref(), options, context)?;
        let drafter = match &options.draft_model {
            Some(path) => Some(Drafter::load(path, &source, backend.as_ref(), options, context)?),
            None => None,
        };
        let keeps = options.prefix_folder.is_none() || engine.new_state(1, None)?.form().is_some();
        if !keeps {
            let what = format!(
                "the {} backend's KV cache cannot be kept; use the cpu backend, or leave --prefix-folder out",
                backend.id()
            );
            return Err(Error::Option { option: "prefix folder", what });
        }
        let load = clock.elapsed();
        let weights = |memory: MemoryUse| (memory.packed_weight_bytes + memory.mapped_weight_bytes) as f64;
        let scale = match &drafter {
            // Nothing but the text side is compiled yet.
            Some(drafter) => Some(weights(drafter.memory()?) / weights(engine.memory()).max(1.0)),
            None => None,
        };
        let payoff = Mutex::new(Payoff::new(engine.outputs().saturating_sub(1), scale));
        let engine = Mutex::new(engine);
        let settings = format!(
            "{:?}",
            (options.dtype, options.vision_dtype, options.max_image_tokens, options.int8_encoder)
        ) + &format!(
            "{:?}",
            (
                options.bf16_encoder,
                options.image_cache_type,
                &options.reduction,
                options.repeated_patches,
                options.changed_patches,
                backend.id()
            )
        );
        let (identity, forms) = (OnceLock::new(), OnceLock::new());
        if options.image_folder.is_some() || options.prefix_folder.is_some() {
            let whole = format!("{} {settings}", sampled_digest(&source)?);
            identity.get_or_init(|| whole);
        }
        let known: String = identity.get().cloned().unwrap_or_default();
        let images = Mutex::new(match &options.image_folder {
            Some(folder) => {
                images.with_files(ImageFiles::new(&folder.path, folder.most_bytes, known.clone())?)
            }
            None => images,
        });
        let prefixes = match &options.prefix_folder {
            Some(folder) => {
                // Kernels of another instruction set round in another way, and so do visual rows that are kept.
                let rounded = options.image_cache > 0 || options.image_folder.is_some();
                let kernels = backend.layout().map(|layout| layout.to_string());
                let identity = format!("{known} {kernels:?} {rounded}");
                Some(Prefixes::new(PrefixFiles::new(&folder.path, folder.most_bytes, identity, width)?))
            }
            None => None,
        };
        let (reduction, repeated_patches) = (options.reduction.clone(), options.repeated_patches);
        let nothing_kept = match (&source.config.vision, options.changed_patches) {
            (Some(vision), true) => vision.tower.kept_rows(),
            _ => None,
        };
        let inner = Inner {
            source,
            backend,
            engine,
            overlap,
            rows_are_exact: options.image_cache_type == DType::F32,
            images,
            prefixes,
            payoff,
            drafter,
            reduction,
            pruning: options.pruning.clone(),
            governed: Mutex::default(),
            repeated_patches,
            nothing_kept,
            eviction: options.eviction,
            embeds: options.embeddings,
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
    /// Whether it was loaded for embeddings.
    pub fn embeds(&self) -> bool {
        self.inner.embeds
    }

    pub(crate) fn check(&self, options: &AskOptions) -> Result<(), Error> {
        self.sampler(options).map(|_| ())
    }

    pub(crate) fn sampler(&self, options: &AskOptions) -> Result<Sampler, Error> {
        if options.embed && !self.inner.embeds {
            let what = "the model was not loaded for embeddings (LoadOptions::embeddings)".to_owned();
            return Err(Error::Option { option: "embed", what });
        }
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
        let layout = match self.image_spec(image)? {
            Cow::Borrowed(_) => self.source().picture_layout(image)?,
            Cow::Owned(spec) => {
                let vision = VisionConfig { image: spec, ..self.vision()?.clone() };
                let layout = vision.layout(image.width(), image.height());
                layout.map_err(|source| Error::Image { place: image.name.clone(), source })?
            }
        };
        let reduction = self.inner.reduction.as_ref().filter(|_| Reduction::leaves_rows_out(self.config()));
        Ok(match reduction {
            Some(reduction) => layout.with_tokens(|tokens| reduction.kept(tokens)),
            None => layout,
        })
    }

    /// That picture as it is seen now: smaller where the governor asks for that and the model has pictures of several sizes.
    pub(crate) fn seen_now(&self, image: &Image) -> Result<(Image, PictureLayout), Error> {
        let share = self.governed().map_or(1.0, |governed| governed.settings().resolution);
        let smaller = share < 1.0 && self.vision()?.image.has_sizes();
        let image = if smaller { image.seen_at(share) } else { image.clone() };
        let layout = self.picture_layout(&image)?;
        Ok((image, layout))
    }

    /// How that picture becomes tiles: as the model has it; smaller where it is not seen whole; or where the picture says how
    /// much is seen of it, no larger than what it shows asks for.
    pub(crate) fn image_spec(&self, image: &Image) -> Result<Cow<'_, ImageSpec>, Error> {
        let spec = &self.vision()?.image;
        if !image.is_whole() {
            let spec = spec.with_detail(image.width(), image.height(), 0);
            return Ok(Cow::Owned(spec.with_share(image.share())));
        }
        let auto = self.inner.reduction.as_ref().is_some_and(|reduction| reduction.keep == Keep::Auto);
        if !auto || !spec.has_sizes() || image.has_dense_text()? {
            return Ok(Cow::Borrowed(spec));
        }
        let smaller = spec.with_detail(image.width(), image.height(), image.halvings()?);
        Ok(if smaller == *spec { Cow::Borrowed(spec) } else { Cow::Owned(smaller) })
    }

    /// Whether it leaves visual tokens out in any way.
    pub(crate) fn leaves_out(&self) -> bool {
        self.inner.reduction.is_some() || self.inner.repeated_patches.is_some()
    }

    pub(crate) fn prefixes(&self) -> Option<&Prefixes> {
        self.inner.prefixes.as_ref()
    }

    pub(crate) fn eviction(&self) -> Option<Eviction> {
        self.inner.eviction
    }

    pub(crate) fn reduction(&self) -> Option<&Reduction> {
        self.inner.reduction.as_ref()
    }

    /// Whether some visual tokens are only seen by the decoder's first layers.
    pub fn prunes(&self) -> bool {
        self.inner.pruning.is_some()
    }

    pub(crate) fn pruning(&self) -> Option<&Pruning> {
        self.inner.pruning.as_ref()
    }

    /// A tile as the model's tower takes it: whole, or those of its patches.
    pub(crate) fn feed<'p>(&'p self, tile: &'p Pixels, patches: Option<&[usize]>) -> Result<Feed<'p>, Error> {
        let tower = &self.vision()?.tower;
        if let Some(kept) = &self.inner.nothing_kept {
            let (rows, columns) = tower.grid_of(tile.width, tile.height);
            let all: Vec<usize> = (0..rows * columns).collect();
            if let Some(feed) = tower.feed_changed(tile, &all, kept) {
                return Ok(feed);
            }
        }
        Ok(patches.and_then(|patches| tower.feed_some(tile, patches)).unwrap_or_else(|| tower.feed(tile)))
    }

    /// Whether prompts go on from what another process computed ([`LoadOptions::prefix_folder`]).
    pub fn keeps_prefixes(&self) -> bool {
        self.inner.prefixes.is_some()
    }

    /// Whether of frames only those patches are encoded that changed.
    pub(crate) fn encodes_changes(&self) -> bool {
        self.inner.nothing_kept.is_some()
    }

    /// The patches of a tile that are encoded, where those that repeat are not.
    pub(crate) fn distinct_patches(&self, tile: &Pixels) -> Result<Option<Vec<usize>>, Error> {
        let Some(levels) = self.inner.repeated_patches else { return Ok(None) };
        let vision = self.vision()?;
        let (rows, columns) = vision.tower.grid_of(tile.width, tile.height);
        let all: Vec<usize> = (0..rows * columns).collect();
        let Some(feed) = vision.tower.feed_some(tile, &all) else { return Ok(None) };
        // A level of the channel that is stretched least: no pixel then differs by more.
        let widest = vision.image.std.iter().fold(0.0f32, |most, std| most.max(*std));
        let level = vision.image.rescale as f32 / widest;
        Ok(Some(first_of_each(&feed.pixels, feed.pixels.len() / all.len().max(1), levels * level)))
    }

    pub(crate) fn vision(&self) -> Result<&VisionConfig, Error> {
        let config = self.config();
        config.vision.as_ref().ok_or_else(|| Error::NoVision { model: config.name.clone() })
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

    /// Bytes held by weights and buffers, KV caches not counted; those of a draft model are among them.
    ///
    /// # Errors
    /// [`Error::Poisoned`] after a failure in the middle of an answer.
    pub fn memory(&self) -> Result<MemoryUse, Error> {
        let mut sum = self.engine()?.memory();
        if let Some(drafter) = self.drafter() {
            sum += drafter.memory()?;
        }
        Ok(sum)
    }

    /// What loading passed over and a person should know: packed files that do not fit and weights
    /// that could not take the type asked for, and why; and that a folder of pictures or prefixes cannot be written, once that is
    /// known. Waits until what is being written there is.
    ///
    /// # Errors
    /// [`Error::Poisoned`] after a failure in the middle of an answer.
    pub fn notes(&self) -> Result<Vec<String>, Error> {
        let mut notes = self.source().formats.notes();
        notes.extend(self.engine()?.notes());
        notes.extend(self.images()?.note().map(str::to_owned));
        notes.extend(self.prefixes().and_then(Prefixes::note));
        Ok(notes)
    }

    /// Bytes of visual tokens that are kept of pictures seen before.
    ///
    /// # Errors
    /// [`Error::Poisoned`] after a failure in the middle of an answer.
    pub fn image_cache_bytes(&self) -> Result<usize, Error> {
        Ok(self.images()?.bytes())
    }

    /// Keeps the device within bounds while this model answers, in place of what it was kept within before: its sensors,
    /// below `root`, are looked at about once a second while somebody asks. Work then goes slower, waits, or questions are
    /// refused ([`Error::Refused`]), and pictures that are encoded then keep fewer visual tokens; what the governor does is
    /// told by [`crate::Event::Governed`] and [`Model::governor`]. What no sensor tells moves nothing. A picture that is in a
    /// conversation stays as it was seen, and a KV cache that holds something as it is.
    pub fn govern(&self, bounds: Bounds, root: &Root) {
        let bounds = self.with_purpose(bounds);
        let governed = Governed::new(bounds, root);
        // So that what nobody tells is known at once.
        governed.look();
        self.set_governed(governed);
    }

    /// Bounds of a governor that passes over what does nothing for this model.
    pub(crate) fn with_purpose(&self, mut bounds: Bounds) -> Bounds {
        bounds.purpose.all_tokens |= !Reduction::leaves_rows_out(self.config());
        bounds.purpose.one_size |= !self.vision().is_ok_and(|vision| vision.image.has_sizes());
        bounds
    }

    pub(crate) fn set_governed(&self, governed: Governed) {
        *self.inner.governed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(governed));
    }

    pub(crate) fn governed(&self) -> Option<Arc<Governed>> {
        self.inner.governed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// # Errors
    /// [`Error::Refused`] where the governor takes no questions now.
    pub(crate) fn admit(&self) -> Result<(), Error> {
        self.governed().map_or(Ok(()), |governed| governed.admit())
    }

    /// What the governor does and did, where there is one.
    pub fn governor(&self) -> Option<GovernorReport> {
        self.governed().map(|governed| governed.report())
    }

    /// The model that guesses tokens ahead, where there is one.
    pub fn draft_model(&self) -> Option<&DraftModel> {
        self.drafter().map(Drafter::told)
    }

    pub(crate) fn overlapping(&self) -> &Overlapping {
        &self.inner.overlap
    }

    /// Whether visual tokens stay as they were computed once their picture is whole: kept in few bits they are rounded then.
    pub(crate) fn rows_are_exact(&self) -> bool {
        self.inner.rows_are_exact
    }

    pub(crate) fn drafter(&self) -> Option<&Drafter> {
        self.inner.drafter.as_ref()
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
