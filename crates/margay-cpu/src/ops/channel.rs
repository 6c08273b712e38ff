//! Linear layers whose weights and activations are int8 with one scale a row.

use super::{
    Engine, carve,
    linear::{Epilogue, Grid, K_CHUNK, Shared, TASK_COLUMNS, TASK_ROWS, finish},
    rows::Source,
    view::Out,
};
use crate::{
    kernels::{
        Kernels,
        channel::{COPY_ROWS, ChannelProduct},
    },
    lines::Lines,
    pack::{CHANNEL_STEP, ChannelMatrix, PANEL},
    threads::TaskPanic,
};

/// Rows that a task quantizes: a multiple of those that a copy puts together, so that no two tasks share such.
const QUANTIZE_ROWS: usize = 2 * COPY_ROWS;

/// The rows of one value quantized as wholes, shared by all layers that read it.
pub(crate) struct ChannelRows {
    q: Lines<i8>,
    /// What kernels read that ask for a copy: one [`K_CHUNK`] of columns of all rows after the other.
    copy: Lines<u8>,
    /// Rows of the value they were made of last.
    rows: usize,
    scale: Lines<f32>,
    /// Sums of codes.
    total: Lines<i32>,
}

impl ChannelRows {
    /// Room for so many rows of so many columns at most, filled up to a multiple of [`CHANNEL_STEP`].
    pub(crate) fn new(kernels: &Kernels, rows: usize, columns: usize) -> Self {
        let k = columns.next_multiple_of(CHANNEL_STEP);
        let copied = if kernels.channel.copy.is_some() { rows.next_multiple_of(COPY_ROWS) } else { 0 };
        ChannelRows {
            q: Lines::zeroed(rows * k),
            copy: Lines::zeroed(copied * k),
            rows: 0,
            scale: Lines::zeroed(rows),
            total: Lines::zeroed(rows),
        }
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.q.size_bytes() + self.copy.size_bytes() + self.scale.size_bytes() + self.total.size_bytes()
    }

    /// Quantizes the rows of `source`: code = round(x / scale), scale = max |x| / 127 of its row.
    pub(crate) fn fill(&mut self, engine: &Engine, source: Source<'_>) -> Result<(), TaskPanic> {
        let x = source.x;
        let k = x.columns.next_multiple_of(CHANNEL_STEP);
        let copy = engine.kernels.channel.copy;
        assert!(x.rows * k <= self.q.len() && x.rows <= self.scale.len());
        assert!(copy.is_none() || x.rows.next_multiple_of(COPY_ROWS) * k <= self.copy.len());
        self.rows = x.rows;
        let quantize = engine.kernels.rows.quantize_row;
        let (q, copies) = (Shared(self.q.as_mut_ptr()), Shared(self.copy.as_mut_ptr()));
        let (scale, total) = (Shared(self.scale.as_mut_ptr()), Shared(self.total.as_mut_ptr()));
        engine.run(x.rows.div_ceil(QUANTIZE_ROWS), &|worker, task| {
            let rows = task * QUANTIZE_ROWS..x.rows.min((task + 1) * QUANTIZE_ROWS);
            for row in rows.clone() {
                // SAFETY: each row is one task's own, and inside the buffers as asserted above; a worker runs one task
                // at a time.
                unsafe {
                    let q = q.slice(row * k, k);
                    let (codes, rest) = q.split_at_mut(x.columns);
                    rest.fill(0);
                    (scale.slice(row, 1)[0], total.slice(row, 1)[0]) =
                        quantize(source.row(engine, worker, row), codes);
                }
            }
            for at in (0..k).step_by(K_CHUNK) {
                let Some(copy) = copy else { break };
                let columns = K_CHUNK.min(k - at);
                let room = rows.len().next_multiple_of(COPY_ROWS) * columns;
                // SAFETY: the rows are this task's own and were written just now; asserted above.
                unsafe {
                    let to = copies.slice(copy_at(x.rows, k, rows.start, at), room);
                    copy(rows.len(), columns, q.0.add(rows.start * k + at), k, to.as_mut_ptr(), true);
                }
            }
        })
    }
}

/// Where the copy of `row` and of the [`K_CHUNK`] from column `at` on begins, of so many rows of `k` columns.
fn copy_at(rows: usize, k: usize, row: usize, at: usize) -> usize {
    at * rows.next_multiple_of(COPY_ROWS) + row * K_CHUNK.min(k - at)
}

/// Multiplies the rows that `x` holds with a matrix: `y = sum(codes) * weight scale * row scale`, then the epilogue.
pub(crate) fn multiply(
    engine: &Engine,
    matrix: &ChannelMatrix,
    x: &ChannelRows,
    epilogue: Epilogue<'_>,
    out: Out<'_>,
) -> Result<(), TaskPanic> {
    let kernels = engine.kernels.channel;
    assert!(out.columns == matrix.n && out.rows == x.rows && out.rows * matrix.k <= x.q.len());
    let grid = Grid { rows: out.rows, columns: out.columns };
    engine.run(grid.tasks(), &|worker, task| {
        let block = grid.block(task);
        // SAFETY: a worker runs one task at a time.
        let mut scratch = unsafe { engine.scratch.worker(worker) };
        let tile = carve(&mut scratch, TASK_ROWS * TASK_COLUMNS);
        for k in (0..matrix.k).step_by(K_CHUNK) {
            let len = K_CHUNK.min(matrix.k - k);
            let (first, panels) = (block.column / PANEL, block.columns.div_ceil(PANEL));
            for at in (0..panels).step_by(kernels.panels) {
                // SAFETY: the pointers are those of this task's tile and scratch, of the matrix and of the rows, all as
                // large as the product says; a float has the room of an integer.
                unsafe {
                    (kernels.gemm)(&ChannelProduct {
                        rows: block.rows,
                        panels: kernels.panels.min(panels - at),
                        k: len,
                        q: x.q.as_ptr().add(block.row * matrix.k + k),
                        lda: matrix.k,
                        copy: x.copy.as_ptr().wrapping_add(copy_at(x.rows, matrix.k, block.row, k)),
                        codes: matrix.codes_at(first + at, k),
                        codes_panel: matrix.k * PANEL,
                        totals: matrix.totals_at(first + at),
                        sums: tile[at * PANEL..].as_mut_ptr().cast(),
                        ldc: TASK_COLUMNS,
                        first: k == 0,
                    });
                }
            }
        }
        let scales = matrix.scales_at(block.column, block.columns);
        let bias = epilogue.bias.map(|bias| &bias[block.column..][..block.columns]);
        for (r, tile) in tile.chunks_exact_mut(TASK_COLUMNS).take(block.rows).enumerate() {
            let row = block.row + r;
            let offset = kernels.zero.wrapping_mul(x.total[row]);
            let sums = &mut tile[..block.columns];
            (engine.kernels.rows.scale_sums)(sums, scales, offset, x.scale[row], bias);
        }
        finish(engine, block, tile, Epilogue { bias: None, ..epilogue }, out);
    })
}
