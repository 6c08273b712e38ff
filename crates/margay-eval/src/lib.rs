//! Judge a model: published benchmarks scored as published, how far a model is from another, perplexity.
//!
//! A [`Suite`] reads the files of a benchmark as they are published and scores answers as the published code does;
//! [`SUITES`] lists them. [`ask`] puts a suite's questions to a model and keeps each answer in a [`Record`], so that a
//! killed run goes on. [`score()`] makes figures with intervals of the answers, [`paired`] compares those of two models.
//! [`Comparison`] measures how far the stages and the next-token distributions of two models lie apart, and
//! [`perplexity`] how well a model predicts a text, in the two definitions of the field.
//!
//! ```
//! use margay_eval::wilson;
//! let (low, high) = wilson(90.0, 100.0).unwrap();
//! assert!(0.82 < low && low < 0.83 && 0.94 < high && high < 0.95);
//! ```
#![forbid(unsafe_code)]

mod ask;
mod compare;
mod divergence;
mod error;
mod evalai;
pub mod html;
mod interval;
mod perplexity;
mod read;
mod record;
mod score;
mod suite;
mod suites;

pub use ask::{Asked, ask, open_picture};
pub use compare::{Comparison, Difference, Gate, Kind, KlFigures, Limits, Place, Question, StageDistance};
pub use error::EvalError;
pub use interval::{Interval, mcnemar, wilson};
pub use perplexity::{Definition, Perplexity, perplexity};
pub use read::text_file;
pub use record::{Entry, Header, Record};
pub use score::{Figure, Paired, Score, paired, score};
pub use suite::{Answered, Cell, Headline, Item, PictureAt, Row, Suite, SuiteEntry, choose, suite_digest};
pub use suites::{SUITES, suite_entry};
