//! Clocks, stage spans and process memory: the only room that reads a clock or /proc.
//!
//! ```
//! use margay_observe::{Recorder, Stage, report};
//! let mut recorder = Recorder::new();
//! let open = recorder.begin(Stage::Encode);
//! // ... the work ...
//! recorder.end(open);
//! let times = recorder.totals();
//! assert_eq!(times.get(Stage::Encode).map(|t| t.count), Some(1));
//! assert!(times.get(Stage::Decode).is_none(), "what did not run is unknown, never 0");
//! assert!(report::stage_table(&times).contains("encode"));
//! ```
//!
//! What is read from the system is read below a [`Root`], so that a recorded tree replays; what is absent is `None`.
#![forbid(unsafe_code)]

mod clock;
pub mod machine;
pub mod process;
pub mod report;
mod root;
mod spans;

pub use clock::{Clock, Stopwatch};
pub use root::Root;
pub use spans::{OpenSpan, Recorder, Span, Stage, StageTimes, Total};
