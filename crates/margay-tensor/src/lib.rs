//! What an n-d array is: element type, shape, bytes. No arithmetic lives here.
//!
//! ```
//! use margay_tensor::{DType, Shape, Storage, Tensor};
//! let t = Tensor::new(DType::F32, Shape::from([2, 3]), Storage::from_f32(&[0.0; 6])).unwrap();
//! assert_eq!(t.shape().dims(), [2, 3]);
//! assert_eq!(t.bytes().len(), 24);
//! ```
#![forbid(unsafe_code)]

mod dtype;
mod shape;
mod storage;
mod tensor;

pub use dtype::DType;
pub use shape::Shape;
pub use storage::{Owner, Storage};
pub use tensor::{Tensor, TensorError};
