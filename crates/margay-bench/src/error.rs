//! What can go wrong while measuring.

use std::path::PathBuf;

/// Why something was not measured or compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is no record of a measurement.
    #[error("{place} is no record of `margay bench`: {what}")]
    Record {
        /// Its name.
        place: String,
        /// What is wrong with it.
        what: String,
    },
    /// Two records are of different things.
    #[error(
        "the records are not of the same {what}: {a} and {b}; `compare --force` compares them all the same"
    )]
    Different {
        /// What differs.
        what: &'static str,
        /// Of the first.
        a: String,
        /// Of the second.
        b: String,
    },
    /// A peer that is not known, or lacks what it needs.
    #[error("--peer {spec}: {what}")]
    Peer {
        /// As it was given.
        spec: String,
        /// What is wrong.
        what: String,
    },
    /// A peer that failed while it was measured.
    #[error("{name} failed ({status}): {said}; its command was: {command}")]
    PeerFailed {
        /// Which.
        name: String,
        /// Its exit status.
        status: String,
        /// The end of what it wrote to stderr.
        said: String,
        /// How it was started.
        command: String,
    },
    /// A process or a thread cannot be started.
    #[error("cannot start {what}: {source}")]
    Start {
        /// Which.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// The model or a picture.
    #[error(transparent)]
    Model(#[from] margay::Error),
}
