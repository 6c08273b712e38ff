//! `rtn`: every block by itself, as the field's own quantizer does. Knows nothing of the inputs.

use margay_tensor::DType;

use super::{Needs, Rounding, target};
use crate::{InputStats, Matrix, QuantError};

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
        target(weight, dtype, out)?.encode(weight.values, out);
        Ok(())
    }
}
