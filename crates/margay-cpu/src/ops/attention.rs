//! Attention with an online softmax over blocks of keys.
//!
//! Keys are taken in spans of 256, each in blocks of 64: within a span the softmax goes on from block to block, and the
//! results of spans are then merged in their order. All of that is of fixed size, so a row's result depends neither on
//! the tile nor on the threads. Source: Dao et al., FlashAttention, arXiv 2205.14135, algorithm 1; merging parts of the
//! keys: <https://crfm.stanford.edu/2023/10/12/flashdecoding.html>.
//!
//! A task is a tile of queries of the heads that share one KV head, so keys and values are read once a tile. With many
//! queries it goes through all spans; with few, as in decoding, each span is a task of its own.

pub(crate) mod bf16;
pub(crate) mod int8;
pub(crate) mod narrow;

use super::{
    Engine, carve,
    view::{Out, View},
};
use crate::{
    kernels::{
        attention::{FEW_ROWS, FewRows, KEYS, NO_SCORE, Stored},
        float::{FloatProduct, NR},
    },
    kv::{KvBlock, KvLayer, KvType, codec},
    pack::FloatType,
    threads::TaskPanic,
};
use margay_graph::{Attention, Mask};
use std::ops::Range;

/// Keys a span: with few heads the longest task that still keeps all threads busy; the results of spans are small
/// beside its keys and values.
const SPAN: usize = 4 * KEYS;
/// Rows (queries times heads of a group) a tile aims at: a multiple of the product tiles of 6 and of 12 rows.
const TILE_ROWS: usize = 48;
/// Rows of which masked keys are left out together.
const MASK_ROWS: usize = 12;
/// Queries of which each span is a task of its own, at most: a token, or a few that are guessed ahead.
const SPLIT_QUERIES: usize = 8;

/// Floats of scratch that a worker needs.
pub(crate) fn scratch_floats(a: &Attention) -> usize {
    let rows = queries_a_tile(a) * (a.heads / a.kv_heads);
    let wide = a.head_dim.next_multiple_of(NR);
    let attend = rows * (a.head_dim + 2 * wide + KEYS + 5) + KEYS * (a.head_dim + wide) + 10 * 16;
    // Blocks are rewritten between calls.
    attend.max(codec::convert_floats(a.head_dim))
}

/// Floats that hold the results of spans while few queries attend to up to `tokens`.
pub(crate) fn partial_floats(a: &Attention, tokens: usize) -> usize {
    let spans = tokens.div_ceil(SPAN);
    let queries = SPLIT_QUERIES.min(queries_a_tile(a));
    if spans < 2 { 0 } else { (queries * a.heads * partial_row(a)).saturating_mul(spans) }
}

/// Floats of a row of such results: columns, maximum and sum.
fn partial_row(a: &Attention) -> usize {
    a.head_dim.next_multiple_of(NR) + NR
}

fn queries_a_tile(a: &Attention) -> usize {
    (TILE_ROWS / (a.heads / a.kv_heads)).max(1)
}

/// Writes keys and values to `slot` from token `past` on. The table's blocks are ready for it:
/// [`crate::kv::KvTable::prepare`].
pub(crate) fn append(
    engine: &Engine,
    slot: KvLayer<'_>,
    past: usize,
    k: View<'_>,
    v: View<'_>,
) -> Result<(), TaskPanic> {
    let (heads, d) = (slot.kv_heads(), slot.head_dim());
    let body = |worker: usize, head: usize| {
        // SAFETY: a worker runs one task at a time.
        let scratch = unsafe { engine.scratch.worker(worker) };
        for row in 0..k.rows {
            // SAFETY: nobody writes k and v meanwhile; each task has a head of its own.
            unsafe {
                let (k, v) = (k.part(row, head * d, d), v.part(row, head * d, d));
                slot.put(&engine.kernels, (head, past + row), k, v, scratch);
            }
        }
    };
    if k.rows == 1 {
        (0..heads).for_each(|head| body(0, head));
        return Ok(());
    }
    engine.run(heads, &body)
}

/// Attends to the first `keys` tokens of `slot`; but under a full mask, query `i` is token `past + i` and sees those up
/// to itself and the first `prefix`. `partials` is as
/// large as [`partial_floats`] says, or empty.
pub(crate) fn attend(
    engine: &Engine,
    a: &Attention,
    slot: KvLayer<'_>,
    partials: &mut [f32],
    (past, keys, prefix): (usize, usize, usize),
    q: View<'_>,
    out: Out<'_>,
) -> Result<(), TaskPanic> {
    let call = Call { engine, a, slot, past, keys, prefix, q, out, group: a.heads / a.kv_heads };
    let each = queries_a_tile(a);
    let spans = keys.div_ceil(SPAN);
    if spans > 1 && q.rows <= SPLIT_QUERIES.min(each) && !partials.is_empty() {
        return call.split(spans, partials);
    }
    over_tiles(engine, a, q.rows, &|kv_head, queries, scratch| {
        Tile { call: &call, query: queries.start, queries: queries.len(), kv_head }.whole(scratch);
    })
}

/// What is done for a head of keys and values, some rows, and with scratch.
type OfHead<'b> = dyn Fn(usize, Range<usize>, &mut [f32]) + Sync + 'b;

/// Calls `body` with every tile of so many queries and every KV head, a task each.
fn over_tiles(engine: &Engine, a: &Attention, rows: usize, body: &OfHead<'_>) -> Result<(), TaskPanic> {
    let each = queries_a_tile(a);
    let tiles = rows.div_ceil(each);
    engine.run(tiles * a.kv_heads, &|worker, task| {
        // Later tiles see more keys: the longest tasks come first.
        let (tile, kv_head) = (tiles - 1 - task / a.kv_heads, task % a.kv_heads);
        // SAFETY: a worker runs one task at a time.
        let scratch = unsafe { engine.scratch.worker(worker) };
        body(kv_head, tile * each..rows.min((tile + 1) * each), scratch);
    })
}

/// Calls `body` with every head that keys and values have, a task each, and one after the other with every run of rows that
/// have the same number of `segments`.
fn over_segments(
    engine: &Engine,
    a: &Attention,
    segments: &[i32],
    body: &OfHead<'_>,
) -> Result<(), TaskPanic> {
    engine.run(a.kv_heads, &|worker, kv_head| {
        let mut start = 0;
        for segment in segments.chunk_by(|a, b| a == b) {
            let rows = start..start + segment.len();
            start = rows.end;
            // SAFETY: a worker runs one task at a time.
            let scratch = unsafe { engine.scratch.worker(worker) };
            body(kv_head, rows, scratch);
        }
    })
}

/// Divides a row's result by the sum of its weights and writes it to the result of `head`.
///
/// # Safety
/// Nobody else touches these elements of `out`.
unsafe fn write_row(
    engine: &Engine,
    d: usize,
    out: Out<'_>,
    (row, head): (usize, usize),
    result: &mut [f32],
    sum: f32,
) {
    // No key at all gives zeros.
    (engine.kernels.rows.scale)(result, if sum == 0.0 { 0.0 } else { 1.0 / sum });
    // SAFETY: the caller's promise.
    unsafe { out.part(row, head * d, d) }.copy_from_slice(&result[..d]);
}

/// Rows that follow each other with the same number of `segments` attend among themselves; `slot` has room for the most
/// of them. A task is a KV head, which takes one segment after the other.
pub(crate) fn attend_in_segments(
    engine: &Engine,
    a: &Attention,
    slot: KvLayer<'_>,
    segments: &[i32],
    [q, k, v]: [View<'_>; 3],
    out: Out<'_>,
) -> Result<(), TaskPanic> {
    let (each, d) = (queries_a_tile(a), a.head_dim);
    over_segments(engine, a, segments, &|kv_head, rows, scratch| {
        let (start, keys) = (rows.start, rows.len());
        let (q, out) = (q.part_of_rows(start, keys), out.part_of_rows(start, keys));
        let call = Call { engine, a, slot, past: 0, keys, prefix: 0, q, out, group: a.heads / a.kv_heads };
        for row in 0..keys {
            // SAFETY: nobody writes k and v meanwhile; each task has a head of its own.
            unsafe {
                let (k, v) = (k.part(start + row, kv_head * d, d), v.part(start + row, kv_head * d, d));
                slot.put(&engine.kernels, (kv_head, row), k, v, scratch);
            }
        }
        for query in (0..keys).step_by(each) {
            Tile { call: &call, query, queries: each.min(keys - query), kv_head }.whole(scratch);
        }
    })
}

/// Keys that a query sees, see [`attend`].
fn seen(mask: Mask, (past, keys, prefix): (usize, usize, usize), query: usize) -> usize {
    match mask {
        Mask::Full | Mask::Segments { .. } => keys,
        Mask::Causal | Mask::Prefix => keys.min((past + query + 1).max(prefix)),
    }
}

/// One call of [`attend`].
struct Call<'a> {
    engine: &'a Engine,
    a: &'a Attention,
    slot: KvLayer<'a>,
    past: usize,
    keys: usize,
    /// Tokens from the start that every query sees.
    prefix: usize,
    q: View<'a>,
    out: Out<'a>,
    /// Heads that share a KV head.
    group: usize,
}

/// Where tasks write the results of spans, each its own.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: see `Call::split`.
unsafe impl Sync for Shared {}

impl Call<'_> {
    /// Keys that a query sees: no fewer than the query before it.
    fn seen(&self, query: usize) -> usize {
        seen(self.a.mask, (self.past, self.keys, self.prefix), query)
    }

    /// Each span of each KV head is a task; then each KV head merges its spans.
    fn split(&self, spans: usize, partials: &mut [f32]) -> Result<(), TaskPanic> {
        let (engine, kv_heads) = (self.engine, self.a.kv_heads);
        let (rows, width) = (self.q.rows * self.group, partial_row(self.a));
        let each = rows * width;
        assert!(spans * kv_heads * each <= partials.len());
        let shared = Shared(partials.as_mut_ptr());
        let shared = &shared;
        let threads = engine.team;
        engine.run(spans * kv_heads, &|worker, task| {
            // SAFETY: a worker runs one task at a time.
            let mut scratch = unsafe { engine.scratch.worker(worker) };
            // SAFETY: that many lie there, checked above, and each task has its own.
            let partial = unsafe { std::slice::from_raw_parts_mut(shared.0.add(task * each), each) };
            let tile = Tile { call: self, query: 0, queries: self.q.rows, kv_head: task % kv_heads };
            let mut work = tile.begin(&mut scratch);
            // The task that this thread probably takes next.
            let next = (task + threads).min(spans * kv_heads - 1);
            let next = self.slot.part(next % kv_heads, next / kv_heads * SPAN).as_ptr();
            tile.span(&mut work, task / kv_heads, next);
            for (r, row) in partial.chunks_exact_mut(width).enumerate() {
                let (columns, of) = row.split_at_mut(width - NR);
                columns.copy_from_slice(work.result_of(r));
                [of[0], of[1]] = [work.max[r], work.sum[r]];
            }
        })?;
        engine.run(kv_heads, &|_, kv_head| {
            let tile = Tile { call: self, query: 0, queries: self.q.rows, kv_head };
            for r in 0..rows {
                let row = |span: usize| {
                    let at = (span * kv_heads + kv_head) * each + r * width;
                    // SAFETY: that many lie there; nobody else touches those of this head any more.
                    let row = unsafe { std::slice::from_raw_parts_mut(shared.0.add(at), width) };
                    row.split_at_mut(width - NR)
                };
                let (result, of) = row(0);
                let mut of = (of[0], of[1]);
                for span in 1..spans {
                    let (part, of_part) = row(span);
                    (engine.kernels.attention.softmax.merge)(result, &mut of, part, (of_part[0], of_part[1]));
                }
                tile.finish(r, result, of.1);
            }
        })
    }
}

/// The queries `query..query + queries` of the heads that share `kv_head`.
struct Tile<'a> {
    call: &'a Call<'a>,
    query: usize,
    queries: usize,
    kv_head: usize,
}

/// What a task holds while it goes through the keys. Row `r` is head `r % group` of query `r / group`.
struct Work<'a> {
    /// Times the scale and log2(e). [rows, D]
    queries: &'a mut [f32],
    /// [rows, D']
    result: &'a mut [f32],
    /// [rows, KEYS]
    scores: &'a mut [f32],
    max: &'a mut [f32],
    sum: &'a mut [f32],
    keep: &'a mut [f32],
    /// A block in float32.
    wide_block: &'a mut [f32],
    wide: usize,
}

impl Work<'_> {
    fn result_of(&mut self, r: usize) -> &mut [f32] {
        &mut self.result[r * self.wide..][..self.wide]
    }
}

impl Tile<'_> {
    fn rows(&self) -> usize {
        self.queries * self.call.group
    }

    /// Takes the room and the queries.
    fn begin<'s>(&self, scratch: &mut &'s mut [f32]) -> Work<'s> {
        let Call { a, slot, q, group, .. } = self.call;
        let (rows, d, wide) = (self.rows(), a.head_dim, slot.wide());
        let work = Work {
            queries: carve(scratch, rows * d),
            result: carve(scratch, rows * wide),
            scores: carve(scratch, rows * KEYS),
            max: carve(scratch, rows),
            sum: carve(scratch, rows),
            keep: carve(scratch, rows),
            wide_block: carve(scratch, KEYS * (d + wide)),
            wide,
        };
        for (r, row) in work.queries.chunks_exact_mut(d).enumerate() {
            let head = self.kv_head * group + r % group;
            // SAFETY: nobody writes q meanwhile.
            row.copy_from_slice(unsafe { q.part(self.query + r / group, head * d, d) });
            (self.call.engine.kernels.rows.scale)(row, a.scale * std::f32::consts::LOG2_E);
        }
        work
    }

    /// All spans, one after the other.
    fn whole(&self, mut scratch: &mut [f32]) {
        let Call { slot, engine, .. } = self.call;
        let mut work = self.begin(&mut scratch);
        let (rows, wide) = (self.rows(), slot.wide());
        let seen = self.call.seen(self.query + self.queries - 1);
        let spans = seen.div_ceil(SPAN).max(1);
        let total = carve(&mut scratch, rows * wide);
        let (total_max, total_sum) = (carve(&mut scratch, rows), carve(&mut scratch, rows));
        for span in 0..spans {
            self.span(&mut work, span, std::ptr::null());
            if span == 0 && spans > 1 {
                total.copy_from_slice(work.result);
                total_max.copy_from_slice(work.max);
                total_sum.copy_from_slice(work.sum);
            } else if span > 0 {
                for (r, total) in total.chunks_exact_mut(wide).enumerate() {
                    let (mut of, of_part) = ((total_max[r], total_sum[r]), (work.max[r], work.sum[r]));
                    (engine.kernels.attention.softmax.merge)(total, &mut of, work.result_of(r), of_part);
                    (total_max[r], total_sum[r]) = of;
                }
            }
        }
        for r in 0..rows {
            match spans {
                1 => self.finish(r, &mut work.result[r * wide..][..wide], work.sum[r]),
                _ => self.finish(r, &mut total[r * wide..][..wide], total_sum[r]),
            }
        }
    }

    /// Keys of the block at `start` that row `r` sees.
    fn visible(&self, r: usize, start: usize) -> usize {
        let seen = self.call.seen(self.query + r / self.call.group);
        seen.saturating_sub(start).min(KEYS)
    }

    /// One span. `next` is what will be read after it.
    fn span(&self, work: &mut Work<'_>, span: usize, next: *const u8) {
        let slot = self.call.slot;
        work.result.fill(0.0);
        work.max.fill(NO_SCORE);
        work.sum.fill(0.0);
        let last = self.rows() - 1;
        let start = span * SPAN;
        if self.visible(last, start) == 0 {
            return;
        }
        let mut block = slot.block(self.kv_head, start);
        for start in (start..start + SPAN).step_by(KEYS) {
            let after = start + KEYS;
            let more = after < (span + 1) * SPAN && self.visible(last, after) > 0;
            let following = if more { Some(slot.block(self.kv_head, after)) } else { None };
            self.block(work, start, block, following.map_or(next, |b| b.part.as_ptr()));
            match following {
                Some(following) => block = following,
                None => break,
            }
        }
    }

    /// One block of keys.
    fn block(&self, work: &mut Work<'_>, start: usize, block: KvBlock<'_>, next: *const u8) {
        let kernels = &self.call.engine.kernels;
        let (rows, d, wide) = (self.rows(), self.call.a.head_dim, work.wide);
        let few = rows <= FEW_ROWS;
        // Numbers as they are stored, or all in float32.
        let stored = match block.kind {
            KvType::F32 => Stored::F32,
            KvType::F16 if few => Stored::F16,
            KvType::Q8 if few => Stored::I8,
            kind => {
                let numbers = block.numbers;
                match kind {
                    KvType::F16 => {
                        // SAFETY: halves, aligned as blocks are.
                        let halves =
                            unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), numbers.len() / 2) };
                        (kernels.float.widen)(halves, work.wide_block);
                    }
                    KvType::Q8 => {
                        // SAFETY: the same bytes.
                        let codes =
                            unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), numbers.len()) };
                        (kernels.attention.softmax.widen)(codes, work.wide_block);
                    }
                    kind => (kernels.attention.unpack)(kind, d, block.part, work.wide_block),
                }
                Stored::F32
            }
        };
        let unpacked = block.kind != KvType::F32 && stored == Stored::F32;
        let (keys, values): (*const u8, *const u8) = if unpacked {
            (work.wide_block.as_ptr().cast(), work.wide_block[KEYS * d..].as_ptr().cast())
        } else {
            let (keys, values) = block.numbers.split_at(KEYS * d * block.kind.bits() / 8);
            (keys.as_ptr(), values.as_ptr())
        };
        // Of what is read as it is stored, what comes next is fetched meanwhile.
        let ahead = if unpacked { next } else { values };
        // SAFETY: queries, scores and blocks are as large as the products say.
        unsafe {
            self.multiply(start, stored, |from, rows, visible| FewRows {
                rows,
                panels: visible.div_ceil(NR),
                k: d,
                a: work.queries.as_ptr().add(from * d),
                lda: d,
                b: keys,
                b_panel: d * NR,
                c: work.scores.as_mut_ptr().add(from * KEYS),
                ldc: KEYS,
                first: true,
                ahead,
            });
        }
        if let Some([scales, _]) = block.scales {
            work.scores.chunks_exact_mut(KEYS).for_each(|row| (kernels.rows.mul)(row, scales));
        }
        if self.visible(0, start) < KEYS {
            for (r, row) in work.scores.chunks_exact_mut(KEYS).enumerate() {
                row[self.visible(r, start)..].fill(f32::NEG_INFINITY);
            }
        }
        (kernels.attention.softmax.block)(work.scores, work.max, work.sum, work.keep);
        for (result, keep) in work.result.chunks_exact_mut(wide).zip(&*work.keep) {
            if *keep != 1.0 {
                (kernels.rows.scale)(result, *keep);
            }
        }
        if let Some([_, scales]) = block.scales {
            work.scores.chunks_exact_mut(KEYS).for_each(|row| (kernels.rows.mul)(row, scales));
        }
        // SAFETY: as above.
        unsafe {
            self.multiply(start, stored, |from, rows, visible| FewRows {
                rows,
                panels: wide / NR,
                k: visible,
                a: work.scores.as_ptr().add(from * KEYS),
                lda: KEYS,
                b: values,
                b_panel: KEYS * NR,
                c: work.result.as_mut_ptr().add(from * wide),
                ldc: wide,
                first: false,
                ahead: next,
            });
        }
    }

    /// The products that `of` gives for so many rows from one on, of which the last sees so many keys of the block at
    /// `start`: all rows at once, or, where they see more and more keys, some at a time.
    ///
    /// # Safety
    /// Every pointer of the products is valid for what its field says: numbers as they are stored for up to [`FEW_ROWS`]
    /// rows, else in float32.
    unsafe fn multiply(
        &self,
        start: usize,
        stored: Stored,
        mut of: impl FnMut(usize, usize, usize) -> FewRows,
    ) {
        let (kernels, rows) = (&self.call.engine.kernels, self.rows());
        let most = self.visible(rows - 1, start);
        // SAFETY: the caller's promise.
        unsafe {
            if rows <= FEW_ROWS {
                return (kernels.attention.few)(&of(0, rows, most), stored);
            }
            let each = if self.visible(0, start) == most { rows } else { MASK_ROWS };
            for from in (0..rows).step_by(each) {
                let rows = each.min(rows - from);
                let p = of(from, rows, self.visible(from + rows - 1, start));
                (kernels.float.gemm)(&FloatProduct {
                    rows,
                    panels: p.panels,
                    k: p.k,
                    a: p.a,
                    lda: p.lda,
                    b: p.b,
                    kind: FloatType::F32,
                    b_panel: p.b_panel,
                    ldb: NR,
                    c: p.c,
                    ldc: p.ldc,
                    c_panel: NR,
                    first: p.first,
                });
            }
        }
    }

    /// Divides row `r` by the sum of its weights and writes it out.
    fn finish(&self, r: usize, result: &mut [f32], sum: f32) {
        let Call { engine, a, out, group, .. } = self.call;
        let at = (self.query + r / group, self.kv_head * group + r % group);
        // SAFETY: these elements are this task's own.
        unsafe { write_row(engine, a.head_dim, *out, at, result, sum) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        CpuBackend, CpuOptions, Isa,
        kv::{KvPlan, KvTable},
    };

    /// Float32 sums and exponentials, over the largest result: as `margay_testkit::tolerance::FLOAT`.
    const FLOAT: f64 = 1e-5;

    fn random(seed: &mut u32, len: usize) -> Vec<f32> {
        let mut next = || {
            *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (*seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    fn view(x: &[f32], columns: usize) -> View<'_> {
        // SAFETY: borrowed as long as the view.
        unsafe { View::new(x.as_ptr(), x.len() / columns, columns) }
    }

    /// Appends all keys and attends to them, `cut` queries a call; a few a call begin shortly before the second span ends.
    fn run(cpu: &CpuBackend, a: &Attention, kv: KvType, [q, k, v]: [&[f32]; 3], cut: usize) -> Vec<f32> {
        let engine = cpu.engine(scratch_floats(a));
        let (columns, kv_columns) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let tokens = q.len() / columns;
        let plan = KvPlan { text: kv, image: kv };
        let mut table = KvTable::new(plan, vec![(a.kv_heads, a.head_dim)], tokens, cut).unwrap();
        let mut partials = vec![f32::NAN; partial_floats(a, tokens)];
        let mut y = vec![0.0; q.len()];
        let mut end = 0;
        while end < tokens {
            let past = end;
            end = if past == 0 && cut <= 8 { 2 * SPAN - 8 } else { tokens.min(past + cut) };
            let [k, v] = [k, v].map(|x| view(&x[past * kv_columns..end * kv_columns], kv_columns));
            assert!(table.prepare(&engine, past, end).unwrap());
            let slot = table.layer(0);
            append(&engine, slot, past, k, v).unwrap();
            let q = view(&q[past * columns..end * columns], columns);
            let y = &mut y[past * columns..end * columns];
            // SAFETY: borrowed for this call.
            let out = unsafe { Out::new(y.as_mut_ptr(), end - past, columns) };
            attend(&engine, a, slot, &mut partials, (past, end, 0), q, out).unwrap();
        }
        y
    }

    /// What the cache makes of a row of one head.
    fn stored(kv: KvType, row: &[f32]) -> Vec<f64> {
        let largest = row.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let (inverse, scale) = (127.0 / largest, largest / 127.0);
        let groups = |of: fn(&[f32]) -> Vec<f64>| row.chunks(32).flat_map(of).collect();
        let each = |x: &f32| match kv {
            KvType::F32 => f64::from(*x),
            KvType::F16 => half::f16::from_f32(*x).to_f64(),
            _ => f64::from((x * inverse).round_ties_even()) * f64::from(scale),
        };
        match kv {
            KvType::Q8_0 => groups(|row| {
                let largest = row.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                let scale = half::f16::from_f32(largest / 127.0).to_f32();
                let code = |x: &f32| (x * (1.0 / scale)).round_ties_even().clamp(-127.0, 127.0);
                row.iter().map(|x| f64::from(code(x) * scale)).collect()
            }),
            KvType::Q4_0 => groups(|row| {
                let extreme = row.iter().fold(0.0f32, |m, x| if x.abs() > m.abs() { *x } else { m });
                let scale = half::f16::from_f32(extreme / -8.0).to_f32();
                let code = |x: &f32| (x * (1.0 / scale)).round_ties_even().clamp(-8.0, 7.0);
                row.iter().map(|x| f64::from(code(x) * scale)).collect()
            }),
            KvType::Fp8 => row.iter().map(|x| nearest_fp8(*x, largest / 448.0)).collect(),
            _ => row.iter().map(each).collect(),
        }
    }

    /// The nearest number of 4 bits of exponent and 3 of fraction, times a scale; of two as near, the one of even fraction.
    fn nearest_fp8(x: f32, scale: f32) -> f64 {
        let wanted = f64::from((x * (1.0 / scale)).abs());
        let number = |code: i32| {
            let (exponent, fraction) = (code >> 3, f64::from(code & 7));
            if exponent == 0 {
                fraction / 512.0
            } else {
                (1.0 + fraction / 8.0) * f64::from(exponent - 7).exp2()
            }
        };
        let far = |code: &i32| (number(*code) - wanted).abs();
        let best = (0..=126).min_by(|a, b| far(a).total_cmp(&far(b)).then((a & 1).cmp(&(b & 1)))).unwrap();
        (number(best) as f32 * scale).copysign(x).into()
    }

    /// One query of one head, in float64.
    fn naive(a: &Attention, kv: KvType, [q, k, v]: [&[f32]; 3], token: usize, head: usize) -> Vec<f64> {
        let (d, kv_head) = (a.head_dim, head / (a.heads / a.kv_heads));
        let q = &q[(token * a.heads + head) * d..][..d];
        let row = |of: &[f32], key: usize| stored(kv, &of[(key * a.kv_heads + kv_head) * d..][..d]);
        let score = |key: usize| {
            let product: f64 = row(k, key).iter().zip(q).map(|(k, q)| k * f64::from(*q)).sum();
            product * f64::from(a.scale)
        };
        let scores: Vec<f64> = (0..=token).map(score).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut result = vec![0.0; d];
        for (key, weight) in weights.iter().enumerate() {
            result.iter_mut().zip(row(v, key)).for_each(|(y, v)| *y += weight / total * v);
        }
        result
    }

    #[test]
    fn over_many_spans_it_is_exact_and_independent_of_cuts_threads_and_instruction_sets() {
        // Groups of 1, 2, 3, 4 and 8; more tokens than two spans, and no multiple of a block.
        for (heads, kv_heads, head_dim) in [(2, 2, 72), (4, 2, 40), (3, 1, 64), (4, 1, 128), (8, 1, 5)] {
            let scale = 2.0 * (head_dim as f32).powf(-0.5);
            let (mask, cache) = (Mask::Causal, Some(0));
            let a = Attention { heads, kv_heads, head_dim, scale, mask, cache };
            let (tokens, mut seed) = (2 * SPAN + 37, 7);
            let q = random(&mut seed, tokens * heads * head_dim);
            let k = random(&mut seed, tokens * kv_heads * head_dim);
            let v = random(&mut seed, tokens * kv_heads * head_dim);
            let x = [&q[..], &k, &v];
            // What 2 bits make of a token depends on those beside it.
            for kv in KvType::ALL.into_iter().filter(|kv| *kv != KvType::Kivi2) {
                let mut first: Option<Vec<u32>> = None;
                // The sets of ARM share their float kernels.
                let shared = |isa: &Isa| matches!(isa, Isa::Neon | Isa::Dotprod) && *isa != Isa::detect();
                for isa in Isa::supported().filter(|isa| !shared(isa)) {
                    for (threads, cut) in [(1, tokens), (3, tokens), (2, 1), (2, 5), (3, 100)] {
                        // Portable multiply-adds are library calls.
                        if isa == Isa::Scalar && (cut != tokens || head_dim > 5) {
                            continue;
                        }
                        let options =
                            CpuOptions { threads: Some(threads), isa: Some(isa), ..Default::default() };
                        let y = run(&CpuBackend::new(options).unwrap(), &a, kv, x, cut);
                        let bits: Vec<u32> = y.iter().map(|y| y.to_bits()).collect();
                        match &first {
                            Some(first) => {
                                let at = bits.iter().zip(first).position(|(a, b)| a != b);
                                assert_eq!(at, None, "{a:?} {kv:?} {isa} {threads} threads, {cut} a call");
                            }
                            None => {
                                for token in [0, 1, 63, 64, 255, 256, 300, 511, 512, tokens - 1] {
                                    for head in [0, heads - 1] {
                                        let expected = naive(&a, kv, x, token, head);
                                        let largest = expected.iter().fold(0.0, |m, x| f64::max(m, x.abs()));
                                        let y = &y[(token * heads + head) * head_dim..][..head_dim];
                                        for (y, expected) in y.iter().zip(&expected) {
                                            let error = (f64::from(*y) - expected).abs();
                                            assert!(
                                                error <= FLOAT * largest,
                                                "{a:?} {kv:?} {isa}: token {token} is off by {error} of {largest}"
                                            );
                                        }
                                    }
                                }
                                first = Some(bits);
                            }
                        }
                    }
                }
            }
        }
    }

    /// How far a number of a row (of a column of 32 tokens, for keys of 2 bits) whose largest is `largest` may be off.
    fn number_bound(kv: KvType, largest: f64) -> f64 {
        // Scales and minima in half precision are off by 2^-11 of themselves, and float32 counts for nothing beside that.
        let half = 2f64.powi(-11);
        match kv {
            KvType::F32 => 0.0,
            KvType::F16 => largest * half,
            KvType::Q8 => largest / 127.0 * 0.5001,
            KvType::Q8_0 => largest / 127.0 * 0.5 + 2.0 * largest * half,
            // Where the other sign is as large, its 8 becomes 7.
            KvType::Q4_0 => largest / 8.0 * (1.0 + 8.0 * half),
            // 3 bits of fraction.
            KvType::Fp8 => largest * 2f64.powi(-4),
            // Of a range of twice the largest, a third is a step.
            KvType::Kivi2 => largest * (2.0 / 3.0 * 0.5 + 4.0 * half),
        }
    }

    #[test]
    fn every_type_is_as_near_to_float32_as_its_numbers_are() {
        let (heads, kv_heads, head_dim, tokens) = (4, 2, 72, 300);
        let scale = (head_dim as f32).powf(-0.5);
        let a = Attention { heads, kv_heads, head_dim, scale, mask: Mask::Causal, cache: Some(0) };
        let mut seed = 11;
        let [q, k, v] = [heads, kv_heads, kv_heads].map(|n| random(&mut seed, tokens * n * head_dim));
        for isa in Isa::supported() {
            let options = CpuOptions { threads: Some(2), isa: Some(isa), ..Default::default() };
            let cpu = CpuBackend::new(options).unwrap();
            let exact = run(&cpu, &a, KvType::F32, [&q, &k, &v], 60);
            for kv in KvType::ALL {
                // 60 a call, so that blocks of 2 bits are closed before most tokens are computed.
                let y = run(&cpu, &a, kv, [&q, &k, &v], 60);
                let each = number_bound(kv, 1.0);
                let mut differ = 0;
                for (at, (y, exact)) in y.iter().zip(&exact).enumerate() {
                    let query = &q[at / head_dim * head_dim..][..head_dim];
                    let sum: f64 = query.iter().map(|q| f64::from(q.abs())).sum();
                    // A score is off by at most `score`, so a weight by a factor of at most e^(2 score).
                    let score = f64::from(scale) * sum * each;
                    let bound = (2.0 * score).exp_m1() + each + FLOAT;
                    let error = f64::from((y - exact).abs());
                    assert!(error <= bound, "{kv:?} {isa}: {error} is more than {bound}");
                    differ += usize::from(y != exact);
                }
                assert!(kv == KvType::F32 || differ > y.len() / 2, "{kv:?} is not what was computed with");
            }
        }
    }
}
