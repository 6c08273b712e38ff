//! Matrices in the arena, shared by the tasks of one op.

use std::marker::PhantomData;

/// A row-major float32 matrix that tasks read.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    at: *const f32,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    life: PhantomData<&'a f32>,
}

/// A row-major float32 matrix of which tasks write disjoint parts. It may lie on top of a [`View`]: no reference into
/// either may then be alive while the same elements are touched through the other.
#[derive(Clone, Copy)]
pub(crate) struct Out<'a> {
    at: *mut f32,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    life: PhantomData<&'a f32>,
}

// SAFETY: only read, or written by disjoint parts (the promise of `Out::row`).
unsafe impl Send for View<'_> {}
// SAFETY: as above.
unsafe impl Sync for View<'_> {}
// SAFETY: as above.
unsafe impl Send for Out<'_> {}
// SAFETY: as above.
unsafe impl Sync for Out<'_> {}

impl<'a> View<'a> {
    /// # Safety
    /// `at` is valid for reads of `rows * columns` floats for `'a`.
    pub(crate) unsafe fn new(at: *const f32, rows: usize, columns: usize) -> Self {
        View { at, rows, columns, life: PhantomData }
    }

    /// The same numbers as rows of `columns`, which divide those there are.
    pub(crate) fn pieces(self, columns: usize) -> Self {
        assert!(self.columns.is_multiple_of(columns));
        View { rows: self.rows * (self.columns / columns.max(1)), columns, ..self }
    }

    /// So many rows from `start` on.
    pub(crate) fn part_of_rows(self, start: usize, rows: usize) -> Self {
        assert!(start + rows <= self.rows);
        // SAFETY: inside the matrix, see `new`.
        View { at: unsafe { self.at.add(start * self.columns) }, rows, ..self }
    }

    pub(crate) fn pointer(self) -> *const f32 {
        self.at
    }

    /// One row.
    ///
    /// # Safety
    /// Nobody writes it while the reference lives.
    pub(crate) unsafe fn row(self, row: usize) -> &'a [f32] {
        assert!(row < self.rows);
        // SAFETY: inside the matrix, see `new`.
        unsafe { std::slice::from_raw_parts(self.at.add(row * self.columns), self.columns) }
    }

    /// Part of a row.
    ///
    /// # Safety
    /// As [`View::row`].
    pub(crate) unsafe fn part(self, row: usize, from: usize, len: usize) -> &'a [f32] {
        assert!(row < self.rows && from + len <= self.columns);
        // SAFETY: inside the matrix, see `new`.
        unsafe { std::slice::from_raw_parts(self.at.add(row * self.columns + from), len) }
    }
}

impl<'a> Out<'a> {
    /// # Safety
    /// `at` is valid for reads and writes of `rows * columns` floats for `'a`.
    pub(crate) unsafe fn new(at: *mut f32, rows: usize, columns: usize) -> Self {
        Out { at, rows, columns, life: PhantomData }
    }

    /// As [`View::pieces`].
    pub(crate) fn pieces(self, columns: usize) -> Self {
        assert!(self.columns.is_multiple_of(columns));
        Out { rows: self.rows * (self.columns / columns.max(1)), columns, ..self }
    }

    /// As [`View::part_of_rows`].
    pub(crate) fn part_of_rows(self, start: usize, rows: usize) -> Self {
        assert!(start + rows <= self.rows);
        // SAFETY: inside the matrix, see `new`.
        Out { at: unsafe { self.at.add(start * self.columns) }, rows, ..self }
    }

    pub(crate) fn pointer(self) -> *mut f32 {
        self.at
    }

    /// One row.
    ///
    /// # Safety
    /// Nobody else touches it while the reference lives.
    pub(crate) unsafe fn row(self, row: usize) -> &'a mut [f32] {
        assert!(row < self.rows);
        // SAFETY: inside the matrix, see `new`.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(row * self.columns), self.columns) }
    }

    /// Part of a row.
    ///
    /// # Safety
    /// As [`Out::row`].
    pub(crate) unsafe fn part(self, row: usize, from: usize, len: usize) -> &'a mut [f32] {
        assert!(row < self.rows && from + len <= self.columns);
        // SAFETY: inside the matrix, see `new`.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(row * self.columns + from), len) }
    }
}
