//! What can go wrong between a question and its answer.

use margay_file::FileError;
use margay_graph::{BackendError, GraphError};
use margay_model::ModelError;
use margay_prompt::{
    image::ImageError,
    layout::LayoutError,
    text::{FormError, TemplateError, TokenizerError},
};
use margay_quant::QuantError;
use std::path::PathBuf;

/// What can go wrong between a question and its answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is no model that Margay knows.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The backend cannot run it.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Sizes do not fit.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A picture that cannot be used.
    #[error("{place}: {source}")]
    Image {
        /// The picture's name.
        place: String,
        /// Why.
        #[source]
        source: ImageError,
    },
    /// A picture's file that cannot be read.
    #[error("cannot read the picture {path}: {source}")]
    ImageFile {
        /// Path as given.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The vocabulary is unusable, or a text cannot be encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A form that no answer can have.
    #[error(transparent)]
    Form(#[from] FormError),
    /// The chat template fails.
    #[error("the model's chat template: {0}")]
    Template(#[from] TemplateError),
    /// Pictures and their places in the prompt do not agree.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A picture for a model that cannot see.
    #[error(
        "{model} has no vision tower, so it cannot look at a picture; leave the picture out, or give the model's vision file with --mmproj"
    )]
    NoVision {
        /// Name of the model.
        model: String,
    },
    /// More pictures than the model takes.
    #[error(
        "{model} takes one picture a conversation, not {pictures}; start another conversation for the next"
    )]
    OnePicture {
        /// Name of the model.
        model: String,
        /// Pictures of the conversation.
        pictures: usize,
    },
    /// Tokens that have to be computed together are more than a batch.
    #[error(
        "the picture and what stands before it are {prefix} tokens that see one another, and a batch holds {batch}; \
         raise the batch, or the context where it is smaller"
    )]
    LongPrefix {
        /// Tokens that see one another.
        prefix: usize,
        /// Tokens computed together.
        batch: usize,
    },
    /// The prompt does not fit the context.
    #[error(
        "the prompt takes {prompt} tokens ({visual} of them visual) and the context holds {context}; shorten it{fewer}, or raise the context with --context (the model was trained for {trained})"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Visual tokens among them.
        visual: usize,
        /// Tokens the context holds.
        context: usize,
        /// Tokens the model was trained for.
        trained: usize,
        /// How pictures take fewer of them; empty where they cannot.
        fewer: &'static str,
    },
    /// Nothing to answer.
    #[error("there is nothing to ask: the question is empty and there is no picture")]
    EmptyPrompt,
    /// No room for a request.
    #[error("the model is busy: {waiting} requests wait already; try again later")]
    Busy {
        /// Requests that wait.
        waiting: usize,
    },
    /// The governor turns questions away.
    #[error("no questions are taken now ({why}); ask again in {} s", retry_after.as_secs().max(1))]
    Refused {
        /// What is short, and the reading that decided.
        why: String,
        /// When to ask again.
        retry_after: std::time::Duration,
    },
    /// A run that several answers shared failed.
    #[error("{what}")]
    Run {
        /// What the backend said.
        what: String,
    },
    /// Visual tokens that the cache cannot keep in its format.
    #[error("visual tokens: {0}")]
    Visual(#[source] QuantError),
    /// A kept conversation that cannot go on.
    #[error("the conversation in {}: {what}", path.display())]
    Session {
        /// Its file.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// A video that cannot be read.
    #[error("{}: {what}", path.display())]
    Video {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// Turns that are no conversation.
    #[error("the messages are no conversation that ends with a question: {what}")]
    Turns {
        /// What is wrong with them.
        what: String,
    },
    /// The model's arithmetic broke down.
    #[error(
        "the model's logits are not finite: the weights are damaged, or a format overflows; check the file with `margay inspect`"
    )]
    NotFinite,
    /// A choice that does not exist.
    #[error("{what} {name:?} does not exist; there are {known}")]
    Unknown {
        /// What kind of thing.
        what: &'static str,
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A setting out of range.
    #[error("{option}: {what}")]
    Option {
        /// Name of the setting.
        option: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// An answer stopped in the middle of a panic left the model unusable.
    #[error("the model is unusable after an earlier failure; load it again")]
    Poisoned,
}
