//! How to load and how to ask.

use margay_cpu::KvType;
use margay_tensor::DType;
use std::{num::NonZeroUsize, path::PathBuf};

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
    /// Encode pictures with 8-bit products where the encoder's weights are not quantized already: faster, and the
    /// features differ a little.
    pub int8_encoder: bool,
    /// Encode pictures in bfloat16 where the encoder's weights are not quantized already and the processor multiplies
    /// it: faster than float32, and the features differ a little.
    pub bf16_encoder: bool,
    /// Quantize float matrices to this type while they are loaded; `None` takes them as they are stored.
    pub dtype: Option<DType>,
    /// The same of the vision side; `None` takes [`crate::vision_format`] of `dtype`.
    pub vision_dtype: Option<DType>,
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
            int8_encoder: false,
            bf16_encoder: false,
            dtype: None,
            vision_dtype: None,
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
    /// Makes sampling repeatable.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Sampling { temperature: 0.0, top_k: 40, top_p: 0.95, min_p: 0.05, seed: 0 }
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
}

impl Default for AskOptions {
    fn default() -> Self {
        AskOptions { sampling: Sampling::default(), max_tokens: 512, stops: vec![] }
    }
}
