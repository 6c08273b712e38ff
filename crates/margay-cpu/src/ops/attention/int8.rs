//! Attention in 8 bits, for encoders whose layers multiply in 8 bits too: keys and values of a call are quantized once,
//! queries and weights as they come.
//!
//! With the codes of a query, of a key and of a value, each with a scale of its own, a score is an integer times both
//! scales. Of a block of 64 keys the weights, each times the scale of its value, become codes from 0 to 127, the largest
//! possible one 127 (rounded up or down by the key's place, so that small ones keep their sum), and the block's part of the result is integers times one scale. So all products are exact, and a
//! row's bits depend neither on the tile nor on the threads nor on the instruction set. Per row and block the softmax
//! goes on in float32, as in [`super`].
//!
//! Keys are first shifted by their mean: that adds the same to all scores of a query, which no weight notices, and takes
//! away what the keys of a head have in common, which would use up the codes. Source: SageAttention, arXiv 2410.02367.

use super::{over_segments, over_tiles, queries_a_tile, seen, write_row};
use crate::{
    kernels::{
        attention::{
            KEYS, NO_SCORE,
            int8::{BlockScales, Row},
        },
        channel::{COPY_ROWS, ChannelProduct},
    },
    lines::Lines,
    ops::{
        Engine, carve,
        view::{Out, View},
    },
    pack::{CHANNEL_STEP, PANEL},
    threads::TaskPanic,
};
use margay_graph::Attention;
use std::ops::Range;

/// Keys and values of one call.
///
/// Of each block of 64 a head has the codes of keys, `[4][D' / 4][16][4]`, those of values, `[D' / 16][16][16][4]`, and
/// their [`BlockScales`], with D' the head dimension rounded up to [`CHANNEL_STEP`]: panels of 16 keys, and of 16
/// columns, as the integer products read them.
pub(crate) struct Int8Slot {
    kv_heads: usize,
    head_dim: usize,
    /// Tokens, a multiple of [`KEYS`].
    capacity: usize,
    memory: Lines<u8>,
}

/// D rounded up.
fn wide(head_dim: usize) -> usize {
    head_dim.next_multiple_of(CHANNEL_STEP)
}

/// Bytes that a head has of a block, a multiple of 64.
fn block_bytes(head_dim: usize) -> usize {
    2 * KEYS * wide(head_dim) + size_of::<BlockScales>()
}

/// Floats of scratch that a worker needs.
pub(crate) fn scratch_floats(a: &Attention) -> usize {
    let rows = (queries_a_tile(a) * (a.heads / a.kv_heads)).next_multiple_of(COPY_ROWS);
    let wide = wide(a.head_dim);
    let tile = rows * (2 * (wide + KEYS) / 4 + KEYS.max(wide) + wide + size_of::<Row>() / 4);
    let fill = 2 * wide;
    tile.max(fill) + 8 * 16
}

/// What one head has of a block.
#[derive(Clone, Copy)]
struct Block<'a> {
    keys: *const u8,
    values: *const u8,
    scales: &'a BlockScales,
}

impl Int8Slot {
    /// Room for `tokens`, or `None` where the size overflows.
    pub(crate) fn new(a: &Attention, tokens: usize) -> Option<Self> {
        let capacity = tokens.checked_next_multiple_of(KEYS)?;
        let bytes = block_bytes(a.head_dim).checked_mul(a.kv_heads)?.checked_mul(capacity / KEYS)?;
        let memory = Lines::try_zeroed(bytes)?;
        Some(Int8Slot { kv_heads: a.kv_heads, head_dim: a.head_dim, capacity, memory })
    }

    /// Whether so many tokens of such heads fit.
    pub(crate) fn fits(&self, a: &Attention, tokens: usize) -> bool {
        self.kv_heads == a.kv_heads && self.head_dim == a.head_dim && self.capacity >= tokens
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.memory.size_bytes()
    }

    /// Where the block of `head` lies that token `at` begins.
    fn at(&self, head: usize, at: usize) -> *mut u8 {
        assert!(at < self.capacity && head < self.kv_heads);
        let block = head * (self.capacity / KEYS) + at / KEYS;
        // SAFETY: within the memory.
        unsafe { self.memory.pointer().add(block * block_bytes(self.head_dim)) }
    }

    /// # Safety
    /// Nobody writes it meanwhile.
    unsafe fn block(&self, head: usize, at: usize) -> Block<'_> {
        let (keys, codes) = (self.at(head, at), KEYS * wide(self.head_dim));
        // SAFETY: all of it lies within the block; scales are plain numbers, aligned as blocks are.
        unsafe {
            let scales = &*keys.add(2 * codes).cast::<BlockScales>();
            Block { keys, values: keys.add(codes), scales }
        }
    }

    /// Quantizes the rows of `k` and `v` for one head.
    ///
    /// # Safety
    /// Nobody else touches this head, and nobody writes `k` and `v`.
    unsafe fn fill(&self, engine: &Engine, head: usize, k: View<'_>, v: View<'_>, mut scratch: &mut [f32]) {
        let (d, wide, kernels) = (self.head_dim, wide(self.head_dim), &engine.kernels);
        let mean = carve(&mut scratch, d);
        mean.fill(0.0);
        for row in 0..k.rows {
            // SAFETY: the caller's promise.
            (kernels.rows.add)(mean, unsafe { k.part(row, head * d, d) });
        }
        (kernels.rows.scale)(mean, 1.0 / k.rows.max(1) as f32);
        let codes = carve(&mut scratch, wide);
        // SAFETY: 4 codes to a float.
        let codes = unsafe { std::slice::from_raw_parts_mut(codes.as_mut_ptr().cast::<i8>(), 4 * wide) };
        codes.fill(0);
        for start in (0..k.rows).step_by(KEYS) {
            let tokens = KEYS.min(k.rows - start);
            let block = self.at(head, start);
            // SAFETY: all of it lies within the block, which is this task's own.
            let (keys, values, scales) = unsafe {
                let values = block.add(KEYS * wide);
                (
                    std::slice::from_raw_parts_mut(block.cast::<[u8; 4]>(), KEYS * wide / 4),
                    std::slice::from_raw_parts_mut(values, KEYS * wide),
                    &mut *values.add(KEYS * wide).cast::<BlockScales>(),
                )
            };
            for token in 0..tokens {
                // SAFETY: the caller's promise.
                let key = unsafe { k.part(start + token, head * d, d) };
                (scales.keys[token], scales.totals[token]) =
                    (kernels.attention.int8.key)(key, mean, &mut codes[..d]);
                let first = token / PANEL * (wide / 4) * PANEL + token % PANEL;
                for (to, four) in
                    keys[first..].iter_mut().step_by(PANEL).zip(codes[..wide].as_chunks::<4>().0)
                {
                    *to = four.map(|code| code as u8);
                }
            }
            let mut largest = 0;
            for four in (0..tokens).step_by(4) {
                for (token, codes) in codes.chunks_exact_mut(wide).enumerate() {
                    let token = four + token;
                    if token < tokens {
                        // SAFETY: the caller's promise.
                        let value = unsafe { v.part(start + token, head * d, d) };
                        let scale = (kernels.rows.quantize_row)(value, &mut codes[..d]).0;
                        // As integers they order like numbers, with NaN above all.
                        largest = u32::max(largest, scale.to_bits());
                        (scales.values[token], scales.largest[token]) = (scale, f32::from_bits(largest));
                    } else {
                        codes.fill(0);
                    }
                }
                (kernels.attention.int8.side_by_side)(codes, &mut values[four * PANEL..], KEYS * PANEL);
            }
            // `key` writes the front alone.
            codes[d..wide].fill(0);
        }
    }
}

/// Attends to the rows of `k` and `v`; but under a full mask, query `i` sees those up to itself and the first `prefix`.
pub(crate) fn attend(
    engine: &Engine,
    a: &Attention,
    slot: &mut Int8Slot,
    prefix: usize,
    [q, k, v]: [View<'_>; 3],
    out: Out<'_>,
) -> Result<(), TaskPanic> {
    let slot = &*slot;
    engine.run(a.kv_heads, &|worker, head| {
        // SAFETY: a worker runs one task at a time; each has a head of its own, and nobody writes k and v.
        unsafe { slot.fill(engine, head, k, v, engine.scratch.worker(worker)) }
    })?;
    let call = Call { engine, a, slot, keys: k.rows, prefix, q, out };
    over_tiles(engine, a, q.rows, &|kv_head, queries, scratch| call.tile(queries, kv_head, scratch))
}

/// As [`super::attend_in_segments`].
pub(crate) fn attend_in_segments(
    engine: &Engine,
    a: &Attention,
    slot: &mut Int8Slot,
    segments: &[i32],
    qkv: [View<'_>; 3],
    out: Out<'_>,
) -> Result<(), TaskPanic> {
    let (slot, each) = (&*slot, queries_a_tile(a));
    over_segments(engine, a, segments, &|kv_head, rows, scratch| {
        let (start, keys) = (rows.start, rows.len());
        let [q, k, v] = qkv.map(|x| x.part_of_rows(start, keys));
        let out = out.part_of_rows(start, keys);
        // SAFETY: each task has a head of its own, and nobody writes k and v.
        unsafe { slot.fill(engine, kv_head, k, v, scratch) }
        let call = Call { engine, a, slot, keys, prefix: 0, q, out };
        for query in (0..keys).step_by(each) {
            call.tile(query..keys.min(query + each), kv_head, scratch);
        }
    })
}

/// One call.
struct Call<'a> {
    engine: &'a Engine,
    a: &'a Attention,
    slot: &'a Int8Slot,
    keys: usize,
    prefix: usize,
    q: View<'a>,
    out: Out<'a>,
}

/// So many bytes of the scratch.
fn carve_bytes<'a>(memory: &mut &'a mut [f32], bytes: usize) -> &'a mut [u8] {
    let floats = carve(memory, bytes.div_ceil(4));
    // SAFETY: 4 bytes to a float.
    unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), bytes) }
}

impl Call<'_> {
    /// Some queries of the heads that share `kv_head`. Row `r` is head `r % group` of query `r / group`.
    fn tile(&self, queries: Range<usize>, kv_head: usize, mut scratch: &mut [f32]) {
        let (query, queries) = (queries.start, queries.len());
        let (a, kernels) = (self.a, &self.engine.kernels);
        let (group, d, wide) = (a.heads / a.kv_heads, a.head_dim, wide(a.head_dim));
        let rows = queries * group;
        let room = rows.next_multiple_of(COPY_ROWS);
        let q = carve_bytes(&mut scratch, room * wide); // [rows, D']
        let q_copy = carve_bytes(&mut scratch, room * wide);
        let weights = carve_bytes(&mut scratch, room * KEYS); // [rows, KEYS]
        let weights_copy = carve_bytes(&mut scratch, room * KEYS);
        let sums = carve(&mut scratch, room * KEYS.max(wide));
        // SAFETY: integers and floats take as many bytes.
        let sums = unsafe { std::slice::from_raw_parts_mut(sums.as_mut_ptr().cast::<i32>(), sums.len()) };
        let result = carve(&mut scratch, rows * wide); // [rows, D']
        let states = carve(&mut scratch, rows * (size_of::<Row>() / 4));
        // SAFETY: a row is so many plain numbers of 4 bytes.
        let states = unsafe { std::slice::from_raw_parts_mut(states.as_mut_ptr().cast::<Row>(), rows) };
        result.fill(0.0);
        for (r, (state, codes)) in states.iter_mut().zip(q.chunks_exact_mut(wide)).enumerate() {
            let head = kv_head * group + r % group;
            // SAFETY: nobody writes q meanwhile; a byte has the room of a code.
            let (x, codes) = unsafe {
                let codes = std::slice::from_raw_parts_mut(codes.as_mut_ptr().cast::<i8>(), wide);
                (self.q.part(query + r / group, head * d, d), codes)
            };
            let (scale, total) = (kernels.rows.quantize_row)(x, &mut codes[..d]);
            codes[d..].fill(0);
            *state = Row {
                scale: scale * (a.scale * std::f32::consts::LOG2_E),
                offset: kernels.channel.zero * total,
                max: NO_SCORE,
                sum: 0.0,
                keep: 0.0,
                factor: 0.0,
                total: 0,
            };
        }
        let sees = |r: usize| seen(a.mask, (0, self.keys, self.prefix), query + r / group);
        let most = sees(rows - 1);
        // Of codes that were unsigned from the start.
        let zeros = [0; KEYS];
        assert!(kernels.channel.panels * PANEL <= KEYS);
        if let Some(copy) = kernels.channel.copy {
            // SAFETY: both have room for whole blocks of rows.
            unsafe { copy(rows, wide, q.as_ptr().cast(), wide, q_copy.as_mut_ptr(), true) }
        }
        for start in (0..most).step_by(KEYS) {
            // SAFETY: all of this head was written before.
            let block = unsafe { self.slot.block(kv_head, start) };
            let keys = KEYS.min(most - start);
            let panels = keys.div_ceil(PANEL);
            for panel in (0..panels).step_by(kernels.channel.panels) {
                // SAFETY: panels, rows and sums are as large as the product says.
                unsafe {
                    (kernels.channel.gemm)(&ChannelProduct {
                        rows,
                        panels: kernels.channel.panels.min(panels - panel),
                        k: wide,
                        q: q.as_ptr().cast(),
                        lda: wide,
                        copy: q_copy.as_ptr(),
                        codes: block.keys.add(panel * PANEL * wide),
                        codes_panel: PANEL * wide,
                        totals: block.scales.totals[panel * PANEL..].as_ptr(),
                        sums: sums[panel * PANEL..].as_mut_ptr(),
                        ldc: KEYS,
                        first: true,
                    });
                }
            }
            let each = sums.as_chunks::<KEYS>().0.iter().zip(weights.as_chunks_mut::<KEYS>().0);
            for (r, (state, (sums, weights))) in states.iter_mut().zip(each).enumerate() {
                let visible = sees(r).saturating_sub(start).min(KEYS);
                (kernels.attention.int8.weights)(sums, block.scales, visible, state, weights);
            }
            let keys = keys.next_multiple_of(CHANNEL_STEP);
            if let Some(copy) = kernels.channel.copy {
                // SAFETY: both have room for whole blocks of rows.
                unsafe { copy(rows, keys, weights.as_ptr().cast(), KEYS, weights_copy.as_mut_ptr(), false) }
            }
            for panel in (0..wide / PANEL).step_by(kernels.channel.panels) {
                // SAFETY: as above; what is no key of the block has a weight of 0.
                unsafe {
                    (kernels.channel.gemm)(&ChannelProduct {
                        rows,
                        panels: kernels.channel.panels.min(wide / PANEL - panel),
                        k: keys,
                        q: weights.as_ptr().cast(),
                        lda: KEYS,
                        copy: weights_copy.as_ptr(),
                        codes: block.values.add(panel * PANEL * KEYS),
                        codes_panel: PANEL * KEYS,
                        totals: zeros.as_ptr(),
                        sums: sums[panel * PANEL..].as_mut_ptr(),
                        ldc: wide,
                        first: true,
                    });
                }
            }
            let each = result.chunks_exact_mut(wide).zip(sums.chunks_exact(wide));
            for (state, (result, sums)) in states.iter().zip(each) {
                let offset = kernels.channel.zero * state.total;
                (kernels.attention.int8.add_sums)(result, sums, offset, state.keep, state.factor);
            }
        }
        for (r, (state, result)) in states.iter().zip(result.chunks_exact_mut(wide)).enumerate() {
            let at = (query + r / group, kv_head * group + r % group);
            // SAFETY: these elements are this task's own.
            unsafe { write_row(self.engine, d, self.out, at, result, state.sum) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CpuBackend, CpuOptions, Isa};
    use margay_graph::Mask;

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

    fn run(isa: Isa, threads: usize, a: &Attention, x: [&[f32]; 3], segments: Option<&[i32]>) -> Vec<f32> {
        let options = CpuOptions { threads: Some(threads), isa: Some(isa), ..Default::default() };
        let engine = CpuBackend::new(options).unwrap().engine(scratch_floats(a));
        let columns = [a.heads, a.kv_heads, a.kv_heads].map(|heads| heads * a.head_dim);
        let mut y = vec![f32::NAN; x[0].len()];
        // SAFETY: borrowed for this call.
        let out = unsafe { Out::new(y.as_mut_ptr(), x[0].len() / columns[0], columns[0]) };
        let mut slot = Int8Slot::new(a, x[1].len() / columns[1]).unwrap();
        let x = std::array::from_fn(|i| view(x[i], columns[i]));
        match segments {
            Some(segments) => attend_in_segments(&engine, a, &mut slot, segments, x, out).unwrap(),
            None => attend(&engine, a, &mut slot, 0, x, out).unwrap(),
        }
        y
    }

    fn bits(y: &[f32]) -> Vec<u32> {
        y.iter().map(|y| y.to_bits()).collect()
    }

    /// One query of one head in float64, and by how much each number may be off.
    fn naive(
        a: &Attention,
        [q, k, v]: [&[f32]; 3],
        (query, head): (usize, usize),
        keys: usize,
    ) -> (Vec<f64>, f64) {
        let (d, kv_head) = (a.head_dim, head / (a.heads / a.kv_heads));
        let row = |of: &[f32], at: usize, head: usize, heads: usize| -> Vec<f64> {
            of[(at * heads + head) * d..][..d].iter().map(|x| f64::from(*x)).collect()
        };
        let tokens = k.len() / (a.kv_heads * d);
        let q = row(q, query, head, a.heads);
        let (k, v): (Vec<_>, Vec<_>) =
            (0..tokens).map(|at| (row(k, at, kv_head, a.kv_heads), row(v, at, kv_head, a.kv_heads))).unzip();
        let largest = |x: &[f64]| x.iter().fold(0.0, |m, x| f64::max(m, x.abs()));
        let mean: Vec<f64> = (0..d).map(|i| k.iter().map(|k| k[i]).sum::<f64>() / tokens as f64).collect();
        let q_step = largest(&q) / 127.0;
        let (mut scores, mut off) = (vec![], 0.0);
        for k in &k[..keys] {
            let shifted: Vec<f64> = k.iter().zip(&mean).map(|(k, mean)| k - mean).collect();
            let pairs = shifted.chunks(2).map(|pair| pair.iter().sum::<f64>().abs()).fold(0.0, f64::max);
            let k_step = largest(&shifted).max(pairs) / 127.0;
            let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            scores.push(product(&q, k) * f64::from(a.scale));
            // Of (q + e)(k + c) - q k with |e| and |c| at most half a step.
            let error = q
                .iter()
                .zip(&shifted)
                .map(|(q, k)| 0.5 * (q_step * k.abs() + k_step * q.abs()) + 0.25 * q_step * k_step);
            off = f64::max(off, error.sum::<f64>() * f64::from(a.scale));
        }
        let greatest = |scores: &[f64]| scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let max = greatest(&scores);
        let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut y = vec![0.0; d];
        for (weight, v) in weights.iter().zip(&v) {
            y.iter_mut().zip(v).for_each(|(y, v)| *y += weight / total * v);
        }
        // Each weight and their sum move by the scores' error one way or the other; of a block, codes of weights are off by
        // a step of its greatest, times at most the largest value; and a value by half a step of its own.
        let largest_value = v[..keys].iter().map(|v| largest(v)).fold(0.0, f64::max);
        // Powers of 2 are off by 1.1e-4 each: a weight's, the one that its block is taken with, and their sum.
        let moved = (2.0 * off).exp() * 1.0005;
        let steps: f64 =
            scores.chunks(KEYS).map(|block| (greatest(block) - max).exp() * block.len() as f64 / 127.0).sum();
        let bound = (moved - 1.0) + moved * steps / total + 0.5 / 127.0;
        (y, bound * largest_value)
    }

    #[test]
    fn it_is_near_float64_and_its_bits_depend_on_nothing() {
        for (heads, kv_heads, head_dim) in [(2, 2, 72), (4, 2, 40), (3, 1, 64), (8, 1, 5)] {
            for mask in [Mask::Full, Mask::Causal] {
                let scale = (head_dim as f32).powf(-0.5);
                let a = Attention { heads, kv_heads, head_dim, scale, mask, cache: None };
                let (tokens, mut seed) = (197, 7);
                let q = random(&mut seed, tokens * heads * head_dim);
                let mut k = random(&mut seed, tokens * kv_heads * head_dim);
                let v = random(&mut seed, tokens * kv_heads * head_dim);
                // What the keys have in common costs nothing.
                k.iter_mut().enumerate().for_each(|(i, k)| *k += (i % 3) as f32 * 20.0);
                let x = [&q[..], &k, &v];
                let y = run(Isa::detect(), 1, &a, x, None);
                let (mut squares, mut of) = (0.0, 0.0);
                for query in [0, 1, 62, 63, 64, 100, 196] {
                    for head in [0, heads - 1] {
                        let keys = if mask == Mask::Full { tokens } else { query + 1 };
                        let (expected, bound) = naive(&a, x, (query, head), keys);
                        for (y, expected) in y[(query * heads + head) * head_dim..].iter().zip(&expected) {
                            let error = (f64::from(*y) - expected).abs();
                            assert!(error <= bound, "{a:?}: query {query} is off by {error}, not {bound}");
                            squares += error * error;
                            of += expected * expected;
                        }
                    }
                }
                println!("{a:?}: off by {:.2}% (root mean square)", 100.0 * f64::sqrt(squares / of));
                for isa in Isa::supported() {
                    for threads in [1, 3] {
                        assert!(bits(&y) == bits(&run(isa, threads, &a, x, None)), "{a:?} {isa} {threads}");
                    }
                }
                if mask == Mask::Full {
                    // A query alone, and in a tile of others.
                    let columns = heads * head_dim;
                    for (from, rows) in [(0, 1), (50, 3), (190, 7)] {
                        let part = &q[from * columns..][..rows * columns];
                        let part = run(Isa::detect(), 2, &a, [part, &k, &v], None);
                        assert_eq!(bits(&part), bits(&y[from * columns..][..rows * columns]));
                    }
                    // A segment is as a call of its own.
                    let segments: Vec<i32> =
                        (0..tokens).map(|i| i32::from(i >= 70) + i32::from(i >= 71)).collect();
                    let together = run(Isa::detect(), 2, &a, x, Some(&segments));
                    for rows in [0..70, 70..71, 71..tokens] {
                        let part = |x: &[f32]| {
                            let columns = x.len() / tokens;
                            x[rows.start * columns..rows.end * columns].to_vec()
                        };
                        let [q, k, v] = x.map(part);
                        let alone = run(Isa::detect(), 1, &a, [&q, &k, &v], None);
                        assert!(bits(&alone) == bits(&part(&together)), "{a:?} {rows:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_reaches_the_rows_that_see_it() {
        let a = Attention { heads: 2, kv_heads: 2, head_dim: 16, scale: 0.25, mask: Mask::Full, cache: None };
        let (tokens, mut seed) = (70, 3);
        let x: [Vec<f32>; 3] = std::array::from_fn(|_| random(&mut seed, tokens * 32));
        for which in 0..3 {
            let mut x = x.clone();
            // Of head 0 of token 66.
            x[which][66 * 32 + 5] = f32::NAN;
            let y = run(Isa::detect(), 1, &a, [&x[0], &x[1], &x[2]], None);
            for (token, y) in y.chunks_exact(32).enumerate() {
                let (seeing, other) = y.split_at(16);
                assert!(other.iter().all(|y| y.is_finite()));
                let sees = which > 0 || token == 66;
                assert!(seeing.iter().all(|y| y.is_nan() == sees), "{which} {token}");
            }
        }
        let mut v = x[2].clone();
        v[66 * 32 + 5] = f32::NAN;
        let a = Attention { mask: Mask::Causal, ..a };
        let [without, with] = [&x[2], &v].map(|v| run(Isa::detect(), 1, &a, [&x[0], &x[1], v], None));
        assert_eq!(bits(&without[..66 * 32]), bits(&with[..66 * 32]));
        assert!(with[66 * 32..].chunks_exact(32).all(|y| y[..16].iter().all(|y| y.is_nan())));
    }

    #[test]
    fn without_keys_the_result_is_zero() {
        let a = Attention { heads: 1, kv_heads: 1, head_dim: 8, scale: 1.0, mask: Mask::Full, cache: None };
        let y = run(Isa::detect(), 1, &a, [&[1.0; 16], &[], &[]], None);
        assert_eq!(y, [0.0; 16]);
    }
}
