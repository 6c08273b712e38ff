//! What every file of named tensors can do.

use margay_tensor::{DType, Shape, Tensor, TensorError};

use crate::FileError;

/// Type and shape of a stored tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// How its numbers are stored.
    pub dtype: DType,
    /// Its sizes, outermost first.
    pub shape: Shape,
}

impl TensorInfo {
    /// Bytes the tensor takes.
    ///
    /// # Errors
    /// [`TensorError`] where the row is no multiple of the block or the product overflows.
    pub fn size_bytes(&self) -> Result<usize, TensorError> {
        Tensor::size_bytes(self.dtype, &self.shape)
    }
}

impl From<&Tensor> for TensorInfo {
    fn from(tensor: &Tensor) -> Self {
        TensorInfo { dtype: tensor.dtype(), shape: tensor.shape().clone() }
    }
}

/// Named tensors, wherever they lie.
pub trait TensorSource {
    /// Names of all tensors, in the order of the file.
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_>;

    /// Type and shape of that tensor, or `None` where there is none of that name.
    fn info(&self, name: &str) -> Option<TensorInfo>;

    /// That tensor. Its bytes are a view into the file, not a copy.
    ///
    /// # Errors
    /// [`FileError::MissingTensor`] where there is none of that name.
    fn tensor(&self, name: &str) -> Result<Tensor, FileError>;
}
