//! `y = act(x @ weight^T + bias) + residual`.

use super::{
    Engine, carve,
    rows::Source,
    view::{Out, View},
};
use crate::{
    kernels::{
        Kernels,
        float::{FloatProduct, NR},
        prefetch,
        quant::{COPY_ROWS, MOST_COPIES, Product, RowCopy, Rows},
    },
    lines::{Arena, Lines},
    pack::{Bf16Matrix, ChannelMatrix, Codes, FloatMatrix, FloatType, PANEL, QuantMatrix},
    threads::{Pool, TaskPanic},
};
use margay_graph::{Activation, BackendError};
use margay_tensor::Tensor;
use std::ops::Range;

/// Rows of x that a task multiplies: its int8 rows of one column chunk (128 KiB) stay in a 512 KiB L2.
pub(super) const TASK_ROWS: usize = 256;
/// Outputs that a task computes, a multiple of every kernel's tile.
pub(super) const TASK_COLUMNS: usize = 64;
/// Columns of k whose unpacked codes stay in L1 while all rows of a task pass by: 512 * 16 = 8 KiB.
pub(super) const K_CHUNK: usize = 512;
/// The same for one row, whose kernel reads scales as they are packed; and where they are unpacked before it, which only
/// pays as long as codes go on arriving meanwhile. A super-block of 256 is the least.
const K_CHUNK_ONE_ROW: usize = 512;
const K_CHUNK_UNPACKED: usize = 256;
/// Columns of k of the float panels of a tile, over all of them: 256 * 16 floats = 16 KiB.
const K_CHUNK_FLOAT: usize = 256;
/// Panels that a kernel takes at once, at most.
const MOST_PANELS: usize = 2;
/// What 32 columns of them need at most, once unpacked: with two sums each.
const MOST_UNPACKED_BYTES: usize = MOST_PANELS * (32 + 2 * 4) * PANEL;
/// Rows from which on it pays to widen half precision weights to memory instead of in registers.
const WIDEN_FROM_ROWS: usize = 12;
/// Rows that a task quantizes: a multiple of those that copies put together, so that no two tasks share such.
const QUANTIZE_ROWS: usize = 2 * COPY_ROWS;
const _: () = assert!(TASK_ROWS.is_multiple_of(COPY_ROWS));

/// A packed weight.
#[derive(Debug)]
pub(crate) enum Matrix {
    Quant(QuantMatrix),
    Float(FloatMatrix),
    /// Of an encoder that was asked to use int8.
    Channel(ChannelMatrix),
    /// Of an encoder that was asked to use bfloat16.
    Bf16(Bf16Matrix),
}

impl Matrix {
    /// Packs a matrix of any format.
    pub(crate) fn pack(
        name: &str,
        tensor: &Tensor,
        pool: &Pool,
        arena: &Arena,
    ) -> Result<Self, BackendError> {
        if let Some(packed) = QuantMatrix::pack(tensor, pool, arena) {
            return packed.map(Matrix::Quant);
        }
        FloatMatrix::pack(name, tensor, pool, arena).map(Matrix::Float)
    }

    /// Rows of the matrix.
    pub(crate) fn outputs(&self) -> usize {
        match self {
            Matrix::Quant(m) => m.n,
            Matrix::Float(m) => m.n,
            Matrix::Channel(m) => m.n,
            Matrix::Bf16(m) => m.n,
        }
    }

    pub(crate) fn size_bytes(&self) -> usize {
        match self {
            Matrix::Quant(m) => m.size_bytes(),
            Matrix::Float(m) => m.size_bytes(),
            Matrix::Channel(m) => m.size_bytes(),
            Matrix::Bf16(m) => m.size_bytes(),
        }
    }
}

/// What is done to the products.
#[derive(Clone, Copy)]
pub(crate) struct Epilogue<'a> {
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) activation: Option<Activation>,
    pub(crate) residual: Option<View<'a>>,
}

/// Floats of scratch that a worker needs for any linear layer.
pub(crate) fn scratch_floats() -> usize {
    let tile = TASK_ROWS * TASK_COLUMNS;
    // Scales and minima come one for 16 columns, of as many panels as a kernel takes at once.
    let codes = K_CHUNK / 32 * MOST_UNPACKED_BYTES / 4;
    let scales = MOST_PANELS * 2 * K_CHUNK / 16 * PANEL;
    let widened = K_CHUNK_FLOAT * NR;
    tile + (codes + scales).max(widened) + 4 * 16
}

/// The same for [`gated`], which has two tiles.
pub(crate) fn gated_scratch_floats() -> usize {
    scratch_floats() + TASK_ROWS * TASK_COLUMNS
}

/// The quantized rows of one value, shared by all layers that read it.
pub(crate) struct QuantRows {
    q: Lines<i8>,
    /// The copies that kernels read: one [`K_CHUNK`] of columns of all rows after the other. Empty where no product asks.
    copies: [Lines<u8>; MOST_COPIES],
    /// Rows and columns of the value they were made of last.
    shape: [usize; 2],
    scale: Lines<f32>,
    sum16: Lines<f32>,
    sum32: Lines<f32>,
    starts16: Lines<[i16; 2]>,
    starts32: Lines<[i16; 2]>,
}

impl QuantRows {
    pub(crate) fn new(size: QuantSize) -> Self {
        let elements = size.elements;
        QuantRows {
            q: Lines::zeroed(elements),
            copies: size.copies.map(Lines::zeroed),
            shape: [0; 2],
            scale: Lines::zeroed(elements / 32),
            sum16: Lines::zeroed(elements / 16),
            sum32: Lines::zeroed(elements / 32),
            starts16: Lines::zeroed(elements / 16),
            starts32: Lines::zeroed(elements / 32),
        }
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.q.size_bytes()
            + self.copies.iter().map(Lines::size_bytes).sum::<usize>()
            + self.scale.size_bytes()
            + self.sum16.size_bytes()
            + self.sum32.size_bytes()
            + self.starts16.size_bytes()
            + self.starts32.size_bytes()
    }

    /// Quantizes the rows of `source`.
    pub(crate) fn fill(&mut self, engine: &Engine, source: Source<'_>) -> Result<(), TaskPanic> {
        let (rows, k) = (source.x.rows, source.x.columns);
        let parts = self.parts(engine, rows, k);
        engine.run(rows.div_ceil(QUANTIZE_ROWS), &|worker, task| {
            let block = task * QUANTIZE_ROWS..rows.min((task + 1) * QUANTIZE_ROWS);
            for row in block.clone() {
                // SAFETY: each row is one task's own, and a worker runs one task at a time.
                unsafe { parts.quantize(engine, source.row(engine, worker, row), row, 0) }
            }
            // SAFETY: the rows are this task's own and were written just now; no other task copies them.
            unsafe { parts.make_copies(engine, block) }
        })
    }

    /// The buffers for `rows` rows of `k` columns, so that tasks can write parts of them.
    fn parts(&mut self, engine: &Engine, rows: usize, k: usize) -> QuantParts {
        assert!(rows * k <= self.q.len());
        for (copy, made) in engine.kernels.quant.copies.iter().zip(&self.copies) {
            assert!(rows == 1 || made.is_empty() || copy_bytes(copy, rows, k) <= made.len());
        }
        self.shape = [rows, k];
        QuantParts {
            rows,
            q: Shared(self.q.as_mut_ptr()),
            copies: self
                .copies
                .each_mut()
                .map(|copy| (!copy.is_empty()).then_some(Shared(copy.as_mut_ptr()))),
            scale: Shared(self.scale.as_mut_ptr()),
            sum16: Shared(self.sum16.as_mut_ptr()),
            sum32: Shared(self.sum32.as_mut_ptr()),
            starts16: Shared(self.starts16.as_mut_ptr()),
            starts32: Shared(self.starts32.as_mut_ptr()),
            k,
        }
    }

    /// The rows from `row` and column `k` on, which begins a [`K_CHUNK`] where their copy for such codes is read.
    fn rows(&self, engine: &Engine, row: usize, k: usize, codes: Codes) -> Rows {
        let [rows, columns] = self.shape;
        let copy = match engine.kernels.quant.copy_for(codes) {
            Some(which) if rows > 1 => {
                assert!(!self.copies[which].is_empty(), "no room was made for the copy");
                let at = copy_at(&engine.kernels.quant.copies[which], rows, columns, row, k);
                self.copies[which].as_ptr().wrapping_add(at)
            }
            _ => std::ptr::null(),
        };
        let at = row * columns + k;
        Rows {
            q: self.q.as_ptr().wrapping_add(at),
            copy,
            scale: self.scale.as_ptr().wrapping_add(at / 32),
            sum16: self.sum16.as_ptr().wrapping_add(at / 16),
            sum32: self.sum32.as_ptr().wrapping_add(at / 32),
            starts16: self.starts16.as_ptr().wrapping_add(at / 16),
            starts32: self.starts32.as_ptr().wrapping_add(at / 32),
            k: columns,
        }
    }
}

/// Where the copy of `row` and of the [`K_CHUNK`] from column `k` on begins, of so many rows and columns.
fn copy_at(copy: &RowCopy, rows: usize, columns: usize, row: usize, k: usize) -> usize {
    let chunk = K_CHUNK.min(columns - k);
    (k / 32 * rows.next_multiple_of(COPY_ROWS) + row * (chunk / 32)) * copy.bytes
}

/// Bytes of a copy.
fn copy_bytes(copy: &RowCopy, rows: usize, columns: usize) -> usize {
    rows.next_multiple_of(COPY_ROWS) * columns / 32 * copy.bytes
}

/// How large [`QuantRows`] have to be.
#[derive(Clone, Copy)]
pub(crate) struct QuantSize {
    elements: usize,
    /// Bytes of the copies.
    copies: [usize; MOST_COPIES],
    /// Those that products ask for.
    asked: [Option<&'static RowCopy>; MOST_COPIES],
}

impl QuantSize {
    /// Of no rows yet, for products with such codes.
    pub(crate) fn new(kernels: &Kernels, codes: impl IntoIterator<Item = Codes>) -> Self {
        let mut asked = [None; MOST_COPIES];
        for which in codes.into_iter().filter_map(|codes| kernels.quant.copy_for(codes)) {
            asked[which] = Some(&kernels.quant.copies[which]);
        }
        QuantSize { elements: 0, copies: [0; MOST_COPIES], asked }
    }

    /// Large enough for so many rows and columns as well. A single row has no copy.
    pub(crate) fn max(mut self, rows: usize, columns: usize) -> Self {
        self.elements = self.elements.max(rows * columns);
        if rows > 1 {
            for (bytes, copy) in self.copies.iter_mut().zip(self.asked) {
                *bytes = copy.map_or(0, |copy| copy_bytes(copy, rows, columns)).max(*bytes);
            }
        }
        self
    }
}

/// [`QuantRows`] under the hands of several tasks.
#[derive(Clone, Copy)]
struct QuantParts {
    rows: usize,
    q: Shared<i8>,
    copies: [Option<Shared<u8>>; MOST_COPIES],
    scale: Shared<f32>,
    sum16: Shared<f32>,
    sum32: Shared<f32>,
    starts16: Shared<[i16; 2]>,
    starts32: Shared<[i16; 2]>,
    k: usize,
}

impl QuantParts {
    /// Quantizes `x` to the columns of `row` from `column` on.
    ///
    /// # Safety
    /// That part lies inside the buffers and nobody else touches it.
    unsafe fn quantize(self, engine: &Engine, x: &[f32], row: usize, column: usize) {
        let (at, len) = (row * self.k + column, x.len());
        // SAFETY: the caller's promise.
        unsafe {
            (engine.kernels.rows.quantize)(
                x,
                self.q.slice(at, len),
                self.scale.slice(at / 32, len / 32),
                self.sum16.slice(at / 16, len / 16),
                self.sum32.slice(at / 32, len / 32),
                self.starts16.slice(at / 16, len / 16),
                self.starts32.slice(at / 32, len / 32),
            );
        }
    }

    /// The copies to be made: none of a single row, which is read as it is.
    fn copies(self, engine: &Engine) -> impl Iterator<Item = (&'static RowCopy, Shared<u8>)> {
        let copies = engine.kernels.quant.copies.iter().zip(self.copies);
        copies.filter_map(|(copy, to)| to.map(|to| (copy, to))).filter(move |_| self.rows > 1)
    }

    /// Makes the copies of whole rows.
    ///
    /// # Safety
    /// The rows lie inside the buffers and are written, nobody else touches their copy, and the first is a multiple of
    /// [`COPY_ROWS`].
    unsafe fn make_copies(self, engine: &Engine, rows: Range<usize>) {
        for (copy, out) in self.copies(engine) {
            for k in (0..self.k).step_by(K_CHUNK) {
                let columns = K_CHUNK.min(self.k - k);
                let at = rows.start * self.k + k;
                let to = copy_at(copy, self.rows, self.k, rows.start, k);
                let room = copy_bytes(copy, rows.len(), columns);
                // SAFETY: the caller's promise: the rows are read, and `parts` has seen that there is room for the copy.
                unsafe {
                    let from = Rows {
                        q: self.q.0.add(at),
                        copy: std::ptr::null(),
                        scale: self.scale.0.add(at / 32),
                        sum16: self.sum16.0.add(at / 16),
                        sum32: self.sum32.0.add(at / 32),
                        starts16: self.starts16.0.add(at / 16),
                        starts32: self.starts32.0.add(at / 32),
                        k: self.k,
                    };
                    (copy.make)(rows.len(), columns, &from, out.slice(to, room).as_mut_ptr());
                }
            }
        }
    }
}

/// A pointer that tasks share to write disjoint parts.
#[derive(Clone, Copy)]
pub(super) struct Shared<T>(pub(super) *mut T);
// SAFETY: whoever dereferences it keeps the parts disjoint.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}
impl<T> Shared<T> {
    /// # Safety
    /// The range lies inside the allocation and nobody else touches it.
    pub(super) unsafe fn slice<'a>(self, at: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), len) }
    }
}

/// The outputs and rows of one task.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub(super) row: usize,
    pub(super) rows: usize,
    pub(super) column: usize,
    pub(super) columns: usize,
}

/// Cuts an `[rows, columns]` result into tasks.
pub(super) struct Grid {
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl Grid {
    fn across(&self) -> usize {
        self.columns.div_ceil(TASK_COLUMNS)
    }

    pub(super) fn tasks(&self) -> usize {
        self.rows.div_ceil(TASK_ROWS) * self.across()
    }

    pub(super) fn block(&self, task: usize) -> Block {
        let (row, column) = (task / self.across() * TASK_ROWS, task % self.across() * TASK_COLUMNS);
        Block {
            row,
            rows: TASK_ROWS.min(self.rows - row),
            column,
            columns: TASK_COLUMNS.min(self.columns - column),
        }
    }
}

/// One of the layers that [`quantized`] computes.
#[derive(Clone, Copy)]
pub(crate) struct Layer<'a> {
    pub(crate) matrix: &'a QuantMatrix,
    pub(crate) epilogue: Epilogue<'a>,
    pub(crate) out: Out<'a>,
}

/// Multiplies quantized rows with one or more quantized matrices. Several (query, key and value; gate and up) share out
/// their tasks as one, so that threads wait for each other once.
pub(crate) fn quantized(engine: &Engine, layers: &[Layer<'_>], x: &QuantRows) -> Result<(), TaskPanic> {
    let grid = |layer: &Layer<'_>| Grid { rows: layer.out.rows, columns: layer.out.columns };
    for layer in layers {
        assert!(layer.out.columns == layer.matrix.n && [layer.out.rows, layer.matrix.k] == x.shape);
    }
    let tasks = layers.iter().map(|layer| grid(layer).tasks()).sum();
    engine.run(tasks, &|worker, mut task| {
        let mut layers = layers.iter();
        let (layer, block) = loop {
            let layer = layers.next().expect("invariant: there are as many tasks as all grids have");
            let grid = grid(layer);
            if task < grid.tasks() {
                break (layer, grid.block(task));
            }
            task -= grid.tasks();
        };
        // SAFETY: a worker runs one task at a time.
        let mut scratch = unsafe { engine.scratch.worker(worker) };
        let tile = carve(&mut scratch, TASK_ROWS * TASK_COLUMNS);
        products(engine, layer.matrix, x, block, tile, scratch);
        finish(engine, block, tile, layer.epilogue, layer.out);
    })
}

/// The products of one task.
fn products(
    engine: &Engine,
    matrix: &QuantMatrix,
    x: &QuantRows,
    block: Block,
    tile: &mut [f32],
    scratch: &mut [f32],
) {
    if block.rows == 1 {
        one_row(engine, matrix, x, block, tile, scratch);
    } else {
        many_rows(engine, matrix, x, block, tile, scratch);
    }
}

/// A quantized matrix and its bias.
#[derive(Clone, Copy)]
pub(crate) struct Side<'a> {
    pub(crate) matrix: &'a QuantMatrix,
    pub(crate) bias: Option<&'a [f32]>,
}

/// Where [`gated`] leaves its result.
pub(crate) enum Gated<'a> {
    Float(Out<'a>),
    /// Quantized for the next layer, and never in memory as floats.
    Quantized(&'a mut QuantRows),
}

/// `act(x @ gate^T) * (x @ up^T)` of `rows` quantized rows: both tiles meet in the cache.
pub(crate) fn gated(
    engine: &Engine,
    [gate, up]: [Side<'_>; 2],
    act: Activation,
    x: &QuantRows,
    rows: usize,
    out: Gated<'_>,
) -> Result<(), TaskPanic> {
    let columns = gate.matrix.n;
    assert_eq!(columns, up.matrix.n);
    enum To<'a> {
        Float(Out<'a>),
        Parts(QuantParts),
    }
    let to = match out {
        Gated::Float(out) => {
            assert!(out.rows == rows && out.columns == columns);
            To::Float(out)
        }
        Gated::Quantized(out) => To::Parts(out.parts(engine, rows, columns)),
    };
    let grid = Grid { rows, columns };
    engine.run(grid.tasks(), &|worker, task| {
        let block = grid.block(task);
        // SAFETY: a worker runs one task at a time.
        let mut scratch = unsafe { engine.scratch.worker(worker) };
        let tiles = [(); 2].map(|()| carve(&mut scratch, TASK_ROWS * TASK_COLUMNS));
        products(engine, gate.matrix, x, block, tiles[0], scratch);
        products(engine, up.matrix, x, block, tiles[1], scratch);
        let [gates, ups] = tiles.map(|tile| tile.chunks_exact_mut(TASK_COLUMNS).take(block.rows));
        for (r, (g, u)) in gates.zip(ups).enumerate() {
            let (g, u) = (&mut g[..block.columns], &mut u[..block.columns]);
            for (side, part) in [(gate, &mut *g), (up, &mut *u)] {
                if let Some(bias) = side.bias {
                    (engine.kernels.rows.add)(part, &bias[block.column..][..block.columns]);
                }
            }
            (engine.kernels.rows.glu)(act, g, u);
            let row = block.row + r;
            // SAFETY: only this task touches these elements, which lie inside: asserted above.
            unsafe {
                match &to {
                    To::Float(out) => out.part(row, block.column, block.columns).copy_from_slice(g),
                    To::Parts(parts) => parts.quantize(engine, g, row, block.column),
                }
            }
        }
    })?;
    if let To::Parts(parts) = to
        && parts.copies(engine).next().is_some()
    {
        engine.run(rows.div_ceil(QUANTIZE_ROWS), &|_, task| {
            // SAFETY: the rows are this task's own and were written above.
            unsafe { parts.make_copies(engine, task * QUANTIZE_ROWS..rows.min((task + 1) * QUANTIZE_ROWS)) }
        })?;
    }
    Ok(())
}

fn one_row(
    engine: &Engine,
    matrix: &QuantMatrix,
    x: &QuantRows,
    block: Block,
    tile: &mut [f32],
    mut scratch: &mut [f32],
) {
    let kernels = engine.kernels.quant;
    let groups_of = |k: usize| k / 32 * matrix.kind.halves;
    let scales = carve(&mut scratch, groups_of(K_CHUNK_UNPACKED) * PANEL);
    let mins = carve(&mut scratch, groups_of(K_CHUNK_UNPACKED) * PANEL);
    for column in (0..block.columns).step_by(PANEL) {
        let panel = (block.column + column) / PANEL;
        let as_packed = (kernels.gemv_reads_packed)(matrix.kind, matrix.scaling);
        let chunk = if as_packed { K_CHUNK_ONE_ROW } else { K_CHUNK_UNPACKED };
        for k in (0..matrix.k).step_by(chunk) {
            let len = chunk.min(matrix.k - k);
            let packed = matrix.scales_at(panel, k, len);
            if !as_packed {
                (kernels.scales)(matrix.kind, matrix.scaling, packed, scales, mins);
            }
            // SAFETY: the pointers are those of this task's tile and scratch, of the matrix and of the row, all as
            // large as the product says.
            unsafe {
                (kernels.gemv)(&Product {
                    kind: matrix.kind,
                    rows: 1,
                    groups: len / 32,
                    panels: 1,
                    a: x.rows(engine, block.row, k, matrix.kind.codes),
                    codes: matrix.codes_at(panel, k),
                    codes_panel: 0,
                    scales: scales.as_ptr(),
                    scales_panel: 0,
                    packed_scales: if as_packed { packed.as_ptr() } else { std::ptr::null() },
                    mins: mins.as_ptr(),
                    c: tile[column..].as_mut_ptr(),
                    ldc: TASK_COLUMNS,
                    first: k == 0,
                    // The scales of the next chunk lie behind those of this one.
                    ahead: packed.as_ptr().wrapping_add(packed.len()),
                    ahead_step: packed.len() / (len / 32),
                });
            }
        }
    }
}

fn many_rows(
    engine: &Engine,
    matrix: &QuantMatrix,
    x: &QuantRows,
    block: Block,
    tile: &mut [f32],
    mut scratch: &mut [f32],
) {
    let kernels = engine.kernels.quant;
    // Codes of a chunk of k of one panel, and its scales and minima.
    let unpacked = K_CHUNK / 32 * (kernels.unpacked_bytes)(matrix.kind);
    let scaled = K_CHUNK / 32 * matrix.kind.halves * PANEL;
    assert!(kernels.panels <= MOST_PANELS && kernels.panels * unpacked <= K_CHUNK / 32 * MOST_UNPACKED_BYTES);
    let codes = carve(&mut scratch, kernels.panels * unpacked / 4);
    let scales = carve(&mut scratch, kernels.panels * scaled);
    let mins = carve(&mut scratch, kernels.panels * scaled);
    let (first, panels) = (block.column / PANEL, block.columns.div_ceil(PANEL));
    for k in (0..matrix.k).step_by(K_CHUNK) {
        let len = K_CHUNK.min(matrix.k - k);
        for at in (0..panels).step_by(kernels.panels) {
            let together = kernels.panels.min(panels - at);
            for (i, panel) in (first + at..first + at + together).enumerate() {
                let packed = matrix.scales_at(panel, k, len);
                let (scales, mins) = (&mut scales[i * scaled..], &mut mins[i * scaled..]);
                (kernels.scales)(matrix.kind, matrix.scaling, packed, scales, mins);
                if unpacked > 0 {
                    // SAFETY: `codes` has room for `K_CHUNK >= len` columns of each panel.
                    unsafe {
                        let to = codes.as_mut_ptr().cast::<u8>().add(i * unpacked);
                        (kernels.unpack)(matrix.kind, matrix.codes_at(panel, k), len, to);
                    }
                }
            }
            // What is unpacked next arrives while the rows pass by.
            let next = at + together;
            let (next, k_next) = if next < panels { (next, k) } else { (0, k + len) };
            if k_next < matrix.k {
                let len = K_CHUNK.min(matrix.k - k_next);
                for panel in first + next..first + panels.min(next + kernels.panels) {
                    let codes = matrix.codes_at(panel, k_next);
                    (0..matrix.code_bytes(len)).step_by(64).for_each(|at| prefetch(codes.wrapping_add(at)));
                    let scales = matrix.scales_at(panel, k_next, len);
                    scales.chunks(64).for_each(|line| prefetch(line.as_ptr()));
                }
            }
            let packed = matrix.codes_at(first + at, k);
            // SAFETY: as in `one_row`.
            unsafe {
                (kernels.gemm)(&Product {
                    kind: matrix.kind,
                    rows: block.rows,
                    groups: len / 32,
                    panels: together,
                    a: x.rows(engine, block.row, k, matrix.kind.codes),
                    codes: if unpacked > 0 { codes.as_ptr().cast() } else { packed },
                    codes_panel: if unpacked > 0 { unpacked } else { matrix.panel_code_bytes() },
                    scales: scales.as_ptr(),
                    scales_panel: scaled,
                    packed_scales: std::ptr::null(),
                    mins: mins.as_ptr(),
                    c: tile[at * PANEL..].as_mut_ptr(),
                    ldc: TASK_COLUMNS,
                    first: k == 0,
                    ahead: std::ptr::null(),
                    ahead_step: 0,
                });
            }
        }
    }
}

/// Multiplies float rows with a float matrix.
pub(crate) fn float(
    engine: &Engine,
    matrix: &FloatMatrix,
    x: View<'_>,
    epilogue: Epilogue<'_>,
    out: Out<'_>,
) -> Result<(), TaskPanic> {
    assert!(out.columns == matrix.n && x.columns == matrix.k && x.rows == out.rows);
    let grid = Grid { rows: out.rows, columns: out.columns };
    engine.run(grid.tasks(), &|worker, task| {
        let block = grid.block(task);
        // SAFETY: a worker runs one task at a time.
        let mut scratch = unsafe { engine.scratch.worker(worker) };
        let tile = carve(&mut scratch, TASK_ROWS * TASK_COLUMNS);
        let widened = carve(&mut scratch, K_CHUNK_FLOAT * NR);
        let widen = matrix.kind != FloatType::F32 && block.rows >= WIDEN_FROM_ROWS;
        let first_panel = block.column / NR;
        let panels = block.columns.div_ceil(NR);
        if matrix.k == 0 {
            tile.fill(0.0);
        }
        // The panels that a tile takes stay in L1 while many rows pass by; few rows take all panels at once.
        let together = if block.rows <= 2 { panels } else { engine.kernels.float.panels };
        let chunk = K_CHUNK_FLOAT / engine.kernels.float.panels;
        for k in (0..matrix.k).step_by(chunk) {
            let len = chunk.min(matrix.k - k);
            for panel in (0..panels).step_by(together) {
                let together = together.min(panels - panel);
                let (mut b, mut b_panel) = (matrix.at(first_panel + panel, k), matrix.k * NR);
                let mut kind = matrix.kind;
                if widen {
                    for (panel, wide) in
                        (first_panel + panel..).zip(widened.chunks_exact_mut(chunk * NR)).take(together)
                    {
                        let halves = matrix.at(panel, k).cast::<u16>();
                        // SAFETY: `len * NR` 2-byte numbers lie there, aligned to 2 bytes.
                        let halves = unsafe { std::slice::from_raw_parts(halves, len * NR) };
                        if kind == FloatType::F16 {
                            (engine.kernels.float.widen)(halves, &mut wide[..len * NR]);
                        } else {
                            for (wide, half) in wide.iter_mut().zip(halves) {
                                *wide = f32::from_bits(u32::from(*half) << 16);
                            }
                        }
                    }
                    (b, b_panel, kind) = (widened.as_ptr().cast(), chunk * NR, FloatType::F32);
                }
                // SAFETY: the pointers are those of this task's tile, of the matrix and of x, all as large as the
                // product says.
                unsafe {
                    (engine.kernels.float.gemm)(&FloatProduct {
                        rows: block.rows,
                        panels: together,
                        k: len,
                        a: x.pointer().add(block.row * matrix.k + k),
                        lda: matrix.k,
                        b,
                        kind,
                        b_panel,
                        ldb: NR,
                        c: tile[panel * NR..].as_mut_ptr(),
                        ldc: TASK_COLUMNS,
                        c_panel: NR,
                        first: k == 0,
                    });
                }
            }
        }
        finish(engine, block, tile, epilogue, out);
    })
}

/// Applies the epilogue to a tile and writes it out.
pub(super) fn finish(engine: &Engine, block: Block, tile: &mut [f32], epilogue: Epilogue<'_>, out: Out<'_>) {
    let rows = engine.kernels.rows;
    for (r, tile) in tile.chunks_exact_mut(TASK_COLUMNS).take(block.rows).enumerate() {
        let tile = &mut tile[..block.columns];
        if let Some(bias) = epilogue.bias {
            (rows.add)(tile, &bias[block.column..][..block.columns]);
        }
        if let Some(act) = epilogue.activation {
            (rows.activate)(act, tile);
        }
        let row = block.row + r;
        if let Some(residual) = epilogue.residual {
            // SAFETY: nobody writes these elements meanwhile; where the result lies on the residual only this task does,
            // below.
            (rows.add)(tile, unsafe { residual.part(row, block.column, block.columns) });
        }
        // SAFETY: only this task touches these elements.
        unsafe { out.part(row, block.column, block.columns) }.copy_from_slice(tile);
    }
}
