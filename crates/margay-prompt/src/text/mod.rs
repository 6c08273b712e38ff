//! Text: tokenizers, chat templates, and tokens back to text.

mod error;
mod stream;
mod template;
mod tokenizer;
mod vocab;

pub use error::{TemplateError, TokenizerError};
pub use stream::{StopMatcher, StreamDecoder};
pub use template::{ChatTemplate, Message, Part, RenderOptions, Rendered, RenderedPart};
pub use tokenizer::{EncodeOptions, SUPPORTED_PRE_TOKENIZERS, Segment, Tokenizer};
pub use vocab::{GgufVocab, PieceKind, SentencePieceModel, SentencePieceType};
