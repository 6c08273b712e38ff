//! Linear layers whose weights and activations are bfloat16.

use super::{
    Engine, carve,
    linear::{Epilogue, Grid, K_CHUNK, Shared, TASK_COLUMNS, TASK_ROWS, finish},
    rows::Source,
    view::Out,
};
use crate::{
    kernels::bf16::{Bf16Kernels, Bf16Product},
    lines::Lines,
    pack::{BF16_STEP, Bf16Matrix, PANEL},
    threads::TaskPanic,
};

/// Rows that a task rounds.
const ROUND_ROWS: usize = 8;

/// The rows of one value in bfloat16, shared by all layers that read it.
pub(crate) struct Bf16Rows(Lines<u16>);

impl Bf16Rows {
    /// Room for `elements` numbers of rows that are filled up to a multiple of [`BF16_STEP`].
    pub(crate) fn new(elements: usize) -> Self {
        Bf16Rows(Lines::zeroed(elements))
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.0.size_bytes()
    }

    /// Rounds the rows of `source` to the nearest, ties to even.
    pub(crate) fn fill(&mut self, engine: &Engine, source: Source<'_>) -> Result<(), TaskPanic> {
        let (rows, columns) = (source.x.rows, source.x.columns);
        let k = columns.next_multiple_of(BF16_STEP);
        assert!(rows * k <= self.0.len());
        let out = Shared(self.0.as_mut_ptr());
        engine.run(rows.div_ceil(ROUND_ROWS), &|worker, task| {
            for row in task * ROUND_ROWS..rows.min((task + 1) * ROUND_ROWS) {
                // SAFETY: each row is one task's own, and inside the buffer as asserted above; a worker runs one task at
                // a time.
                let (out, x) = unsafe { (out.slice(row * k, k), source.row(engine, worker, row)) };
                let (out, rest) = out.split_at_mut(columns);
                rest.fill(0);
                (engine.kernels.rows.round_to_bf16)(x, out);
            }
        })
    }
}

/// Multiplies the rows that `x` holds with a matrix, then the epilogue.
pub(crate) fn multiply(
    engine: &Engine,
    kernels: &Bf16Kernels,
    matrix: &Bf16Matrix,
    x: &Bf16Rows,
    epilogue: Epilogue<'_>,
    out: Out<'_>,
) -> Result<(), TaskPanic> {
    assert!(out.columns == matrix.n && out.rows * matrix.k <= x.0.len());
    let grid = Grid { rows: out.rows, columns: out.columns };
    engine.run(grid.tasks(), &|worker, task| {
        let block = grid.block(task);
        // SAFETY: a worker runs one task at a time.
        let mut scratch = unsafe { engine.scratch.worker(worker) };
        let tile = carve(&mut scratch, TASK_ROWS * TASK_COLUMNS);
        for k in (0..matrix.k).step_by(K_CHUNK) {
            for column in (0..block.columns).step_by(PANEL) {
                // SAFETY: the pointers are those of this task's tile, of the matrix and of the rows, all as large as the
                // product says.
                unsafe {
                    (kernels.gemm)(&Bf16Product {
                        rows: block.rows,
                        k: K_CHUNK.min(matrix.k - k),
                        a: x.0.as_ptr().add(block.row * matrix.k + k),
                        lda: matrix.k,
                        b: matrix.at((block.column + column) / PANEL, k),
                        c: tile[column..].as_mut_ptr(),
                        ldc: TASK_COLUMNS,
                        first: k == 0,
                    });
                }
            }
        }
        finish(engine, block, tile, epilogue, out);
    })
}
