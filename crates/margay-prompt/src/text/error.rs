//! What can go wrong with text.

/// A tokenizer that could not be built, or a text that could not be tokenised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// `tokenizer.json` or `tokenizer_config.json` is not what it should be.
    #[error("{file} is not usable: {detail}")]
    BadFile {
        /// Name of the file.
        file: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// The vocabulary contradicts itself.
    #[error("the vocabulary is not usable: {field}: {detail}")]
    BadVocab {
        /// Field of the vocabulary.
        field: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// The tokenizer model is of a kind Margay does not read.
    #[error("tokenizer model {model:?} is not supported; supported: {supported}")]
    UnsupportedModel {
        /// Name of the model.
        model: String,
        /// The supported ones.
        supported: &'static str,
    },
    /// The pre-tokenizer is not known; guessing would give wrong tokens.
    #[error("pre-tokenizer {pre:?} (tokenizer.ggml.pre) is not supported; supported: {supported}")]
    UnsupportedPreTokenizer {
        /// Its name.
        pre: String,
        /// The supported ones.
        supported: String,
    },
    /// The text is longer than [`super::Tokenizer::MAX_TEXT_BYTES`].
    #[error("the text has {bytes} bytes, more than the limit of {limit}; shorten it")]
    TextTooLong {
        /// Bytes of the text.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The tokenizer itself failed.
    #[error("the tokenizer failed: {detail}")]
    Encode {
        /// What it said.
        detail: String,
    },
    /// An id outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {size}")]
    UnknownId {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        size: usize,
    },
    /// This tokenizer cannot be written as GGUF metadata.
    #[error("this tokenizer cannot be written as GGUF metadata: {detail}")]
    NotExpressible {
        /// Why.
        detail: String,
    },
}

/// A chat template that could not be read or rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template is longer than [`super::ChatTemplate::MAX_SOURCE_BYTES`].
    #[error("the chat template has {bytes} bytes, more than the limit of {limit}")]
    TooLong {
        /// Bytes of the template.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The template is not valid.
    #[error("the chat template does not parse: {detail}")]
    Syntax {
        /// What and where.
        detail: String,
    },
    /// The template ran too long.
    #[error("the chat template was stopped after {fuel} steps; it loops too long")]
    TooSlow {
        /// Steps it was allowed.
        fuel: u64,
    },
    /// The template wrote too much.
    #[error("the chat template was stopped after writing {limit} bytes")]
    OutputTooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// The template refused the conversation (`raise_exception`).
    #[error("the chat template refuses this conversation: {message}")]
    Refused {
        /// The template's own words.
        message: String,
    },
    /// Rendering failed otherwise.
    #[error("the chat template failed: {detail}")]
    Render {
        /// What and where.
        detail: String,
    },
    /// A message cannot be expressed.
    #[error("the conversation is not usable: {detail}")]
    BadMessages {
        /// What is wrong.
        detail: String,
    },
}
