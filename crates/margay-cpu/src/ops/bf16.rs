//! Linear layers whose weights and activations are bfloat16.

use super::{
    Engine, carve,
    linear::{Epilogue, Grid, Shared, TASK_COLUMNS, TASK_ROWS, finish},
    rows::Source,
    view::Out,
};
use crate::{
    kernels::bf16::{Bf16Kernels, Bf16Product},
    lines::Lines,
    pack::{BF16_STEP, Bf16Matrix, PANEL},
    threads::TaskPanic,
};

/// Rows that a task rounds: a multiple of those that lie side by side, so that no two tasks share a block of them.
pub(super) const ROUND_ROWS: usize = 8;
/// Columns of k whose panels stay in L1 while all rows of a task pass by: two panels of them are 16 KiB.
const CHUNK: usize = 256;
const _: () = assert!(CHUNK.is_multiple_of(BF16_STEP));

/// The rows of one value in bfloat16, shared by all layers that read it.
pub(crate) struct Bf16Rows {
    /// One [`CHUNK`] of columns of all rows after the other, as [`Bf16Product::a`] has them.
    numbers: Lines<u16>,
    /// Rows of the value they were made of last.
    rows: usize,
}

impl Bf16Rows {
    /// Room for `elements` numbers.
    pub(crate) fn new(elements: usize) -> Self {
        Bf16Rows { numbers: Lines::zeroed(elements), rows: 0 }
    }

    /// Numbers that so many rows and columns take with any kernels.
    pub(crate) fn elements(rows: usize, columns: usize) -> usize {
        rows.next_multiple_of(ROUND_ROWS) * columns.next_multiple_of(BF16_STEP)
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.numbers.size_bytes()
    }

    /// Rounds the rows of `source` to the nearest, ties to even.
    pub(crate) fn fill(&mut self, engine: &Engine, source: Source<'_>) -> Result<(), TaskPanic> {
        let kernels = kernels(engine);
        let (rows, columns, together) = (source.x.rows, source.x.columns, kernels.side_by_side);
        let k = columns.next_multiple_of(BF16_STEP);
        assert!(ROUND_ROWS.is_multiple_of(together));
        assert!(Self::elements(rows, columns) <= self.numbers.len());
        self.rows = rows;
        let out = Shared(self.numbers.as_mut_ptr());
        engine.run(rows.div_ceil(ROUND_ROWS), &|worker, task| {
            for row in task * ROUND_ROWS..rows.min((task + 1) * ROUND_ROWS) {
                // SAFETY: a worker runs one task at a time.
                let x = unsafe { source.row(engine, worker, row) };
                for (i, x) in x.chunks(CHUNK).enumerate() {
                    let mut rounded = [0; CHUNK];
                    (engine.kernels.rows.round_to_bf16)(x, &mut rounded[..x.len()]);
                    let chunk = CHUNK.min(k - i * CHUNK);
                    let block = at(kernels, rows, k, row / together * together, i * CHUNK);
                    let pairs = rounded[..chunk].as_chunks::<2>().0.iter().enumerate();
                    for (pair, numbers) in pairs {
                        let at = block + (pair * together + row % together) * 2;
                        // SAFETY: each row is one task's own, and inside the buffer as asserted above.
                        unsafe { out.slice(at, 2).copy_from_slice(numbers) }
                    }
                }
            }
        })
    }
}

pub(super) fn kernels(engine: &Engine) -> &'static Bf16Kernels {
    engine.kernels.bf16.expect("invariant: checked when the backend was made")
}

/// Where `row`, the first of a block, begins in the [`CHUNK`] from `column` on, of so many rows of `k` columns.
fn at(kernels: &Bf16Kernels, rows: usize, k: usize, row: usize, column: usize) -> usize {
    column * rows.next_multiple_of(kernels.side_by_side) + row * CHUNK.min(k - column)
}

/// Multiplies the rows that `x` holds with a matrix, then the epilogue.
pub(crate) fn multiply(
    engine: &Engine,
    matrix: &Bf16Matrix,
    x: &Bf16Rows,
    epilogue: Epilogue<'_>,
    out: Out<'_>,
) -> Result<(), TaskPanic> {
    let kernels = kernels(engine);
    assert!(out.columns == matrix.n && out.rows == x.rows);
    assert!(Bf16Rows::elements(out.rows, matrix.k) <= x.numbers.len());
    let grid = Grid { rows: out.rows, columns: out.columns };
    engine.run(grid.tasks(), &|worker, task| {
        let block = grid.block(task);
        // SAFETY: a worker runs one task at a time.
        let mut scratch = unsafe { engine.scratch.worker(worker) };
        let tile = carve(&mut scratch, TASK_ROWS * TASK_COLUMNS);
        let (first, panels) = (block.column / PANEL, block.columns.div_ceil(PANEL));
        for k in (0..matrix.k).step_by(CHUNK) {
            for panel in (0..panels).step_by(kernels.panels) {
                // SAFETY: the pointers are those of this task's tile, of the matrix and of the rows, all as large as the
                // product says.
                unsafe {
                    (kernels.gemm)(&Bf16Product {
                        rows: block.rows,
                        panels: kernels.panels.min(panels - panel),
                        k: CHUNK.min(matrix.k - k),
                        a: x.numbers.as_ptr().add(at(kernels, x.rows, matrix.k, block.row, k)),
                        b: matrix.at(first + panel, k),
                        b_panel: matrix.k * PANEL,
                        c: tile[panel * PANEL..].as_mut_ptr(),
                        ldc: TASK_COLUMNS,
                        first: k == 0,
                    });
                }
            }
        }
        finish(engine, block, tile, epilogue, out);
    })
}
