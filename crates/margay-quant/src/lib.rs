//! Numbers in, blocks out: the block formats of the field, one file each in [`formats`].
//!
//! A [`BlockFormat`] turns whole blocks into float32 and back. Its bytes are those of GGUF; its encoder equals the
//! reference quantizer of the field byte for byte, which `tests/golden.rs` proves.
//!
//! ```
//! use margay_quant::{decode_tensor, encode_tensor};
//! use margay_tensor::{DType, Shape};
//!
//! let values: Vec<f32> = (0..64).map(|i| i as f32 / 63.0 - 0.5).collect();
//! let packed = encode_tensor(&values, Shape::from([2, 32]), DType::Q8_0)?;
//! assert_eq!(packed.bytes().len(), 2 * 34);
//! let back = decode_tensor(&packed)?;
//! assert!(values.iter().zip(&back).all(|(a, b)| (a - b).abs() < 0.003));
//! # Ok::<(), margay_quant::QuantError>(())
//! ```
#![forbid(unsafe_code)]

mod allocate;
mod block;
pub mod channel;
mod compensate;
mod convert;
mod factor;
pub mod formats;
mod gram;
mod hessian;
mod matrix;
pub mod methods;
pub mod observers;
pub mod outlier;
pub mod pruning;
mod quantizer;
mod recipe;
mod search;
mod sensitivity;
mod stats;
mod triangle;

pub(crate) use convert::checked;

pub use allocate::{Allocation, Choice, exact, greedy, greedy_for_loss};
pub use block::{BlockFormat, f16_at, field, k_scales};
pub use compensate::{BATCH, Scales, round_compensating};
pub use convert::{QuantError, decode_into, decode_row, decode_tensor, encode_into, encode_tensor};
pub use factor::{DAMP, Factor};
pub use formats::{FORMATS, format};
pub use hessian::Hessian;
pub use matrix::Matrix;
pub use methods::{Needs, ROUNDINGS, Rounding, SCALINGS, Scaling};
pub use quantizer::{Blocks, Grid, Quantizer, Range, Uniform};
pub use recipe::{Fallback, plan_type, storable};
pub use sensitivity::{OutputError, output_error};
pub use stats::{InputStats, Sample, TokenStats};
