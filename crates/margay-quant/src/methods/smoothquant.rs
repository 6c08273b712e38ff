//! `smoothquant`: half of the inputs' outliers move into the weights.
//!
//! Source: SmoothQuant (arXiv 2211.10438), `smooth_ln_fcs` in `smooth.py` of its code.

use margay_tensor::DType;

use super::{Needs, Scaling};
use crate::{InputStats, Matrix, QuantError, stats::same};

/// Below this neither magnitudes nor scales go.
const LEAST: f32 = 1e-5;

/// Magnitude migration.
pub struct SmoothQuant {
    /// How much of the inputs' range moves: 0 none, 1 all. The authors use 0.5, and 0.8 or 0.85 for some models.
    pub alpha: f32,
}

impl Scaling for SmoothQuant {
    fn id(&self) -> &'static str {
        "smoothquant"
    }

    fn about(&self) -> &'static str {
        "half of the range of the inputs' outliers moves into the weights"
    }

    fn needs(&self) -> Needs {
        Needs { activations: true, ..Needs::default() }
    }

    fn rounding(&self) -> &'static str {
        "rtn"
    }

    fn scales(
        &self,
        linears: &[Matrix<'_>],
        input: &InputStats,
        _dtype: DType,
    ) -> Result<Vec<f32>, QuantError> {
        if input.tokens() == 0 {
            return Err(QuantError::Missing { what: "largest inputs", why: self.id() });
        }
        // s divides the input and multiplies the weights, so the inputs' share stands on top.
        let mut weights = vec![LEAST; input.columns];
        for linear in linears {
            linear.finite()?;
            same("columns of a weight and its inputs", input.columns, linear.cols)?;
            for row in linear.iter_rows() {
                for (largest, w) in weights.iter_mut().zip(row) {
                    *largest = largest.max(w.abs());
                }
            }
        }
        let scale = |(x, w): (&f32, &f32)| (x.powf(self.alpha) / w.powf(1.0 - self.alpha)).max(LEAST);
        Ok(input.all().max_abs.iter().zip(&weights).map(scale).collect())
    }
}
