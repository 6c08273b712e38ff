//! What a quantization did to each weight.

use crate::{PackError, piece::Packing, plan::Planned, quantize::quant};
use margay_quant::{InputStats, decode_tensor};
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
    let got = decode_tensor(packed).map_err(fail)?;
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let size = square(&mut wanted.iter().map(|w| f64::from(*w)));
    let off = square(&mut wanted.iter().zip(&got).map(|(w, g)| f64::from(w - g)));
    let share = |off: f64, size: f64| (size > 0.0).then_some(off / size);
    let output = input.filter(|input| !input.sample.is_empty()).and_then(|input| {
        let (off, size) = output_errors(&wanted, &got, row, input)?;
        share(off, size)
    });
    Ok((share(off, size), output))
}

/// Squares of the output's error and of the output itself, summed over some rows of the sample, visual ones weighted.
pub(crate) fn output_errors(
    wanted: &[f32],
    got: &[f32],
    row: usize,
    input: &InputStats,
) -> Option<(f64, f64)> {
    let sample = &input.sample;
    let (mut off, mut size) = (0f64, 0f64);
    let step = sample.len().div_ceil(ROWS).max(1);
    for at in (0..sample.len()).step_by(step) {
        let x = sample.rows.get(at * row..(at + 1) * row)?;
        let weight = if sample.visual[at] { f64::from(input.visual_weight) } else { 1.0 };
        for (w, g) in wanted.chunks_exact(row).zip(got.chunks_exact(row)) {
            let (mut y, mut e) = (0f32, 0f32);
            for ((x, w), g) in x.iter().zip(w).zip(g) {
                y += x * w;
                e += x * (w - g);
            }
            size += weight * f64::from(y) * f64::from(y);
            off += weight * f64::from(e) * f64::from(e);
        }
    }
    Some((off, size))
}
