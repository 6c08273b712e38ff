//! The meaning of every op: executes and differentiates a Program with candle in float32.
//!
//! Each op is written the plain way, so that reading it says what it means; every other backend is compared with it.
//! Weights of any stored type are decoded to float32 when a program is compiled, and the KV cache is float32.
//!
//! ```
//! use margay_graph::{Backend, BackendError, Bindings, Builder, Cancel, InputData, Role, Stage, Sym, WeightSource};
//! use margay_reference::ReferenceBackend;
//! use margay_tensor::{Shape, Tensor};
//!
//! struct Ones;
//! impl WeightSource for Ones {
//!     fn weight(&self, _name: &str) -> Result<Tensor, BackendError> {
//!         Ok(Tensor::from_f32(Shape::from([2, 3]), &[1.0; 6]).expect("2 x 3 is 6"))
//!     }
//! }
//!
//! let mut b = Builder::new(Stage::Project);
//! let x = b.input_f32("x", [Sym::Patches.into(), 3.into()]);
//! let w = b.weight("w", [2, 3], Role::Projector);
//! let y = b.linear(x, w, None)?;
//! b.output("y", y);
//! let bindings = Bindings::new().with(Sym::Patches, 1);
//! let mut layer = ReferenceBackend::new().compile(&b.finish()?, &Ones, &bindings)?;
//! layer.run(&bindings, &[InputData::F32(&[1.0, 2.0, 3.0])], None, &Cancel::new())?;
//! assert_eq!(layer.output("y"), Some(&[6.0, 6.0][..]));
//! # Ok::<(), BackendError>(())
//! ```
//!
//! What this crate does not do: hurry.
#![forbid(unsafe_code)]

mod backend;
mod gradients;
mod ops;
mod run;
mod state;
mod walk;
mod weights;

pub use backend::ReferenceBackend;
pub use gradients::{Gradients, gradients, value_gradients, weight_gradients};
pub use walk::{Visit, WalkInput, Walker, steps, walk};
