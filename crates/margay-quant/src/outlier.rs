//! Input columns far larger than the rest, which stay in half precision while the others are quantized.
//!
//! A GGUF tensor has one type, so that a file holds such a weight as two: `y = W x = W_rest x_rest + W_kept x_kept`. What can
//! be had in one tensor is [`is_worth_it`]'s answer: where few columns carry most of the error, the tensor as a whole is
//! better stored in a wider type.
//! Source: LLM.int8() (arXiv 2208.07339), which takes |x| > 6; three standard deviations are the task's own rule.

use margay_tensor::DType;

use crate::{InputStats, Matrix, QuantError, decode_into, methods, stats::same};

/// Standard deviations above the mean of all columns' root mean squares from which a column is an outlier.
pub const SIGMAS: f32 = 3.0;

/// Of so many columns one may be kept: at sixteen bits beside four, each thirty-second part costs a tenth more.
pub const MOST: usize = 16;

/// The columns that [`columns`] finds, and of those, where they are too many, the largest: one in `most` of all columns.
pub fn largest(input: &InputStats, sigmas: f32, most: usize) -> Vec<usize> {
    let mut found = columns(input, sigmas);
    let importance = input.importance();
    found.sort_by(|a, b| importance[*b].total_cmp(&importance[*a]).then(a.cmp(b)));
    found.truncate(importance.len() / most.max(1));
    found.sort_unstable();
    found
}

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

/// Puts `columns` of `original`, in half precision, over those of `values`: whole rows of `cols` numbers in both.
///
/// # Panics
/// For a column beyond the last.
pub fn join(values: &mut [f32], original: &[f32], cols: usize, columns: &[usize]) {
    for (to, from) in values.chunks_exact_mut(cols.max(1)).zip(original.chunks_exact(cols.max(1))) {
        for &column in columns {
            to[column] = half::f16::from_f32(from[column]).to_f32();
        }
    }
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
    let Split { columns, rest, .. } = split(weight, columns)?;
    let bytes = dtype.row_bytes(weight.cols).and_then(|bytes| bytes.checked_mul(weight.rows));
    let mut packed =
        vec![0; bytes.ok_or(QuantError::Length { dtype, values: weight.values.len(), bytes: 0 })?];
    rounding.pack(Matrix { values: &rest, ..weight }, input, dtype, &mut packed)?;
    let mut back = vec![0.0; weight.values.len()];
    decode_into(dtype, &packed, &mut back)?;
    join(&mut back, weight.values, weight.cols, &columns);
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
    fn of_too_many_outliers_the_largest_are_kept() {
        let mut stats = InputStats::new(64);
        let row: Vec<f32> = (0..64).map(|i| if i % 16 == 3 { 40.0 + i as f32 } else { 1.0 }).collect();
        stats.add(&row, &[false]).unwrap();
        assert_eq!(columns(&stats, 2.0), [3, 19, 35, 51]);
        assert_eq!(largest(&stats, 2.0, 16), [3, 19, 35, 51]);
        assert_eq!(largest(&stats, 2.0, 32), [35, 51]);
        assert!(largest(&stats, 2.0, 65).is_empty());
    }

    #[test]
    fn an_input_without_columns_is_one_that_was_zero_there() {
        let mut kept = InputStats::with_hessian(3);
        let mut zeroed = kept.clone();
        for (stats, middle) in [(&mut kept, 7.0), (&mut zeroed, 0.0)] {
            let rows = [1.0, middle, 2.0, -3.0, 2.0 * middle, 5.0];
            stats.add(&rows, &[false, true]).unwrap();
            stats.keep(&rows, &[false, true], None).unwrap();
        }
        assert_ne!(kept, zeroed);
        kept.clear(&[1]);
        assert_eq!(kept, zeroed);
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
