//! Which weights, heads, channels and layers a model can do without. Numbers only: writing the smaller model is
//! somebody else's work.
//!
//! Single weights: scores `[out, in]` from [`magnitude`], [`wanda`] or [`taylor`], of which a [`Pattern`] keeps the best;
//! [`sparse_gpt`] also makes up for what goes. Whole parts: the scores of [`structured`], of which [`best`] keeps some.

use crate::{InputStats, Matrix, QuantError, stats::same};

mod sparse_gpt;
pub mod structured;

pub use sparse_gpt::sparse_gpt;
pub use structured::best;

/// How the weights that go are spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pattern {
    /// This part of the whole matrix, 0 to 1.
    Tensor(f64),
    /// This part of each row.
    Row(f64),
    /// All but `keep` of every `of` neighbours of a row: 2 of 4 is what sparse tensor units know. Fewer at a row's end lose
    /// none beyond `of - keep`.
    Groups {
        /// Weights kept of a group.
        keep: usize,
        /// Weights of a group.
        of: usize,
    },
}

/// Scores by magnitude alone.
///
/// # Errors
/// [`QuantError::NotFinite`] for NaN and infinities.
pub fn magnitude(weight: Matrix<'_>) -> Result<Vec<f32>, QuantError> {
    weight.finite()?;
    Ok(weight.values.iter().map(|w| w.abs()).collect())
}

/// Scores by magnitude times the norm of what it is multiplied with.
///
/// Source: Wanda (arXiv 2306.11695), equation 1, whose authors compare within rows: [`Pattern::Row`].
///
/// # Errors
/// As [`magnitude`]; [`QuantError::Missing`] where no inputs were seen, [`QuantError::Size`] where the columns differ.
pub fn wanda(weight: Matrix<'_>, input: &InputStats) -> Result<Vec<f32>, QuantError> {
    weight.finite()?;
    same("columns of a weight and its inputs", input.columns, weight.cols)?;
    if input.tokens() == 0 {
        return Err(QuantError::Missing { what: "mean squares of the inputs", why: "wanda" });
    }
    // The norm over all tokens is the root of the mean square but for a factor that all columns share.
    let norms: Vec<f32> = input.importance().iter().map(|square| square.sqrt()).collect();
    Ok(weight.iter_rows().flat_map(|row| row.iter().zip(&norms).map(|(w, norm)| w.abs() * norm)).collect())
}

/// Scores by what the loss changes to first order where a weight goes: `|w g|` of its gradient g.
///
/// Source: Molchanov et al., "Importance Estimation for Neural Network Pruning" (arXiv 1906.10771).
///
/// # Errors
/// As [`magnitude`]; [`QuantError::Size`] where there is not one gradient a weight.
pub fn taylor(weight: Matrix<'_>, gradient: &[f32]) -> Result<Vec<f32>, QuantError> {
    weight.finite()?;
    same("gradients of a weight", weight.values.len(), gradient.len())?;
    Ok(weight.values.iter().zip(gradient).map(|(w, g)| (w * g).abs()).collect())
}

/// Which weights stay: the best scores as `pattern` spreads them; of equals those that come first.
///
/// # Errors
/// [`QuantError::Size`] where `scores` are no whole rows of `cols`.
pub fn mask(scores: &[f32], cols: usize, pattern: Pattern) -> Result<Vec<bool>, QuantError> {
    let cols = cols.max(1);
    same("scores of whole rows", scores.len().next_multiple_of(cols), scores.len())?;
    let mut keep = vec![true; scores.len()];
    match pattern {
        Pattern::Tensor(part) => drop_lowest(scores, gone(part, scores.len()), &mut keep),
        Pattern::Row(part) => {
            for (scores, keep) in scores.chunks(cols).zip(keep.chunks_mut(cols)) {
                drop_lowest(scores, gone(part, cols), keep);
            }
        }
        Pattern::Groups { keep: kept, of } => {
            for (scores, keep) in scores.chunks(cols).zip(keep.chunks_mut(cols)) {
                for (scores, keep) in scores.chunks(of.max(1)).zip(keep.chunks_mut(of.max(1))) {
                    drop_lowest(scores, scores.len().saturating_sub(kept), keep);
                }
            }
        }
    }
    Ok(keep)
}

/// Sets the weights to zero that `keep` does not keep.
///
/// # Errors
/// [`QuantError::Size`] where there is not one mark a weight.
pub fn apply(weights: &mut [f32], keep: &[bool]) -> Result<(), QuantError> {
    same("marks of weights", weights.len(), keep.len())?;
    for (w, _) in weights.iter_mut().zip(keep).filter(|(_, keep)| !**keep) {
        *w = 0.0;
    }
    Ok(())
}

/// How many of `count` go.
fn gone(part: f64, count: usize) -> usize {
    (part.clamp(0.0, 1.0) * count as f64).round() as usize
}

/// Marks the `gone` lowest scores; of equals the last.
fn drop_lowest(scores: &[f32], gone: usize, keep: &mut [bool]) {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(b.cmp(&a)));
    for &i in order.iter().take(gone) {
        keep[i] = false;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn as_many_go_as_asked_and_none_beats_one_that_stays(
            scores in prop::collection::vec(0.0f32..9.0, 60..=60),
            part in 0.0f64..1.0,
            kept in 0usize..5,
        ) {
            for (pattern, group, gone_each) in [
                (Pattern::Tensor(part), 60, (part * 60.0).round() as usize),
                (Pattern::Row(part), 12, (part * 12.0).round() as usize),
                (Pattern::Groups { keep: kept, of: 4 }, 4, 4usize.saturating_sub(kept)),
            ] {
                let keep = mask(&scores, 12, pattern).unwrap();
                for (scores, keep) in scores.chunks(group).zip(keep.chunks(group)) {
                    prop_assert_eq!(keep.iter().filter(|keep| !**keep).count(), gone_each);
                    let of = |kept: bool| scores.iter().zip(keep).filter(move |(_, keep)| **keep == kept).map(|(s, _)| *s);
                    let (lowest, highest) = (of(true).fold(f32::MAX, f32::min), of(false).fold(0.0, f32::max));
                    prop_assert!(gone_each == 0 || gone_each == group || highest <= lowest);
                }
            }
        }
    }

    #[test]
    fn scores_are_as_published() {
        let weight = Matrix::new(&[1.0, -2.0, 3.0, 0.5], 2, 2).unwrap();
        assert_eq!(magnitude(weight).unwrap(), [1.0, 2.0, 3.0, 0.5]);
        let mut input = InputStats::new(2);
        assert!(wanda(weight, &input).is_err());
        input.add(&[3.0, 0.0, 3.0, 2.0], &[false; 2]).unwrap();
        assert_eq!(wanda(weight, &input).unwrap(), [3.0, 2.0 * 2f32.sqrt(), 9.0, 0.5 * 2f32.sqrt()]);
        assert_eq!(taylor(weight, &[1.0, 1.0, -2.0, 0.0]).unwrap(), [1.0, 2.0, 6.0, 0.0]);
        assert!(taylor(weight, &[1.0]).is_err());
        assert!(magnitude(Matrix::new(&[f32::NAN], 1, 1).unwrap()).is_err());
    }

    #[test]
    fn rows_that_are_no_whole_groups_keep_their_ends() {
        let keep = mask(&[5.0, 1.0, 2.0, 4.0, 0.1, 0.2], 6, Pattern::Groups { keep: 2, of: 4 }).unwrap();
        assert_eq!(keep, [true, false, false, true, true, true]);
        let mut weights = [1.0; 6];
        apply(&mut weights, &keep).unwrap();
        assert_eq!(weights, [1.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
        assert!(mask(&[1.0; 5], 2, Pattern::Tensor(0.5)).is_err());
        assert!(apply(&mut weights, &[true]).is_err());
    }
}
