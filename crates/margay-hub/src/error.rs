//! Why a model cannot be pulled.

use std::{io, path::PathBuf};

/// Why a model cannot be pulled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// It names no model.
    #[error("{text:?} {why}; expected OWNER/REPO, OWNER/REPO:FILE or OWNER/REPO@REVISION:FILE")]
    Reference {
        /// What was given.
        text: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The cache does not hold it, and the hub may not be asked.
    #[error("{what} is not in the cache {}, and offline mode forbids to fetch it (HF_HUB_OFFLINE)", cache.display())]
    Offline {
        /// What is missing.
        what: String,
        /// The cache.
        cache: PathBuf,
    },
    /// The hub knows no such repository, revision or file.
    #[error("the hub has no {what} ({url})")]
    NotFound {
        /// What was asked for.
        what: String,
        /// Where.
        url: String,
    },
    /// The hub does not show it to everyone.
    #[error(
        "the hub does not give {what} ({status}): {advice}; if the model asks for it, accept its terms on {page} first"
    )]
    Denied {
        /// What was asked for.
        what: String,
        /// HTTP status.
        status: u16,
        /// What to do about the token.
        advice: &'static str,
        /// The repository's page.
        page: String,
    },
    /// The hub answered with an error.
    #[error("the hub answers {status} to {url}")]
    Status {
        /// HTTP status.
        status: u16,
        /// Where.
        url: String,
    },
    /// The hub cannot be reached, or the connection broke.
    #[error("cannot fetch {url}: {source}{}", advice(source))]
    Connection {
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: Box<ureq::Error>,
    },
    /// A file cannot be fetched by its address.
    #[error("cannot fetch {url}: {why}")]
    Fetch {
        /// Where.
        url: String,
        /// Why.
        why: String,
    },
    /// The connection broke again and again. What was received is kept.
    #[error("{file} broke off after {got} of {size} bytes: {why}; the same command goes on from there")]
    BrokenOff {
        /// The file.
        file: String,
        /// Bytes received.
        got: u64,
        /// Bytes in all.
        size: u64,
        /// Why.
        why: String,
    },
    /// The hub says something that makes no sense.
    #[error("the hub's answer about {what} makes no sense: {why}")]
    Answer {
        /// About what.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// What was received is not what the hub announced.
    #[error("{file} is damaged: its {kind} is {got}, the hub says {expected}; it was deleted, try again")]
    Damaged {
        /// The file.
        file: String,
        /// Which checksum.
        kind: &'static str,
        /// What the hub says.
        expected: String,
        /// What was received.
        got: String,
    },
    /// It is not clear which files are meant, or there is none that can be read.
    #[error("{repo} {why}")]
    Choice {
        /// The repository.
        repo: String,
        /// What is not clear, and what to do.
        why: String,
    },
    /// The disk refuses.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The certificates that should vouch for the hub cannot be had.
    #[error("{} {why}; SSL_CERT_FILE names a file of certificates in PEM form", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The caller stopped it; what was received is kept.
    #[error("stopped; what was received is kept")]
    Stopped,
}

/// What to do where a hub's certificate is not trusted, which only the words of the TLS below tell.
fn advice(error: &ureq::Error) -> &'static str {
    match error.to_string().contains("certificate") {
        true => "; if the certificate is your own, name the file of it with SSL_CERT_FILE",
        false => "",
    }
}

impl HubError {
    pub(crate) fn io(action: &'static str, path: &std::path::Path, source: io::Error) -> Self {
        HubError::Io { action, path: path.to_owned(), source }
    }
}
