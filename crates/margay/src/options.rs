//! How to load and how to ask.

use crate::{Eviction, Pruning, Reduction};
use margay_cpu::KvType;
use margay_prompt::text::Form;
use margay_tensor::DType;
use std::{num::NonZeroUsize, path::PathBuf};

/// Where visual tokens are kept in files. What models make of pictures is kept apart by weights and settings, so that several can
/// share a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFolder {
    /// The folder; made where it is not there.
    pub path: PathBuf,
    /// Bytes of the files at most: those that were looked at longest ago go first.
    pub most_bytes: u64,
}

/// Where keys and values of what prompts begin with are kept in files. They are kept apart by weights and settings, so that several
/// models can share a folder. They tell what was asked and shown: others should not be able to read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixFolder {
    /// The folder; made where it is not there.
    pub path: PathBuf,
    /// Bytes of the files at most: those that were used longest ago go first.
    pub most_bytes: u64,
}

/// Which stages of an answer run at the same time. The answer is the same, to the bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overlap {
    /// Pictures are read and resized by threads beside the others, and what stands in front of one is computed meanwhile. Halves
    /// of the threads encode and compute the prompt at the same time where that was measured to be faster, on four threads or
    /// more.
    #[default]
    Auto,
    /// Halves of the threads do, whether that is faster or not.
    On,
    /// One stage behind the other.
    Off,
}

impl Overlap {
    /// All of them.
    pub const ALL: [Overlap; 3] = [Overlap::Auto, Overlap::On, Overlap::Off];

    /// Its name: `auto`, `on`, `off`.
    pub fn name(self) -> &'static str {
        match self {
            Overlap::Auto => "auto",
            Overlap::On => "on",
            Overlap::Off => "off",
        }
    }
}

/// How to load a model.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadOptions {
    /// The vision file, where it is not found beside the model.
    pub mmproj: Option<PathBuf>,
    /// Id of an entry of [`crate::BACKENDS`].
    pub backend: String,
    /// Threads; `None` takes [`crate::default_threads`].
    pub threads: Option<usize>,
    /// Threads that decode, which waits for memory more than for arithmetic: where a few use up its bandwidth, more only
    /// make heat. `None` takes all of them.
    pub decode_threads: Option<usize>,
    /// Cores that the threads stay on, as in `0-3,6`, one thread a core unless `threads` says otherwise; `None` leaves it
    /// to the system. Linux and Android only. The thread that loads the model and asks stays on them afterwards, so that
    /// another model loaded from it can only use cores among these.
    pub cores: Option<String>,
    /// Instruction set of the CPU kernels; `None` takes the best there is.
    pub isa: Option<String>,
    /// Tokens of context; `None` takes [`crate::default_context`].
    pub context: Option<usize>,
    /// Visual tokens that a picture becomes at most, of a model whose pictures become as many as their size asks for;
    /// `None` takes the model's own bound.
    pub max_image_tokens: Option<NonZeroUsize>,
    /// Prompt tokens that are computed together.
    pub batch: usize,
    /// How keys and values are kept.
    pub kv: KvType,
    /// How those of blocks of 64 tokens are kept that lie wholly within pictures; `None` as all others. A block is
    /// rewritten when it is full and a later run of the decoder begins.
    pub kv_image: Option<KvType>,
    /// Which tokens are dropped; `None` keeps all.
    pub eviction: Option<Eviction>,
    /// Encode pictures with 8-bit products where the encoder's weights are not quantized already: faster, and the
    /// features differ a little.
    pub int8_encoder: bool,
    /// Encode pictures in bfloat16, attention included, where the encoder's weights are not quantized already and the
    /// processor multiplies it: faster than float32, and the features differ a little.
    pub bf16_encoder: bool,
    /// Quantize float matrices to this type while they are loaded; `None` takes them as they are stored.
    pub dtype: Option<DType>,
    /// The same of the vision side; `None` takes [`crate::vision_format`] of `dtype`.
    pub vision_dtype: Option<DType>,
    /// Tokens of which logits can be had in one run: answers that are decoded together, or a token and those drafted behind it.
    pub outputs: usize,
    /// Bytes of visual tokens that are kept, so that a picture seen before is not encoded again; 0 keeps none.
    pub image_cache: usize,
    /// How they are kept: [`DType::F32`], [`DType::F16`], [`DType::Q8_0`] or [`DType::Q4_0`].
    pub image_cache_type: DType,
    /// Keep visual tokens in files, too, in that type, so that no process encodes a picture again.
    pub image_folder: Option<ImageFolder>,
    /// Keep the KV cache of what prompts begin with in files, and go on from those, so that no process computes it again. The cpu
    /// backend only.
    pub prefix_folder: Option<PrefixFolder>,
    /// Leave out visual tokens; `None` keeps all. Not for models that ask where in the picture a token lies (Qwen2-VL).
    pub reduction: Option<Reduction>,
    /// Visual tokens that only the decoder's first layers see; `None` shows all to all layers. Not together with `eviction` and
    /// `kv_image`.
    pub pruning: Option<Pruning>,
    /// Encode of the patches that look alike only the first, and show the decoder no others: by how many levels of 255 each of
    /// their pixels may differ, where 0 takes those that are equal. `None` encodes all. For towers of equal patches (CLIP,
    /// SigLIP) with a projector that makes one token of each.
    pub repeated_patches: Option<f32>,
    /// Encode of a video's frame only the patches that changed ([`crate::Clip`]), with what was kept of the others. For towers of
    /// equal patches (CLIP, SigLIP).
    pub changed_patches: bool,
    /// A smaller model of the same vocabulary that guesses tokens ahead, where that pays, for answers that ask for drafts
    /// ([`AskOptions::draft`]): a GGUF file or a Hugging Face folder. Its weights are taken as they are stored, its keys and
    /// values kept as the model's. [`crate::Model::draft_model`] says what it sees of pictures.
    pub draft_model: Option<PathBuf>,
    /// Answers may be asked to be embeddings ([`AskOptions::embed`]).
    pub embeddings: bool,
    /// Which stages of an answer run at the same time; those of [`crate::Scheduler`] do not.
    pub overlap: Overlap,
    /// Use the packed files that lie beside the model, where they fit it.
    pub packed: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            mmproj: None,
            backend: "cpu".to_owned(),
            threads: None,
            decode_threads: None,
            cores: None,
            isa: None,
            context: None,
            max_image_tokens: None,
            // Larger batches gain little: the weights of a layer are already read once for 512 rows.
            batch: 512,
            kv: KvType::default(),
            kv_image: None,
            eviction: None,
            int8_encoder: false,
            bf16_encoder: false,
            dtype: None,
            vision_dtype: None,
            outputs: 1,
            image_cache: 0,
            image_cache_type: DType::F32,
            image_folder: None,
            prefix_folder: None,
            reduction: None,
            pruning: None,
            repeated_patches: None,
            changed_patches: false,
            draft_model: None,
            embeddings: false,
            overlap: Overlap::default(),
            packed: true,
        }
    }
}

/// How to choose the next token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// Only the `top_k` likeliest tokens; 0 for all.
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability; 1 for all.
    pub top_p: f32,
    /// Only tokens at least this fraction as likely as the likeliest; 0 for all.
    pub min_p: f32,
    /// Taken from a token's logit for each time the answer holds it.
    pub frequency_penalty: f32,
    /// Taken from the logit of each token that the answer holds.
    pub presence_penalty: f32,
    /// Divides the logits of tokens that the prompt or the answer holds where they are positive, else multiplies them; 1
    /// for none. Source: Keskar et al., CTRL, arXiv 1909.05858, section 4.1.
    pub repeat_penalty: f32,
    /// Makes sampling repeatable.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Sampling {
            temperature: 0.0,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repeat_penalty: 1.0,
            seed: 0,
        }
    }
}

/// How to answer.
#[derive(Clone, Debug, PartialEq)]
pub struct AskOptions {
    /// How to choose tokens.
    pub sampling: Sampling,
    /// Tokens of the answer at most.
    pub max_tokens: usize,
    /// Texts that end the answer, beside the model's own.
    pub stops: Vec<String>,
    /// The form that the answer takes: JSON of a schema, a regular expression, a grammar.
    pub form: Option<Form>,
    /// What is added to the logits of tokens; [`f32::NEG_INFINITY`] forbids one.
    pub logit_bias: Vec<(u32, f32)>,
    /// Tokens drafted ahead, looked up in the prompt and the answer or else guessed by [`LoadOptions::draft_model`], and verified in
    /// one run: at most so many, where it pays, and no more than [`LoadOptions::outputs`] less one. Answers are the same, sooner.
    pub draft: usize,
    /// Whether drafts are looked up, before a draft model is asked.
    pub lookup: bool,
    /// Batches of the prompt end where a picture begins or ends, so that the time of each is of one of both. They are more, and
    /// each reads all weights.
    pub pictures_apart: bool,
    /// Answer with no word but with [`crate::Report::embedding`], of a model that was loaded with [`LoadOptions::embeddings`].
    pub embed: bool,
    /// Tell each token's probability, and those of so many likeliest tokens: [`crate::Event::Token`].
    pub logprobs: Option<usize>,
}

impl Default for AskOptions {
    fn default() -> Self {
        AskOptions {
            sampling: Sampling::default(),
            max_tokens: 512,
            stops: vec![],
            form: None,
            logit_bias: vec![],
            draft: 0,
            lookup: true,
            pictures_apart: false,
            embed: false,
            logprobs: None,
        }
    }
}
