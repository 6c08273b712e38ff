//! A user's message to token ids and pixel tensors, and tokens back to text.
//!
//! Three parts, in the order a message meets them:
//!
//! * [`image`]: bytes of a picture -> [`image::Picture`] -> [`image::ImageTiles`] (normalised `[3, H, W]` floats),
//!   driven by an [`image::ImageSpec`], so that a model family is data and not code;
//! * [`text`]: tokenizers (SentencePiece BPE, byte-level BPE), chat templates, streaming detokenizer, stop strings;
//! * [`layout`]: where the visual tokens sit among the text tokens.
//!
//! Everything a user types is *untrusted*: it can never become a control token (see [`text::Segment`]).
//! Everything that comes from a file (pictures, vocabularies, templates) is bounded before it is worked on.

#![forbid(unsafe_code)]

mod error;
pub mod image;
pub mod layout;
pub mod text;

pub use error::PromptError;
