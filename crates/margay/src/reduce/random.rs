//! Any rows, the baseline that every method has to beat.

use super::{ReductionEntry, Rows, Sees};
use rand::{RngExt, SeedableRng, rngs::StdRng};

pub(super) const ENTRY: ReductionEntry = ReductionEntry {
    id: "random",
    what: "any, the same of every picture: a baseline",
    sees: Sees::Rows,
    reduce,
    count: None,
};

fn reduce(rows: &Rows<'_>, keep: usize) -> Vec<f32> {
    rows.chosen(any(rows.count(), keep))
}

/// Fisher and Yates: the first `keep` of `count` places in a shuffle, ascending, and always the same.
pub(crate) fn any(count: usize, keep: usize) -> Vec<usize> {
    let mut random = StdRng::seed_from_u64(0);
    let mut places: Vec<usize> = (0..count).collect();
    for at in 0..keep {
        let other = random.random_range(at..places.len());
        places.swap(at, other);
    }
    places.truncate(keep);
    places.sort_unstable();
    places
}
