//! What can be wrong with what was handed in.

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A profile's text breaks its rules.
    #[error("the profile {name}: {what}")]
    Profile {
        /// Its name.
        name: String,
        /// What is wrong, with the line where the format says it.
        what: String,
    },
    /// A name that no registry knows.
    #[error("there is no {what} {name:?}; there are {known}")]
    Unknown {
        /// What was looked for.
        what: &'static str,
        /// The name.
        name: String,
        /// All names.
        known: String,
    },
    /// Two changes of one thing.
    #[error("{a} and {b} change the same thing; name one")]
    Conflict {
        /// One.
        a: &'static str,
        /// The other.
        b: &'static str,
    },
    /// A limit that cannot be read.
    #[error("the limit {text:?}: {what}")]
    Limit {
        /// As it was written.
        text: String,
        /// What is wrong and what would be right.
        what: String,
    },
    /// A device has not what a placement asks for.
    #[error("{device} cannot run {stage} as asked: {what}")]
    Placement {
        /// Id of the device.
        device: String,
        /// The stage.
        stage: &'static str,
        /// What is missing.
        what: String,
    },
    /// A program's sizes cannot be counted.
    #[error(transparent)]
    Graph(#[from] margay_graph::GraphError),
}

pub(crate) fn profile(name: &str, what: impl Into<String>) -> DeviceError {
    DeviceError::Profile { name: name.to_owned(), what: what.into() }
}
