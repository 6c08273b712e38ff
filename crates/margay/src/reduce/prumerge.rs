//! What the class token looks at stays, and takes up what is like it. Source: Shang et al., LLaVA-PruMerge, arXiv 2403.15388;
//! `llava/model/multimodal_encoder/clip_encoder.py` of 42Shawn/LLaVA-PruMerge.

use super::{ReductionEntry, Rows, Sees, dot, unit_rows};
use crate::greatest::greatest;

pub(super) const ENTRY: ReductionEntry = ReductionEntry {
    id: "prumerge",
    what: "those that the tower looks at, with what is like them by their keys (PruMerge)",
    sees: Sees::Attention,
    reduce,
    count: Some(outliers),
};

/// Nearest tokens that a kept one takes up; of fewer, all.
const NEAREST: usize = 32;

/// The kept, in their order (the published code has them by their attention), each with the sum of the tokens nearest to it,
/// kept or not, weighted by what these receive; and one more token, the sum of all that were left out, weighted so too.
/// Attention and keys are those of the whole width, not of heads. The published code looks at the last block, which does not run
/// where features are taken before it: here it is the block they come from; and merges before the projector, here behind it.
fn reduce(rows: &Rows<'_>, keep: usize) -> Vec<f32> {
    let Some(attention) = rows.attention else { return rows.chosen(0..keep) };
    let received = attention.received(1);
    let chosen = greatest(&received, keep - 1);
    let keys = unit_rows(&attention.mean_keys(1), attention.width);
    let key = |at: usize| &keys[at * attention.width..][..attention.width];
    let mut out = Vec::with_capacity(keep * rows.width);
    let add = |sum: &mut [f32], at: usize| {
        sum.iter_mut().zip(rows.row(at)).for_each(|(sum, x)| *sum += received[at] * x);
    };
    for &at in &chosen {
        let mut near: Vec<(f32, usize)> = (0..rows.count())
            .filter(|other| *other != at)
            .map(|other| (dot(key(at), key(other)), other))
            .collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut row = rows.row(at).to_vec();
        near.iter().take(NEAREST).for_each(|(_, other)| add(&mut row, *other));
        out.extend(row);
    }
    let mut extra = vec![0.0; rows.width];
    for at in (0..rows.count()).filter(|at| chosen.binary_search(at).is_err()) {
        add(&mut extra, at);
    }
    out.extend(extra);
    out
}

/// Tokens that receive more than a quartile and a half above the third quartile, and the extra one.
fn outliers(rows: &Rows<'_>) -> usize {
    let Some(attention) = rows.attention else { return rows.count() };
    let received = attention.received(1);
    let mut sorted = received.clone();
    sorted.sort_unstable_by(f32::total_cmp);
    let [first, third] = [0.25, 0.75].map(|share| percentile(&sorted, share));
    let bound = third + 1.5 * (third - first);
    (received.iter().filter(|x| f64::from(**x) > bound).count() + 1).min(rows.count())
}

/// Between the two nearest, as NumPy's `percentile`.
fn percentile(sorted: &[f32], share: f64) -> f64 {
    let at = share * sorted.len().saturating_sub(1) as f64;
    let value = |at: f64| sorted.get(at as usize).map_or(0.0, |x| f64::from(*x));
    value(at.floor()) + (value(at.ceil()) - value(at.floor())) * at.fract()
}
