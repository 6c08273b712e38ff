//! Tokens at even distances.

use super::PruningEntry;
use crate::reduce::even::spread;

pub(super) const ENTRY: PruningEntry = PruningEntry {
    id: "even",
    what: "at even distances: a baseline",
    by_question: false,
    choose: |candidates, keep| spread(candidates.count(), keep),
};
