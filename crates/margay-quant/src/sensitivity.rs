//! What a weight's rounding does to its outputs: the measure by which bits are given out.

use crate::{InputStats, Matrix, QuantError, factor::dot, stats::same};

/// Mean squares of what outputs are off by and of the outputs themselves, per output and token, text and pictures apart.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OutputError {
    /// At text tokens.
    pub text: f64,
    /// At visual tokens.
    pub visual: f64,
    /// Of the exact outputs at text tokens.
    pub text_signal: f64,
    /// Of the exact outputs at visual tokens.
    pub visual_signal: f64,
    /// The part of the sample that is visual, 0 to 1.
    pub visual_part: f64,
}

impl OutputError {
    /// Both kinds of token as often as they came, a visual one counting `visual_weight` times.
    pub fn total(&self, visual_weight: f32) -> f64 {
        (1.0 - self.visual_part) * self.text + f64::from(visual_weight) * self.visual_part * self.visual
    }

    /// [`Self::total`] as a part of the outputs themselves; 0 where they are all zero.
    pub fn relative(&self, visual_weight: f32) -> f64 {
        let signal =
            Self { text: self.text_signal, visual: self.visual_signal, ..*self }.total(visual_weight);
        if signal > 0.0 { self.total(visual_weight) / signal } else { 0.0 }
    }
}

/// The error at the outputs of `weight` where `rounded` `[out, in]` stands in its place, over the sampled inputs, each
/// token counting by its importance.
///
/// # Errors
/// [`QuantError::Missing`] without a sample; [`QuantError::Size`] where sizes do not agree.
pub fn output_error(
    weight: Matrix<'_>,
    rounded: &[f32],
    input: &InputStats,
) -> Result<OutputError, QuantError> {
    same("numbers of a rounded weight", weight.values.len(), rounded.len())?;
    same("columns of a weight and its inputs", input.columns, weight.cols)?;
    let sample = &input.sample;
    if sample.is_empty() {
        return Err(QuantError::Missing {
            what: "a sample of inputs",
            why: "measuring the error of outputs",
        });
    }
    let mut counts = [0.0, 0.0];
    for (visual, importance) in sample.visual.iter().zip(&sample.importance) {
        counts[usize::from(*visual)] += f64::from(*importance);
    }
    let off: Vec<f32> = weight.values.iter().zip(rounded).map(|(w, r)| r - w).collect();
    let mut sums = [[0.0; 2]; 2];
    for (numbers, sums) in [off.as_slice(), weight.values].into_iter().zip(&mut sums) {
        each_output(numbers, weight.cols, &sample.rows, |_, token, y| {
            let square = f64::from(y).powi(2) * f64::from(sample.importance[token]);
            sums[usize::from(sample.visual[token])] += square;
        });
    }
    let [[text, visual], [text_signal, visual_signal]] = sums;
    let each = counts.map(|count| (count * weight.rows.max(1) as f64).max(f64::MIN_POSITIVE));
    Ok(OutputError {
        text: text / each[0],
        visual: visual / each[1],
        text_signal: text_signal / each[0],
        visual_signal: visual_signal / each[1],
        visual_part: counts[1] / (counts[0] + counts[1]).max(f64::MIN_POSITIVE),
    })
}

/// Outputs computed in one pass over the inputs, so that an input that is read serves that many.
pub(crate) const OUTPUTS: usize = 8;

/// Hands `each` every product of a row of `weights` `[out, cols]` with an input `[n, cols]`: its output, its token, the
/// product.
pub(crate) fn each_output(
    weights: &[f32],
    cols: usize,
    inputs: &[f32],
    mut each: impl FnMut(usize, usize, f32),
) {
    let cols = cols.max(1);
    for (tile, rows) in weights.chunks(OUTPUTS * cols).enumerate() {
        for (token, x) in inputs.chunks_exact(cols).enumerate() {
            for (r, row) in rows.chunks_exact(cols).enumerate() {
                each(tile * OUTPUTS + r, token, dot(x, row));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_those_of_the_outputs_of_each_kind() {
        let mut input = InputStats::new(2);
        input.keep(&[1.0, 0.0, 0.0, 2.0, 0.0, 2.0], &[false, true, true], Some(&[1.0, 0.5, 1.5])).unwrap();
        let weight = Matrix::new(&[3.0, 4.0], 1, 2).unwrap();
        let error = output_error(weight, &[2.5, 5.0], &input).unwrap();
        assert_eq!((error.text, error.text_signal), (0.25, 9.0));
        assert_eq!((error.visual, error.visual_signal), (4.0, 64.0));
        assert!((error.visual_part - 2.0 / 3.0).abs() < 1e-9);
        assert!((error.total(0.0) - 0.25 / 3.0).abs() < 1e-9);
        assert!((error.relative(1.0) - (0.25 + 8.0) / (9.0 + 128.0)).abs() < 1e-9);
        assert!(output_error(weight, &[0.0], &input).is_err());
        assert!(output_error(weight, &[0.0; 2], &InputStats::new(2)).is_err());
    }
}
