//! `gptq`: what a column loses in rounding is made up for in the columns after it.
//!
//! Blocks of any format: their scales are chosen from the weights as they are, weighted by the inputs' mean squares; then
//! the columns are rounded one by one, those with the largest inputs first. A super-block of 256 is such a group as well:
//! its scales, its groups' scales included, stay as chosen.
//! Source: GPTQ (arXiv 2210.17323) and its code, with `act_order` and `static_groups`.

use margay_tensor::DType;

use super::{Needs, Rounding, target};
use crate::{Blocks, Factor, InputStats, Matrix, QuantError, Scales, round_compensating};

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

    fn prepare(&self, input: &mut InputStats) -> Result<(), QuantError> {
        factor(input)
    }

    fn pack(
        &self,
        weight: Matrix<'_>,
        input: Option<&InputStats>,
        dtype: DType,
        out: &mut [u8],
    ) -> Result<(), QuantError> {
        pack_compensating(self.id(), weight, input, dtype, out)
    }
}

/// Factors the Hessian in its place, unless it saw nothing.
pub(super) fn factor(input: &mut InputStats) -> Result<(), QuantError> {
    if let Some(hessian) = input.hessian.take_if(|hessian| hessian.tokens() > 0) {
        input.factor = Some(Factor::new(hessian, true)?);
    }
    Ok(())
}

/// Packs `weight` so that its outputs lose least in the sense of the prepared `input`.
pub(super) fn pack_compensating(
    why: &'static str,
    weight: Matrix<'_>,
    input: Option<&InputStats>,
    dtype: DType,
    out: &mut [u8],
) -> Result<(), QuantError> {
    let format = target(weight, dtype, out)?;
    let unseen = input.is_some_and(|input| input.hessian.as_ref().is_some_and(|h| h.tokens() == 0));
    if format.codes() == 0 || unseen {
        // Floats have no error worth making up for; inputs never seen make none.
        format.encode(weight.values, out);
        return Ok(());
    }
    let factor = input.and_then(|input| input.factor.as_ref());
    let factor = factor.ok_or(QuantError::Missing { what: "a factored Hessian", why })?;
    let importance = Some(factor.mean_squares());
    round_compensating(weight, factor, &Blocks(format), Scales::First, importance, out, None)
}
