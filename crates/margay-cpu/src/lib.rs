//! The CPU backend: packed weights, SIMD kernels chosen at run time, a thread pool that keeps its threads.
//!
//! ```
//! use margay_cpu::{CpuBackend, CpuOptions, Isa};
//! use margay_graph::Backend;
//! let cpu = CpuBackend::new(CpuOptions { threads: Some(2), isa: Some(Isa::Scalar), ..Default::default() })?;
//! assert_eq!(cpu.describe(), "cpu: scalar kernels, 2 threads");
//! # Ok::<(), margay_graph::BackendError>(())
//! ```
//!
//! Results do not depend on the number of threads, nor on how many rows a call has: a token decoded alone gets the bits
//! it would get within a prompt. Quantized matrices are multiplied with activations quantized to int8 in groups of 32.

mod backend;
mod cores;
mod executable;
mod isa;
mod kernels;
mod kv;
mod lines;
pub mod measure;
mod ops;
mod pack;
mod step;
pub mod threads;
mod weights;

pub use backend::{CpuBackend, CpuOptions};
pub use cores::{CoreError, CoreSet};
pub use isa::Isa;
pub use kv::{BLOCK_TOKENS, KvType};
