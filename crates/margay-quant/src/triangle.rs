//! The upper triangle of a square matrix, in panels of rows: half the memory of the whole, and products of matrices can
//! read and write it.

use ndarray::{ArrayBase, ArrayView2, ArrayViewMut2, Axis, Ix2, RawData, Slice};
use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

/// Rows of a panel.
pub(crate) const PANEL: usize = 128;

/// Columns `b * PANEL` to the last of the rows `b * PANEL` to `(b + 1) * PANEL`, for each panel b. What stands below the
/// diagonal in a panel's first block is its mirror image, or nothing at all: whoever writes says which.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Triangle {
    n: usize,
    numbers: Vec<f32>,
}

impl Triangle {
    /// Zeros, of an `n` by `n` matrix.
    pub(crate) fn zeros(n: usize) -> Self {
        let mut triangle = Self { n, numbers: vec![] };
        triangle.numbers = vec![0.0; triangle.start(triangle.panels())];
        triangle
    }

    /// Rows and columns of the whole matrix.
    pub(crate) fn size(&self) -> usize {
        self.n
    }

    /// How many panels there are.
    pub(crate) fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    /// Rows of panel `b`.
    pub(crate) fn rows(&self, b: usize) -> usize {
        PANEL.min(self.n - b * PANEL)
    }

    /// Columns of panel `b`.
    fn width(&self, b: usize) -> usize {
        self.n - b * PANEL
    }

    fn start(&self, b: usize) -> usize {
        let full = b.min(self.n / PANEL);
        let before = PANEL * (full * self.n - PANEL * (full * full.saturating_sub(1) / 2));
        // The last panel may have fewer rows: as many as columns.
        before + if b > full { (self.n - full * PANEL).pow(2) } else { 0 }
    }

    fn place(&self, i: usize, j: usize) -> usize {
        let (i, j) = (i.min(j), i.max(j));
        assert!(j < self.n, "column {j} of {}", self.n);
        let b = i / PANEL;
        self.start(b) + (i - b * PANEL) * self.width(b) + j - b * PANEL
    }

    /// The number at row `i` and column `j`, or its mirror image.
    pub(crate) fn at(&self, i: usize, j: usize) -> f32 {
        self.numbers[self.place(i, j)]
    }

    /// The same, to write. Its mirror image stays.
    pub(crate) fn at_mut(&mut self, i: usize, j: usize) -> &mut f32 {
        let place = self.place(i, j);
        &mut self.numbers[place]
    }

    /// Row `i` from the diagonal on.
    pub(crate) fn row(&self, i: usize) -> &[f32] {
        &self.numbers[self.place(i, i)..][..self.n - i]
    }

    /// All numbers.
    pub(crate) fn numbers_mut(&mut self) -> &mut [f32] {
        &mut self.numbers
    }

    /// All numbers.
    pub(crate) fn numbers(&self) -> &[f32] {
        &self.numbers
    }

    /// Panel `b`, `[rows, n - b * PANEL]`.
    pub(crate) fn panel(&self, b: usize) -> ArrayView2<'_, f32> {
        let (rows, width) = (self.rows(b), self.width(b));
        matrix(rows, width, &self.numbers[self.start(b)..][..rows * width])
    }

    /// The same, to write.
    pub(crate) fn panel_mut(&mut self, b: usize) -> ArrayViewMut2<'_, f32> {
        let (rows, width, start) = (self.rows(b), self.width(b), self.start(b));
        matrix_mut(rows, width, &mut self.numbers[start..][..rows * width])
    }

    /// The first `count` panels, to be written by several threads.
    pub(crate) fn panels_mut(&mut self, count: usize) -> Vec<(usize, ArrayViewMut2<'_, f32>)> {
        let sizes: Vec<(usize, usize)> = (0..count).map(|b| (self.rows(b), self.width(b))).collect();
        let mut rest: &mut [f32] = &mut self.numbers;
        let mut panels = Vec::with_capacity(count);
        for (b, (rows, width)) in sizes.into_iter().enumerate() {
            let (panel, behind) = rest.split_at_mut(rows * width);
            panels.push((b, matrix_mut(rows, width, panel)));
            rest = behind;
        }
        panels
    }

    /// Copies each number above the diagonal of a panel's first block to its mirror image.
    pub(crate) fn mirror(&mut self, b: usize) {
        let rows = self.rows(b);
        let mut block = self.panel_mut(b);
        for i in 0..rows {
            for j in 0..i {
                block[[i, j]] = block[[j, i]];
            }
        }
    }

    /// Exchanges rows `a` and `b` and columns `a` and `b` of the symmetric matrix. Mirror images in panels are not kept.
    pub(crate) fn exchange(&mut self, a: usize, b: usize) {
        let (a, b) = (a.min(b), a.max(b));
        if a == b {
            return;
        }
        for k in (0..self.n).filter(|&k| k != a && k != b) {
            let (x, y) = (self.place(a, k), self.place(b, k));
            self.numbers.swap(x, y);
        }
        let (x, y) = (self.place(a, a), self.place(b, b));
        self.numbers.swap(x, y);
    }
}

/// `numbers` as a matrix.
pub(crate) fn matrix(rows: usize, columns: usize, numbers: &[f32]) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((rows, columns), numbers).expect("invariant: rows times columns numbers")
}

/// The same, to write.
pub(crate) fn matrix_mut(rows: usize, columns: usize, numbers: &mut [f32]) -> ArrayViewMut2<'_, f32> {
    ArrayViewMut2::from_shape((rows, columns), numbers).expect("invariant: rows times columns numbers")
}

/// Those rows and columns of a view. (The macro of the library for this does not go with `forbid(unsafe_code)`.)
pub(crate) fn part<S: RawData>(
    mut view: ArrayBase<S, Ix2>,
    rows: Range<usize>,
    columns: Range<usize>,
) -> ArrayBase<S, Ix2> {
    view.slice_axis_inplace(Axis(0), Slice::from(rows));
    view.slice_axis_inplace(Axis(1), Slice::from(columns));
    view
}

/// The square at the front of a panel.
pub(crate) fn front<S: RawData>(panel: ArrayBase<S, Ix2>) -> ArrayBase<S, Ix2> {
    let rows = panel.nrows();
    part(panel, 0..rows, 0..rows)
}

/// What stands behind it.
pub(crate) fn behind<S: RawData>(panel: ArrayBase<S, Ix2>) -> ArrayBase<S, Ix2> {
    let (rows, columns) = panel.dim();
    part(panel, 0..rows, rows..columns)
}

/// Has `threads` threads take the items one after the other.
pub(crate) fn each<T: Send>(threads: usize, items: Vec<T>, work: impl Fn(T) + Sync) {
    let threads = threads.min(items.len());
    let queue = Mutex::new(items.into_iter());
    let take = || {
        while let Some(item) = {
            let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.next()
        } {
            work(item);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(take);
        }
        take();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_its_own_and_panels_show_the_same_numbers() {
        for n in [1, 5, PANEL - 1, PANEL, PANEL + 1, 3 * PANEL, 3 * PANEL + 77] {
            let mut triangle = Triangle::zeros(n);
            for i in 0..n {
                for j in i..n {
                    assert_eq!(*triangle.at_mut(i, j), 0.0, "{i} {j}");
                    *triangle.at_mut(i, j) = (i * n + j + 1) as f32;
                }
            }
            for b in 0..triangle.panels() {
                triangle.mirror(b);
                let panel = triangle.panel(b);
                assert_eq!(panel.ncols(), n - b * PANEL);
                for ((i, j), x) in panel.indexed_iter() {
                    let (i, j) = ((i + b * PANEL).min(j + b * PANEL), (i + b * PANEL).max(j + b * PANEL));
                    assert_eq!(*x, (i * n + j + 1) as f32);
                }
            }
            let row = triangle.row(n / 2);
            assert!(row.len() == n - n / 2 && row[0] == (n / 2 * n + n / 2 + 1) as f32);
            // Half of the whole, and half of the first blocks of the panels.
            assert!(triangle.numbers().len() <= n * (n + PANEL) / 2);
        }
    }

    #[test]
    fn exchanging_is_a_permutation_of_the_whole_matrix() {
        let n = PANEL + 9;
        let number = |i: usize, j: usize| ((i + j) as f32 * 0.1).sin() + (i * j) as f32;
        let mut triangle = Triangle::zeros(n);
        for i in 0..n {
            for j in i..n {
                *triangle.at_mut(i, j) = number(i, j);
            }
        }
        let mut order: Vec<usize> = (0..n).collect();
        for (a, b) in [(3, 130), (130, 0), (7, 8), (136, 135), (5, 5)] {
            triangle.exchange(a, b);
            order.swap(a, b);
        }
        for i in 0..n {
            for j in 0..n {
                assert_eq!(triangle.at(i, j), number(order[i], order[j]), "{i} {j}");
            }
        }
    }
}
