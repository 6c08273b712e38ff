//! Rows at even distances.

use super::{ReductionEntry, Rows, Sees};

pub(super) const ENTRY: ReductionEntry = ReductionEntry {
    id: "even",
    what: "at even distances: a baseline",
    sees: Sees::Rows,
    reduce,
    count: None,
};

fn reduce(rows: &Rows<'_>, keep: usize) -> Vec<f32> {
    rows.chosen(spread(rows.count(), keep))
}

/// `keep` of `count` places: the middle of each of as many equal stretches.
pub(crate) fn spread(count: usize, keep: usize) -> Vec<usize> {
    (0..keep).map(|at| (2 * at + 1) * count / (2 * keep)).collect()
}
