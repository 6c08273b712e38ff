//! The ops: how each cuts its work into tasks and which kernels it calls.

pub(crate) mod attention;
pub(crate) mod conv;
pub(crate) mod linear;
pub(crate) mod rows;
pub(crate) mod view;

use crate::{kernels::Kernels, lines::Lines, threads::Pool};
use std::{cell::UnsafeCell, sync::Arc};

/// What every op needs: threads, kernels, and scratch memory for each thread.
pub(crate) struct Engine {
    pub(crate) pool: Arc<Pool>,
    pub(crate) kernels: Kernels,
    pub(crate) scratch: Scratch,
}

/// A piece of memory for each worker.
pub(crate) struct Scratch {
    memory: UnsafeCell<Lines<f32>>,
    each: usize,
}

// SAFETY: `worker` asks that each worker's piece is used by one thread at a time.
unsafe impl Sync for Scratch {}

impl Scratch {
    /// `floats` for each of `workers`.
    pub(crate) fn new(workers: usize, floats: usize) -> Self {
        let each = floats.next_multiple_of(16);
        Scratch { memory: UnsafeCell::new(Lines::zeroed(each * workers)), each }
    }

    pub(crate) fn size_bytes(&self) -> usize {
        // SAFETY: the length never changes.
        unsafe { (*self.memory.get()).size_bytes() }
    }

    /// The piece of `worker`.
    ///
    /// # Safety
    /// Only one thread at a time uses a worker's piece, and it lets go of the last borrow before it borrows again.
    #[allow(clippy::mut_from_ref, reason = "the point of the type")]
    pub(crate) unsafe fn worker(&self, worker: usize) -> &mut [f32] {
        // SAFETY: pieces are disjoint; the caller keeps each to one thread.
        unsafe {
            let memory = &mut *self.memory.get();
            assert!((worker + 1) * self.each <= memory.len());
            std::slice::from_raw_parts_mut(memory.as_mut_ptr().add(worker * self.each), self.each)
        }
    }
}

/// Splits `floats` from the front of `memory`, keeping its alignment to 64 bytes.
pub(crate) fn carve<'a>(memory: &mut &'a mut [f32], floats: usize) -> &'a mut [f32] {
    let (piece, rest) = std::mem::take(memory).split_at_mut(floats.next_multiple_of(16));
    *memory = rest;
    &mut piece[..floats]
}
