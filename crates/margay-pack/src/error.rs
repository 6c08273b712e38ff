//! Why a model cannot be packed.

use margay_file::FileError;
use margay_model::ModelError;
use margay_prompt::text::TokenizerError;
use margay_quant::QuantError;

/// Why a model cannot be packed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// The model cannot be described.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A weight cannot be stored in that format.
    #[error("weight {name}: {source}")]
    Quant {
        /// Name in the model file.
        name: String,
        /// Why.
        #[source]
        source: QuantError,
    },
    /// The vocabulary cannot be written.
    #[error("the vocabulary: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// The caller stopped it; nothing was written under the final names.
    #[error("stopped; no file was written")]
    Stopped,
}
