//! Linear layers whose weights and activations are int8 with one scale a row.

use super::{
    Engine, carve,
    linear::{Epilogue, Grid, K_CHUNK, Shared, TASK_COLUMNS, TASK_ROWS, finish},
    rows::Source,
    view::Out,
};
use crate::{
    kernels::channel::ChannelProduct,
    lines::Lines,
    pack::{CHANNEL_STEP, ChannelMatrix, PANEL},
    threads::TaskPanic,
};

/// Rows that a task quantizes.
const QUANTIZE_ROWS: usize = 8;

/// The rows of one value quantized as wholes, shared by all layers that read it.
pub(crate) struct ChannelRows {
    q: Lines<i8>,
    q16: Lines<i16>,
    scale: Lines<f32>,
    /// Sums of codes.
    total: Lines<i32>,
}

impl ChannelRows {
    /// Room for `elements` numbers in `rows` rows, each filled up to a multiple of [`CHANNEL_STEP`].
    pub(crate) fn new(rows: usize, elements: usize, wide: bool) -> Self {
        ChannelRows {
            q: Lines::zeroed(elements),
            q16: Lines::zeroed(if wide { elements } else { 0 }),
            scale: Lines::zeroed(rows),
            total: Lines::zeroed(rows),
        }
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.q.size_bytes() + self.q16.size_bytes() + self.scale.size_bytes() + self.total.size_bytes()
    }

    /// Quantizes the rows of `source`: code = round(x / scale), scale = max |x| / 127 of its row.
    pub(crate) fn fill(&mut self, engine: &Engine, source: Source<'_>) -> Result<(), TaskPanic> {
        let x = source.x;
        let k = x.columns.next_multiple_of(CHANNEL_STEP);
        let wide = engine.kernels.channel.wants_q16;
        assert!(x.rows * k <= self.q.len() && x.rows <= self.scale.len());
        assert!(!wide || x.rows * k <= self.q16.len());
        let quantize = engine.kernels.rows.quantize_row;
        let (q, q16) = (Shared(self.q.as_mut_ptr()), Shared(self.q16.as_mut_ptr()));
        let (scale, total) = (Shared(self.scale.as_mut_ptr()), Shared(self.total.as_mut_ptr()));
        engine.run(x.rows.div_ceil(QUANTIZE_ROWS), &|worker, task| {
            for row in task * QUANTIZE_ROWS..x.rows.min((task + 1) * QUANTIZE_ROWS) {
                // SAFETY: each row is one task's own, and inside the buffers as asserted above; a worker runs one task
                // at a time.
                unsafe {
                    let q = q.slice(row * k, k);
                    let (codes, rest) = q.split_at_mut(x.columns);
                    rest.fill(0);
                    (scale.slice(row, 1)[0], total.slice(row, 1)[0]) =
                        quantize(source.row(engine, worker, row), codes);
                    if wide {
                        for (wide, q) in q16.slice(row * k, k).iter_mut().zip(q) {
                            *wide = i16::from(*q);
                        }
                    }
                }
            }
        })
    }
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
    assert!(out.columns == matrix.n && out.rows * matrix.k <= x.q.len());
    let grid = Grid { rows: out.rows, columns: out.columns };
    engine.run(grid.tasks(), &|worker, task| {
        let block = grid.block(task);
        // SAFETY: a worker runs one task at a time.
        let mut scratch = unsafe { engine.scratch.worker(worker) };
        let tile = carve(&mut scratch, TASK_ROWS * TASK_COLUMNS);
        let unpacked = carve(&mut scratch, K_CHUNK * PANEL * 2 / 4);
        for k in (0..matrix.k).step_by(K_CHUNK) {
            let len = K_CHUNK.min(matrix.k - k);
            for column in (0..block.columns).step_by(PANEL) {
                let mut codes = matrix.codes_at((block.column + column) / PANEL, k);
                if let Some(unpack) = kernels.unpack {
                    // SAFETY: `unpacked` has room for `K_CHUNK >= len` columns of 16-bit numbers.
                    unsafe { unpack(codes, len, unpacked.as_mut_ptr().cast()) }
                    codes = unpacked.as_ptr().cast();
                }
                let at = block.row * matrix.k + k;
                // SAFETY: the pointers are those of this task's tile and scratch, of the matrix and of the rows, all as
                // large as the product says; a float has the room of an integer.
                unsafe {
                    (kernels.gemm)(&ChannelProduct {
                        rows: block.rows,
                        k: len,
                        q: x.q.as_ptr().add(at),
                        q16: x.q16.as_ptr().wrapping_add(at),
                        lda: matrix.k,
                        codes,
                        sums: tile[column..].as_mut_ptr().cast(),
                        ldc: TASK_COLUMNS,
                        first: k == 0,
                    });
                }
            }
        }
        let scales = matrix.scales_at(block.column, block.columns);
        for (r, tile) in tile.chunks_exact_mut(TASK_COLUMNS).take(block.rows).enumerate() {
            let row = block.row + r;
            let offset = kernels.zero.wrapping_mul(x.total[row]);
            (engine.kernels.rows.scale_sums)(&mut tile[..block.columns], scales, offset, x.scale[row]);
        }
        finish(engine, block, tile, epilogue, out);
    })
}
