//! `gptq`: what a column loses in rounding is made up for in the columns after it.
//!
//! Blocks of any format: their scales are chosen from the weights as they are, weighted by the inputs' mean squares; then
//! the columns are rounded one by one, those with the largest inputs first. A super-block of 256 is such a group as well:
//! its scales, its groups' scales included, stay as chosen.
//! Source: GPTQ (arXiv 2210.17323) and its code, with `act_order` and `static_groups`.

use margay_tensor::DType;

use super::{Needs, Rounding, target};
use crate::{
    Blocks, Factor, Hessian, InputStats, Matrix, QuantError, Scales, round_compensating, stats::same,
};

/// Error compensation by second-order statistics.
pub struct Gptq;

impl Rounding for Gptq {
    fn id(&self) -> &'static str {
        "gptq"
    }

    fn about(&self) -> &'static str {
        "column by column, each column's error made up for in those after it"
    }

    fn needs(&self) -> Needs {
        Needs { hessian: true, ..Needs::default() }
    }

    fn pack(
        &self,
        weight: Matrix<'_>,
        input: Option<&InputStats>,
        dtype: DType,
        out: &mut [u8],
    ) -> Result<(), QuantError> {
        let hessian = input.and_then(|input| input.hessian.as_ref());
        let hessian = hessian.ok_or(QuantError::Missing { what: "a Hessian", why: self.id() })?;
        pack_compensating(weight, hessian, dtype, out)
    }
}

/// Packs `weight` so that its outputs lose least in the sense of `hessian`.
pub(super) fn pack_compensating(
    weight: Matrix<'_>,
    hessian: &Hessian,
    dtype: DType,
    out: &mut [u8],
) -> Result<(), QuantError> {
    let format = target(weight, dtype, out)?;
    same("columns of a weight and its Hessian", hessian.columns(), weight.cols)?;
    if format.codes() == 0 || hessian.tokens() == 0 {
        // Floats have no error worth making up for; inputs never seen make none.
        format.encode(weight.values, out);
        return Ok(());
    }
    let factor = Factor::new(hessian, true)?;
    let count = hessian.tokens() as f32;
    let importance: Vec<f32> = hessian.diagonal().iter().map(|sum| sum / count).collect();
    round_compensating(weight, &factor, &Blocks(format), Scales::First, Some(&importance), out, None)
}
