//! Attention in bfloat16, for encoders whose layers multiply in it too: keys and values of a call are rounded once,
//! queries and weights as they come.
//!
//! Scores and results are sums in float32, and so is the softmax between them, as in [`super`]; only the operands of
//! both products are rounded. Queries are rounded after the scale, so that a score is off by the rounding of two numbers
//! and not of three. The sum of a row is that of the weights before they are rounded.
//!
//! A row goes through all blocks of keys in their order, and of a block through all keys that its tile sees: where it
//! does not see them itself, its weights are zeros. So its bits depend neither on the tile nor on the threads; but zero
//! times a value that is no number is none, and under a causal mask reaches the rows of a tile before it, as in [`super`].

use super::{over_segments, over_tiles, queries_a_tile, seen, write_row};
use crate::{
    kernels::{
        attention::{KEYS, NO_SCORE},
        bf16::{Bf16Kernels, Bf16Product},
    },
    lines::Lines,
    ops::{
        Engine,
        bf16::{ROUND_ROWS, kernels},
        carve,
        view::{Out, View},
    },
    pack::{BF16_STEP, PANEL},
    threads::TaskPanic,
};
use margay_graph::Attention;
use std::ops::Range;

/// Keys and values of one call.
///
/// Of each block of 64 a head has keys, `[4][D' / 2][16][2]`, and values, `[D' / 16][32][16][2]`, with D' the head
/// dimension rounded up to [`BF16_STEP`]: panels of 16 keys, and of 16 columns, as the products read them.
pub(crate) struct Bf16Slot {
    kv_heads: usize,
    head_dim: usize,
    /// Tokens, a multiple of [`KEYS`].
    capacity: usize,
    numbers: Lines<u16>,
}

const _: () = assert!(BF16_STEP.is_multiple_of(PANEL) && KEYS.is_multiple_of(BF16_STEP));

/// D rounded up.
fn wide(head_dim: usize) -> usize {
    head_dim.next_multiple_of(BF16_STEP)
}

/// Floats of scratch that a worker needs.
pub(crate) fn scratch_floats(a: &Attention) -> usize {
    // Of any kernels.
    let rows = (queries_a_tile(a) * (a.heads / a.kv_heads)).next_multiple_of(ROUND_ROWS);
    let wide = wide(a.head_dim);
    let tile = rows * ((wide + KEYS) / 2 + KEYS + wide + 3) + ROUND_ROWS * wide;
    // Two rows of all heads in bfloat16.
    let fill = a.kv_heads * a.head_dim;
    tile.max(fill) + 8 * 16
}

/// So many numbers in bfloat16 of the scratch.
fn carve_halves<'a>(memory: &mut &'a mut [f32], numbers: usize) -> &'a mut [u16] {
    let floats = carve(memory, numbers.div_ceil(2));
    // SAFETY: 2 numbers to a float.
    unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), numbers) }
}

impl Bf16Slot {
    /// Room for `tokens`, or `None` where the size overflows.
    pub(crate) fn new(a: &Attention, tokens: usize) -> Option<Self> {
        let capacity = tokens.checked_next_multiple_of(KEYS)?;
        let numbers = (2 * wide(a.head_dim)).checked_mul(a.kv_heads)?.checked_mul(capacity)?;
        let numbers = Lines::try_zeroed(numbers)?;
        Some(Bf16Slot { kv_heads: a.kv_heads, head_dim: a.head_dim, capacity, numbers })
    }

    /// Whether so many tokens of such heads fit.
    pub(crate) fn fits(&self, a: &Attention, tokens: usize) -> bool {
        self.kv_heads == a.kv_heads && self.head_dim == a.head_dim && self.capacity >= tokens
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.numbers.size_bytes()
    }

    /// Where the keys and the values of the block of `head` lie that token `at` begins.
    fn at(&self, head: usize, at: usize) -> [*mut u16; 2] {
        assert!(at < self.capacity && head < self.kv_heads);
        let (block, numbers) = (head * (self.capacity / KEYS) + at / KEYS, KEYS * wide(self.head_dim));
        // SAFETY: within the numbers.
        unsafe {
            let keys = self.numbers.pointer().add(2 * block * numbers);
            [keys, keys.add(numbers)]
        }
    }

    /// Rounds the block of `k` and `v` that begins at row `start`, for some heads: rows of many heads are long enough for
    /// the processor to fetch them ahead.
    ///
    /// # Safety
    /// Nobody else touches this block of these heads, and nobody writes `k` and `v`.
    unsafe fn fill(
        &self,
        engine: &Engine,
        heads: Range<usize>,
        start: usize,
        [k, v]: [View<'_>; 2],
        mut scratch: &mut [f32],
    ) {
        let (d, wide) = (self.head_dim, wide(self.head_dim));
        let [even, odd] = std::array::from_fn(|_| carve_halves(&mut scratch, heads.len() * d));
        let round = |x: View<'_>, two: usize, even: &mut [u16], odd: &mut [u16]| {
            for (row, numbers) in [(start + two, even), (start + two + 1, odd)] {
                if row < x.rows {
                    // SAFETY: the caller's promise.
                    let x = unsafe { x.part(row, heads.start * d, heads.len() * d) };
                    (engine.kernels.rows.round_to_bf16)(x, numbers);
                } else {
                    // A weight of zero times what a longer call left there might be no number.
                    numbers.fill(0);
                }
            }
        };
        let block = |head: usize, which: usize| {
            // SAFETY: all of it lies within the block, which is this task's own; one slice of it lives at a time.
            unsafe { std::slice::from_raw_parts_mut(self.at(head, start)[which], KEYS * wide) }
        };
        // What lies beyond D is never written: zeros.
        for two in (0..KEYS).step_by(2) {
            round(k, two, even, odd);
            for (head, (even, odd)) in heads.clone().zip(even.chunks_exact(d).zip(odd.chunks_exact(d))) {
                let panel = &mut block(head, 0)[two / PANEL * PANEL * wide..];
                let keys = panel.as_chunks_mut::<2>().0[two % PANEL..].chunks_mut(PANEL);
                for (to, (even, odd)) in keys.zip(even.chunks(2).zip(odd.chunks(2))) {
                    for (to, pair) in to.iter_mut().zip([even, odd]) {
                        *to = [pair[0], pair.get(1).copied().unwrap_or(0)];
                    }
                }
            }
            round(v, two, even, odd);
            for (head, (even, odd)) in heads.clone().zip(even.chunks_exact(d).zip(odd.chunks_exact(d))) {
                let panels = block(head, 1).chunks_exact_mut(KEYS * PANEL);
                for (to, (even, odd)) in panels.zip(even.chunks(PANEL).zip(odd.chunks(PANEL))) {
                    let to = to[two * PANEL..].as_chunks_mut::<2>().0;
                    for (to, (even, odd)) in to.iter_mut().zip(even.iter().zip(odd)) {
                        *to = [*even, *odd];
                    }
                }
            }
        }
    }
}

/// Attends to the rows of `k` and `v`; but under a full mask, query `i` sees those up to itself and the first `prefix`.
pub(crate) fn attend(
    engine: &Engine,
    a: &Attention,
    slot: &mut Bf16Slot,
    prefix: usize,
    [q, k, v]: [View<'_>; 3],
    out: Out<'_>,
) -> Result<(), TaskPanic> {
    let slot = &*slot;
    engine.run(k.rows.div_ceil(KEYS), &|worker, block| {
        // SAFETY: a worker runs one task at a time; each has a block of its own, and nobody writes k and v.
        unsafe { slot.fill(engine, 0..a.kv_heads, block * KEYS, [k, v], engine.scratch.worker(worker)) }
    })?;
    let call = Call { engine, products: kernels(engine), a, slot, keys: k.rows, prefix, q, out };
    over_tiles(engine, a, q.rows, &|kv_head, queries, scratch| call.tile(queries, kv_head, scratch))
}

/// As [`super::attend_in_segments`].
pub(crate) fn attend_in_segments(
    engine: &Engine,
    a: &Attention,
    slot: &mut Bf16Slot,
    segments: &[i32],
    qkv: [View<'_>; 3],
    out: Out<'_>,
) -> Result<(), TaskPanic> {
    let (slot, each) = (&*slot, queries_a_tile(a));
    over_segments(engine, a, segments, &|kv_head, rows, scratch| {
        let (start, keys) = (rows.start, rows.len());
        let [q, k, v] = qkv.map(|x| x.part_of_rows(start, keys));
        let out = out.part_of_rows(start, keys);
        for block in (0..keys).step_by(KEYS) {
            // SAFETY: each task has a head of its own, and nobody writes k and v.
            unsafe { slot.fill(engine, kv_head..kv_head + 1, block, [k, v], scratch) }
        }
        let call = Call { engine, products: kernels(engine), a, slot, keys, prefix: 0, q, out };
        for query in (0..keys).step_by(each) {
            call.tile(query..keys.min(query + each), kv_head, scratch);
        }
    })
}

/// One call.
struct Call<'a> {
    engine: &'a Engine,
    products: &'static Bf16Kernels,
    a: &'a Attention,
    slot: &'a Bf16Slot,
    keys: usize,
    prefix: usize,
    q: View<'a>,
    out: Out<'a>,
}

impl Call<'_> {
    /// Some queries of the heads that share `kv_head`. Row `r` is head `r % group` of query `r / group`.
    fn tile(&self, queries: Range<usize>, kv_head: usize, mut scratch: &mut [f32]) {
        let (query, queries) = (queries.start, queries.len());
        let (a, engine, together) = (self.a, self.engine, self.products.side_by_side);
        let (group, d, wide) = (a.heads / a.kv_heads, a.head_dim, wide(a.head_dim));
        let rows = queries * group;
        assert!(ROUND_ROWS.is_multiple_of(together));
        let room = rows.next_multiple_of(together);
        let q = carve_halves(&mut scratch, room * wide); // [rows, D'], side by side
        let weights = carve_halves(&mut scratch, room * KEYS); // [rows, KEYS], side by side
        let scores = carve(&mut scratch, room * KEYS); // [rows, KEYS]
        let result = carve(&mut scratch, room * wide); // [rows, D']
        let [max, sum, keep] = std::array::from_fn(|_| carve(&mut scratch, rows));
        let scaled = carve(&mut scratch, together * wide);
        scaled.fill(0.0);
        result.fill(0.0);
        max.fill(NO_SCORE);
        sum.fill(0.0);
        for (block, q) in q.chunks_exact_mut(together * wide).enumerate() {
            for (r, scaled) in (block * together..rows).zip(scaled.chunks_exact_mut(wide)) {
                let head = kv_head * group + r % group;
                // SAFETY: nobody writes q meanwhile.
                scaled[..d].copy_from_slice(unsafe { self.q.part(query + r / group, head * d, d) });
                (engine.kernels.rows.scale)(&mut scaled[..d], a.scale * std::f32::consts::LOG2_E);
            }
            (self.products.round)(scaled, wide, wide, q);
        }
        let sees = |r: usize| seen(a.mask, (0, self.keys, self.prefix), query + r / group);
        let most = sees(rows - 1);
        for start in (0..most).step_by(KEYS) {
            let [keys, values] = self.slot.at(kv_head, start);
            let visible = |r: usize| sees(r).saturating_sub(start).min(KEYS);
            let seen = visible(rows - 1);
            // SAFETY: queries, keys and scores are as large as the product says; all of this head was written before.
            unsafe {
                self.multiply(
                    seen.div_ceil(PANEL),
                    &Bf16Product {
                        rows,
                        panels: 0,
                        k: wide,
                        a: q.as_ptr(),
                        b: keys,
                        b_panel: PANEL * wide,
                        c: scores.as_mut_ptr(),
                        ldc: KEYS,
                        first: true,
                    },
                );
            }
            if visible(0) < KEYS {
                for (r, row) in scores.chunks_exact_mut(KEYS).take(rows).enumerate() {
                    row[visible(r)..].fill(f32::NEG_INFINITY);
                }
            }
            (engine.kernels.attention.softmax.block)(&mut scores[..rows * KEYS], max, sum, keep);
            for (result, keep) in result.chunks_exact_mut(wide).zip(&*keep) {
                if *keep != 1.0 {
                    (engine.kernels.rows.scale)(result, *keep);
                }
            }
            let k = seen.next_multiple_of(BF16_STEP);
            let blocks = scores.chunks_exact(together * KEYS).zip(weights.chunks_exact_mut(together * k));
            blocks.for_each(|(scores, weights)| (self.products.round)(scores, KEYS, k, weights));
            // SAFETY: as above; what is no key of the block has a weight of zero, and values of zero.
            unsafe {
                self.multiply(
                    wide / PANEL,
                    &Bf16Product {
                        rows,
                        panels: 0,
                        k,
                        a: weights.as_ptr(),
                        b: values,
                        b_panel: PANEL * KEYS,
                        c: result.as_mut_ptr(),
                        ldc: wide,
                        first: false,
                    },
                );
            }
        }
        for (r, result) in result.chunks_exact_mut(wide).take(rows).enumerate() {
            let at = (query + r / group, kv_head * group + r % group);
            // SAFETY: these elements are this task's own.
            unsafe { write_row(engine, d, self.out, at, result, sum[r]) }
        }
    }

    /// The product with so many panels, from those of `p` on.
    ///
    /// # Safety
    /// Every pointer of the product is valid for what its field says, with so many panels.
    unsafe fn multiply(&self, panels: usize, p: &Bf16Product) {
        for panel in (0..panels).step_by(self.products.panels) {
            // SAFETY: the caller's promise.
            unsafe {
                (self.products.gemm)(&Bf16Product {
                    panels: self.products.panels.min(panels - panel),
                    b: p.b.add(panel * p.b_panel),
                    c: p.c.add(panel * PANEL),
                    ..*p
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CpuBackend, CpuOptions, Isa, kernels};
    use margay_graph::Mask;

    /// A number is off by half a unit of its 8 binary digits.
    const ROUNDING: f64 = 1.0 / 256.0;
    /// Errors of results over results, root mean squares: many roundings, of either sign and of half that on average, and
    /// those of weights and of values come together.
    const TYPICAL: f64 = ROUNDING;

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

    /// The instruction set that multiplies bfloat16, where there is one; `tests/fusion.rs` says so where there is none.
    fn isa() -> Option<Isa> {
        Isa::supported().find(|isa| kernels::bf16::table(*isa).is_some())
    }

    fn run_in(
        slot: &mut Bf16Slot,
        threads: usize,
        a: &Attention,
        x: [&[f32]; 3],
        segments: Option<&[i32]>,
    ) -> Vec<f32> {
        let options = CpuOptions { threads: Some(threads), isa: isa(), ..Default::default() };
        let engine = CpuBackend::new(options).unwrap().engine(scratch_floats(a));
        let columns = [a.heads, a.kv_heads, a.kv_heads].map(|heads| heads * a.head_dim);
        let mut y = vec![f32::NAN; x[0].len()];
        // SAFETY: borrowed for this call.
        let out = unsafe { Out::new(y.as_mut_ptr(), x[0].len() / columns[0], columns[0]) };
        let x = std::array::from_fn(|i| view(x[i], columns[i]));
        match segments {
            Some(segments) => attend_in_segments(&engine, a, slot, segments, x, out).unwrap(),
            None => attend(&engine, a, slot, 0, x, out).unwrap(),
        }
        y
    }

    fn run(threads: usize, a: &Attention, x: [&[f32]; 3], segments: Option<&[i32]>) -> Vec<f32> {
        let mut slot = Bf16Slot::new(a, x[1].len() / (a.kv_heads * a.head_dim)).unwrap();
        run_in(&mut slot, threads, a, x, segments)
    }

    fn bits(y: &[f32]) -> Vec<u32> {
        y.iter().map(|y| y.to_bits()).collect()
    }

    /// One query of one head in float64, of operands that went through `round`, and of each number the sum of magnitudes.
    fn naive(
        a: &Attention,
        [q, k, v]: [&[f32]; 3],
        (query, head): (usize, usize),
        keys: usize,
        round: impl Fn(f32) -> f32,
    ) -> Vec<(f64, f64)> {
        let (d, kv_head) = (a.head_dim, head / (a.heads / a.kv_heads));
        let row = |of: &[f32], at: usize, head: usize, heads: usize, factor: f32| -> Vec<f64> {
            of[(at * heads + head) * d..][..d].iter().map(|x| f64::from(round(x * factor))).collect()
        };
        let q = row(q, query, head, a.heads, a.scale * std::f32::consts::LOG2_E);
        let row = |of: &[f32], at: usize| row(of, at, kv_head, a.kv_heads, 1.0);
        let scores: Vec<f64> =
            (0..keys).map(|at| q.iter().zip(row(k, at)).map(|(q, k)| q * k).sum()).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp2()).collect();
        let total: f64 = weights.iter().sum();
        let mut y = vec![(0.0, 0.0); d];
        for (at, weight) in weights.iter().enumerate() {
            for ((y, magnitude), v) in y.iter_mut().zip(row(v, at)) {
                *y += weight / total * v;
                *magnitude += weight / total * v.abs();
            }
        }
        y
    }

    #[test]
    fn it_is_near_float64_and_its_bits_depend_on_nothing() {
        if isa().is_none() {
            return;
        }
        for (heads, kv_heads, head_dim) in [(2, 2, 72), (4, 2, 40), (3, 1, 64), (8, 1, 5), (1, 1, 288)] {
            for mask in [Mask::Full, Mask::Causal] {
                let scale = (head_dim as f32).powf(-0.5);
                let a = Attention { heads, kv_heads, head_dim, scale, mask, cache: None };
                let (tokens, mut seed) = (197, 7);
                let q = random(&mut seed, tokens * heads * head_dim);
                let k = random(&mut seed, tokens * kv_heads * head_dim);
                let v = random(&mut seed, tokens * kv_heads * head_dim);
                let x = [&q[..], &k, &v];
                let y = run(1, &a, x, None);
                let (mut squares, mut of) = (0.0, 0.0);
                for query in [0, 1, 62, 63, 64, 100, 196] {
                    for head in [0, heads - 1] {
                        let keys = if mask == Mask::Full { tokens } else { query + 1 };
                        let rounded = naive(&a, x, (query, head), keys, |x| half::bf16::from_f32(x).to_f32());
                        let exact = naive(&a, x, (query, head), keys, |x| x);
                        let y = &y[(query * heads + head) * head_dim..];
                        for (y, ((expected, magnitude), (exact, _))) in
                            y.iter().zip(rounded.iter().zip(exact))
                        {
                            // Beside the rounding of weights, float32 sums and exponentials count for little.
                            let bound = magnitude * ROUNDING * 1.01;
                            let error = (f64::from(*y) - expected).abs();
                            assert!(error <= bound, "{a:?}: query {query} is off by {error}, not {bound}");
                            squares += (f64::from(*y) - exact).powi(2);
                            of += exact * exact;
                        }
                    }
                }
                let error = f64::sqrt(squares / of);
                println!("{a:?}: off by {:.2}% (root mean square)", 100.0 * error);
                assert!(error < TYPICAL, "{a:?}: {error}");
                assert!(bits(&y) == bits(&run(3, &a, x, None)), "{a:?}");
                if mask == Mask::Full {
                    // A query alone, and in a tile of others.
                    let columns = heads * head_dim;
                    for (from, rows) in [(0, 1), (50, 3), (190, 7)] {
                        let part = run(2, &a, [&q[from * columns..][..rows * columns], &k, &v], None);
                        assert_eq!(bits(&part), bits(&y[from * columns..][..rows * columns]));
                    }
                    // A segment is as a call of its own.
                    let segments: Vec<i32> =
                        (0..tokens).map(|i| i32::from(i >= 70) + i32::from(i >= 71)).collect();
                    let together = run(2, &a, x, Some(&segments));
                    for rows in [0..70, 70..71, 71..tokens] {
                        let part = |x: &[f32]| {
                            let columns = x.len() / tokens;
                            x[rows.start * columns..rows.end * columns].to_vec()
                        };
                        let [q, k, v] = x.map(part);
                        let alone = run(1, &a, [&q, &k, &v], None);
                        assert!(bits(&alone) == bits(&part(&together)), "{a:?} {rows:?}");
                    }
                } else {
                    // A query sees what it would be called with.
                    let first = |x: &[f32]| x[..x.len() / tokens * 101].to_vec();
                    let [q, k, v] = x.map(first);
                    assert!(bits(&run(1, &a, [&q, &k, &v], None)) == bits(&first(&y)), "{a:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_reaches_the_rows_that_see_it() {
        if isa().is_none() {
            return;
        }
        let a = Attention { heads: 2, kv_heads: 2, head_dim: 20, scale: 0.25, mask: Mask::Full, cache: None };
        let (tokens, columns, mut seed) = (70, 40, 3);
        let x: [Vec<f32>; 3] = std::array::from_fn(|_| random(&mut seed, tokens * columns));
        let mut slot = Bf16Slot::new(&a, tokens).unwrap();
        for which in 0..3 {
            let mut x = x.clone();
            // Of head 0 of token 66.
            x[which][66 * columns + 5] = f32::NAN;
            let y = run_in(&mut slot, 1, &a, [&x[0], &x[1], &x[2]], None);
            for (token, y) in y.chunks_exact(columns).enumerate() {
                let (seeing, other) = y.split_at(a.head_dim);
                assert!(other.iter().all(|y| y.is_finite()));
                for (column, y) in seeing.iter().enumerate() {
                    let sees = [token == 66, true, column == 5][which];
                    assert_eq!(y.is_nan(), sees, "{which} {token} {column}");
                }
            }
        }
        // What lies there still is none of the keys of a shorter call.
        let first = |x: &[f32]| x[..65 * columns].to_vec();
        let x = [&x[0], &x[1], &x[2]].map(|x| first(x));
        let y = run_in(&mut slot, 1, &a, [&x[0], &x[1], &x[2]], None);
        assert_eq!(bits(&y), bits(&run(1, &a, [&x[0], &x[1], &x[2]], None)));
        assert!(y.iter().all(|y| y.is_finite()));
    }

    #[test]
    fn without_keys_the_result_is_zero() {
        if isa().is_none() {
            return;
        }
        let a = Attention { heads: 1, kv_heads: 1, head_dim: 8, scale: 1.0, mask: Mask::Full, cache: None };
        let y = run(1, &a, [&[1.0; 16], &[], &[]], None);
        assert_eq!(y, [0.0; 16]);
    }
}
