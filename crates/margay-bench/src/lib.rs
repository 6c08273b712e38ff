//! Measure an answer: repeats with statistics, energy, heat and responsiveness, peers in the same run, and records that can
//! be compared later.
//!
//! ```
//! use margay_bench::{Plan, measure};
//! use margay::Model;
//! # fn main() -> Result<(), margay_bench::BenchError> {
//! let load = || Model::nano();
//! let mut plan = Plan::new(&load, "What is a margay?");
//! (plan.repeat, plan.warmup, plan.ask.max_tokens) = (1, 0, 4);
//! plan.idle = std::time::Duration::ZERO;
//! let measured = measure(&plan)?;
//! assert!(measured.record.engines[0].runs[0].without_load_ms.is_some());
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod advise;
mod answer;
mod compare;
mod digest;
mod error;
mod figures;
mod heartbeat;
mod measure;
mod noise;
mod ops;
mod peers;
mod protocol;
mod record;
pub mod report;
mod statistics;
mod sustain;
mod watched;
mod work;

pub use advise::{Advice, Advised, Gain, Pricing, SUGGESTIONS, Simulate, Suggestion, advise};
pub use compare::{Broken, Comparison, Line, MoreWork, compare};
pub use error::BenchError;
pub use figures::{Better, Energies, METRICS, Metric, energies};
pub use measure::{Measured, Plan, measure};
pub use noise::{Shift, Verdict, shift};
pub use peers::{PEERS, Peer, PeerKind};
pub use protocol::CoolDown;
pub use record::{
    Begin, Build, Device, Engine, FORM, Heartbeat, MARGAY, Mark, ModelId, OpMs, PictureId, Protocol,
    Question, Record, Run, StageMs, StageOps, StageWork, Sustained, SustainedAnswer,
};
pub use statistics::{Summary, median, nearest_to_median, percentile, summary};
pub use work::bytes_read;
