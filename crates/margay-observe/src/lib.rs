//! Clocks, stage spans, sensors and their reports: the only room that reads a clock or the system.
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
mod notes;
mod parse;
pub mod plot;
mod power;
pub mod process;
mod record;
mod recording;
pub mod report;
mod root;
mod sample;
mod sampler;
mod sensors;
mod spans;
mod timeline;
mod tracks;

pub use clock::{Clock, Stopwatch, modified, today, touch, unix_seconds};
pub use power::{POWER_SOURCES, PowerSource, power_source};
pub use record::{RecordOptions, TreeRecorder};
pub use recording::{About, MOST_BYTES, Recording, RecordingError};
pub use root::Root;
pub use sample::{Channels, Sample, ThreadCpu};
pub use sampler::{Energy, Overhead, PERIOD, Sampler, Series, replay};
pub use sensors::{Family, Finding, SENSORS, Sensors, Watched, What};
pub use spans::{OpSpan, OpenSpan, Part, Recorder, Span, Stage, StageTimes, Total};
pub use timeline::{MeanMax, StageStatistics, Timeline};
pub use tracks::{Track, tracks};

use clock::thread_cpu_time;
