//! The second-order statistics of an input: what an error in one weight costs, and what the others can do about it.

use crate::{
    QuantError,
    stats::same,
    triangle::{PANEL, Triangle, each, matrix, part},
};
use ndarray::linalg::general_mat_mul;

/// The sum of x xᵀ over tokens, each maybe weighted: half the Hessian of the squared output error of every output row.
///
/// Symmetric, so only the upper triangle is kept: about `columns² / 2` float32.
#[derive(Clone, Debug, PartialEq)]
pub struct Hessian {
    tokens: u64,
    weighted: bool,
    threads: usize,
    upper: Triangle,
}

/// Rows of the input taken in one pass over the triangle, which is larger than a cache where it is large at all.
const BATCH: usize = 256;

impl Hessian {
    /// Nothing seen yet, for `columns` inputs.
    pub fn new(columns: usize) -> Self {
        Self::by(columns, 1)
    }

    /// As [`Self::new`]; so many threads sum, and factor it. The numbers are the same with any number of them.
    pub fn by(columns: usize, threads: usize) -> Self {
        Self { tokens: 0, weighted: false, threads, upper: Triangle::zeros(columns) }
    }

    /// Input features.
    pub fn columns(&self) -> usize {
        self.upper.size()
    }

    /// Tokens summed.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// True where tokens were weighted by how much their error matters.
    pub fn weighted(&self) -> bool {
        self.weighted
    }

    /// Threads that sum.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// The numbers, to be made into something else in their place.
    pub(crate) fn into_upper(self) -> Triangle {
        self.upper
    }

    /// The entry of inputs `i` and `j`, in either order.
    ///
    /// # Panics
    /// Beyond the last input.
    pub fn at(&self, i: usize, j: usize) -> f32 {
        self.upper.at(i, j)
    }

    /// The diagonal: the sum of x² of every input.
    pub fn diagonal(&self) -> Vec<f32> {
        (0..self.columns()).map(|i| self.upper.at(i, i)).collect()
    }

    /// Takes in `rows` `[n, in]`, each weighted by how much its error matters where that is known `[n]`.
    ///
    /// # Errors
    /// [`QuantError::Size`] where the sizes do not agree.
    pub fn add(&mut self, rows: &[f32], importance: Option<&[f32]>) -> Result<(), QuantError> {
        let n = self.columns();
        let count = rows.len() / n.max(1);
        same("numbers of input rows", count * n, rows.len())?;
        if let Some(importance) = importance {
            same("importances of rows", count, importance.len())?;
            self.weighted = true;
        }
        let mut weighted = vec![];
        for (batch, rows) in rows.chunks(BATCH * n.max(1)).enumerate() {
            let count = rows.len() / n;
            let scaled = match importance {
                None => rows,
                Some(importance) => {
                    weighted.clear();
                    for (row, weight) in rows.chunks(n).zip(&importance[batch * BATCH..]) {
                        weighted.extend(row.iter().map(|x| weight * x));
                    }
                    &weighted
                }
            };
            let (rows, scaled) = (matrix(count, n, rows), matrix(count, n, scaled));
            let panels = self.upper.panels_mut(n.div_ceil(PANEL));
            each(self.threads, panels, |(b, mut panel)| {
                let first = b * PANEL;
                let left = part(scaled, 0..count, first..first + panel.nrows());
                let right = part(rows, 0..count, first..n);
                general_mat_mul(1.0, &left.t(), &right, 1.0, &mut panel);
            });
        }
        self.tokens = self.tokens.saturating_add(count as u64);
        Ok(())
    }

    /// Makes the rows and columns of these inputs zero.
    ///
    /// # Panics
    /// Beyond the last input.
    pub(crate) fn clear(&mut self, inputs: &[usize]) {
        for &input in inputs {
            for other in 0..self.columns() {
                *self.upper.at_mut(input, other) = 0.0;
            }
        }
        (0..self.upper.panels()).for_each(|b| self.upper.mirror(b));
    }

    /// Takes in what `other` summed.
    ///
    /// # Errors
    /// [`QuantError::Size`] where the columns differ.
    pub fn merge(&mut self, other: &Self) -> Result<(), QuantError> {
        same("columns of a Hessian", self.columns(), other.columns())?;
        for (a, b) in self.upper.numbers_mut().iter_mut().zip(other.upper.numbers()) {
            *a += b;
        }
        self.tokens = self.tokens.saturating_add(other.tokens);
        self.weighted |= other.weighted;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_equal_the_naive_ones_whatever_the_threads() {
        // More rows than a batch, more columns than a panel.
        let (n, columns) = (BATCH + 21, PANEL + 5);
        let rows: Vec<f32> = (0..n * columns).map(|i| (i as f32 * 0.37).sin()).collect();
        let weights: Vec<f32> = (0..n).map(|i| 0.5 + (i % 21) as f32 / 20.0).collect();
        let mut hessian = Hessian::new(columns);
        hessian.add(&rows, Some(&weights)).unwrap();
        assert!(hessian.weighted());
        for i in (0..columns).step_by(7) {
            for j in 0..columns {
                let naive: f64 = (0..n)
                    .map(|t| f64::from(weights[t] * rows[t * columns + i]) * f64::from(rows[t * columns + j]))
                    .sum();
                assert!((f64::from(hessian.at(i, j)) - naive).abs() < 2e-3, "{i} {j}");
            }
        }
        assert_eq!(hessian.diagonal()[3], hessian.at(3, 3));
        let mut shared = Hessian::by(columns, 3);
        shared.add(&rows, Some(&weights)).unwrap();
        assert_eq!(shared.upper, hessian.upper);
        let mut plain = Hessian::new(columns);
        plain.add(&rows, None).unwrap();
        let naive: f64 =
            (0..n).map(|t| f64::from(rows[t * columns]) * f64::from(rows[t * columns + 1])).sum();
        assert!((f64::from(plain.at(1, 0)) - naive).abs() < 2e-3);
        assert!(plain.add(&rows[1..], None).is_err() && plain.add(&rows, Some(&weights[1..])).is_err());
    }
}
