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
    let count = rows.count();
    // The middle of each of `keep` equal stretches.
    rows.chosen((0..keep).map(|at| (2 * at + 1) * count / (2 * keep)))
}
