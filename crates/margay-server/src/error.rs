//! Why a server does not start.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

/// Why a server does not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The address cannot be listened at.
    #[error("cannot listen at {address}: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Anyone on the network could use the model.
    #[error(
        "{host} can be reached from other machines, and there is no API key: set one with --api-key or \
         MARGAY_API_KEY, or say with --no-key that everyone may ask"
    )]
    NeedsKey {
        /// The address asked for.
        host: IpAddr,
    },
    /// A setting that makes no sense.
    #[error("{option}: {what}")]
    Option {
        /// Name of the setting.
        option: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// The model cannot be shared.
    #[error(transparent)]
    Engine(#[from] margay::Error),
    /// The system refuses threads or sockets.
    #[error("cannot serve: {0}")]
    System(#[from] io::Error),
}
