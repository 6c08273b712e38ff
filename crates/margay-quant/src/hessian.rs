//! The second-order statistics of an input: what an error in one weight costs, and what the others can do about it.

use crate::{QuantError, stats::same};

/// The sum of x xᵀ over tokens, each maybe weighted: half the Hessian of the squared output error of every output row.
///
/// Symmetric, so only the upper triangle is kept, row after row: `columns (columns + 1) / 2` float32.
#[derive(Clone, Debug, PartialEq)]
pub struct Hessian {
    columns: usize,
    tokens: u64,
    weighted: bool,
    upper: Vec<f32>,
}

/// Rows of the input taken in one pass over the triangle, which is larger than a cache where it is large at all.
const BATCH: usize = 8;

impl Hessian {
    /// Nothing seen yet, for `columns` inputs.
    pub fn new(columns: usize) -> Self {
        Self { columns, tokens: 0, weighted: false, upper: vec![0.0; triangle(columns)] }
    }

    /// From stored numbers: the upper triangle row after row.
    ///
    /// # Errors
    /// [`QuantError::Size`] where `upper` is not the triangle of `columns`; [`QuantError::NotFinite`] for NaN and
    /// infinities.
    pub fn from_upper(
        columns: usize,
        tokens: u64,
        weighted: bool,
        upper: Vec<f32>,
    ) -> Result<Self, QuantError> {
        let expected = columns.checked_add(1).and_then(|n| n.checked_mul(columns)).map(|n| n / 2);
        same("numbers of a Hessian", expected.unwrap_or(usize::MAX), upper.len())?;
        let hessian = Self { columns, tokens, weighted, upper };
        match hessian.upper.iter().position(|x| !x.is_finite()) {
            None => Ok(hessian),
            Some(at) => {
                let row = (0..columns).rev().find(|&i| hessian.start(i) <= at).unwrap_or(0);
                let column = row + at - hessian.start(row);
                Err(QuantError::NotFinite { value: hessian.upper[at], row, column })
            }
        }
    }

    /// Input features.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Tokens summed.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// True where tokens were weighted by how much their error matters.
    pub fn weighted(&self) -> bool {
        self.weighted
    }

    /// The upper triangle, row after row.
    pub fn upper(&self) -> &[f32] {
        &self.upper
    }

    /// The entry of inputs `i` and `j`, in either order.
    ///
    /// # Panics
    /// Beyond the last input.
    pub fn at(&self, i: usize, j: usize) -> f32 {
        let (i, j) = (i.min(j), i.max(j));
        assert!(j < self.columns, "input {j} of {}", self.columns);
        self.upper[self.start(i) + j - i]
    }

    /// The diagonal: the sum of x² of every input.
    pub fn diagonal(&self) -> Vec<f32> {
        (0..self.columns).map(|i| self.upper[self.start(i)]).collect()
    }

    /// Takes in `rows` `[n, in]`, each weighted by how much its error matters where that is known `[n]`.
    ///
    /// # Errors
    /// [`QuantError::Size`] where the sizes do not agree.
    pub fn add(&mut self, rows: &[f32], importance: Option<&[f32]>) -> Result<(), QuantError> {
        let n = self.columns;
        let count = rows.len() / n.max(1);
        same("numbers of input rows", count * n, rows.len())?;
        if let Some(importance) = importance {
            same("importances of rows", count, importance.len())?;
            self.weighted = true;
        }
        let mut scaled = vec![0.0; BATCH * n];
        for (batch, rows) in rows.chunks(BATCH * n.max(1)).enumerate() {
            for (t, (row, scaled)) in rows.chunks(n).zip(scaled.chunks_mut(n)).enumerate() {
                let weight = importance.map_or(1.0, |weights| weights[batch * BATCH + t]);
                for (s, x) in scaled.iter_mut().zip(row) {
                    *s = weight * x;
                }
            }
            let mut rest: &mut [f32] = &mut self.upper;
            for i in 0..n {
                let (line, next) = rest.split_at_mut(n - i);
                rest = next;
                for (row, scaled) in rows.chunks(n).zip(scaled.chunks(n)) {
                    let factor = scaled[i];
                    for (h, x) in line.iter_mut().zip(&row[i..]) {
                        *h += factor * x;
                    }
                }
            }
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
            assert!(input < self.columns, "input {input} of {}", self.columns);
            for other in 0..self.columns {
                let (i, j) = (input.min(other), input.max(other));
                let at = self.start(i) + j - i;
                self.upper[at] = 0.0;
            }
        }
    }

    /// Takes in what `other` summed.
    ///
    /// # Errors
    /// [`QuantError::Size`] where the columns differ.
    pub fn merge(&mut self, other: &Self) -> Result<(), QuantError> {
        same("columns of a Hessian", self.columns, other.columns)?;
        for (a, b) in self.upper.iter_mut().zip(&other.upper) {
            *a += b;
        }
        self.tokens = self.tokens.saturating_add(other.tokens);
        self.weighted |= other.weighted;
        Ok(())
    }

    /// Where row `i` of the triangle starts.
    fn start(&self, i: usize) -> usize {
        i * self.columns - i * i.saturating_sub(1) / 2
    }
}

fn triangle(columns: usize) -> usize {
    columns * (columns + 1) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_equal_the_naive_ones() {
        let (n, columns) = (21, 5);
        let rows: Vec<f32> = (0..n * columns).map(|i| (i as f32 * 0.37).sin()).collect();
        let weights: Vec<f32> = (0..n).map(|i| 0.5 + i as f32 / 20.0).collect();
        let mut hessian = Hessian::new(columns);
        hessian.add(&rows, Some(&weights)).unwrap();
        assert!(hessian.weighted());
        for i in 0..columns {
            for j in 0..columns {
                let naive: f32 =
                    (0..n).map(|t| weights[t] * rows[t * columns + i] * rows[t * columns + j]).sum();
                assert!((hessian.at(i, j) - naive).abs() < 1e-4, "{i} {j}");
            }
        }
        assert_eq!(hessian.diagonal()[3], hessian.at(3, 3));
        let again = Hessian::from_upper(columns, n as u64, true, hessian.upper().to_vec()).unwrap();
        assert_eq!(again, hessian);
    }

    #[test]
    fn stored_numbers_are_checked() {
        let mut upper = vec![1.0; 10];
        assert!(Hessian::from_upper(4, 1, false, upper.clone()).is_ok());
        assert!(Hessian::from_upper(usize::MAX, 1, false, upper.clone()).is_err());
        upper[5] = f32::NAN;
        let why = Hessian::from_upper(4, 1, false, upper).unwrap_err();
        assert!(matches!(why, QuantError::NotFinite { row: 1, column: 2, .. }), "{why}");
    }
}
