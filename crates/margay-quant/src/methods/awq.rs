//! `awq`: columns with large inputs are scaled up before rounding, by as much as serves the outputs best.
//!
//! Source: AWQ (arXiv 2306.00978), `auto_scale.py` of its code.

use margay_tensor::DType;

use super::{Needs, Scaling};
use crate::{
    Blocks, InputStats, Matrix, QuantError, Quantizer, format,
    sensitivity::{OUTPUTS, each_output},
    stats::same,
};

/// Exponents tried: 0, 1/20 and so on, below 1.
pub const GRID: usize = 20;

/// Below this no scale goes.
const LEAST: f32 = 1e-4;

/// Activation-aware scaling.
pub struct Awq;

impl Scaling for Awq {
    fn id(&self) -> &'static str {
        "awq"
    }

    fn about(&self) -> &'static str {
        "columns with large inputs are scaled up, by what serves the outputs best; then the range is clipped"
    }

    fn needs(&self) -> Needs {
        Needs { activations: true, sample: true, ..Needs::default() }
    }

    fn rounding(&self) -> &'static str {
        "clip"
    }

    fn scales(
        &self,
        linears: &[Matrix<'_>],
        input: &InputStats,
        dtype: DType,
    ) -> Result<Vec<f32>, QuantError> {
        let format = format(dtype).ok_or(QuantError::NoFormat { dtype })?;
        Ok(search(linears, input, &Blocks(format), Loss::Square, self.id())?.scales)
    }
}

/// How the outputs of rounded weights are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The mean square of what they are off by.
    Square,
    /// The mean magnitude, at a visual token weighted by [`InputStats::visual_weight`].
    Balanced,
}

/// What [`search`] found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The best scales, one a column.
    pub scales: Vec<f32>,
    /// The loss of each exponent tried.
    pub losses: Vec<f64>,
}

/// Tries [`GRID`] exponents r for the scales `mean|x| ^ r`, normalized, and keeps what serves the outputs of `linears` on
/// the sample best. `why` names the method in errors.
///
/// # Errors
/// [`QuantError::Missing`] without statistics or sample, [`QuantError::Size`] where the columns differ or are no whole
/// groups, [`QuantError::NotFinite`] for NaN and infinities.
pub fn search(
    linears: &[Matrix<'_>],
    input: &InputStats,
    quantizer: &dyn Quantizer,
    loss: Loss,
    why: &'static str,
) -> Result<Found, QuantError> {
    if input.tokens() == 0 || input.sample.is_empty() {
        return Err(QuantError::Missing { what: "mean inputs and a sample of them", why });
    }
    for linear in linears {
        linear.finite()?;
        same("columns of a weight and its inputs", input.columns, linear.cols)?;
        same(
            "columns of a row of whole groups",
            linear.cols.next_multiple_of(quantizer.group().max(1)),
            linear.cols,
        )?;
    }
    let magnitudes = input.all().mean_abs;
    let mut best: Option<(f64, Vec<f32>)> = None;
    let mut losses = Vec::with_capacity(GRID);
    for step in 0..GRID {
        let scales = scales_at(&magnitudes, step as f32 / GRID as f32);
        let off: f64 =
            linears.iter().map(|linear| output_loss(*linear, &scales, input, quantizer, loss)).sum();
        if off.is_finite() && best.as_ref().is_none_or(|(least, _)| off < *least) {
            best = Some((off, scales));
        }
        losses.push(off);
    }
    let (_, scales) = best.ok_or(QuantError::Missing { what: "inputs whose outputs are finite", why })?;
    Ok(Found { scales, losses })
}

fn scales_at(magnitudes: &[f32], exponent: f32) -> Vec<f32> {
    let raised: Vec<f32> = magnitudes.iter().map(|x| x.powf(exponent).max(LEAST)).collect();
    let (min, max) = crate::search::bounds(&raised);
    let middle = (max * min).sqrt();
    raised.iter().map(|s| s / middle).collect()
}

/// The loss at the outputs of one linear map whose columns are scaled, rounded and scaled back.
fn output_loss(
    linear: Matrix<'_>,
    scales: &[f32],
    input: &InputStats,
    quantizer: &dyn Quantizer,
    loss: Loss,
) -> f64 {
    let (cols, visual) = (linear.cols, &input.sample.visual);
    let (mut off, mut total) = (Vec::with_capacity(OUTPUTS * cols), 0.0);
    for rows in linear.values.chunks((OUTPUTS * cols).max(1)) {
        off.clear();
        off.extend(rows.chunks(cols).flat_map(|row| row.iter().zip(scales).map(|(w, s)| w * s)));
        for (off, row) in off.chunks_mut(cols).zip(rows.chunks(cols)) {
            quantizer.round_row(off, None);
            for ((off, w), s) in off.iter_mut().zip(row).zip(scales) {
                *off = *off / s - w;
            }
        }
        each_output(&off, cols, &input.sample.rows, |_, token, d| {
            let d = f64::from(d);
            total += match loss {
                Loss::Square => d * d,
                Loss::Balanced if visual[token] => d.abs() * f64::from(input.visual_weight),
                Loss::Balanced => d.abs(),
            };
        });
    }
    total / (visual.len() * linear.rows.max(1)) as f64
}
