//! The one error of the crate: a union of its rooms' errors.

use crate::image::ImageError;
use crate::layout::LayoutError;
use crate::text::{TemplateError, TokenizerError};

/// Anything that can go wrong between a user's message and the model's inputs.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// A picture could not be read or prepared.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A tokenizer could not be built, or a text not be tokenised.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A chat template could not be read or rendered.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// Visual tokens could not be placed.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}
