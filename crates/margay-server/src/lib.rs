//! Margay over HTTP: chat completions as OpenAI's clients speak them, metrics, and a page.
//!
//! ```no_run
//! use margay::Model;
//! use margay_server::{Server, ServerOptions};
//! # fn main() -> Result<(), margay_server::ServerError> {
//! let server = Server::bind(Model::nano()?, ServerOptions::default())?;
//! let (address, handle) = (server.address(), server.handle());
//! // ... http://{address}/ is the page; another thread may call handle.stop() ...
//! server.run()
//! # }
//! ```
//!
//! The only room with an async runtime, and the only one that serves HTTP. A request passes `guard` (who may ask),
//! `request` and `message` (what may be asked), `turns` (pictures are decoded), `chat` (the engine is asked) and
//! `reply` or `stream` (the answer).
#![forbid(unsafe_code)]

mod app;
mod chat;
mod dry_run;
mod embeddings;
mod error;
mod exposition;
mod fields;
mod guard;
mod machine;
mod message;
mod metrics;
mod options;
mod page;
mod problem;
mod reply;
mod request;
mod routes;
mod serve;
mod status;
mod stream;
mod tools;
mod turns;

pub use error::ServerError;
pub use options::{Fetch, Get, Limits, ServerOptions};
pub use serve::{Handle, Server};
