//! An n-d array of one type.

use crate::{DType, Shape, Storage};

/// Why bytes are no tensor of that type and shape.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TensorError {
    /// The innermost size is no multiple of the block.
    #[error("a row of {row} elements is no multiple of the {block}-element block of {dtype}")]
    PartBlock {
        /// Type of the tensor.
        dtype: DType,
        /// Innermost size.
        row: usize,
        /// Elements a block of `dtype`.
        block: usize,
    },
    /// The number of bytes is not what type and shape ask for.
    #[error("{dtype} {shape} takes {expected} bytes, got {got}")]
    Size {
        /// Type of the tensor.
        dtype: DType,
        /// Shape of the tensor.
        shape: Shape,
        /// Bytes that type and shape ask for.
        expected: usize,
        /// Bytes at hand.
        got: usize,
    },
    /// The product of the sizes does not fit the machine's word.
    #[error("the size of {dtype} {shape} overflows")]
    Overflow {
        /// Type of the tensor.
        dtype: DType,
        /// Shape of the tensor.
        shape: Shape,
    },
}

/// An n-d array: type, shape and contiguous row-major bytes. Cloning copies no bytes.
#[derive(Clone, Debug)]
pub struct Tensor {
    dtype: DType,
    shape: Shape,
    storage: Storage,
}

impl Tensor {
    /// A tensor over `storage`.
    ///
    /// # Errors
    /// [`TensorError`] where type, shape and byte count do not agree.
    pub fn new(dtype: DType, shape: Shape, storage: Storage) -> Result<Self, TensorError> {
        let expected = Self::size_bytes(dtype, &shape)?;
        if expected != storage.len() {
            return Err(TensorError::Size { dtype, shape, expected, got: storage.len() });
        }
        Ok(Tensor { dtype, shape, storage })
    }

    /// A float32 tensor holding a copy of `values`.
    ///
    /// # Errors
    /// [`TensorError::Size`] where their number is not the shape's.
    pub fn from_f32(shape: Shape, values: &[f32]) -> Result<Self, TensorError> {
        Self::new(DType::F32, shape, Storage::from_f32(values))
    }

    /// Bytes that a tensor of that type and shape takes.
    ///
    /// # Errors
    /// [`TensorError`] where the row is no multiple of the block or the product overflows.
    pub fn size_bytes(dtype: DType, shape: &Shape) -> Result<usize, TensorError> {
        let overflow = || TensorError::Overflow { dtype, shape: shape.clone() };
        let (row, block) = (shape.row(), dtype.block_elements());
        if !row.is_multiple_of(block) {
            return Err(TensorError::PartBlock { dtype, row, block });
        }
        let row_bytes = dtype.row_bytes(row).ok_or_else(overflow)?;
        row_bytes.checked_mul(shape.rows().ok_or_else(overflow)?).ok_or_else(overflow)
    }

    /// Stored type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The stored bytes, rows one after the other, little-endian.
    pub fn bytes(&self) -> &[u8] {
        self.storage.as_bytes()
    }

    /// The storage behind the tensor.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// The same bytes under another shape.
    ///
    /// # Errors
    /// [`TensorError`] where the new shape asks for another number of bytes.
    pub fn reshape(&self, shape: Shape) -> Result<Tensor, TensorError> {
        Tensor::new(self.dtype, shape, self.storage.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_must_agree() {
        let err = Tensor::new(DType::Q4_0, Shape::from([2, 33]), Storage::from_bytes(&[])).unwrap_err();
        assert!(matches!(err, TensorError::PartBlock { row: 33, block: 32, .. }));
        let err = Tensor::from_f32(Shape::from([2, 2]), &[0.0; 3]).unwrap_err();
        assert!(matches!(err, TensorError::Size { expected: 16, got: 12, .. }));
        assert!(Tensor::size_bytes(DType::F64, &Shape::from([1 << 61, 1 << 10])).is_err());
    }
}
