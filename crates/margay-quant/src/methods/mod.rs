//! One file a method: how to find better values for the blocks of any format.
//!
//! A [`Scaling`] moves magnitude between the columns of a weight and what produces their input, before anything is
//! rounded; a [`Rounding`] turns a weight into blocks. A method as users name it is a rounding, or a scaling with one.

use margay_tensor::DType;

use crate::{BlockFormat, InputStats, Matrix, QuantError, checked, stats::same};

pub mod awq;
pub mod clip;
pub mod gptq;
pub mod imatrix;
pub mod mbq;
pub mod qvlm;
pub mod rtn;
pub mod smoothquant;
pub mod vlmq;

/// What a method has to know of the inputs of a weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Means and largest magnitudes per column.
    pub activations: bool,
    /// Whole rows to compare outputs on.
    pub sample: bool,
    /// The sum of x xᵀ.
    pub hessian: bool,
    /// How much errors at tokens matter, from a backward pass.
    pub gradients: bool,
}

/// A way of turning a weight into blocks.
pub trait Rounding: Sync {
    /// The name users type.
    fn id(&self) -> &'static str;

    /// What it does, in one line.
    fn about(&self) -> &'static str;

    /// What it has to know of the inputs.
    fn needs(&self) -> Needs;

    /// Makes of `input` what [`Self::pack`] works with, once for all weights and pieces of weights that read it.
    ///
    /// # Errors
    /// [`QuantError::Missing`] where `input` lacks what it takes.
    fn prepare(&self, _input: &mut InputStats) -> Result<(), QuantError> {
        Ok(())
    }

    /// Packs `weight` into `out`, rows one after the other, in any block format.
    ///
    /// # Errors
    /// [`QuantError::NotFinite`] for NaN and infinities; [`QuantError::Missing`] where `input` lacks what
    /// [`Self::needs`] says; [`QuantError::NoFormat`], [`QuantError::Length`] and [`QuantError::Size`] where type and
    /// sizes do not fit.
    fn pack(
        &self,
        weight: Matrix<'_>,
        input: Option<&InputStats>,
        dtype: DType,
        out: &mut [u8],
    ) -> Result<(), QuantError>;
}

/// A way of scaling the columns of weights so that they round better.
pub trait Scaling: Sync {
    /// The name users type.
    fn id(&self) -> &'static str;

    /// What it does, in one line.
    fn about(&self) -> &'static str;

    /// What it has to know of the inputs.
    fn needs(&self) -> Needs;

    /// Name of the rounding its authors use after it.
    fn rounding(&self) -> &'static str;

    /// One factor for each input column that `linears` share: their weights are multiplied by it, and what produces
    /// the input is divided by it.
    ///
    /// # Errors
    /// As [`Rounding::pack`].
    fn scales(
        &self,
        linears: &[Matrix<'_>],
        input: &InputStats,
        dtype: DType,
    ) -> Result<Vec<f32>, QuantError>;
}

/// Every rounding there is. One line a file of this folder.
pub const ROUNDINGS: &[&dyn Rounding] =
    &[&rtn::Rtn, &imatrix::Imatrix, &clip::Clip, &qvlm::Qvlm, &gptq::Gptq, &vlmq::Vlmq];

/// Every scaling there is. One line a file of this folder.
pub const SCALINGS: &[&dyn Scaling] = &[&smoothquant::SmoothQuant { alpha: 0.5 }, &awq::Awq, &mbq::Mbq];

/// The rounding of that name.
pub fn rounding(id: &str) -> Option<&'static dyn Rounding> {
    ROUNDINGS.iter().copied().find(|method| method.id() == id)
}

/// The scaling of that name.
pub fn scaling(id: &str) -> Option<&'static dyn Scaling> {
    SCALINGS.iter().copied().find(|method| method.id() == id)
}

/// The importance of the columns of `weight`, for the method named `why`.
fn importance(
    why: &'static str,
    weight: Matrix<'_>,
    input: Option<&InputStats>,
) -> Result<Vec<f32>, QuantError> {
    let input = input.filter(|input| input.tokens() > 0);
    let input = input.ok_or(QuantError::Missing { what: "mean squares of the inputs", why })?;
    same("columns of a weight and its inputs", input.columns, weight.cols)?;
    Ok(input.importance())
}

/// The format that `weight` goes to, once nothing speaks against it.
fn target(weight: Matrix<'_>, dtype: DType, out: &[u8]) -> Result<&'static dyn BlockFormat, QuantError> {
    weight.finite()?;
    let format = checked(dtype, weight.values.len(), out.len())?;
    let whole = weight.cols.next_multiple_of(dtype.block_elements());
    same("columns of a row of whole blocks", whole, weight.cols)?;
    Ok(format)
}
