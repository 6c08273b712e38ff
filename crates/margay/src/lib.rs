//! Ask a picture a question.
//!
//! ```
//! use margay::{Event, Image, Model};
//! # fn main() -> Result<(), margay::Error> {
//! let model = Model::nano()?;
//! let mut session = model.session()?;
//! let picture = Image::filled(64, 64, [200, 30, 30])?;
//! for event in session.ask(&[picture], "What is in this picture?")? {
//!     if let Event::Text(piece) = event? {
//!         print!("{piece}");
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`Model::load`] takes a GGUF file (its mmproj beside it), or a Hugging Face folder. A [`Session`] keeps the
//! conversation and its KV cache; [`Session::ask`] is an iterator of typed [`Event`]s: stages as they end, text as it is
//! decoded, and a [`Report`] at the end. [`Session::cancel`] stops it from any thread.
#![forbid(unsafe_code)]

mod answer;
mod backends;
mod batches;
mod digest;
mod draft;
mod embed;
mod engine;
mod error;
mod evict;
mod folder;
mod formats;
mod governed;
mod greatest;
mod image;
mod image_cache;
mod image_files;
mod inputs;
mod keep;
mod load;
mod model;
mod options;
mod overlap;
mod packed;
mod predict;
mod prefix_files;
mod prefixes;
mod prompt;
mod prune;
mod reduce;
mod report;
mod rows;
mod sample;
mod schedule;
mod scheduler;
mod session;
mod stages;
mod tokenizer;
mod trace;
mod video;
mod work;

pub use answer::{Answer, Event, Token};
pub use backends::{BACKENDS, BackendEntry, backend, cpu_backend, default_threads};
pub use batches::prompt_batches;
pub use digest::model_digest;
pub use embed::embedding_turn;
pub use error::Error;
pub use evict::{Budget, Eviction};
pub use formats::{vision_format, weight_format};
pub use governed::GovernorReport;
pub use image::Image;
pub use inputs::PromptInputs;
pub use load::{ModelSource, default_context};
pub use margay_cpu::KvType;
pub use margay_device::{Bounds, Event as GovernorEvent, Purpose};
pub use margay_graph::Cancel;
pub use margay_observe::Stage;
pub use margay_prompt::{
    image::ImageLimits,
    text::{CallPiece, CallReader, Calls, Form, Function, called},
};
pub use model::{DraftModel, Model};
pub use options::{AskOptions, ImageFolder, LoadOptions, Overlap, PrefixFolder, Sampling};
pub use predict::{MemoryPrediction, predict_shape};
pub use prompt::PromptSize;
pub use prune::{PRUNINGS, Pruning, PruningEntry};
pub use reduce::{Keep, REDUCTIONS, Reason, Reduction, ReductionEntry, Sees};
pub use report::{PictureReport, Report, StageReport, Stop};
pub use schedule::{Lane, Schedule, StageRun};
pub use scheduler::{Job, Load, Scheduler, SchedulerOptions, Tell};
pub use session::{Content, Session, Turn};
pub use stages::{OpRun, OpTime, Stages};
pub use tokenizer::tokenizer_of;
pub use trace::{TraceOptions, Tracer};
pub use video::{Clip, ClipOptions, ClipReport, Frames, FramesOptions, Looked};

/// The rooms below, for tools that look inside a model.
pub mod rooms {
    pub use margay_cpu as cpu;
    pub use margay_file as file;
    pub use margay_graph as graph;
    pub use margay_model as model;
    pub use margay_observe as observe;
    pub use margay_prompt as prompt;
    pub use margay_quant as quant;
    pub use margay_tensor as tensor;
}
