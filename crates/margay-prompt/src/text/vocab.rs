//! Vocabularies as plain data, as the file readers hand them over.

/// Which SentencePiece algorithm a model was trained for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum SentencePieceType {
    /// Byte-pair encoding by score.
    #[default]
    Bpe,
    /// Unigram language model.
    Unigram,
    /// Whole words.
    Word,
    /// Single characters.
    Char,
}

/// Kind of a token; the discriminants are those of `tokenizer.ggml.token_type` and of SentencePiece's `Piece.Type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(i32)]
pub enum PieceKind {
    /// An ordinary piece.
    #[default]
    Normal = 1,
    /// The unknown token.
    Unknown = 2,
    /// A control token: never produced from plain text.
    Control = 3,
    /// Always matched as a whole, before anything else.
    UserDefined = 4,
    /// In the vocabulary, never produced.
    Unused = 5,
    /// One byte, written `<0xNN>`.
    Byte = 6,
}

impl PieceKind {
    /// The kind with this number; `None` for a number no kind has.
    pub fn from_i32(number: i32) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// A SentencePiece `tokenizer.model`, parsed.
#[derive(Debug, Clone, PartialEq)]
pub struct SentencePieceModel {
    /// Algorithm the model was trained for.
    pub model_type: SentencePieceType,
    /// Text, score and kind of every piece; the index is the id.
    pub pieces: Vec<(String, f32, PieceKind)>,
    /// Id of the unknown piece.
    pub unk_id: Option<u32>,
    /// Id of the begin-of-sequence piece.
    pub bos_id: Option<u32>,
    /// Id of the end-of-sequence piece.
    pub eos_id: Option<u32>,
    /// Id of the padding piece.
    pub pad_id: Option<u32>,
    /// Unknown characters become byte pieces.
    pub byte_fallback: bool,
    /// A space is put in front of the text.
    pub add_dummy_prefix: bool,
    /// Leading, trailing and repeated spaces are removed.
    pub remove_extra_whitespaces: bool,
    /// Spaces become `▁` (always so in published models).
    pub escape_whitespaces: bool,
    /// Compiled normalisation rules; empty for the identity.
    pub precompiled_charsmap: Vec<u8>,
}

impl Default for SentencePieceModel {
    fn default() -> Self {
        Self {
            model_type: SentencePieceType::Bpe,
            pieces: Vec::new(),
            unk_id: Some(0),
            bos_id: Some(1),
            eos_id: Some(2),
            pad_id: None,
            byte_fallback: true,
            add_dummy_prefix: true,
            remove_extra_whitespaces: false,
            escape_whitespaces: true,
            precompiled_charsmap: Vec::new(),
        }
    }
}

/// The `tokenizer.*` metadata of a GGUF file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GgufVocab {
    /// `tokenizer.ggml.model`: "llama" (SentencePiece BPE) or "gpt2" (byte-level BPE).
    pub model: String,
    /// `tokenizer.ggml.pre`: name of the pre-tokenizer (byte-level BPE only).
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`; empty if absent.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`; empty if absent.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`, "left right" each; empty if absent.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`.
    pub eot: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unk: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`.
    pub pad: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`.
    pub add_space_prefix: Option<bool>,
    /// `margay.tokenizer.space_prefix`, where the rule is not SentencePiece's: which texts get the dummy space.
    pub space_prefix: Option<String>,
    /// `tokenizer.ggml.remove_extra_whitespaces`.
    pub remove_extra_whitespaces: Option<bool>,
    /// `tokenizer.ggml.precompiled_charsmap`.
    pub precompiled_charsmap: Option<Vec<u8>>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}
