//! Input columns far larger than the rest, which stay in half precision while the others are quantized.
//!
//! A GGUF tensor has one type, so an ordinary model file cannot hold such a weight as one tensor: its sum
//! `y = W x = W_rest x + W_kept x_kept` needs two products. What can be had in one tensor is [`is_worth_it`]'s answer: where
//! few columns carry most of the error, the tensor as a whole is better stored in a wider type.
//! Source: LLM.int8() (arXiv 2208.07339), which takes |x| > 6; three standard deviations are the task's own rule.

use margay_tensor::DType;

use crate::{InputStats, Matrix, QuantError, decode_into, methods, stats::same};

/// Standard deviations above the mean of all columns' root mean squares from which a column is an outlier.
pub const SIGMAS: f32 = 3.0;

/// The columns whose inputs' root mean square is more than `sigmas` standard deviations above the mean over the columns.
pub fn columns(input: &InputStats, sigmas: f32) -> Vec<usize> {
    let sizes: Vec<f64> = input.importance().iter().map(|square| f64::from(*square).sqrt()).collect();
    let count = sizes.len().max(1) as f64;
    let mean = sizes.iter().sum::<f64>() / count;
    let deviation = (sizes.iter().map(|size| (size - mean).powi(2)).sum::<f64>() / count).sqrt();
    let limit = mean + f64::from(sigmas) * deviation;
    (0..sizes.len()).filter(|&j| sizes[j] > limit && deviation > 0.0).collect()
}

/// A weight in two parts: the columns that are kept, and the others with zeros in the place of those.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// Which columns are kept.
    pub columns: Vec<usize>,
    /// `[out, kept]`, row after row.
    pub kept: Vec<f32>,
    /// `[out, in]`, row after row.
    pub rest: Vec<f32>,
}

/// Splits `columns` off `weight`.
///
/// # Errors
/// [`QuantError::Size`] for a column beyond the last.
pub fn split(weight: Matrix<'_>, columns: Vec<usize>) -> Result<Split, QuantError> {
    if let Some(&beyond) = columns.iter().find(|&&j| j >= weight.cols) {
        return Err(QuantError::Size { what: "columns to keep", expected: weight.cols, got: beyond + 1 });
    }
    let kept = weight.iter_rows().flat_map(|row| columns.iter().map(|&j| row[j])).collect();
    let mut rest = weight.values.to_vec();
    for row in rest.chunks_mut(weight.cols.max(1)) {
        columns.iter().for_each(|&j| row[j] = 0.0);
    }
    Ok(Split { columns, kept, rest })
}

/// The numbers that a weight comes back as where `columns` are kept in half precision and the rest is rounded by the
/// method named `rounding` to `dtype`: what a runtime with two products would compute with.
///
/// # Errors
/// As [`methods::Rounding::pack`]; [`QuantError::Size`] for a column beyond the last; [`QuantError::Missing`] for a
/// rounding that does not exist.
pub fn round_trip(
    weight: Matrix<'_>,
    columns: Vec<usize>,
    rounding: &str,
    input: Option<&InputStats>,
    dtype: DType,
) -> Result<Vec<f32>, QuantError> {
    let rounding = methods::rounding(rounding);
    let rounding = rounding.ok_or(QuantError::Missing { what: "a known rounding", why: "outlier" })?;
    weight.finite()?;
    let Split { columns, kept, rest } = split(weight, columns)?;
    let bytes = dtype.row_bytes(weight.cols).and_then(|bytes| bytes.checked_mul(weight.rows));
    let mut packed =
        vec![0; bytes.ok_or(QuantError::Length { dtype, values: weight.values.len(), bytes: 0 })?];
    rounding.pack(Matrix { values: &rest, ..weight }, input, dtype, &mut packed)?;
    let mut back = vec![0.0; weight.values.len()];
    decode_into(dtype, &packed, &mut back)?;
    let count = columns.len();
    for (r, row) in back.chunks_mut(weight.cols.max(1)).enumerate() {
        for (&j, w) in columns.iter().zip(&kept[r * count..]) {
            row[j] = half::f16::from_f32(*w).to_f32();
        }
    }
    Ok(back)
}

/// True where `columns` carry more than half of the error that rounding each weight by the same amount makes: then a wider
/// type for the whole tensor buys most where it is narrowest.
///
/// # Errors
/// [`QuantError::Size`] for a column beyond the last.
pub fn is_worth_it(input: &InputStats, columns: &[usize]) -> Result<bool, QuantError> {
    let importance = input.importance();
    let of = |j: &usize| importance.get(*j).copied();
    let carried: Option<f32> = columns.iter().map(of).sum();
    let carried = carried.ok_or(QuantError::Size {
        what: "columns to keep",
        expected: importance.len(),
        got: columns.iter().max().map_or(0, |j| j + 1),
    })?;
    same("columns of statistics", input.columns, importance.len())?;
    Ok(carried > importance.iter().sum::<f32>() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sensitivity::output_error;

    fn inputs() -> InputStats {
        let x: Vec<f32> =
            (0..50 * 64).map(|i| (i as f32 * 0.37).sin() * if i % 64 == 5 { 40.0 } else { 1.0 }).collect();
        let mut stats = InputStats::new(64);
        stats.add(&x, &[false; 50]).unwrap();
        stats.keep(&x, &[false; 50], None).unwrap();
        stats
    }

    #[test]
    fn the_one_large_column_is_found_and_split_off() {
        let stats = inputs();
        assert_eq!(columns(&stats, SIGMAS), [5]);
        assert!(columns(&InputStats::new(64), SIGMAS).is_empty());
        assert!(is_worth_it(&stats, &[5]).unwrap());
        assert!(!is_worth_it(&stats, &[6]).unwrap());
        assert!(is_worth_it(&stats, &[64]).is_err());
        let weights: Vec<f32> = (0..128).map(|i| i as f32).collect();
        let weight = Matrix::new(&weights, 2, 64).unwrap();
        let split = split(weight, vec![5]).unwrap();
        assert_eq!(split.kept, [5.0, 69.0]);
        assert_eq!((split.rest[5], split.rest[69], split.rest[6]), (0.0, 0.0, 6.0));
        assert!(super::split(weight, vec![64]).is_err());
    }

    #[test]
    fn keeping_the_outlier_serves_the_outputs() {
        let stats = inputs();
        let weights: Vec<f32> = (0..4 * 64).map(|i| (i as f32 * 0.71).sin()).collect();
        let weight = Matrix::new(&weights, 4, 64).unwrap();
        let error = |columns| {
            let back = round_trip(weight, columns, "rtn", None, DType::Q4_0).unwrap();
            output_error(weight, &back, &stats).unwrap().total(1.0)
        };
        assert!(error(vec![5]) < 0.2 * error(Vec::new()));
    }
}
