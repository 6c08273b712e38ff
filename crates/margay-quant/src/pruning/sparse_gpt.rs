//! Pruning that makes up for what goes, in the columns after it.
//!
//! Source: SparseGPT (arXiv 2301.00774). Its part of each batch of columns is taken over all rows; here it is taken
//! within each row, so that rows can be worked on one by one.

use super::{Pattern, drop_lowest, gone};
use crate::{BATCH, Factor, Matrix, QuantError, stats::same};

/// `weight` with the weights that matter least set to zero and the others corrected for that, for a factor whose columns are
/// in their order.
///
/// [`Pattern::Tensor`] is taken as [`Pattern::Row`].
///
/// # Errors
/// [`QuantError::NotFinite`] for NaN and infinities; [`QuantError::Size`] where the columns differ or the factor's are not
/// in their order.
pub fn sparse_gpt(weight: Matrix<'_>, factor: &Factor, pattern: Pattern) -> Result<Vec<f32>, QuantError> {
    weight.finite()?;
    let n = weight.cols;
    let in_order = factor.order().iter().enumerate().filter(|(place, column)| place == *column).count();
    same("columns of the factor that are in their order", factor.columns(), in_order)?;
    let mut pruned = vec![0.0; weight.values.len()];
    let mut keep = vec![true; n];
    for (row, w) in weight.iter_rows().zip(pruned.chunks_mut(n.max(1))) {
        factor.arrange(row, w)?;
        for first in (0..n).step_by(BATCH) {
            let end = (first + BATCH).min(n);
            if let Pattern::Tensor(part) | Pattern::Row(part) = pattern {
                mark(w, factor, first..end, gone(part, end - first), &mut keep);
            }
            for i in first..end {
                if let Pattern::Groups { keep: kept, of } = pattern
                    && i.is_multiple_of(of.max(1))
                {
                    // Marked when its turn comes, by the corrected weights.
                    let group = i..(i + of.max(1)).min(n);
                    let gone = group.len().saturating_sub(kept);
                    mark(w, factor, group, gone, &mut keep);
                }
                if keep[i] {
                    continue;
                }
                let u = factor.row(i);
                let error = w[i] / u[0];
                for (w, u) in w[i..].iter_mut().zip(u) {
                    *w -= error * u;
                }
                w[i] = 0.0;
            }
        }
    }
    Ok(pruned)
}

/// Marks which of the columns stay: those whose loss costs most.
fn mark(w: &[f32], factor: &Factor, columns: std::ops::Range<usize>, gone: usize, keep: &mut [bool]) {
    let cost = |i: usize| (w[i] / factor.row(i)[0]).powi(2);
    let scores: Vec<f32> = columns.clone().map(cost).collect();
    keep[columns.clone()].fill(true);
    drop_lowest(&scores, gone, &mut keep[columns]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Hessian, InputStats,
        pruning::{apply, mask, wanda},
    };

    fn output_error(weight: Matrix<'_>, pruned: &[f32], x: &[f32]) -> f64 {
        let mut total = 0.0;
        for (row, pruned) in weight.iter_rows().zip(pruned.chunks(weight.cols)) {
            for x in x.chunks(weight.cols) {
                let off: f64 = (0..weight.cols).map(|j| f64::from(x[j] * (pruned[j] - row[j]))).sum();
                total += off * off;
            }
        }
        total
    }

    #[test]
    fn correcting_beats_choosing_alone_and_the_pattern_holds() {
        let (rows, cols, tokens) = (6, 200, 400);
        let weights: Vec<f32> = (0..rows * cols).map(|i| ((i * i) as f32 * 0.37).sin()).collect();
        let weight = Matrix::new(&weights, rows, cols).unwrap();
        // Neighbouring inputs resemble each other.
        let x: Vec<f32> = (0..tokens * cols)
            .map(|i| {
                let (t, j) = (i / cols, i % cols);
                ((t * (j / 4 + 1)) as f32 * 0.61).sin() + 0.3 * ((t * 31 + j * 17) as f32).sin()
            })
            .collect();
        let mut stats = InputStats::new(cols);
        stats.add(&x, &vec![false; tokens]).unwrap();
        let mut hessian = Hessian::new(cols);
        hessian.add(&x, None).unwrap();
        let factor = Factor::new(hessian.clone(), false).unwrap();
        for pattern in [Pattern::Row(0.5), Pattern::Groups { keep: 2, of: 4 }] {
            let pruned = sparse_gpt(weight, &factor, pattern).unwrap();
            let mut chosen = weights.clone();
            apply(&mut chosen, &mask(&wanda(weight, &stats).unwrap(), cols, pattern).unwrap()).unwrap();
            for row in pruned.chunks(cols) {
                let zeros = row.iter().filter(|w| **w == 0.0).count();
                assert_eq!(zeros, cols / 2, "{pattern:?}");
            }
            if let Pattern::Groups { .. } = pattern {
                assert!(pruned.chunks(4).all(|group| group.iter().filter(|w| **w == 0.0).count() == 2));
            }
            let (corrected, alone) = (output_error(weight, &pruned, &x), output_error(weight, &chosen, &x));
            assert!(corrected < 0.7 * alone, "{pattern:?} {corrected} {alone}");
        }
        assert!(sparse_gpt(weight, &Factor::new(hessian, true).unwrap(), Pattern::Row(0.5)).is_err());
    }
}
