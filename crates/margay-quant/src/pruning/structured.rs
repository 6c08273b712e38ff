//! Scores of whole parts: attention heads, feed-forward channels, layers.

use crate::{Matrix, QuantError, stats::same};

/// Scores of attention heads by the norm of what each adds to the output: `output` is the projection `[E, H D]`, `input`
/// the mean squares of its columns (all 1 where unknown).
///
/// # Errors
/// [`QuantError::Size`] where the columns are not as many or no whole heads; [`QuantError::NotFinite`].
pub fn head_scores(output: Matrix<'_>, heads: usize, input: &[f32]) -> Result<Vec<f32>, QuantError> {
    same("columns of whole heads", output.cols.next_multiple_of(heads.max(1)), output.cols)?;
    let squares = column_squares(output, input)?;
    let width = (output.cols / heads.max(1)).max(1);
    Ok(squares.chunks(width).map(|head| head.iter().sum::<f64>().sqrt() as f32).collect())
}

/// Scores of groups of heads that share keys and values: the sums of their heads', as they can only go together.
///
/// # Errors
/// [`QuantError::Size`] where the heads are no whole groups.
pub fn group_scores(heads: &[f32], groups: usize) -> Result<Vec<f32>, QuantError> {
    same("heads of whole groups", heads.len().next_multiple_of(groups.max(1)), heads.len())?;
    Ok(heads.chunks((heads.len() / groups.max(1)).max(1)).map(|group| group.iter().sum()).collect())
}

/// Scores of feed-forward channels: the norms of the rows of `into` (up, and gate where there is one, `[F, E]`) times that
/// of the column of `down` `[E, F]`, weighted by `input`, the mean squares of down's input (all 1 where unknown; then
/// the rows' norms tell nothing new and may be left out).
///
/// # Errors
/// [`QuantError::Size`] where the channels are not as many; [`QuantError::NotFinite`].
pub fn channel_scores(into: &[Matrix<'_>], down: Matrix<'_>, input: &[f32]) -> Result<Vec<f32>, QuantError> {
    let mut scores: Vec<f64> = column_squares(down, input)?.into_iter().map(f64::sqrt).collect();
    for matrix in into {
        matrix.finite()?;
        same("channels of a feed-forward network", down.cols, matrix.rows)?;
        for (score, row) in scores.iter_mut().zip(matrix.iter_rows()) {
            *score *= row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
        }
    }
    Ok(scores.into_iter().map(|score| score as f32).collect())
}

/// First-order scores of `parts` equal runs of columns (heads, channels) or, of the transpose, rows: `|Σ w g|` over each.
///
/// Source: LLM-Pruner (arXiv 2305.11627), first order.
///
/// # Errors
/// [`QuantError::Size`] where there is not one gradient a weight or the columns are no whole parts.
pub fn taylor_scores(weight: Matrix<'_>, gradient: &[f32], parts: usize) -> Result<Vec<f32>, QuantError> {
    weight.finite()?;
    same("gradients of a weight", weight.values.len(), gradient.len())?;
    same("columns of whole parts", weight.cols.next_multiple_of(parts.max(1)), weight.cols)?;
    let width = (weight.cols / parts.max(1)).max(1);
    let mut sums = vec![0.0f64; weight.cols.div_ceil(width)];
    for (row, gradient) in weight.iter_rows().zip(gradient.chunks(weight.cols.max(1))) {
        for (j, (w, g)) in row.iter().zip(gradient).enumerate() {
            sums[j / width] += f64::from(*w) * f64::from(*g);
        }
    }
    Ok(sums.into_iter().map(|sum| sum.abs() as f32).collect())
}

/// How much a layer changes what passes through it, states `[tokens, width]` before and after: one less the mean cosine.
/// 0 for a layer that does nothing; tokens of no length count as changed where the other is not of no length as well.
///
/// Source: block influence, ShortGPT (arXiv 2403.03853).
///
/// # Errors
/// [`QuantError::Size`] where the two are not the same whole rows.
pub fn layer_influence(before: &[f32], after: &[f32], width: usize) -> Result<f32, QuantError> {
    same("states before and after a layer", before.len(), after.len())?;
    let width = width.max(1);
    same("states of whole tokens", before.len().next_multiple_of(width), before.len())?;
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let cosine = |(a, b): (&[f32], &[f32])| match (dot(a, a) * dot(b, b)).sqrt() {
        0.0 => f64::from(u8::from(a == b)),
        norms => dot(a, b) / norms,
    };
    let tokens = (before.len() / width).max(1) as f64;
    let similarity = before.chunks(width).zip(after.chunks(width)).map(cosine).sum::<f64>() / tokens;
    Ok(if before.is_empty() { 0.0 } else { (1.0 - similarity) as f32 })
}

/// The `count` parts with the best scores, in their own order; of equals those that come first.
pub fn best(scores: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order.truncate(count);
    order.sort_unstable();
    order
}

/// The sum of squares of each column, weighted.
fn column_squares(matrix: Matrix<'_>, weights: &[f32]) -> Result<Vec<f64>, QuantError> {
    matrix.finite()?;
    same("importances of columns", matrix.cols, weights.len())?;
    let mut squares = vec![0.0; matrix.cols];
    for row in matrix.iter_rows() {
        for ((square, w), weight) in squares.iter_mut().zip(row).zip(weights) {
            *square += f64::from(*w).powi(2) * f64::from(*weight);
        }
    }
    Ok(squares)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_score_by_what_they_add() {
        // Two heads of two columns.
        let output = Matrix::new(&[3.0, 0.0, 1.0, 0.0, 0.0, 4.0, 0.0, 0.0], 2, 4).unwrap();
        assert_eq!(head_scores(output, 2, &[1.0; 4]).unwrap(), [5.0, 1.0]);
        assert_eq!(head_scores(output, 2, &[0.0, 0.0, 9.0, 1.0]).unwrap(), [0.0, 3.0]);
        assert!(head_scores(output, 3, &[1.0; 4]).is_err());
        assert_eq!(group_scores(&[1.0, 2.0, 3.0, 4.0], 2).unwrap(), [3.0, 7.0]);
        assert!(group_scores(&[1.0; 3], 2).is_err());
    }

    #[test]
    fn channels_score_by_the_product_of_their_norms() {
        let up = Matrix::new(&[3.0, 4.0, 1.0, 0.0], 2, 2).unwrap();
        let gate = Matrix::new(&[0.0, 2.0, 0.0, 1.0], 2, 2).unwrap();
        let down = Matrix::new(&[1.0, 6.0, 0.0, 8.0], 2, 2).unwrap();
        assert_eq!(channel_scores(&[up, gate], down, &[1.0; 2]).unwrap(), [10.0, 10.0]);
        assert_eq!(channel_scores(&[], down, &[4.0, 1.0]).unwrap(), [2.0, 10.0]);
        assert!(channel_scores(&[down], Matrix::new(&[0.0; 3], 1, 3).unwrap(), &[1.0; 3]).is_err());
    }

    #[test]
    fn first_order_scores_add_up_before_their_magnitude_is_taken() {
        let weight = Matrix::new(&[1.0, 2.0, 3.0, 4.0], 1, 4).unwrap();
        assert_eq!(taylor_scores(weight, &[2.0, -1.0, 1.0, 1.0], 2).unwrap(), [0.0, 7.0]);
    }

    #[test]
    fn a_layer_that_does_nothing_has_no_influence() {
        let states = [1.0, 2.0, -3.0, 0.5, 0.0, 0.0];
        assert!(layer_influence(&states, &states, 2).unwrap().abs() < 1e-6);
        let doubled = states.map(|x| 2.0 * x);
        assert!(layer_influence(&states, &doubled, 2).unwrap().abs() < 1e-6);
        let turned = [-2.0, 1.0, 0.5, 3.0, 0.0, 0.0];
        assert!((layer_influence(&states, &turned, 2).unwrap() - 2.0 / 3.0).abs() < 1e-6);
        assert_eq!(layer_influence(&[], &[], 2).unwrap(), 0.0);
        assert!(layer_influence(&states, &states[..4], 2).is_err());
    }

    #[test]
    fn the_best_stay_in_order() {
        assert_eq!(best(&[1.0, 5.0, 3.0, 5.0], 2), [1, 3]);
        assert_eq!(best(&[1.0, 1.0, 1.0], 2), [0, 1]);
        assert_eq!(best(&[1.0], 9), [0]);
    }
}
