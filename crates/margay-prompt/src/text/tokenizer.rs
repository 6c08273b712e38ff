//! Text to token ids and back.

use super::{GgufVocab, SentencePieceModel, TokenizerError};

/// Pre-tokenizer names (`tokenizer.ggml.pre`) that are understood.
pub const SUPPORTED_PRE_TOKENIZERS: &[&str] = &["gpt-2"];

/// A stretch of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// The text.
    pub text: &'a str,
    /// Whether control tokens written out in the text become control tokens (template text) or stay text (user text).
    pub trusted: bool,
}

impl<'a> Segment<'a> {
    /// Text from a template: control tokens in it count.
    pub fn trusted(text: &'a str) -> Self {
        Self { text, trusted: true }
    }

    /// Text from a user: it is text, whatever it says.
    pub fn untrusted(text: &'a str) -> Self {
        Self { text, trusted: false }
    }
}

/// How [`Tokenizer::encode`] treats a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EncodeOptions {
    /// Put BOS in front, if the vocabulary has one.
    pub bos: bool,
    /// Turn control tokens written out in the text into control tokens.
    pub special: bool,
    /// Whether the text gets the dummy space in front; `None` follows the tokenizer's own rule.
    pub prefix_space: Option<bool>,
}

/// A tokenizer: text to ids and back.
#[derive(Debug, Clone)]
pub struct Tokenizer {}

impl Tokenizer {
    /// Longest text [`Tokenizer::encode`] takes, in bytes.
    pub const MAX_TEXT_BYTES: usize = 64 << 20;

    /// From the bytes of `tokenizer.json` and, if there is one, `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`TokenizerError::BadFile`], [`TokenizerError::UnsupportedModel`].
    pub fn from_tokenizer_json(json: &[u8], config: Option<&[u8]>) -> Result<Self, TokenizerError> {
        let _ = (json, config);
        Ok(Self {})
    }

    /// From a parsed SentencePiece `tokenizer.model`.
    ///
    /// # Errors
    /// [`TokenizerError::BadVocab`], [`TokenizerError::UnsupportedModel`].
    pub fn from_sentencepiece(model: &SentencePieceModel) -> Result<Self, TokenizerError> {
        let _ = model;
        Ok(Self {})
    }

    /// From the metadata of a GGUF file.
    ///
    /// # Errors
    /// [`TokenizerError::BadVocab`], [`TokenizerError::UnsupportedModel`], [`TokenizerError::UnsupportedPreTokenizer`].
    pub fn from_gguf(vocab: &GgufVocab) -> Result<Self, TokenizerError> {
        let _ = vocab;
        Ok(Self {})
    }

    /// The metadata that [`Tokenizer::from_gguf`] turns into an equal tokenizer.
    ///
    /// # Errors
    /// [`TokenizerError::NotExpressible`].
    pub fn to_gguf_vocab(&self) -> Result<GgufVocab, TokenizerError> {
        Ok(GgufVocab::default())
    }

    /// Text to ids.
    ///
    /// # Errors
    /// [`TokenizerError::TextTooLong`], [`TokenizerError::Encode`].
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TokenizerError> {
        let _ = (text, options);
        Ok(Vec::new())
    }

    /// Segments to ids, without BOS: as the joined text, except that control tokens count in trusted segments only.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_segments(&self, segments: &[Segment<'_>]) -> Result<Vec<u32>, TokenizerError> {
        let _ = segments;
        Ok(Vec::new())
    }

    /// Ids to text; invalid UTF-8 becomes U+FFFD, ids outside the vocabulary become nothing.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let _ = (ids, skip_special);
        String::new()
    }

    /// Id of a token by its exact text.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        let _ = text;
        None
    }

    /// Text of a token as the vocabulary writes it.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        let _ = id;
        None
    }

    /// Whether this is a control token.
    pub fn is_control(&self, id: u32) -> bool {
        let _ = id;
        false
    }

    /// Number of ids, holes included: one more than the largest.
    pub fn vocab_size(&self) -> usize {
        0
    }

    /// Begin-of-sequence id.
    pub fn bos(&self) -> Option<u32> {
        None
    }

    /// End-of-sequence id.
    pub fn eos(&self) -> Option<u32> {
        None
    }

    /// Whether prompts start with BOS by the tokenizer's own rule.
    pub fn adds_bos(&self) -> bool {
        false
    }

    /// Ids that end an answer: EOS, end of turn, `<|im_end|>` and their like.
    pub fn stop_ids(&self) -> &[u32] {
        &[]
    }

    /// The chat template that came with the tokenizer, if any.
    pub fn chat_template(&self) -> Option<&str> {
        None
    }
}
