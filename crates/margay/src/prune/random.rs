//! Any tokens, the baseline that every method has to beat.

use super::PruningEntry;
use crate::reduce::random::any;

pub(super) const ENTRY: PruningEntry = PruningEntry {
    id: "random",
    what: "any, the same of every picture: a baseline",
    by_question: false,
    choose: |candidates, keep| any(candidates.count(), keep),
};
