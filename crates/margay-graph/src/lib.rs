//! The waist: what can be computed, and what every backend, planner and exporter reads.
//!
//! A model family builds a [`Program`]: a list of typed [`Op`]s over named weights, with symbolic sizes. Backends
//! compile and run it behind [`Backend`]; [`passes`] rewrite it; [`memory::plan`] places its values in one arena.
//!
//! ```
//! use margay_graph::{Activation, Bindings, Builder, Dim, Role, Stage, Sym};
//! let mut b = Builder::new(Stage::Text);
//! let x = b.input_f32("x", [Dim::from(Sym::Tokens), Dim::from(64)]);
//! let w = b.weight("ffn_up.weight", [160, 64], Role::FfnUp);
//! let y = b.linear(x, w, None)?;
//! let y = b.activation(y, Activation::Silu)?;
//! b.output("y", y);
//! let program = margay_graph::passes::optimize(&b.finish()?);
//! assert_eq!(program.nodes().len(), 2, "the input, and the linear layer with its activation");
//! let plan = margay_graph::memory::plan(&program, &Bindings::new().with(Sym::Tokens, 3))?;
//! assert_eq!(plan.arena_bytes, 3 * 160 * 4);
//! # Ok::<(), margay_graph::GraphError>(())
//! ```
//!
//! What this crate does not do: compute. `margay-reference` says what each op means, `margay-cpu` makes it fast.
#![forbid(unsafe_code)]

mod backend;
mod builder;
mod cost;
mod cut;
mod dim;
mod error;
pub mod memory;
mod op;
mod outlier;
pub mod passes;
mod program;

pub use backend::{
    Backend, BackendError, Cancel, Executable, InputData, Kept, Layout, MemoryUse, Observe, PackedForm,
    PackedWeight, Segment, State, StateOptions, Watch, WeightSource,
};
pub use builder::Builder;
pub use cost::{Cost, cost, node_cost};
pub use dim::{Bindings, Dim, Sym};
pub use error::GraphError;
pub use op::{
    Activation, AdaptivePool, Attention, Axes, Conv2d, Experts, Linear, Mask, Norm, NormKind, Op, Pool2d,
    Rope, RopeStyle, Route,
};
pub use outlier::outlier_name;
pub use program::{CacheSpec, Element, Node, Program, Role, Stage, Value, ValueId, WeightId, WeightSpec};
