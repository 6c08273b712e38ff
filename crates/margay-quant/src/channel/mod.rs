//! Formats whose scales or tables belong to a whole row or a whole matrix rather than to a block: what integer units and
//! palettes want. One file each.
//!
//! No file format that Margay writes has a type for them. [`int8::encode_q8_0`] expresses eight bits per channel in
//! ordinary `Q8_0` blocks, which any reader of those takes; the others serve fake quantization, the comparison of errors, and
//! exports. Rows may have any length: codes follow each other without regard to rows where they fill no whole byte, and a
//! row that is no whole number of `Q8_0` blocks goes where [`crate::storable`] sends it.

use crate::{Matrix, QuantError, stats::same};

pub mod int8;
pub mod palette;

/// Who shares a scale or a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Share {
    /// The whole matrix.
    Tensor,
    /// Each row, that is, each output channel.
    Row,
}

/// A way of packing a whole matrix into bytes and back.
pub trait MatrixFormat: Sync {
    /// The name users type.
    fn id(&self) -> &'static str;

    /// Bytes of a packed matrix, or `None` where there are too many.
    fn size_bytes(&self, rows: usize, cols: usize) -> Option<usize>;

    /// Packs `weight`. Where `importance` says how much an error in a column matters `[cols]`, formats that can go by it
    /// do.
    ///
    /// # Errors
    /// [`QuantError::NotFinite`] for NaN and infinities, [`QuantError::Size`] where `importance` is not a row long.
    fn encode(&self, weight: Matrix<'_>, importance: Option<&[f32]>) -> Result<Vec<u8>, QuantError>;

    /// Unpacks a matrix of `rows` rows into `out`.
    ///
    /// # Errors
    /// [`QuantError::Size`] where `packed` is not a packed matrix of that size.
    fn decode(&self, packed: &[u8], rows: usize, out: &mut [f32]) -> Result<(), QuantError>;

    /// The mean square of what `weight` is off by once packed, columns counting by `importance`.
    ///
    /// # Errors
    /// As [`Self::encode`].
    fn error(&self, weight: Matrix<'_>, importance: Option<&[f32]>) -> Result<f64, QuantError> {
        let packed = self.encode(weight, importance)?;
        let mut back = vec![0.0; weight.values.len()];
        self.decode(&packed, weight.rows, &mut back)?;
        let mut total = 0.0;
        for (row, back) in weight.iter_rows().zip(back.chunks(weight.cols.max(1))) {
            for (j, (x, y)) in row.iter().zip(back).enumerate() {
                let counts = importance.map_or(1.0, |importance| f64::from(importance[j]));
                total += counts * (f64::from(*x) - f64::from(*y)).powi(2);
            }
        }
        Ok(total / weight.values.len().max(1) as f64)
    }
}

/// Every such format. One line a variant of a file of this folder.
pub const MATRIX_FORMATS: &[&dyn MatrixFormat] = &[
    &int8::Int8 { share: Share::Row, symmetric: true },
    &int8::Int8 { share: Share::Row, symmetric: false },
    &int8::Int8 { share: Share::Tensor, symmetric: true },
    &int8::Int8 { share: Share::Tensor, symmetric: false },
    &palette::Palette { bits: 1, share: Share::Row },
    &palette::Palette { bits: 2, share: Share::Row },
    &palette::Palette { bits: 3, share: Share::Row },
    &palette::Palette { bits: 4, share: Share::Row },
    &palette::Palette { bits: 6, share: Share::Tensor },
    &palette::Palette { bits: 8, share: Share::Tensor },
];

/// Rows and columns of a matrix of `len` numbers in `rows` rows.
fn columns(rows: usize, len: usize) -> Result<usize, QuantError> {
    let cols = len.checked_div(rows).unwrap_or(0);
    same("numbers of a matrix of whole rows", rows * cols, len)?;
    Ok(cols)
}

/// Refuses what no matrix format packs.
fn check(weight: Matrix<'_>, importance: Option<&[f32]>) -> Result<(), QuantError> {
    weight.finite()?;
    importance.map_or(Ok(()), |importance| same("importances of columns", weight.cols, importance.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_as_told_for_any_row_and_names_are_unique() {
        let mut names: Vec<&str> = MATRIX_FORMATS.iter().map(|format| format.id()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), MATRIX_FORMATS.len());
        for format in MATRIX_FORMATS {
            for (rows, cols) in [(0, 0), (1, 1), (3, 27), (2, 588), (1, 4304), (5, 64), (2, 0)] {
                let values: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.61).sin()).collect();
                let weight = Matrix::new(&values, rows, cols).unwrap();
                let packed = format.encode(weight, None).unwrap();
                assert_eq!(
                    Some(packed.len()),
                    format.size_bytes(rows, cols),
                    "{} {rows} {cols}",
                    format.id()
                );
                let mut back = vec![f32::NAN; values.len()];
                format.decode(&packed, rows, &mut back).unwrap();
                assert!(back.iter().all(|x| x.is_finite()), "{}", format.id());
                if !values.is_empty() {
                    assert!(format.decode(&packed[1..], rows, &mut back).is_err(), "{}", format.id());
                }
            }
            assert_eq!(format.size_bytes(usize::MAX, usize::MAX), None, "{}", format.id());
        }
    }

    #[test]
    fn hostile_numbers_are_refused_or_survive() {
        for format in MATRIX_FORMATS {
            let nan = [0.0, f32::NAN];
            assert!(format.encode(Matrix::new(&nan, 2, 1).unwrap(), None).is_err());
            assert!(format.encode(Matrix::new(&[0.5; 4], 2, 2).unwrap(), Some(&[1.0])).is_err());
            for magnitude in [0.0, f32::MAX, f32::MIN_POSITIVE, f32::from_bits(1), 1e-20, 1e30] {
                let values: Vec<f32> = (0..60).map(|i| magnitude * (i as f32 / 30.0 - 1.0)).collect();
                let weight = Matrix::new(&values, 4, 15).unwrap();
                for importance in [None, Some([0.0; 15].as_slice())] {
                    let mut back = vec![f32::NAN; 60];
                    format.decode(&format.encode(weight, importance).unwrap(), 4, &mut back).unwrap();
                    assert!(back.iter().all(|x| !x.is_nan()), "{} {magnitude}", format.id());
                }
            }
        }
    }

    #[test]
    fn finer_shares_and_more_bits_lose_less() {
        let values: Vec<f32> = (0..8 * 100)
            .map(|i| (i as f32 * 0.61).sin() * [1.0, 0.01, 30.0, 2.0, 0.5, 7.0, 1.5, 0.1][i / 100] + 0.3)
            .collect();
        let weight = Matrix::new(&values, 8, 100).unwrap();
        let error = |format: &dyn MatrixFormat| format.error(weight, None).unwrap();
        for symmetric in [true, false] {
            let [row, tensor] =
                [Share::Row, Share::Tensor].map(|share| error(&int8::Int8 { share, symmetric }));
            assert!(row < tensor, "{row} {tensor}");
        }
        for share in [Share::Row, Share::Tensor] {
            let errors: Vec<f64> = (1..=6).map(|bits| error(&palette::Palette { bits, share })).collect();
            assert!(errors.windows(2).all(|pair| pair[1] < pair[0]), "{errors:?}");
        }
    }
}
