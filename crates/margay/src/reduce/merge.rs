//! Rows that say nearly the same become their mean. Source: Bolya et al., Token Merging, arXiv 2210.09461, section 3.

use super::{ReductionEntry, Rows, Sees, dot, unit_rows};

pub(super) const ENTRY: ReductionEntry = ReductionEntry {
    id: "merge",
    what: "those that are alike become their mean (ToMe)",
    sees: Sees::Rows,
    reduce,
    count: None,
};

/// Rows alternate between two sets; each of the first finds the one most like it in the second, and the pairs that are
/// most alike are merged, weighted by how many rows each stands for; until as many are left as should be.
fn reduce(rows: &Rows<'_>, keep: usize) -> Vec<f32> {
    let width = rows.width;
    let mut values = rows.rows.to_vec();
    let mut sizes = vec![1.0f32; rows.count()];
    while sizes.len() > keep {
        let count = sizes.len();
        let units = unit_rows(&values, width);
        let unit = |at: usize| &units[at * width..][..width];
        let mut pairs: Vec<(f32, usize, usize)> = (0..count)
            .step_by(2)
            .filter_map(|a| {
                let likest = (1..count).step_by(2).map(|b| (dot(unit(a), unit(b)), b));
                likest.max_by(|x, y| x.0.total_cmp(&y.0).then(y.1.cmp(&x.1))).map(|(alike, b)| (alike, a, b))
            })
            .collect();
        pairs.sort_unstable_by(|x, y| y.0.total_cmp(&x.0).then(x.1.cmp(&y.1)));
        // A quarter at a time: merging half at once would join rows that have little in common.
        pairs.truncate((count - keep).min((count / 4).max(1)));
        let mut gone = vec![false; count];
        for (_, a, b) in pairs {
            let (of_a, of_b) = (sizes[a], sizes[b]);
            for i in 0..width {
                let sum = values[a * width + i] * of_a + values[b * width + i] * of_b;
                values[b * width + i] = sum / (of_a + of_b);
            }
            sizes[b] += of_a;
            gone[a] = true;
        }
        let left = || (0..count).filter(|at| !gone[*at]);
        values = left().flat_map(|at| &values[at * width..][..width]).copied().collect();
        sizes = left().map(|at| sizes[at]).collect();
    }
    values
}
