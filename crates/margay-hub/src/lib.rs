//! Model files from a Hugging Face compatible hub.
//!
//! [`pull`] fetches what a [`ModelRef`] names into the cache that Hugging Face's own tools share, and gives back where
//! the model lies. A download that was cut goes on where it stopped, every file is compared with the checksum that the
//! hub gives for it, and what is in the cache is not fetched again. The only room that knows HTTP.
//!
//! ```no_run
//! use margay_hub::{HubOptions, ModelRef, pull};
//! use std::ops::ControlFlow;
//! let options = HubOptions::new("models-cache".into());
//! let model: ModelRef = "mtgv/MobileVLM_V2-1.7B".parse()?;
//! let pulled = pull(&options, &model, &mut |step| {
//!     println!("{} {}/{}", step.file, step.done_bytes, step.of_bytes);
//!     ControlFlow::Continue(())
//! })?;
//! println!("{}", pulled.path.display());
//! # Ok::<(), margay_hub::HubError>(())
//! ```
#![forbid(unsafe_code)]

mod cache;
mod choose;
mod client;
mod download;
mod error;
mod fetch;
mod reference;

pub use download::{Progress, Pulled, PulledFile, pull};
pub use error::HubError;
pub use fetch::Fetcher;
pub use reference::ModelRef;

use std::path::PathBuf;

/// Where a hub and its cache are.
#[derive(Clone, PartialEq, Eq)]
pub struct HubOptions {
    /// Address of the hub.
    pub endpoint: String,
    /// Folder of the cache (`models--OWNER--NAME` below it).
    pub cache: PathBuf,
    /// Opens repositories that are not for everyone. Sent to the hub alone, never to where it redirects.
    pub token: Option<String>,
    /// Use the cache alone.
    pub offline: bool,
    /// File of the certificates (PEM) that vouch for the hub, in place of those that vouch for public ones.
    pub certificates: Option<PathBuf>,
}

impl HubOptions {
    /// The public hub, without a token.
    pub fn new(cache: PathBuf) -> Self {
        let endpoint = "https://huggingface.co".to_owned();
        HubOptions { endpoint, cache, token: None, offline: false, certificates: None }
    }
}

/// Without the token.
impl std::fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let token = self.token.as_ref().map(|_| "secret");
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &token)
            .field("offline", &self.offline)
            .field("certificates", &self.certificates)
            .finish()
    }
}
