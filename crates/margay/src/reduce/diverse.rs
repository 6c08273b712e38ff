//! Rows that differ most from one another. Source: Alvar et al., DivPrune, arXiv 2503.02175.

use super::{ReductionEntry, Rows, Sees, dot, unit_rows};

pub(super) const ENTRY: ReductionEntry = ReductionEntry {
    id: "diverse",
    what: "those that differ most from one another (DivPrune)",
    sees: Sees::Rows,
    reduce,
    count: None,
};

fn reduce(rows: &Rows<'_>, keep: usize) -> Vec<f32> {
    rows.chosen(farthest(rows.rows, rows.width, keep))
}

/// Numbers of `keep` of the rows [V, width], ascending. Begins with the row farthest from its nearest neighbour, and always
/// takes the one farthest from all taken before. Distances are 1 less the cosine. V^2 E multiplications in the beginning, then
/// K V E.
pub(crate) fn farthest(rows: &[f32], width: usize, keep: usize) -> Vec<usize> {
    let count = rows.len() / width;
    let units = unit_rows(rows, width);
    let unit = |at: usize| &units[at * width..][..width];
    let mut nearest = vec![f32::INFINITY; count];
    for a in 0..count {
        for b in 0..a {
            let distance = 1.0 - dot(unit(a), unit(b));
            nearest[a] = nearest[a].min(distance);
            nearest[b] = nearest[b].min(distance);
        }
    }
    // The lowest of equals, so that the result does not depend on anything else.
    let farthest =
        |distances: &[f32]| (0..count).rev().max_by(|a, b| distances[*a].total_cmp(&distances[*b]));
    let mut chosen = vec![farthest(&nearest).unwrap_or(0)];
    let mut distances = vec![f32::INFINITY; count];
    while chosen.len() < keep {
        let last = *chosen.last().unwrap_or(&0);
        for (at, distance) in distances.iter_mut().enumerate() {
            *distance = distance.min(1.0 - dot(unit(at), unit(last)));
        }
        // None is taken twice, however small the distances are.
        distances[last] = f32::NEG_INFINITY;
        chosen.push(farthest(&distances).unwrap_or(0));
    }
    chosen.sort_unstable();
    chosen
}
