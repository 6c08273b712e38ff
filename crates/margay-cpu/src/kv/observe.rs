//! What attention tokens get: noted while a program runs, for choosing which of them stay.
//!
//! It is computed apart from attention itself, from the stored keys, so that who drops no tokens pays nothing. Memory is
//! allocated while it is noted.

use super::{KvLayer, KvTable};
use crate::{
    kernels::{
        Kernels,
        attention::{KEYS, NO_SCORE},
        float::NR,
    },
    ops::{Engine, view::View},
    threads::TaskPanic,
};
use margay_graph::{Attention, Kept, Observe};

/// What is noted of each layer.
#[derive(Debug, Default)]
struct Layer {
    /// Heads, and what scores are multiplied with.
    heads: usize,
    scale: f32,
    /// The newest queries, that of token `t` in row `t % N`. [N, H * D]
    queries: Vec<f32>,
    /// Attention so far, for each KV head and token. [K][T]
    sums: Vec<Vec<f32>>,
}

/// Whose attention is noted, and what was.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    what: Observe,
    /// Queries from this token on are noted, up to `end`.
    from: usize,
    end: usize,
    layers: Vec<Layer>,
}

impl Observed {
    /// From token `len` on.
    pub(crate) fn new(what: Observe, len: usize) -> Observed {
        Observed { what, from: len, end: len, layers: vec![] }
    }

    /// Forgets all but what is to be noted, from token `len` on.
    pub(crate) fn clear(&mut self, len: usize) {
        *self = Observed::new(self.what, len);
    }

    pub(crate) fn size_bytes(&self) -> usize {
        let of = |layer: &Layer| layer.queries.len() + layer.sums.iter().map(Vec::len).sum::<usize>();
        self.layers.iter().map(|layer| of(layer) * size_of::<f32>()).sum()
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        if let Observe::Newest(most) = self.what {
            // The rows of older tokens were written over.
            self.from = self.from.max(self.end.saturating_sub(most)).min(len);
        }
        self.end = self.end.min(len);
        for sums in self.layers.iter_mut().flat_map(|layer| &mut layer.sums) {
            sums.truncate(len);
        }
    }

    /// What stays of the sums is still theirs; queries are noted anew.
    pub(crate) fn retain(&mut self, kept: &Kept) {
        for (layer, of) in self.layers.iter_mut().enumerate() {
            for (head, sums) in of.sums.iter_mut().enumerate() {
                let stay = kept.of(layer, head).iter();
                *sums = stay.map(|token| sums.get(*token as usize).copied().unwrap_or(0.0)).collect();
            }
        }
        (self.from, self.end) = (kept.count(), kept.count());
    }

    /// Notes the queries of the tokens from `past` on of one layer, whose keys are in `layer`.
    pub(crate) fn note(
        &mut self,
        engine: &Engine,
        a: &Attention,
        (at, layer): (usize, KvLayer<'_>),
        past: usize,
        q: View<'_>,
    ) -> Result<(), TaskPanic> {
        if self.what == Observe::Nothing {
            return Ok(());
        }
        if self.layers.len() <= at {
            self.layers.resize_with(at + 1, Layer::default);
        }
        let end = past + q.rows;
        self.end = end;
        let of = &mut self.layers[at];
        (of.heads, of.scale) = (a.heads, a.scale);
        // SAFETY: nobody writes q meanwhile.
        let row = |row: usize| unsafe { q.part(row, 0, q.columns) };
        match self.what {
            Observe::Nothing => {}
            Observe::Newest(most) => {
                of.queries.resize(most * q.columns, 0.0);
                for token in past.max(end.saturating_sub(most))..end {
                    let to = &mut of.queries[token % most * q.columns..][..q.columns];
                    to.copy_from_slice(row(token - past));
                }
            }
            Observe::All => {
                of.sums.resize(a.kv_heads, vec![]);
                let rows: Vec<(&[f32], usize)> = (0..q.rows).map(|r| (row(r), past + r + 1)).collect();
                of.sums.iter_mut().for_each(|sums| sums.resize(end, 0.0));
                let parts: Vec<_> = of.sums.iter_mut().map(std::sync::Mutex::new).collect();
                engine.run(a.kv_heads, &|_, head| {
                    // Each task has its own, which nobody else locks.
                    if let Ok(mut sums) = parts[head].try_lock() {
                        add_attention(&engine.kernels, layer, head, (a.heads, a.scale), &rows, &mut sums);
                    }
                })?;
            }
        }
        Ok(())
    }

    /// For each layer and KV head, `[len]`.
    pub(crate) fn attention(&self, kernels: &Kernels, table: &KvTable, len: usize) -> Vec<Vec<Vec<f32>>> {
        let shapes = table.layouts.shapes.iter().enumerate();
        let of_layer = |(at, (kv_heads, d)): (usize, &(usize, usize))| {
            let mut all = vec![vec![0.0; len]; *kv_heads];
            let Some(layer) = self.layers.get(at) else { return all };
            for (to, sums) in all.iter_mut().zip(&layer.sums) {
                to.iter_mut().zip(sums).for_each(|(to, sum)| *to = *sum);
            }
            if let Observe::Newest(most) = self.what {
                let width = layer.heads * d;
                let tokens = self.from.max(len.saturating_sub(most))..len.min(self.end);
                let row = |token: usize| (&layer.queries[token % most * width..][..width], token + 1);
                let rows: Vec<_> = tokens.map(row).collect();
                for (head, sums) in all.iter_mut().enumerate() {
                    let heads = (layer.heads, layer.scale);
                    add_attention(kernels, table.layer(at), head, heads, &rows, sums);
                }
            }
            all
        };
        shapes.map(of_layer).collect()
    }
}

/// Adds the attention that queries, each of which sees so many keys, pay to the keys of a KV head, of all heads that share
/// it.
fn add_attention(
    kernels: &Kernels,
    layer: KvLayer<'_>,
    kv_head: usize,
    (heads, scale): (usize, f32),
    rows: &[(&[f32], usize)],
    sums: &mut [f32],
) {
    let (d, group) = (layer.head_dim(), heads / layer.kv_heads());
    let most = rows.iter().map(|(_, seen)| *seen).max().unwrap_or(0);
    let width = most.next_multiple_of(KEYS);
    let mut panels = vec![0.0; KEYS * (d + layer.wide())];
    let mut scores = vec![0.0; rows.len() * group * width];
    for start in (0..most).step_by(KEYS) {
        let (kind, part) = (layer.kind(start), layer.part(kv_head, start));
        (kernels.attention.unpack)(kind, d, part, &mut panels);
        for (at, scores) in scores.chunks_exact_mut(width).enumerate() {
            let (query, seen) = rows[at / group];
            if seen <= start {
                continue;
            }
            let query = &query[(kv_head * group + at % group) * d..][..d];
            let panels = panels[..KEYS * d].chunks_exact(d * NR);
            for (scores, panel) in scores[start..start + KEYS].as_chunks_mut::<NR>().0.iter_mut().zip(panels)
            {
                *scores = [0.0; NR];
                for (q, keys) in query.iter().zip(panel.as_chunks::<NR>().0) {
                    scores.iter_mut().zip(keys).for_each(|(score, key)| *score += q * key);
                }
            }
        }
    }
    for (at, scores) in scores.chunks_exact_mut(width).enumerate() {
        let scores = &mut scores[..rows[at / group].1];
        let largest = scores.iter().copied().fold(NO_SCORE, f32::max);
        let mut total = 0.0;
        for score in scores.iter_mut() {
            *score = ((*score - largest) * scale).exp();
            total += *score;
        }
        sums.iter_mut().zip(scores).for_each(|(sum, score)| *sum += *score / total);
    }
}
