//! Text: tokenizers, chat templates, and tokens back to text.

mod builtins;
mod byte_level;
mod calls;
mod charsmap;
mod error;
mod gguf;
mod grammar;
mod hub;
mod matcher;
mod sandbox;
mod spm;
mod stream;
mod template;
mod tokenizer;
mod vocab;

pub use byte_level::SUPPORTED_PRE_TOKENIZERS;
pub use calls::{CallPiece, CallReader, Calls, Function, called};
pub use error::{TemplateError, TokenizerError};
pub use grammar::{Form, FormError, FormedAnswer, Forms};
pub use stream::{StopMatcher, StreamDecoder};
pub use template::{ChatTemplate, ImagePlace, Message, Part, RenderOptions, Rendered, RenderedPart};
pub use tokenizer::{EncodeOptions, Segment, Tokenizer};
pub use vocab::{GgufVocab, PieceKind, SentencePieceModel, SentencePieceType};
