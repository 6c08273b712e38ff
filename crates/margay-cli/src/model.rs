//! The options that say which model, and how it loads and answers.

use crate::{environment, hub, output, progress::Spinner};
use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use margay::{
    AskOptions, BACKENDS, Bounds, Budget, Eviction, ImageFolder, Keep, KvType, LoadOptions, Model,
    ModelSource, Overlap, PRUNINGS, PrefixFolder, Pruning, Purpose, REDUCTIONS, Reduction, Sampling,
    rooms::{observe::Root, quant::FORMATS, tensor::DType},
};
use std::{
    num::{NonZeroU64, NonZeroUsize},
    path::{Path, PathBuf},
};

/// Formats that a model can be quantized to at load.
const TYPES: [DType; 11] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q8_0,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q4_K,
    DType::Q5_K,
    DType::Q6_K,
];

/// Bytes of visual tokens that a conversation keeps: some ten pictures of LLaVA-1.5.
pub(crate) const IMAGE_CACHE: usize = 64 << 20;

/// Reads one of them.
pub(crate) fn types() -> impl TypedValueParser<Value = DType> {
    PossibleValuesParser::new(TYPES.map(DType::name))
        .map(|name| DType::from_name(&name).expect("invariant: the possible values are names of types"))
}

/// Reads any format that a file can hold.
pub(crate) fn stored_types() -> impl TypedValueParser<Value = DType> {
    PossibleValuesParser::new(FORMATS.iter().map(|format| format.dtype().name()))
        .map(|name| DType::from_name(&name).expect("invariant: the possible values are names of types"))
}

/// A share, or `auto`.
fn keep(text: &str) -> Result<Keep, String> {
    if text.trim() == "auto" {
        Ok(Keep::Auto)
    } else {
        share(text).map(Keep::Share).map_err(|e| e + ", or auto")
    }
}

/// Levels of 255, or `exact`.
fn levels(text: &str) -> Result<f32, String> {
    let levels = if text.trim() == "exact" { Ok(0.0) } else { text.trim().parse::<f32>() };
    let levels = levels.ok().filter(|levels| (0.0..=255.0).contains(levels));
    levels.ok_or_else(|| "pixels differ by 0 to 255 levels, or by none: exact".to_owned())
}

/// A part of something: `50%`, or `0.5`.
pub(crate) fn part(text: &str) -> Option<f64> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    match text.strip_suffix('%') {
        Some(percent) => number(percent).map(|percent| percent / 100.0),
        None => number(text),
    }
}

/// A share: [`part`], above 0.
fn share(text: &str) -> Result<f64, String> {
    part(text)
        .filter(|share| *share > 0.0 && *share <= 1.0)
        .ok_or_else(|| "a share is above 0% and at most 100%".to_owned())
}

/// Reads a type of keys and values.
pub(crate) fn kv_types() -> impl TypedValueParser<Value = KvType> {
    PossibleValuesParser::new(KvType::ALL.map(KvType::name))
        .map(|name| KvType::from_name(&name).expect("invariant: the possible values are names of types"))
}

/// Tokens, or a share of them: `512`, or `50%`.
fn budget(text: &str) -> Result<Budget, String> {
    match text.trim().parse::<usize>() {
        Ok(tokens) => Ok(Budget::Tokens(tokens)),
        Err(_) => share(text).map(Budget::Share),
    }
}

/// Which threads compute.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ThreadArgs {
    /// Threads; one per physical core, or per core of --cores, unless given
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Cores that the threads stay on, as in 0-3,6; `margay doctor` shows which are fast
    #[arg(long, value_name = "LIST")]
    pub cores: Option<String>,
}

impl ThreadArgs {
    /// For the library, with the instruction set that the environment asks for.
    pub(crate) fn options(&self) -> LoadOptions {
        LoadOptions {
            threads: self.threads.map(NonZeroUsize::get),
            cores: self.cores.clone(),
            isa: environment::isa(),
            ..LoadOptions::default()
        }
    }
}

/// Degrees Celsius of a device that works.
fn celsius(text: &str) -> Result<f64, String> {
    let celsius = text.trim().parse::<f64>().ok().filter(|celsius| (0.0..=150.0).contains(celsius));
    celsius.ok_or_else(|| "a ceiling is 0 to 150 degrees Celsius".to_owned())
}

/// Percent of a battery.
fn percent(text: &str) -> Result<f64, String> {
    let percent = text.trim().trim_end_matches('%').parse::<f64>().ok();
    percent
        .filter(|percent| (0.0..=100.0).contains(percent))
        .ok_or_else(|| "a charge is 0 to 100 percent".to_owned())
}

/// What the device is kept within.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct GovernArgs {
    /// Keep the hottest thermal zone below this: answers become slower, wait, and questions are refused before it is met
    #[arg(long, value_name = "CELSIUS", value_parser = celsius, help_heading = GOVERNOR)]
    pub ceiling: Option<f64>,
    /// Keep so much memory available to other programs: below it questions wait, at a quarter of it they are refused
    #[arg(long, value_name = "MEBIBYTES", help_heading = GOVERNOR)]
    pub keep_free: Option<NonZeroU64>,
    /// Below this charge answer slowly and sparingly, and refuse questions at a quarter of it; not while it is charged
    #[arg(long, value_name = "PERCENT", value_parser = percent, help_heading = GOVERNOR)]
    pub battery_mode: Option<f64>,
    /// Somebody reads the answers as they come: under heat, let tokens come no faster than that before anything of the answer
    /// is given up
    #[arg(long, help_heading = GOVERNOR)]
    pub reading_pace: bool,
    /// Give up half the visual tokens of pictures before anything is slowed: answers say a little less, and are more
    #[arg(long, help_heading = GOVERNOR)]
    pub tokens_first: bool,
}

const GOVERNOR: &str = "Governor";

impl GovernArgs {
    /// For the library; `None` where nothing is asked for.
    fn bounds(&self) -> Option<Bounds> {
        let bounds = Bounds {
            ceiling_celsius: self.ceiling,
            watermark_bytes: self.keep_free.map(|mebibytes| mebibytes.get().saturating_mul(1 << 20)),
            battery_percent: self.battery_mode,
            purpose: Purpose {
                conversation: self.reading_pace,
                tokens_first: self.tokens_first,
                ..Purpose::default()
            },
            ..Bounds::default()
        };
        (bounds != Bounds::default()).then_some(bounds)
    }

    fn govern(&self, model: &Model) {
        let Some(bounds) = self.bounds() else { return };
        model.govern(bounds, &Root::system());
        for resource in model.governor().iter().flat_map(|governor| &governor.unknown) {
            output::aside(&format!(
                "governor: no sensor here tells of {resource}; nothing is kept within a bound of it"
            ));
        }
    }
}

/// How a model is loaded.
#[derive(Clone, Debug, Args)]
pub(crate) struct LoadArgs {
    /// The model's vision file, where it does not lie beside the model
    #[arg(long, value_name = "FILE")]
    pub mmproj: Option<PathBuf>,
    /// What computes
    #[arg(long, default_value = "cpu", value_parser = PossibleValuesParser::new(BACKENDS.iter().map(|b| b.id)))]
    pub backend: String,
    #[command(flatten)]
    pub threads: ThreadArgs,
    /// Threads that decode: fewer where a few use up the memory's bandwidth; all of them unless given
    #[arg(long, value_name = "N")]
    pub decode_threads: Option<NonZeroUsize>,
    /// Encode pictures with 8-bit products: faster, and answers may differ a little (float encoders only)
    #[arg(long)]
    pub int8_encoder: bool,
    /// Encode pictures in bfloat16, where the processor multiplies it (float encoders only)
    #[arg(long, conflicts_with = "int8_encoder")]
    pub bf16_encoder: bool,
    /// How keys and values are kept, f16 unless given: f32 takes twice its memory; q8, q8_0 and fp8 half, q4_0 a good quarter,
    /// kivi2 a fifth, and answers may differ
    #[arg(long, value_name = "TYPE", value_parser = kv_types())]
    pub kv: Option<KvType>,
    /// How those of whole blocks of 64 tokens within pictures are kept
    #[arg(long, value_name = "TYPE", value_parser = kv_types())]
    pub kv_image: Option<KvType>,
    /// When the context is full, go on with the N newest tokens and the first ones
    #[arg(long, value_name = "N", conflicts_with = "evict")]
    pub kv_window: Option<NonZeroUsize>,
    /// First tokens that stay with --kv-window
    #[arg(long, value_name = "N", default_value_t = 4, requires = "kv_window")]
    pub kv_sinks: usize,
    /// Drop tokens of the prompt once it is computed: keep those that its end looks at (snapkv), or always half new ones and
    /// half those that were looked at most (h2o)
    #[arg(long, value_name = "HOW", requires = "kv_budget", value_parser = PossibleValuesParser::new(["snapkv", "h2o"]))]
    pub evict: Option<String>,
    /// Tokens that stay with --evict, or their share of the prompt, as in 50%
    #[arg(long, value_name = "N", requires = "evict", value_parser = budget)]
    pub kv_budget: Option<Budget>,
    /// Tokens of context; what the model was trained for, at most 4096, unless given
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<NonZeroUsize>,
    /// Visual tokens a picture becomes at most, where its size decides (Qwen2-VL): large ones are shrunk
    #[arg(long, value_name = "N")]
    pub max_image_tokens: Option<NonZeroUsize>,
    /// Share of a picture's visual tokens that the decoder sees, as in 50%: faster, and answers may differ. auto: as many as
    /// differ, all where the picture holds dense text
    #[arg(long, value_name = "SHARE|auto", value_parser = keep)]
    pub keep_image_tokens: Option<Keep>,
    /// Which of them: those that are alike become their mean (merge, ToMe), the most diverse (diverse, DivPrune), those that the
    /// tower looks at most (visionzip, prumerge), or, to compare with, even or random ones
    #[arg(long, value_name = "HOW", default_value = REDUCTIONS[0].id, requires = "keep_image_tokens",
        value_parser = PossibleValuesParser::new(REDUCTIONS.iter().map(|entry| entry.id)))]
    pub reduce: String,
    /// Share of the visual tokens that all layers of the decoder see, as in 50%; the first layers see all: a faster prefill of
    /// long prompts, and answers may differ; not with --evict, --kv-window, --kv-image or --prefix-folder
    #[arg(long, value_name = "SHARE", value_parser = share,
        conflicts_with_all = ["evict", "kv_window", "kv_image", "prefix_folder"])]
    pub prune_image_tokens: Option<f64>,
    /// Layers that see all visual tokens with --prune-image-tokens
    #[arg(long, value_name = "K", default_value = "2", requires = "prune_image_tokens")]
    pub prune_layer: NonZeroUsize,
    /// Which of them stay: those that the prompt's last token looks at most (attention, FastV), the most diverse (diverse,
    /// whatever is asked), or, to compare with, even or random ones
    #[arg(long, value_name = "HOW", default_value = PRUNINGS[0].id, requires = "prune_image_tokens",
        value_parser = PossibleValuesParser::new(PRUNINGS.iter().map(|entry| entry.id)))]
    pub prune_by: String,
    /// Encode of a picture's patches that are equal only the first, as `exact`, or of those whose pixels differ by at most so
    /// many levels of 255; the decoder sees no others (CLIP and SigLIP with an MLP)
    #[arg(long, value_name = "exact|LEVELS", value_parser = levels)]
    pub skip_repeated_patches: Option<f32>,
    /// Quantize float matrices to this type while they are loaded: a Hugging Face folder as it is, in less memory
    #[arg(long = "type", value_name = "TYPE", value_parser = types())]
    pub dtype: Option<DType>,
    /// The same for the vision side: --type where that has 8 bits or more, else f16, unless given
    #[arg(long, value_name = "TYPE", value_parser = types(), requires = "dtype")]
    pub vision_type: Option<DType>,
    /// Keep visual tokens in this folder, too, so that no process encodes a picture again
    #[arg(long, value_name = "FOLDER")]
    pub image_folder: Option<PathBuf>,
    /// Million bytes of its files at most; those that were looked at longest ago go first
    #[arg(long, value_name = "MEGABYTES", default_value = "1000", requires = "image_folder")]
    pub image_folder_size: NonZeroU64,
    /// Keep keys and values of what prompts begin with (a picture, a long text) in this folder, so that no process computes them
    /// again. Its files tell what was asked and shown
    #[arg(long, value_name = "FOLDER")]
    pub prefix_folder: Option<PathBuf>,
    /// Million bytes of its files at most; those that were used longest ago go first
    #[arg(long, value_name = "MEGABYTES", default_value = "1000", requires = "prefix_folder")]
    pub prefix_folder_size: NonZeroU64,
    #[command(flatten)]
    pub govern: GovernArgs,
    /// Pack the weights anew, even where `margay prepack` has left a file beside the model
    #[arg(long)]
    pub no_packed: bool,
}

impl LoadArgs {
    /// For the library.
    pub(crate) fn options(&self) -> LoadOptions {
        LoadOptions {
            mmproj: self.mmproj.clone(),
            backend: self.backend.clone(),
            decode_threads: self.decode_threads.map(NonZeroUsize::get),
            context: self.context.map(NonZeroUsize::get),
            max_image_tokens: self.max_image_tokens,
            int8_encoder: self.int8_encoder,
            bf16_encoder: self.bf16_encoder,
            kv: self.kv.unwrap_or_default(),
            kv_image: self.kv_image,
            eviction: self.eviction(),
            reduction: self.reduction(),
            pruning: self.pruning(),
            repeated_patches: self.skip_repeated_patches,
            dtype: self.dtype,
            vision_dtype: self.vision_type,
            packed: !self.no_packed,
            // Most commands time stages, or answer many at once; those that do not take [`OverlapArgs`].
            overlap: Overlap::Off,
            image_folder: self.image_folder.clone().map(|path| ImageFolder {
                path,
                most_bytes: self.image_folder_size.get().saturating_mul(1_000_000),
            }),
            prefix_folder: self.prefix_folder.clone().map(|path| PrefixFolder {
                path,
                most_bytes: self.prefix_folder_size.get().saturating_mul(1_000_000),
            }),
            ..self.threads.options()
        }
    }

    /// Which tokens are dropped from the cache, where some are.
    pub(crate) fn eviction(&self) -> Option<Eviction> {
        if let Some(window) = self.kv_window {
            return Some(Eviction::Window { window: window.get(), sinks: self.kv_sinks });
        }
        let budget = self.kv_budget?;
        match self.evict.as_deref()? {
            "h2o" => Some(Eviction::H2o(budget)),
            _ => Some(Eviction::SnapKv(budget)),
        }
    }

    /// Which visual tokens are left out, where some are.
    pub(crate) fn reduction(&self) -> Option<Reduction> {
        self.keep_image_tokens.map(|keep| Reduction { method: self.reduce.clone(), keep })
    }

    /// Which visual tokens only the decoder's first layers see, where some are left out behind them.
    pub(crate) fn pruning(&self) -> Option<Pruning> {
        let keep = self.prune_image_tokens?;
        Some(Pruning { method: self.prune_by.clone(), keep, layer: self.prune_layer.get() })
    }

    /// Opens the model at `path`, or the one inside the program, without loading it: with the types and the bound of visual
    /// tokens asked for.
    pub(crate) fn source(&self, path: Option<&Path>) -> anyhow::Result<ModelSource> {
        let mut source = source(path, self.mmproj.as_deref())?;
        if let Some(dtype) = self.dtype {
            source = source.with_types(dtype, self.vision_type)?;
        }
        if let Some(tokens) = self.max_image_tokens {
            source = source.with_max_image_tokens(tokens)?;
        }
        Ok(source)
    }

    /// Loads the model at `path`, or the one inside the program.
    pub(crate) fn load(&self, path: Option<&Path>) -> anyhow::Result<Model> {
        self.load_as(path, self.options())
    }

    /// What answers ask for.
    ///
    /// # Errors
    /// That of a draft model that cannot be had.
    pub(crate) fn options_for(&self, ask: &AskArgs) -> anyhow::Result<LoadOptions> {
        let (draft_model, image_cache) = (ask.draft_model()?, IMAGE_CACHE);
        Ok(LoadOptions { outputs: ask.draft + 1, draft_model, image_cache, ..self.options() })
    }

    /// Loads it with those options.
    pub(crate) fn load_as(&self, path: Option<&Path>, mut options: LoadOptions) -> anyhow::Result<Model> {
        let path = path.map(hub::local).transpose()?;
        options.mmproj = local_mmproj(self.mmproj.as_deref())?;
        let spinner = Spinner::start("loading");
        let model = match path {
            Some(path) => Model::load_with(path, &options)?,
            None => {
                no_mmproj(self.mmproj.as_deref())?;
                Model::nano_with(&options)?
            }
        };
        drop(spinner);
        self.govern.govern(&model);
        model.notes()?.iter().for_each(|note| output::aside(&output::harmless(note)));
        Ok(model)
    }
}

/// How many visual tokens stay, as `--keep-image-tokens` takes it.
pub(crate) fn kept(keep: Keep) -> String {
    match keep {
        Keep::Share(share) => share.to_string(),
        Keep::Auto => "auto".to_owned(),
    }
}

/// Opens the model at `path`, or the one inside the program, without loading it.
pub(crate) fn source(path: Option<&Path>, mmproj: Option<&Path>) -> anyhow::Result<ModelSource> {
    Ok(match path {
        Some(path) => ModelSource::open(&hub::local(path)?, local_mmproj(mmproj)?.as_deref())?,
        None => {
            no_mmproj(mmproj)?;
            Model::nano_source()?
        }
    })
}

fn local_mmproj(path: Option<&Path>) -> anyhow::Result<Option<PathBuf>> {
    Ok(path.map(hub::local).transpose()?.map(std::borrow::Cow::into_owned))
}

/// The model inside the program has its vision side inside; a file for it would be passed over in silence.
fn no_mmproj(mmproj: Option<&Path>) -> anyhow::Result<()> {
    match mmproj {
        Some(_) => Err(crate::Usage("--mmproj needs the model it belongs to".to_owned()).into()),
        None => Ok(()),
    }
}

/// Which stages of an answer run at the same time.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct OverlapArgs {
    /// Which stages run at the same time; answers are the same. auto: pictures are read beside what else is computed, halves of
    /// four threads or more encode and compute the prompt where that was measured to pay; on: halves of any threads do
    #[arg(long, value_name = "WHEN", default_value = Overlap::Auto.name(), value_parser = overlaps())]
    pub overlap: Overlap,
}

fn overlaps() -> impl TypedValueParser<Value = Overlap> {
    PossibleValuesParser::new(Overlap::ALL.map(Overlap::name)).map(|name| {
        let named = Overlap::ALL.into_iter().find(|overlap| overlap.name() == name);
        named.expect("invariant: the possible values are names of overlaps")
    })
}

/// How tokens are chosen, and how many.
#[derive(Clone, Debug, Args)]
pub(crate) struct AskArgs {
    /// 0 always takes the likeliest token; higher is livelier
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temperature: f32,
    /// Choose among the K likeliest tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = Sampling::default().top_k)]
    pub top_k: usize,
    /// Choose among the likeliest tokens that together reach this probability
    #[arg(long, value_name = "P", default_value_t = Sampling::default().top_p)]
    pub top_p: f32,
    /// Choose among tokens at least this fraction as likely as the likeliest
    #[arg(long, value_name = "P", default_value_t = Sampling::default().min_p)]
    pub min_p: f32,
    /// Makes choices repeatable
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Tokens of an answer at most
    #[arg(long, value_name = "N", default_value = "512")]
    pub max_tokens: NonZeroUsize,
    /// Tokens drafted ahead at most, looked up in the prompt and the answer, while that pays: the same answer, sooner where it
    /// repeats what was said
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=64).map(usize::from))]
    pub draft: usize,
    /// A smaller model of the same vocabulary that makes drafts where none is looked up, up to --draft tokens, while that pays;
    /// of the same family and width it sees pictures, else the words alone
    #[arg(long, value_name = "FILE", requires = "draft")]
    pub draft_model: Option<PathBuf>,
}

/// Where that draft model lies, for drafts of at most so many tokens.
pub(crate) fn draft_model(path: Option<&Path>, draft: usize) -> anyhow::Result<Option<PathBuf>> {
    if path.is_some() && draft == 0 {
        let what = "--draft-model makes no drafts with --draft 0; say how many, as in --draft 4";
        return Err(crate::Usage(what.to_owned()).into());
    }
    Ok(path.map(hub::local).transpose()?.map(std::borrow::Cow::into_owned))
}

impl AskArgs {
    /// Where the draft model lies, for the library.
    pub(crate) fn draft_model(&self) -> anyhow::Result<Option<PathBuf>> {
        draft_model(self.draft_model.as_deref(), self.draft)
    }

    /// For the library.
    pub(crate) fn options(&self) -> AskOptions {
        AskOptions {
            sampling: Sampling {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                min_p: self.min_p,
                seed: self.seed,
                ..Sampling::default()
            },
            max_tokens: self.max_tokens.get(),
            draft: self.draft,
            ..AskOptions::default()
        }
    }
}
