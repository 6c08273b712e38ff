//! Why a program cannot be built, planned or bound.

/// Why a program cannot be built, planned or bound.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum GraphError {
    /// Sizes that do not fit together.
    #[error("{what}")]
    Shape {
        /// What does not fit, with both sizes.
        what: String,
    },
    /// A symbol has no value in this call.
    #[error("the size {sym} has no value in this call")]
    Unbound {
        /// The symbol's name.
        sym: &'static str,
    },
    /// A program that names a weight twice with different shapes, or has no outputs.
    #[error("{what}")]
    Program {
        /// What is wrong.
        what: String,
    },
}

impl GraphError {
    pub(crate) fn shape(what: impl Into<String>) -> Self {
        GraphError::Shape { what: what.into() }
    }
}
