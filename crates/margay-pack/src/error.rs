//! Why a model cannot be packed.

use margay_file::FileError;
use margay_graph::BackendError;
use margay_model::ModelError;
use margay_prompt::text::TokenizerError;
use margay_quant::QuantError;
use std::path::PathBuf;

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
    /// The backend cannot pack a weight.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A model whose packed weights cannot be kept, or need not be.
    #[error("nothing to keep: {0}")]
    NotKept(String),
    /// A packed file whose weights are not those that were written.
    #[error("{}: {source}; make it anew with `margay prepack --force`", path.display())]
    Damaged {
        /// The packed file.
        path: PathBuf,
        /// Which weight.
        #[source]
        source: FileError,
    },
    /// The caller stopped it; nothing was written under the final names.
    #[error("stopped; no file was written")]
    Stopped,
}
