//! Hidden rows that differ most from one another. Source: Alvar et al., DivPrune, arXiv 2503.02175.

use super::PruningEntry;
use crate::reduce::diverse::farthest;

pub(super) const ENTRY: PruningEntry = PruningEntry {
    id: "diverse",
    what: "those that differ most from one another (DivPrune), whatever is asked",
    by_question: false,
    choose: |candidates, keep| farthest(candidates.rows, candidates.width, keep),
};
