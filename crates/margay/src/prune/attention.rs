//! What the prompt's last token looks at most. Source: Chen et al., FastV, arXiv 2403.06764, section 4.1; the repository
//! pkunlp-icler/FastV.

use super::PruningEntry;
use crate::greatest::greatest;

pub(super) const ENTRY: PruningEntry = PruningEntry {
    id: "attention",
    what: "those that the prompt's last token looks at most (FastV)",
    by_question: true,
    choose: |candidates, keep| greatest(candidates.attention, keep),
};
