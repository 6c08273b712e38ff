//! Attention with an online softmax over blocks of keys.
//!
//! A task is a tile of queries of the heads that share one KV head. Keys and values of a block are read once a tile.
//! Blocks are of fixed size and visited in order, so a row's result depends neither on the tile nor on the threads.
//! Source: Dao et al., FlashAttention, arXiv 2205.14135, algorithm 1.

use super::{
    Engine, carve,
    view::{Out, View},
};
use crate::{
    kernels::{
        float::{FloatProduct, NR},
        math,
    },
    kv::KvSlot,
    pack::FloatType,
    threads::TaskPanic,
};
use margay_graph::{Attention, Mask};

/// Keys a block.
const KEYS: usize = 64;
/// Rows (queries times heads of a group) a tile aims at: a multiple of the 6-row product tile.
const TILE_ROWS: usize = 48;
/// Rows from which on it pays to widen half precision keys to memory instead of in registers.
const WIDEN_FROM_ROWS: usize = 6;

/// Floats of scratch that a worker needs.
pub(crate) fn scratch_floats(a: &Attention) -> usize {
    let rows = tile_rows(a);
    let wide = a.head_dim.next_multiple_of(NR);
    rows * (a.head_dim + wide + KEYS + 2) + KEYS * (a.head_dim + wide) + 8 * 16
}

fn queries_a_tile(a: &Attention) -> usize {
    (TILE_ROWS / (a.heads / a.kv_heads)).max(1)
}

fn tile_rows(a: &Attention) -> usize {
    queries_a_tile(a) * (a.heads / a.kv_heads)
}

/// Writes keys and values to `slot` from token `past` on.
pub(crate) fn append(
    engine: &Engine,
    slot: &mut KvSlot,
    past: usize,
    k: View<'_>,
    v: View<'_>,
) -> Result<(), TaskPanic> {
    let (heads, d) = (slot.kv_heads, slot.head_dim);
    let writer = slot.writer();
    let float = engine.kernels.float;
    let body = |_: usize, head: usize| {
        for row in 0..k.rows {
            // SAFETY: nobody writes k and v meanwhile; each task has a head of its own.
            unsafe {
                let (k, v) = (&k.row(row)[head * d..][..d], &v.row(row)[head * d..][..d]);
                writer.put(float, head, past + row, k, v);
            }
        }
    };
    if k.rows == 1 {
        (0..heads).for_each(|head| body(0, head));
        return Ok(());
    }
    engine.run(heads, &body)
}

/// Attends to the first `keys` tokens of `slot`; under a causal mask query `i` is token `past + i`.
pub(crate) fn attend(
    engine: &Engine,
    a: &Attention,
    slot: &KvSlot,
    (past, keys): (usize, usize),
    q: View<'_>,
    out: Out<'_>,
) -> Result<(), TaskPanic> {
    let each = queries_a_tile(a);
    let tiles = q.rows.div_ceil(each);
    engine.run(tiles * a.kv_heads, &|worker, task| {
        // Later tiles see more keys: the longest tasks come first.
        let (tile, kv_head) = (tiles - 1 - task / a.kv_heads, task % a.kv_heads);
        // SAFETY: a worker runs one task at a time.
        let scratch = unsafe { engine.scratch.worker(worker) };
        let query = tile * each;
        let tile = Tile { query, queries: each.min(q.rows - query), kv_head, past, keys };
        tile.run(engine, a, slot, q, out, scratch);
    })
}

struct Tile {
    query: usize,
    queries: usize,
    kv_head: usize,
    past: usize,
    keys: usize,
}

impl Tile {
    fn run(
        &self,
        engine: &Engine,
        a: &Attention,
        slot: &KvSlot,
        q: View<'_>,
        out: Out<'_>,
        mut scratch: &mut [f32],
    ) {
        let (d, wide, group) = (a.head_dim, slot.value_stride(), a.heads / a.kv_heads);
        let rows = self.queries * group;
        let queries = carve(&mut scratch, rows * d);
        let result = carve(&mut scratch, rows * wide);
        let scores = carve(&mut scratch, rows * KEYS);
        let max = carve(&mut scratch, rows);
        let sum = carve(&mut scratch, rows);
        let key_block = carve(&mut scratch, KEYS * d);
        let value_block = carve(&mut scratch, KEYS * wide);
        for (r, row) in queries.chunks_exact_mut(d).enumerate() {
            let head = self.kv_head * group + r % group;
            // SAFETY: nobody writes q meanwhile.
            row.copy_from_slice(&unsafe { q.row(self.query + r / group) }[head * d..][..d]);
            (engine.kernels.rows.scale)(row, a.scale);
        }
        result.fill(0.0);
        max.fill(f32::NEG_INFINITY);
        sum.fill(0.0);
        let causal = a.mask == Mask::Causal;
        let seen = if causal { self.keys.min(self.past + self.query + self.queries) } else { self.keys };
        let widen = slot.kind.float_type() == FloatType::F16 && rows >= WIDEN_FROM_ROWS;
        for start in (0..seen).step_by(KEYS) {
            let here = KEYS.min(seen - start);
            let panels = here.div_ceil(NR);
            let (mut k, mut v) = (slot.keys_at(self.kv_head, start), slot.values_at(self.kv_head, start));
            let mut kind = slot.kind.float_type();
            if widen {
                // SAFETY: whole blocks of 16 keys and values lie there, aligned to 2 bytes.
                unsafe {
                    let keys = std::slice::from_raw_parts(k.cast::<u16>(), panels * NR * d);
                    (engine.kernels.float.widen)(keys, &mut key_block[..panels * NR * d]);
                    let values = std::slice::from_raw_parts(v.cast::<u16>(), here * wide);
                    (engine.kernels.float.widen)(values, &mut value_block[..here * wide]);
                }
                (k, v) = (key_block.as_ptr().cast(), value_block.as_ptr().cast());
                kind = FloatType::F32;
            }
            // SAFETY: queries, scores and blocks are as large as the product says.
            unsafe {
                (engine.kernels.float.gemm)(&FloatProduct {
                    rows,
                    panels,
                    k: d,
                    a: queries.as_ptr(),
                    lda: d,
                    b: k,
                    kind,
                    b_panel: d * NR,
                    ldb: NR,
                    c: scores.as_mut_ptr(),
                    ldc: KEYS,
                    c_panel: NR,
                    first: true,
                });
            }
            for r in 0..rows {
                let scores = &mut scores[r * KEYS..][..here];
                if causal {
                    let visible = (self.past + self.query + r / group + 1).saturating_sub(start).min(here);
                    scores[visible..].fill(f32::NEG_INFINITY);
                }
                let (new_max, block_sum) = (engine.kernels.rows.softmax_block)(scores, max[r]);
                let keep = if max[r] == f32::NEG_INFINITY { 0.0 } else { math::exp(max[r] - new_max) };
                if keep != 1.0 {
                    (engine.kernels.rows.scale)(&mut result[r * wide..][..wide], keep);
                }
                sum[r] = sum[r] * keep + block_sum;
                max[r] = new_max;
            }
            // SAFETY: as above; the block has `here` values, each `wide` apart.
            unsafe {
                (engine.kernels.float.gemm)(&FloatProduct {
                    rows,
                    panels: wide / NR,
                    k: here,
                    a: scores.as_ptr(),
                    lda: KEYS,
                    b: v,
                    kind,
                    b_panel: NR,
                    ldb: wide,
                    c: result.as_mut_ptr(),
                    ldc: wide,
                    c_panel: NR,
                    first: false,
                });
            }
        }
        for r in 0..rows {
            let head = self.kv_head * group + r % group;
            let result = &mut result[r * wide..][..d];
            // No key at all gives zeros.
            (engine.kernels.rows.scale)(result, if sum[r] == 0.0 { 0.0 } else { 1.0 / sum[r] });
            // SAFETY: these elements are this task's own.
            unsafe { out.part(self.query + r / group, head * d, d) }.copy_from_slice(result);
        }
    }
}
