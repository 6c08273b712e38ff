//! How many rows say what all of them say.

use super::{Rows, dot};

/// Share of the rows' energy (the sum of their squares) that may lie outside of what the rows that count span. Set on
/// margay-nano, where it leaves 12 to 22 of the 36 tokens of pictures without a sign: see `docs/sessions.md`.
const LEFT: f32 = 0.002;

/// Rows that span all but [`LEFT`] of what all of them hold, taken greedily: the one that holds most of what is not yet spanned
/// is next, and what it spans is taken off the others (Gram and Schmidt, with pivots). V E multiplications for each that
/// counts.
pub(super) fn distinct(rows: &Rows<'_>) -> usize {
    let width = rows.width;
    let mut left = rows.rows.to_vec();
    let energies = |left: &[f32]| left.chunks_exact(width).map(|row| dot(row, row)).collect::<Vec<f32>>();
    let mut of_rows = energies(&left);
    let bound = LEFT * of_rows.iter().sum::<f32>();
    let mut count = 0;
    while count < rows.count() && of_rows.iter().sum::<f32>() > bound {
        let most = (0..of_rows.len()).max_by(|a, b| of_rows[*a].total_cmp(&of_rows[*b])).unwrap_or(0);
        let length = of_rows[most].sqrt();
        let direction: Vec<f32> = left[most * width..][..width].iter().map(|x| x / length).collect();
        for row in left.chunks_exact_mut(width) {
            let along = dot(row, &direction);
            row.iter_mut().zip(&direction).for_each(|(x, d)| *x -= along * d);
        }
        of_rows = energies(&left);
        count += 1;
    }
    count.max(rows.count().min(1))
}
