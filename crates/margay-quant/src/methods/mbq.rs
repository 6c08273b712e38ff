//! `mbq`: scales as in `awq`, an error at a visual token counting by how small its gradients are beside a text token's.
//!
//! Source: MBQ (arXiv 2412.19509) and its code: the same grid, mean absolute error, no clipping.

use margay_tensor::DType;

use super::{
    Needs, Scaling,
    awq::{Loss, search},
};
use crate::{Blocks, InputStats, Matrix, QuantError, format};

/// Modality-balanced scaling.
pub struct Mbq;

impl Scaling for Mbq {
    fn id(&self) -> &'static str {
        "mbq"
    }

    fn about(&self) -> &'static str {
        "scales as in awq, errors at visual tokens weighted by the ratio of their gradients to text's"
    }

    fn needs(&self) -> Needs {
        Needs { activations: true, sample: true, gradients: true, ..Needs::default() }
    }

    fn rounding(&self) -> &'static str {
        "rtn"
    }

    fn scales(
        &self,
        linears: &[Matrix<'_>],
        input: &InputStats,
        dtype: DType,
    ) -> Result<Vec<f32>, QuantError> {
        let format = format(dtype).ok_or(QuantError::NoFormat { dtype })?;
        Ok(search(linears, input, &Blocks(format), Loss::Balanced, self.id())?.scales)
    }
}
