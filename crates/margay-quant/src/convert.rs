//! Checked ways in and out of the formats.

use margay_tensor::{DType, Shape, Storage, Tensor, TensorError};

use crate::{BlockFormat, format};

/// Why numbers could not be packed or unpacked.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum QuantError {
    /// No file in `formats/` handles the type.
    #[error("no block format reads or writes {dtype}; known are {}", known())]
    NoFormat {
        /// The type asked for.
        dtype: DType,
    },
    /// Numbers and bytes are not the same whole blocks.
    #[error("{values} numbers as {dtype} take {}, got {bytes}", expected(*dtype, *values))]
    Length {
        /// The type asked for.
        dtype: DType,
        /// Numbers at hand.
        values: usize,
        /// Bytes at hand.
        bytes: usize,
    },
    /// A row beyond the last.
    #[error("row {row} asked for, the tensor {shape} has {rows}")]
    NoRow {
        /// The row asked for, from 0.
        row: usize,
        /// Rows there are.
        rows: usize,
        /// Shape of the tensor.
        shape: Shape,
    },
    /// The number of values is not the shape's.
    #[error("{got} values do not fill the shape {shape}")]
    Count {
        /// Shape asked for.
        shape: Shape,
        /// Values at hand.
        got: usize,
    },
    /// Two sizes that must agree do not.
    #[error("{what}: {expected} expected, got {got}")]
    Size {
        /// What was counted.
        what: &'static str,
        /// How many there must be.
        expected: usize,
        /// How many there are.
        got: usize,
    },
    /// NaN or an infinity, which would spoil its whole block.
    #[error(
        "{value} at row {row}, column {column}: only finite numbers can be quantized; check the checkpoint"
    )]
    NotFinite {
        /// What stands there.
        value: f32,
        /// Its row, from 0.
        row: usize,
        /// Its column, from 0.
        column: usize,
    },
    /// The smallest choices are too large.
    #[error(
        "the smallest choices take {needed} bytes, the budget is {budget}: raise it or allow smaller types"
    )]
    Budget {
        /// Bytes of the smallest choices.
        needed: u64,
        /// Bytes there are.
        budget: u64,
    },
    /// Calibration did not gather what is needed.
    #[error("{why} needs {what}: calibrate with it first")]
    Missing {
        /// What is not there.
        what: &'static str,
        /// Who needs it.
        why: &'static str,
    },
    /// Type and shape make no tensor, for instance a row that is no multiple of the block.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

fn known() -> String {
    crate::FORMATS.iter().map(|f| f.dtype().name()).collect::<Vec<_>>().join(", ")
}

fn expected(dtype: DType, values: usize) -> String {
    match dtype.row_bytes(values) {
        Some(bytes) => format!("{bytes} bytes"),
        None => format!("whole blocks of {}", dtype.block_elements()),
    }
}

/// Unpacks `bytes` of type `dtype` into `out`.
///
/// # Errors
/// [`QuantError::NoFormat`] for a type without a format; [`QuantError::Length`] where `bytes` is not the size of
/// `out.len()` numbers.
pub fn decode_into(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<(), QuantError> {
    checked(dtype, out.len(), bytes.len())?.decode(bytes, out);
    Ok(())
}

/// Packs `values` into `out` as `dtype`.
///
/// # Errors
/// As [`decode_into`].
pub fn encode_into(dtype: DType, values: &[f32], out: &mut [u8]) -> Result<(), QuantError> {
    checked(dtype, values.len(), out.len())?.encode(values, out);
    Ok(())
}

/// All numbers of a tensor, rows one after the other.
///
/// # Errors
/// [`QuantError::NoFormat`] for a type without a format.
pub fn decode_tensor(tensor: &Tensor) -> Result<Vec<f32>, QuantError> {
    let overflow = || TensorError::Overflow { dtype: tensor.dtype(), shape: tensor.shape().clone() };
    // The format is looked up first so that a refusal allocates nothing.
    let format = format(tensor.dtype()).ok_or(QuantError::NoFormat { dtype: tensor.dtype() })?;
    let mut out = vec![0.0; tensor.shape().elements().ok_or_else(overflow)?];
    format.decode(tensor.bytes(), &mut out);
    Ok(out)
}

/// The numbers of one row, counted over all outer dimensions: the look-up of an embedding table.
///
/// # Errors
/// [`QuantError::NoRow`] beyond the last row, [`QuantError::Length`] where `out` is not a row long,
/// [`QuantError::NoFormat`] for a type without a format.
pub fn decode_row(tensor: &Tensor, row: usize, out: &mut [f32]) -> Result<(), QuantError> {
    let rows = tensor.shape().rows().unwrap_or(0);
    if row >= rows {
        return Err(QuantError::NoRow { row, rows, shape: tensor.shape().clone() });
    }
    // A tensor's size is the product of its row and rows, checked when it was made.
    let row_bytes = tensor.bytes().len() / rows;
    decode_into(tensor.dtype(), &tensor.bytes()[row * row_bytes..][..row_bytes], out)
}

/// A tensor of type `dtype` that holds `values`.
///
/// # Errors
/// [`QuantError::NoFormat`], [`QuantError::Count`], or [`QuantError::Tensor`] where the innermost size is no multiple
/// of the block ([`crate::storable`] says what to use instead).
pub fn encode_tensor(values: &[f32], shape: Shape, dtype: DType) -> Result<Tensor, QuantError> {
    let format = format(dtype).ok_or(QuantError::NoFormat { dtype })?;
    let bytes = Tensor::size_bytes(dtype, &shape)?;
    if shape.elements() != Some(values.len()) {
        return Err(QuantError::Count { shape, got: values.len() });
    }
    let storage = Storage::build(bytes, |out| format.encode(values, out));
    Ok(Tensor::new(dtype, shape, storage)?)
}

pub(crate) fn checked(
    dtype: DType,
    values: usize,
    bytes: usize,
) -> Result<&'static dyn BlockFormat, QuantError> {
    let format = format(dtype).ok_or(QuantError::NoFormat { dtype })?;
    if dtype.row_bytes(values) != Some(bytes) {
        return Err(QuantError::Length { dtype, values, bytes });
    }
    Ok(format)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_the_type_and_the_sizes() {
        let no_format = decode_into(DType::IQ1_S, &[], &mut []).unwrap_err().to_string();
        assert!(no_format.contains("iq1_s") && no_format.contains("q4_0"), "{no_format}");
        let length = decode_into(DType::Q4_0, &[0; 17], &mut [0.0; 32]).unwrap_err().to_string();
        assert_eq!(length, "32 numbers as q4_0 take 18 bytes, got 17");
        let part = encode_tensor(&[0.0; 66], Shape::from([2, 33]), DType::Q4_0).unwrap_err();
        assert!(matches!(part, QuantError::Tensor(TensorError::PartBlock { row: 33, .. })));
        let count = encode_tensor(&[0.0; 32], Shape::from([2, 32]), DType::Q4_0).unwrap_err();
        assert_eq!(count, QuantError::Count { shape: Shape::from([2, 32]), got: 32 });
    }

    #[test]
    fn a_row_equals_its_part_of_the_whole_tensor() {
        let values: Vec<f32> = (0..4 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
        let tensor = encode_tensor(&values, Shape::from([2, 2, 64]), DType::Q5_1).unwrap();
        let whole = decode_tensor(&tensor).unwrap();
        let mut row = [0.0; 64];
        for r in 0..4 {
            decode_row(&tensor, r, &mut row).unwrap();
            assert_eq!(row, whole[r * 64..][..64]);
        }
        assert!(matches!(decode_row(&tensor, 4, &mut row), Err(QuantError::NoRow { row: 4, rows: 4, .. })));
        assert!(matches!(decode_row(&tensor, 0, &mut row[..32]), Err(QuantError::Length { .. })));
    }

    #[test]
    fn empty_tensors_pass_through_every_format() {
        for format in crate::FORMATS {
            for shape in [Shape::from([0, 256]), Shape::from([3, 0])] {
                let tensor = encode_tensor(&[], shape, format.dtype()).unwrap();
                assert_eq!(decode_tensor(&tensor).unwrap(), [0.0f32; 0]);
            }
        }
        let empty = encode_tensor(&[], Shape::from([0, 256]), DType::Q4_K).unwrap();
        assert!(matches!(decode_row(&empty, 0, &mut [0.0; 256]), Err(QuantError::NoRow { rows: 0, .. })));
    }
}
