//! Why a configuration or a set of weights is no model that Margay knows.

use margay_file::FileError;
use margay_graph::GraphError;

/// Why a configuration or a set of weights is no model that Margay knows.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// No family reads this.
    #[error("{what} is no model family Margay knows; known are: {known}")]
    UnknownFamily {
        /// What the file says it is.
        what: String,
        /// Ids of all families.
        known: String,
    },
    /// A field that is missing, of the wrong type, out of range, or of a value that is not supported.
    #[error("{place}: {field}: {what}")]
    Field {
        /// `config.json`, or the GGUF metadata.
        place: String,
        /// Name of the field.
        field: String,
        /// What is wrong with it.
        what: String,
    },
    /// A weight that the model needs and the file does not hold, or holds in another shape.
    #[error("weight {name}: {what}")]
    Weight {
        /// Name in the model file.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// A tile of which not all patches are encoded, for a tower or projector that mixes them.
    #[error(
        "{model}'s {part} ({id}) cannot take some of a tile's patches without the others: that needs {needs}"
    )]
    Extra {
        /// Name of the model.
        model: String,
        /// Tower or projector.
        part: &'static str,
        /// Its id.
        id: &'static str,
        /// What could, by id.
        needs: &'static str,
    },
    /// Sizes that do not fit together.
    #[error("the model's sizes do not fit together: {0}")]
    Graph(#[from] GraphError),
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
}

impl ModelError {
    pub(crate) fn weight(name: impl Into<String>, what: impl Into<String>) -> Self {
        ModelError::Weight { name: name.into(), what: what.into() }
    }
}
