//! What can go wrong while a model is judged.

use std::path::{Path, PathBuf};

/// What can go wrong while a model is judged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] margay::Error),
    /// A file cannot be read or written.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// Read, write, open.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is larger than any of its kind.
    #[error("{path} has more than {most} bytes, more than any file of its kind")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes it may have.
        most: u64,
    },
    /// A file does not say what it should.
    #[error("{}{}: {what}", path.display(), line.map_or_else(String::new, |line| format!(":{line}")))]
    Content {
        /// The file.
        path: PathBuf,
        /// Line, from 1, where the fault has one.
        line: Option<usize>,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// A record of other answers.
    #[error(
        "{path} holds answers with another {field} ({found}, not {expected}); give another file, or delete it to begin anew"
    )]
    OtherRecord {
        /// The record.
        path: PathBuf,
        /// What differs.
        field: String,
        /// What the record says.
        found: String,
        /// What is asked for now.
        expected: String,
    },
    /// Two models that cannot be compared position by position.
    #[error("the two models cannot be compared: {what}")]
    Incomparable {
        /// What differs.
        what: String,
    },
    /// A text that is too short to be scored.
    #[error(
        "the text has {tokens} tokens, and one window takes {window}; give a longer text, or a smaller {option}"
    )]
    ShortText {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of a window.
        window: usize,
        /// The option that makes windows smaller.
        option: &'static str,
    },
    /// Nothing to judge by.
    #[error("{what}")]
    Empty {
        /// What is missing, and what to do.
        what: String,
    },
}

impl EvalError {
    pub(crate) fn io(doing: &'static str, path: &Path, source: std::io::Error) -> Self {
        EvalError::Io { doing, path: path.to_owned(), source }
    }

    pub(crate) fn content(path: &Path, line: Option<usize>, what: impl Into<String>) -> Self {
        EvalError::Content { path: path.to_owned(), line, what: what.into() }
    }
}
