//! Devices as numbers: what a model would take on a phone that is not here, and how it should run there.
//!
//! A [`Device`] is units with rates, a memory, a chain of heat capacities and a battery, read from a profile in which every
//! number says its source or that it is assumed. A [`Workload`] is what one question costs, counted from the programs of a
//! model. [`simulate`] runs it by an [`Engine`] on virtual time, and [`plan`] chooses among variants of a model under limits.
//!
//! ```
//! use margay_device::{Device, Engine, Programs, Query, Setup, Step, Workload, simulate};
//! use margay_tensor::DType;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = margay_model::shapes::shape("phi-2").expect("it is listed").config()?.programs()?;
//! let programs = Programs { vision: None, text: &model.text };
//! let workload = Workload::count("phi-2:q4_0", programs, &|_, _| DType::Q4_0, 2.0, Query::text(32, 100))?;
//! let (device, engine) = (Device::named("a17-pro")?, Engine::named("llama.cpp")?);
//! let run = simulate(&Setup::new(&device, &engine), &workload)?;
//! assert!(run.tokens_per_second().is_some_and(|rate| (3.0..30.0).contains(&rate)));
//! assert_eq!(run.stages.last().map(|stage| stage.step), Some(Step::Decode));
//! # Ok(())
//! # }
//! ```
//!
//! [`Governor`] says, second by second, what to give up before a device is too hot, out of memory or of charge; [`Trial`] sets
//! it beside a device that just runs until it throttles.
//!
//! What this crate does not do: read files, clocks or the machine. Text and numbers are handed in.
#![forbid(unsafe_code)]

mod contradictions;
mod device;
mod energy;
mod engine;
mod error;
mod govern;
mod limits;
mod plan;
mod quality;
mod random;
mod simulate;
mod stated;
mod study;
mod survey;
mod thermal;
mod trial;
mod what_if;
mod workload;
mod written;

pub use contradictions::{Contradiction, contradictions};
pub use device::{Battery, Device, Kind, Memory, Node, Precision, Thermal, ThrottlePoint, Unit};
pub use energy::{
    AT_RATE, AtRate, Cloud, PER_CHARGE, at_rate, lesson_speedup, per_charge, speculative_speedup,
};
pub use engine::{Engine, Placement};
pub use error::DeviceError;
pub use govern::{
    Admission, Bounds, Event, Governor, KvStep, LADDER, LEAST_SPEED, Moves, Observation, Purpose, Resource,
    Rung, Settings, Tick,
};
pub use limits::{Limit, Metric};
pub use plan::{
    Candidate, Infeasible, Outcome, Planned, Prefer, Space, Variant, candidates, front, plan, run,
};
pub use quality::{Quality, bits};
pub use random::Random;
pub use simulate::{Bound, Run, Setup, StageRun, TICK_SECONDS, fastest, simulate};
pub use stated::{Origin, Stated};
pub use study::{Claim, Fitted, PHONE, Quantity, Residual, Study, StudyRun};
pub use survey::{Survey, Surveyed};
pub use thermal::{Temperatures, allowed};
pub use trial::{Actuator, Firmware, Point, Strategy, Trial, TrialRun};
pub use what_if::{Changed, WhatIf};
pub use workload::{BATCH_TOKENS, Part, Piece, Programs, Query, Step, Work, Workload};
