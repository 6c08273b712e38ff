//! Rounding column by column, each column's error made up for in those after it.

use crate::{
    Factor, Grid, Matrix, QuantError, Quantizer,
    stats::same,
    triangle::{PANEL, matrix, matrix_mut, part},
};
use ndarray::linalg::general_mat_mul;

/// Columns whose errors are gathered before they reach the columns after them. Source: `blocksize` of the GPTQ code.
pub const BATCH: usize = PANEL;

/// Rows worked on together, so that what is read of the factor serves that many.
const TILE: usize = 64;

/// When the scales of a group are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// Before any column is rounded, from the weights as they are. The only way where columns are not in their order.
    First,
    /// When the group's first column is reached, from weights that carry the corrections of earlier batches of [`BATCH`]
    /// columns. A block of 256 spans two batches and keeps the scales chosen at its start.
    Reached,
}

/// Rounds `weight` with `quantizer` so that what its outputs lose is smallest in the sense of `factor`.
///
/// Writes the packed groups to `out`, row after row (nothing where the quantizer packs nothing), and the rounded numbers
/// to `rounded` where they are wanted. `importance` is what the scales of groups go by.
///
/// Source: `fasterquant` in `gptq.py` of the GPTQ code (arXiv 2210.17323); the order of the operations is the same, but
/// rows are worked on in tiles.
///
/// # Errors
/// [`QuantError::Size`] where sizes do not agree or rows are not whole groups.
pub fn round_compensating(
    weight: Matrix<'_>,
    factor: &Factor,
    quantizer: &dyn Quantizer,
    scales: Scales,
    importance: Option<&[f32]>,
    out: &mut [u8],
    mut rounded: Option<&mut [f32]>,
) -> Result<(), QuantError> {
    let (n, group) = (weight.cols, quantizer.group().max(1));
    same("columns of a weight and its Hessian", factor.columns(), n)?;
    same("columns of a row of whole groups", n.next_multiple_of(group), n)?;
    let row_bytes = n / group * quantizer.packed_bytes();
    same("bytes of a packed weight", weight.rows * row_bytes, out.len())?;
    if let Some(rounded) = &rounded {
        same("numbers of a rounded weight", weight.values.len(), rounded.len())?;
    }
    if n == 0 {
        return Ok(());
    }
    let mut tile = Tile {
        n,
        group,
        factor,
        quantizer,
        importance,
        scales,
        weights: Vec::new(),
        errors: Vec::new(),
        rows: Vec::new(),
    };
    for (t, rows) in weight.values.chunks(TILE * n).enumerate() {
        let count = rows.len() / n;
        let packed = &mut out[t * TILE * row_bytes..][..count * row_bytes];
        tile.load(rows, packed, row_bytes)?;
        for first in (0..n).step_by(BATCH) {
            tile.batch(first, (first + BATCH).min(n), packed, row_bytes);
        }
        for (r, row) in tile.rows.iter().enumerate() {
            if row_bytes > 0 {
                let groups = packed[r * row_bytes..][..row_bytes].chunks_mut(quantizer.packed_bytes());
                for (codes, packed) in row.codes.chunks(group).zip(groups) {
                    quantizer.put_codes(codes, packed);
                }
            }
            if let Some(rounded) = &mut rounded {
                rounded[(t * TILE + r) * n..][..n].copy_from_slice(&row.values);
            }
        }
    }
    Ok(())
}

struct Row {
    /// The grids of the groups: all of them, or the one that is under way.
    grids: Vec<Grid>,
    /// Codes and what they stand for, in the weight's own order.
    codes: Vec<u8>,
    values: Vec<f32>,
}

struct Tile<'a> {
    n: usize,
    group: usize,
    factor: &'a Factor,
    quantizer: &'a dyn Quantizer,
    importance: Option<&'a [f32]>,
    scales: Scales,
    /// The weights of all rows in the factor's order, corrected as far as the work has come, `[rows, n]`.
    weights: Vec<f32>,
    /// What each column of the batch is off by, over its diagonal, `[rows, BATCH]`.
    errors: Vec<f32>,
    rows: Vec<Row>,
}

impl Tile<'_> {
    fn load(&mut self, rows: &[f32], packed: &mut [u8], row_bytes: usize) -> Result<(), QuantError> {
        let n = self.n;
        let count = rows.len() / n;
        self.rows.resize_with(count, || Row { grids: Vec::new(), codes: vec![0; n], values: vec![0.0; n] });
        self.weights.resize(count * n, 0.0);
        self.errors.resize(count * BATCH, 0.0);
        for (r, (row, source)) in self.rows.iter_mut().zip(rows.chunks(n)).enumerate() {
            self.factor.arrange(source, &mut self.weights[r * n..][..n])?;
            row.grids.clear();
            if self.scales == Scales::First {
                let packed = &mut packed[r * row_bytes..][..row_bytes];
                for g in 0..n / self.group {
                    let at = g * self.group..(g + 1) * self.group;
                    let weights = self.importance.map(|weights| &weights[at.clone()]);
                    let bytes = self.quantizer.packed_bytes();
                    let grid = self.quantizer.fit(&source[at], weights, &mut packed[g * bytes..][..bytes]);
                    row.grids.push(grid);
                }
            }
        }
        Ok(())
    }

    /// Rounds the columns `first` to `end` and corrects those after them.
    fn batch(&mut self, first: usize, end: usize, packed: &mut [u8], row_bytes: usize) {
        let n = self.n;
        for (r, row) in self.rows.iter_mut().enumerate() {
            let all = &mut self.weights[r * n..][..n];
            // What groups that start in this batch choose their scales by.
            let reached = match self.scales {
                Scales::First => Vec::new(),
                Scales::Reached => all[first..].to_vec(),
            };
            for i in first..end {
                let column = self.factor.order()[i];
                let g = column / self.group;
                if self.scales == Scales::Reached && i.is_multiple_of(self.group) {
                    let bytes = self.quantizer.packed_bytes();
                    let weights = self.importance.map(|weights| &weights[i..i + self.group]);
                    let packed = &mut packed[r * row_bytes + g * bytes..][..bytes];
                    let x = &reached[i - first..][..self.group];
                    row.grids = vec![self.quantizer.fit(x, weights, packed)];
                }
                let grid = &row.grids[if self.scales == Scales::First { g } else { 0 }];
                let weight = all[i];
                let (code, value) = grid.round(column % self.group, weight);
                (row.codes[column], row.values[column]) = (code, value);
                let u = &self.factor.row(i)[..end - i];
                let error = (weight - value) / u[0];
                self.errors[r * BATCH + i - first] = error;
                for (w, u) in all[i..end].iter_mut().zip(u) {
                    *w -= error * u;
                }
            }
        }
        if end == n {
            return;
        }
        let count = self.rows.len();
        let errors = matrix(count, BATCH, &self.errors);
        let mut weights = part(matrix_mut(count, n, &mut self.weights), 0..count, end..n);
        general_mat_mul(-1.0, &errors, &self.factor.behind(first / BATCH), 1.0, &mut weights);
    }
}
