//! Some rows and columns of a weight, in its stored format where its blocks allow.

use crate::{PackError, quantize::quant};
use margay_quant::{QuantError, decode_row};
use margay_tensor::{DType, Shape, Storage, Tensor};
use std::sync::Arc;

/// Which rows (numbers of a vector) and columns stay, in their order; all where it is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) rows: Option<Arc<[usize]>>,
    pub(super) cols: Option<Arc<[usize]>>,
}

impl Cut {
    pub(super) fn is_none(&self) -> bool {
        self.rows.is_none() && self.cols.is_none()
    }

    /// What stays of a vector or matrix. Rows, and columns that are whole blocks, stay byte for byte; else the numbers come
    /// as float32.
    pub(super) fn apply(&self, name: &str, tensor: &Tensor) -> Result<Tensor, PackError> {
        let rows = match &self.rows {
            Some(rows) => some_rows(name, tensor, rows)?,
            None => tensor.clone(),
        };
        let cut = match &self.cols {
            Some(cols) => some_columns(name, &rows, cols)?,
            None => rows,
        };
        tensor.storage().release();
        Ok(cut)
    }
}

fn some_rows(name: &str, tensor: &Tensor, rows: &[usize]) -> Result<Tensor, PackError> {
    let mut dims = tensor.shape().dims().to_vec();
    let all = dims.first().copied().unwrap_or(0).max(1);
    within(name, rows, all)?;
    let each = tensor.bytes().len() / all;
    dims[0] = rows.len();
    let storage = Storage::build(each * rows.len(), |out| {
        for (out, row) in out.chunks_exact_mut(each.max(1)).zip(rows) {
            out.copy_from_slice(&tensor.bytes()[row * each..][..each]);
        }
    });
    Tensor::new(tensor.dtype(), Shape::from(dims), storage).map_err(|e| quant(name, e.into()))
}

fn some_columns(name: &str, tensor: &Tensor, cols: &[usize]) -> Result<Tensor, PackError> {
    let &[rows, all] = tensor.shape().dims() else {
        let what = format!("{name} is {}, expected a matrix", tensor.shape());
        return Err(PackError::Prune { what });
    };
    within(name, cols, all)?;
    let dtype = tensor.dtype();
    let shape = Shape::from([rows, cols.len()]);
    let Some(blocks) = whole_blocks(dtype, cols) else {
        let (mut row, mut kept) = (vec![0.0; all], Vec::with_capacity(rows * cols.len()));
        for at in 0..rows {
            decode_row(tensor, at, &mut row).map_err(|e| quant(name, e))?;
            kept.extend(cols.iter().map(|col| row[*col]));
        }
        return Tensor::from_f32(shape, &kept).map_err(|e| quant(name, e.into()));
    };
    let (each, row_bytes) = (dtype.block_bytes(), tensor.bytes().len() / rows.max(1));
    let storage = Storage::build(rows * blocks.len() * each, |out| {
        let rows = tensor.bytes().chunks_exact(row_bytes.max(1));
        for (out, row) in out.chunks_exact_mut((blocks.len() * each).max(1)).zip(rows) {
            for (out, block) in out.chunks_exact_mut(each).zip(&blocks) {
                out.copy_from_slice(&row[block * each..][..each]);
            }
        }
    });
    Tensor::new(dtype, shape, storage).map_err(|e| quant(name, e.into()))
}

/// The blocks that these columns are; `None` where they are no whole ones.
fn whole_blocks(dtype: DType, cols: &[usize]) -> Option<Vec<usize>> {
    let of = dtype.block_elements().max(1);
    let block = |cols: &[usize]| {
        let whole =
            cols.len() == of && cols[0].is_multiple_of(of) && cols.windows(2).all(|two| two[0] + 1 == two[1]);
        whole.then_some(cols[0] / of)
    };
    cols.chunks(of).map(block).collect()
}

fn within(name: &str, places: &[usize], all: usize) -> Result<(), PackError> {
    match places.iter().find(|place| **place >= all) {
        None => Ok(()),
        Some(place) => {
            Err(quant(name, QuantError::Size { what: "rows or columns", expected: place + 1, got: all }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay_quant::{decode_tensor, encode_tensor};

    fn cut(rows: &[usize], cols: &[usize]) -> Cut {
        Cut { rows: Some(rows.into()), cols: Some(cols.into()) }
    }

    #[test]
    fn the_rows_and_columns_asked_for_stay_and_whole_blocks_stay_as_they_are() {
        let values: Vec<f32> = (0..3 * 96).map(|i| (i as f32 * 0.7).sin()).collect();
        let blocks: Vec<usize> = (0..32).chain(64..96).collect();
        let odd: Vec<usize> = (0..96).step_by(3).collect();
        for (dtype, cols, stays) in [
            (DType::F32, &odd, true),
            (DType::F16, &odd, true),
            (DType::Q8_0, &blocks, true),
            (DType::Q8_0, &odd, false),
        ] {
            let tensor = encode_tensor(&values, Shape::from([3, 96]), dtype).unwrap();
            let all = decode_tensor(&tensor).unwrap();
            let some = cut(&[0, 2], cols).apply("w", &tensor).unwrap();
            assert_eq!(some.shape().dims(), [2, cols.len()]);
            assert_eq!(some.dtype() == dtype, stays, "{dtype}");
            let expected: Vec<f32> = [0, 2]
                .iter()
                .flat_map(|row| cols.iter().map(|col| all[*row * 96 + *col]).collect::<Vec<_>>())
                .collect();
            assert_eq!(decode_tensor(&some).unwrap(), expected, "{dtype}");
        }
        let vector = Tensor::from_f32(Shape::from([3]), &[1.0, 2.0, 3.0]).unwrap();
        let some = Cut { rows: Some([2, 0].into()), cols: None }.apply("b", &vector).unwrap();
        assert_eq!(decode_tensor(&some).unwrap(), [3.0, 1.0]);
        assert!(Cut { rows: Some([3].into()), cols: None }.apply("b", &vector).is_err());
    }
}
