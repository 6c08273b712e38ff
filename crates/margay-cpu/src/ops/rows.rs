//! Ops that work row by row.

use super::{
    Engine,
    view::{Out, View},
};
use crate::threads::TaskPanic;
use margay_graph::{Activation, AdaptivePool, NormKind, Pool2d, Rope, RopeStyle};

/// Elements below which a task is not worth handing to another thread.
const TASK_ELEMENTS: usize = 8192;

/// Runs `each(worker, row)` for all rows, in tasks of several.
pub(super) fn for_rows(
    engine: &Engine,
    rows: usize,
    columns: usize,
    each: impl Fn(usize, usize) + Sync,
) -> Result<(), TaskPanic> {
    let rows_a_task = (TASK_ELEMENTS / columns.max(1)).max(1);
    engine.run(rows.div_ceil(rows_a_task), &|worker, task| {
        for row in task * rows_a_task..rows.min((task + 1) * rows_a_task) {
            each(worker, row);
        }
    })
}

/// A row of `out` that holds a copy of the same row of `x`, on which `out` may lie.
///
/// # Safety
/// As [`Out::row`].
unsafe fn copied<'a>(x: View<'a>, out: Out<'a>, row: usize) -> &'a mut [f32] {
    // SAFETY: the caller's promise; the read reference ends before the written one begins.
    unsafe {
        if !std::ptr::eq(x.pointer(), out.pointer()) {
            out.row(row).copy_from_slice(x.row(row));
        }
        out.row(row)
    }
}

/// A normalisation with its weights.
#[derive(Clone, Copy)]
pub(crate) struct Norm<'a> {
    pub(crate) kind: NormKind,
    pub(crate) weight: &'a [f32],
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) eps: f32,
}

impl Norm<'_> {
    fn apply(&self, engine: &Engine, x: &[f32], y: &mut [f32]) {
        let kernels = engine.kernels.rows;
        match self.kind {
            NormKind::Rms => (kernels.rms_norm)(x, y, self.weight, self.eps),
            NormKind::Layer => (kernels.layer_norm)(x, y, self.weight, self.bias, self.eps),
        }
        if let (NormKind::Rms, Some(bias)) = (self.kind, self.bias) {
            (kernels.add)(y, bias);
        }
    }
}

/// Rows to be quantized: those of a value, or what a normalisation makes of them, which then never is in memory.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) x: View<'a>,
    pub(crate) norm: Option<Norm<'a>>,
}

impl<'a> Source<'a> {
    /// The row as it is to be quantized; a norm's is in the scratch of `worker`, which needs room for it.
    ///
    /// # Safety
    /// As [`View::row`] and [`Scratch::worker`](super::Scratch::worker) ask.
    pub(crate) unsafe fn row(&self, engine: &'a Engine, worker: usize, row: usize) -> &'a [f32] {
        // SAFETY: the caller's promise.
        let x = unsafe { self.x.row(row) };
        let Some(norm) = self.norm else { return x };
        // SAFETY: the caller's promise.
        let y = &mut unsafe { engine.scratch.worker(worker) }[..x.len()];
        norm.apply(engine, x, y);
        y
    }
}

/// Normalises each row. Where `out` lies on `x`, the scratch of a worker has room for a row.
pub(crate) fn norm(engine: &Engine, norm: Norm<'_>, x: View<'_>, out: Out<'_>) -> Result<(), TaskPanic> {
    // Each head by itself, where the weight is as wide as a head.
    let (x, out) = (x.pieces(norm.weight.len()), out.pieces(norm.weight.len()));
    let in_place = std::ptr::eq(x.pointer(), out.pointer());
    for_rows(engine, out.rows, out.columns, |worker, row| {
        // SAFETY: each row is one task's own; where both are the same, the reference to x ends before y's begins.
        unsafe {
            if in_place {
                let copy = &mut engine.scratch.worker(worker)[..x.columns];
                copy.copy_from_slice(x.row(row));
                norm.apply(engine, copy, out.row(row));
            } else {
                norm.apply(engine, x.row(row), out.row(row));
            }
        }
    })
}

/// `act(x)`
pub(crate) fn activation(
    engine: &Engine,
    act: Activation,
    x: View<'_>,
    out: Out<'_>,
) -> Result<(), TaskPanic> {
    for_rows(engine, out.rows, out.columns, |_, row| {
        // SAFETY: each row is one task's own.
        (engine.kernels.rows.activate)(act, unsafe { copied(x, out, row) });
    })
}

/// `act(gate) * up`; `out` may lie on `gate`.
pub(crate) fn glu(
    engine: &Engine,
    act: Activation,
    gate: View<'_>,
    up: View<'_>,
    out: Out<'_>,
) -> Result<(), TaskPanic> {
    let kernels = engine.kernels.rows;
    for_rows(engine, out.rows, out.columns, |_, row| {
        // SAFETY: each row is one task's own; `up` and `out` are different values.
        unsafe {
            (kernels.glu)(act, copied(gate, out, row), up.row(row));
        }
    })
}

/// `x * factor`
pub(crate) fn scale(engine: &Engine, factor: f32, x: View<'_>, out: Out<'_>) -> Result<(), TaskPanic> {
    for_rows(engine, out.rows, out.columns, |_, row| {
        // SAFETY: each row is one task's own.
        (engine.kernels.rows.scale)(unsafe { copied(x, out, row) }, factor);
    })
}

/// `a + b` or `a * b`; b may be one row.
pub(crate) fn elementwise(
    engine: &Engine,
    kernel: fn(&mut [f32], &[f32]),
    a: View<'_>,
    b: View<'_>,
    out: Out<'_>,
) -> Result<(), TaskPanic> {
    for_rows(engine, out.rows, out.columns, |_, row| {
        // SAFETY: each row is one task's own; where `b` is `a`, `out` lies on neither.
        unsafe {
            let y = copied(a, out, row);
            kernel(y, b.row(if b.rows == 1 { 0 } else { row }));
        }
    })
}

/// Cosines and sines of the angles of each row's positions, of which it has one for each axis; `[rows, rotary / 2]`
/// each. Angles are float64: at position 4000 a float32 angle is off by 1e-4.
pub(crate) fn rope_table(
    frequencies: &[(usize, f64)],
    positions: &[i32],
    axes: usize,
    cos: &mut [f32],
    sin: &mut [f32],
) {
    let n = frequencies.len();
    for (row, position) in positions.chunks_exact(axes).enumerate() {
        for (i, (axis, frequency)) in frequencies.iter().enumerate() {
            let angle = f64::from(position[*axis]) * frequency;
            let (s, c) = angle.sin_cos();
            (sin[row * n + i], cos[row * n + i]) = (s as f32, c as f32);
        }
    }
}

/// The axis that each pair follows, and by how much position 1 turns it.
pub(crate) fn rope_frequencies(rope: &Rope, factors: Option<&[f32]>) -> Vec<(usize, f64)> {
    let mut frequencies = rope.frequencies();
    for ((_, frequency), factor) in frequencies.iter_mut().zip(factors.unwrap_or_default()) {
        *frequency /= f64::from(*factor);
    }
    frequencies
}

/// Rotary position embedding.
pub(crate) fn rope(
    engine: &Engine,
    rope: &Rope,
    (cos, sin): (&[f32], &[f32]),
    x: View<'_>,
    out: Out<'_>,
) -> Result<(), TaskPanic> {
    let n = rope.rotary / 2;
    let kernel = match rope.style {
        RopeStyle::Half => engine.kernels.rows.rope_half,
        RopeStyle::Interleaved => engine.kernels.rows.rope_interleaved,
    };
    for_rows(engine, out.rows, out.columns, |_, row| {
        // SAFETY: each row is one task's own.
        let y = unsafe { copied(x, out, row) };
        for head in y.chunks_exact_mut(rope.head_dim) {
            kernel(&mut head[..rope.rotary], &cos[row * n..][..n], &sin[row * n..][..n]);
        }
    })
}

/// The mean row.
pub(crate) fn mean_rows(engine: &Engine, x: View<'_>, out: Out<'_>) -> Result<(), TaskPanic> {
    // SAFETY: this thread alone touches `out`, which does not lie on `x`.
    let y = unsafe { out.row(0) };
    y.fill(0.0);
    for row in 0..x.rows {
        // SAFETY: nobody writes x meanwhile.
        (engine.kernels.rows.add)(y, unsafe { x.row(row) });
    }
    let count = x.rows as f32;
    y.iter_mut().for_each(|y| *y /= count);
    Ok(())
}

/// `out[row] = x[source(row)]`, columns from `start` on.
pub(crate) fn copy_rows(
    engine: &Engine,
    x: View<'_>,
    start: usize,
    out: Out<'_>,
    source: impl Fn(usize) -> usize + Sync,
) -> Result<(), TaskPanic> {
    for_rows(engine, out.rows, out.columns, |_, row| {
        // SAFETY: each row is one task's own; `out` does not lie on `x`.
        unsafe { out.row(row).copy_from_slice(&x.row(source(row))[start..][..out.columns]) }
    })
}

/// Those columns of each row.
pub(crate) fn select_columns(
    engine: &Engine,
    x: View<'_>,
    columns: &[usize],
    out: Out<'_>,
) -> Result<(), TaskPanic> {
    for_rows(engine, out.rows, out.columns, |_, row| {
        // SAFETY: each row is one task's own; `out` does not lie on `x`.
        let (from, to) = unsafe { (x.row(row), out.row(row)) };
        to.iter_mut().zip(columns).for_each(|(to, column)| *to = from[*column]);
    })
}

/// Each row, with zeros in those columns.
pub(crate) fn zero_columns(
    engine: &Engine,
    x: View<'_>,
    columns: &[usize],
    out: Out<'_>,
) -> Result<(), TaskPanic> {
    for_rows(engine, out.rows, out.columns, |_, row| {
        // SAFETY: each row is one task's own; `out` does not lie on `x`.
        let (from, to) = unsafe { (x.row(row), out.row(row)) };
        to.copy_from_slice(from);
        columns.iter().for_each(|column| to[*column] = 0.0);
    })
}

/// a's rows, then b's.
pub(crate) fn concat_rows(engine: &Engine, a: View<'_>, b: View<'_>, out: Out<'_>) -> Result<(), TaskPanic> {
    for_rows(engine, out.rows, out.columns, |_, row| {
        // SAFETY: each row is one task's own; `out` lies on neither.
        unsafe {
            let from = if row < a.rows { a.row(row) } else { b.row(row - a.rows) };
            out.row(row).copy_from_slice(from);
        }
    })
}

/// a's columns, then b's.
pub(crate) fn concat_columns(
    engine: &Engine,
    a: View<'_>,
    b: View<'_>,
    out: Out<'_>,
) -> Result<(), TaskPanic> {
    for_rows(engine, out.rows, out.columns, |_, row| {
        // SAFETY: each row is one task's own; `out` lies on neither.
        unsafe {
            let (left, right) = out.row(row).split_at_mut(a.columns);
            left.copy_from_slice(a.row(row));
            right.copy_from_slice(b.row(row));
        }
    })
}

/// Squares of a picture `[channels, height, width]` as rows.
pub(crate) fn patchify(
    engine: &Engine,
    pixels: &[f32],
    (height, width): (usize, usize),
    patch: usize,
    out: Out<'_>,
) -> Result<(), TaskPanic> {
    let across = width / patch;
    for_rows(engine, out.rows, out.columns, |_, row| {
        let (y0, x0) = (row / across * patch, row % across * patch);
        // SAFETY: each row is one task's own.
        let out = unsafe { out.row(row) };
        for (i, line) in out.chunks_exact_mut(patch).enumerate() {
            let (channel, y) = (i / patch, y0 + i % patch);
            line.copy_from_slice(&pixels[(channel * height + y) * width + x0..][..patch]);
        }
    })
}

/// Mean of each square of a feature map.
pub(crate) fn avg_pool2d(engine: &Engine, pool: &Pool2d, x: View<'_>, out: Out<'_>) -> Result<(), TaskPanic> {
    let (kernel, across) = (pool.kernel, pool.width / pool.kernel);
    for_rows(engine, out.rows, out.columns * kernel * kernel, |_, row| {
        let (y0, x0) = (row / across * kernel, row % across * kernel);
        // SAFETY: each row is one task's own; `out` does not lie on `x`.
        let out = unsafe { out.row(row) };
        out.fill(0.0);
        for i in 0..kernel * kernel {
            let source = (y0 + i / kernel) * pool.width + x0 + i % kernel;
            // SAFETY: nobody writes x meanwhile.
            (engine.kernels.rows.add)(out, unsafe { x.row(source) });
        }
        (engine.kernels.rows.scale)(out, 1.0 / (kernel * kernel) as f32);
    })
}

/// A map of rows of a value.
pub(crate) struct Map<'a> {
    rows: &'a [i32],
    height: usize,
    width: usize,
}

impl<'a> Map<'a> {
    /// # Errors
    /// What is wrong with a map of `size` over a value of `count` rows.
    pub(crate) fn new(count: usize, rows: &'a [i32], size: &[i32]) -> Result<Self, String> {
        let side = |at: usize| size.get(at).and_then(|n| usize::try_from(*n).ok()).filter(|n| *n > 0);
        let (Some(height), Some(width)) = (side(0), side(1)) else {
            return Err(format!("a map of the size {size:?}"));
        };
        if height.checked_mul(width) != Some(rows.len()) {
            return Err(format!("{} places are no map of {height} x {width}", rows.len()));
        }
        match rows.iter().find(|row| usize::try_from(**row).map_or(true, |row| row >= count)) {
            Some(row) => Err(format!("row {row} of a value of {count} rows")),
            None => Ok(Map { rows, height, width }),
        }
    }
}

/// Mean of each part of a feature map.
pub(crate) fn adaptive_pool(
    engine: &Engine,
    pool: AdaptivePool,
    map: &Map<'_>,
    x: View<'_>,
    out: Out<'_>,
) -> Result<(), TaskPanic> {
    let part = |at: usize, of: usize, size: usize| at * size / of..((at + 1) * size).div_ceil(of);
    let each = (map.rows.len() / out.rows).max(1);
    for_rows(engine, out.rows, out.columns * each, |_, row| {
        let ys = part(row / pool.width, pool.height, map.height);
        let xs = part(row % pool.width, pool.width, map.width);
        // SAFETY: each row is one task's own; `out` does not lie on `x`.
        let out = unsafe { out.row(row) };
        out.fill(0.0);
        let count = ys.len() * xs.len();
        for at in ys.flat_map(|y| xs.clone().map(move |x| y * map.width + x)) {
            // SAFETY: nobody writes x meanwhile.
            (engine.kernels.rows.add)(out, unsafe { x.row(map.rows[at] as usize) });
        }
        (engine.kernels.rows.scale)(out, 1.0 / count as f32);
    })
}

/// The pixels of each square of a feature map side by side.
pub(crate) fn space_to_depth(
    engine: &Engine,
    pool: &Pool2d,
    x: View<'_>,
    out: Out<'_>,
) -> Result<(), TaskPanic> {
    let (kernel, across) = (pool.kernel, pool.width / pool.kernel);
    for_rows(engine, out.rows, out.columns, |_, row| {
        let (y0, x0) = (row / across * kernel, row % across * kernel);
        // SAFETY: each row is one task's own; `out` does not lie on `x`.
        let out = unsafe { out.row(row) };
        for (i, pixel) in out.chunks_exact_mut(x.columns).enumerate() {
            let source = (y0 + i / kernel) * pool.width + x0 + i % kernel;
            // SAFETY: nobody writes x meanwhile.
            pixel.copy_from_slice(unsafe { x.row(source) });
        }
    })
}
