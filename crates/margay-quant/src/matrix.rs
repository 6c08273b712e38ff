//! A weight as the methods see it.

use crate::QuantError;

/// The weights of a linear map, row after row: `[out, in]`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// `rows * cols` numbers.
    pub values: &'a [f32],
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
}

impl<'a> Matrix<'a> {
    /// The matrix `[rows, cols]` over `values`.
    ///
    /// # Errors
    /// [`QuantError::Size`] where `values` does not fill it.
    pub fn new(values: &'a [f32], rows: usize, cols: usize) -> Result<Self, QuantError> {
        if rows.checked_mul(cols) != Some(values.len()) {
            return Err(QuantError::Size {
                what: "values of a matrix",
                expected: rows.saturating_mul(cols),
                got: values.len(),
            });
        }
        Ok(Self { values, rows, cols })
    }

    /// Row `i`: the weights of one output.
    ///
    /// # Panics
    /// Beyond the last row.
    pub fn row(&self, i: usize) -> &'a [f32] {
        &self.values[i * self.cols..][..self.cols]
    }

    /// Every row, in order. A matrix without columns has none.
    pub fn iter_rows(&self) -> std::slice::ChunksExact<'a, f32> {
        self.values.chunks_exact(self.cols.max(1))
    }

    /// Refuses NaN and infinities, which no format can hold.
    ///
    /// # Errors
    /// [`QuantError::NotFinite`] names the first one's row and column.
    pub fn finite(&self) -> Result<(), QuantError> {
        match self.values.iter().position(|x| !x.is_finite()) {
            None => Ok(()),
            Some(at) => Err(QuantError::NotFinite {
                value: self.values[at],
                row: at / self.cols,
                column: at % self.cols,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_number_that_is_none_is_named() {
        let mut values = [0.5; 12];
        assert!(Matrix::new(&values, 3, 4).unwrap().finite().is_ok());
        (values[6], values[11]) = (f32::NEG_INFINITY, f32::NAN);
        let why = Matrix::new(&values, 3, 4).unwrap().finite().unwrap_err().to_string();
        assert!(why.contains("-inf") && why.contains("row 1, column 2"), "{why}");
    }

    #[test]
    fn sizes_must_agree() {
        assert!(matches!(Matrix::new(&[0.0; 5], 2, 3), Err(QuantError::Size { expected: 6, got: 5, .. })));
        assert!(Matrix::new(&[], usize::MAX, 2).is_err());
    }
}
