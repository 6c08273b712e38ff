//! `imatrix`: every block by itself, an error counting by the mean square of what it is multiplied with.
//!
//! Source: the importance matrices of llama.cpp, whose bytes this equals for the same importances.

use margay_tensor::DType;

use super::{Needs, Rounding, importance, target};
use crate::{InputStats, Matrix, QuantError, stats::same};

/// Importance-weighted rounding.
pub struct Imatrix;

impl Rounding for Imatrix {
    fn id(&self) -> &'static str {
        "imatrix"
    }

    fn about(&self) -> &'static str {
        "every block by itself, errors weighted by the mean square of the inputs"
    }

    fn needs(&self) -> Needs {
        Needs { activations: true, ..Needs::default() }
    }

    fn pack(
        &self,
        weight: Matrix<'_>,
        input: Option<&InputStats>,
        dtype: DType,
        out: &mut [u8],
    ) -> Result<(), QuantError> {
        let importance = importance(self.id(), weight, input)?;
        pack_weighted(weight, &importance, dtype, out)
    }
}

/// Packs `weight`, an error in a column counting by `importance`.
///
/// # Errors
/// As [`Rounding::pack`].
pub fn pack_weighted(
    weight: Matrix<'_>,
    importance: &[f32],
    dtype: DType,
    out: &mut [u8],
) -> Result<(), QuantError> {
    let format = target(weight, dtype, out)?;
    same("importances of columns", weight.cols, importance.len())?;
    let row_bytes = out.len() / weight.rows.max(1);
    for (row, out) in weight.iter_rows().zip(out.chunks_mut(row_bytes.max(1))) {
        format.encode_weighted(row, importance, out);
    }
    Ok(())
}
