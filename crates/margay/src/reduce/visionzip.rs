//! What the tower looks at most stays, and the rest becomes a few means. Source: Yang et al., VisionZip, arXiv 2412.04467;
//! `visionzip/clip_encoder.py` of dvlab-research/VisionZip.

use super::{ReductionEntry, Rows, Sees, dot, unit_rows};
use crate::greatest::greatest;

pub(super) const ENTRY: ReductionEntry = ReductionEntry {
    id: "visionzip",
    what: "those that the tower looks at most, and means of the others by their keys (VisionZip)",
    sees: Sees::Attention,
    reduce,
    count: None,
};

/// Dominant and contextual tokens stand 54 to 10, as in the published settings for 64, 128 and 192 tokens.
const DOMINANT: (usize, usize) = (54, 64);

/// Dominant tokens in their order, then contextual ones: every so many-th of what is left, each with the mean of those that are
/// most like it added. The published code keeps the class token's row as well, which decoders here were not trained with; and
/// merges before the projector, here behind it.
fn reduce(rows: &Rows<'_>, keep: usize) -> Vec<f32> {
    let Some(attention) = rows.attention else { return rows.chosen(0..keep) };
    let width = rows.width;
    let dominant = (keep * DOMINANT.0).div_ceil(DOMINANT.1).min(keep);
    let chosen = greatest(&attention.received(attention.heads), dominant);
    let rest: Vec<usize> = (0..rows.count()).filter(|at| chosen.binary_search(at).is_err()).collect();
    let mut out = rows.chosen(chosen);
    let contextual = keep - dominant;
    if contextual == 0 {
        return out;
    }
    let keys = unit_rows(&attention.mean_keys(attention.heads), attention.width / attention.heads);
    let key =
        |at: usize| &keys[at * (attention.width / attention.heads)..][..attention.width / attention.heads];
    let step = (rest.len() / contextual).max(1);
    let is_target = |place: usize| place.is_multiple_of(step) && place / step < contextual;
    let targets: Vec<usize> = rest.iter().step_by(step).take(contextual).copied().collect();
    let mut sums = vec![0.0; targets.len() * width];
    let mut counts = vec![0usize; targets.len()];
    for (_, &at) in rest.iter().enumerate().filter(|(place, _)| !is_target(*place)) {
        let alike = targets.iter().map(|target| dot(key(at), key(*target)));
        // Of equals the first, as argmax has it.
        let likest = alike.enumerate().max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
        let Some((likest, _)) = likest else { continue };
        counts[likest] += 1;
        let sum = &mut sums[likest * width..][..width];
        sum.iter_mut().zip(rows.row(at)).for_each(|(sum, x)| *sum += x);
    }
    for ((target, count), sum) in targets.iter().zip(counts).zip(sums.chunks_exact(width)) {
        let of = count.max(1) as f32;
        out.extend(rows.row(*target).iter().zip(sum).map(|(x, sum)| x + sum / of));
    }
    out
}
