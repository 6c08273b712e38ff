//! `rtn`: every block by itself, as the field's own quantizer does. Knows nothing of the inputs.

use margay_tensor::DType;

use super::{Needs, Rounding};
use crate::{InputStats, Matrix, QuantError, encode_into};

/// Round to nearest.
pub struct Rtn;

impl Rounding for Rtn {
    fn id(&self) -> &'static str {
        "rtn"
    }

    fn about(&self) -> &'static str {
        "round to nearest: every block by itself, no calibration"
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn pack(
        &self,
        weight: Matrix<'_>,
        _input: Option<&InputStats>,
        dtype: DType,
        out: &mut [u8],
    ) -> Result<(), QuantError> {
        weight.finite()?;
        encode_into(dtype, weight.values, out)
    }
}
