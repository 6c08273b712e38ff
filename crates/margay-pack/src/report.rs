//! What a quantization did to each weight.

use crate::{PackError, piece::Packing, plan::Planned, quantize::quant};
use margay_quant::{InputStats, Matrix, QuantError, decode_tensor, outlier::join, output_error};
use margay_tensor::Tensor;

/// Rows of the sample on which outputs are compared: enough for one digit, few enough for a large model.
const ROWS: usize = 48;

/// One weight of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorReport {
    /// Name in the file.
    pub name: String,
    /// `encode`, `project` or `text`.
    pub stage: &'static str,
    /// What it is for.
    pub role: &'static str,
    /// Which of the weights of this stage and role, from 0.
    pub layer: usize,
    /// Stored type.
    pub dtype: &'static str,
    /// Numbers.
    pub elements: u64,
    /// Bytes stored.
    pub bytes: u64,
    /// Relative error of the numbers, `|w - q|² / |w|²`; `None` where it was not measured or nothing was rounded.
    pub error: Option<f64>,
    /// Relative error of the layer's output on the calibration's sample, `|x(w - q)|² / |xw|²`.
    pub output_error: Option<f64>,
}

impl TensorReport {
    pub(crate) fn new(planned: &Planned, (error, output_error): (Option<f64>, Option<f64>)) -> Self {
        TensorReport {
            name: planned.spec.name.clone(),
            stage: planned.place.stage.name(),
            role: planned.spec.role.name(),
            layer: planned.place.layer,
            dtype: planned.info.dtype.name(),
            elements: planned.info.shape.elements().unwrap_or(0) as u64,
            bytes: planned.bytes(),
            error,
            output_error,
        }
    }

    /// Bits a number.
    pub fn bits(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.elements.max(1) as f64
    }
}

/// The errors of a weight and of its output.
pub(crate) fn measured(
    packing: &Packing<'_>,
    packed: &Tensor,
    input: Option<&InputStats>,
) -> Result<(Option<f64>, Option<f64>), PackError> {
    let fail = |e| quant(packing.name, e);
    let mut wanted = decode_tensor(packing.tensor).map_err(fail)?;
    let row = packing.info.shape.row().max(1);
    if let Some(fold) = packing.fold {
        fold.apply(&mut wanted, row, 0);
    }
    let mut got = decode_tensor(packed).map_err(fail)?;
    join(&mut got, &wanted, row, packing.without);
    errors(&wanted, &got, row, input).map_err(fail)
}

/// The relative errors of a weight of rows of `row`, and of its output on some rows of the sample.
pub(crate) fn errors(
    wanted: &[f32],
    got: &[f32],
    row: usize,
    input: Option<&InputStats>,
) -> Result<(Option<f64>, Option<f64>), QuantError> {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let size = square(&mut wanted.iter().map(|w| f64::from(*w)));
    let off = square(&mut wanted.iter().zip(got).map(|(w, g)| f64::from(w - g)));
    let share = |off: f64, size: f64| (size > 0.0).then_some(off / size);
    let row = row.max(1);
    let matrix = Matrix::new(wanted, wanted.len() / row, row)?;
    Ok((share(off, size), output_share(matrix, got, input)?))
}

/// The relative error of the output on some rows of the sample; `None` where there is none.
pub(crate) fn output_share(
    wanted: Matrix<'_>,
    got: &[f32],
    input: Option<&InputStats>,
) -> Result<Option<f64>, QuantError> {
    let Some(input) = input.filter(|input| !input.sample.is_empty()) else { return Ok(None) };
    let sample = &input.sample;
    let step = sample.len().div_ceil(ROWS).max(1);
    let mut some = InputStats::new(input.columns);
    for at in (0..sample.len()).step_by(step) {
        let row = &sample.rows[at * input.columns..][..input.columns];
        some.keep(row, &sample.visual[at..=at], Some(&sample.importance[at..=at]))?;
    }
    Ok(Some(output_error(wanted, got, &some)?.relative(input.visual_weight)))
}
