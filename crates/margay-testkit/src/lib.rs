//! Shared test material: op cases, tolerances, golden files. Never shipped.
//!
//! [`suite`] lists small programs for every op; [`suite::run_suite`] runs them on a backend and on an oracle and says
//! how far they are apart, under a [`tolerance::Policy`]. The oracle of the backends is `margay-reference`; the oracle
//! of `margay-reference` is [`naive`], loops in float64. [`golden`] compares the stages of a model with a recorded run.
//!
//! ```
//! use margay_testkit::{naive::NaiveBackend, suite, tolerance::Policy};
//! let cases: Vec<_> = suite::cases().into_iter().filter(|c| c.op == "mean_rows").collect();
//! let results = suite::run_suite(&NaiveBackend::rounding(32), &NaiveBackend::exact(), &Policy::FLOAT32, &cases);
//! assert!(results.iter().all(|r| r.passed()));
//! ```
#![forbid(unsafe_code)]

pub mod golden;
pub mod naive;
pub mod random;
pub mod refusals;
pub mod suite;
pub mod tolerance;
pub mod weights;
