//! The ops: how each cuts its work into tasks and which kernels it calls.

pub(crate) mod attention;
pub(crate) mod bf16;
pub(crate) mod channel;
pub(crate) mod conv;
pub(crate) mod experts;
pub(crate) mod linear;
pub(crate) mod rows;
pub(crate) mod view;

use crate::{
    kernels::Kernels,
    lines::Lines,
    threads::{Pool, TaskPanic},
};
use margay_graph::Cancel;
use std::{
    cell::UnsafeCell,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// What every op needs: threads, kernels, and scratch memory for each thread.
pub(crate) struct Engine {
    pub(crate) pool: Arc<Pool>,
    pub(crate) kernels: Kernels,
    pub(crate) scratch: Scratch,
    /// Threads that take part in the call under way.
    pub(crate) team: usize,
    /// That of the call under way.
    pub(crate) cancel: Cancel,
    /// True once a task of the call under way was skipped, whatever has become of `cancel` since.
    pub(crate) skipped: AtomicBool,
}

impl Engine {
    /// [`Pool::run`], but once the call is cancelled the tasks not yet begun are skipped, so that a person who stops an
    /// answer waits for one task and not for an op over a long prompt. What a skipped task would have written is
    /// missing: whoever runs ops asks [`Engine::was_cancelled`] after each.
    pub(crate) fn run(&self, tasks: usize, body: &(dyn Fn(usize, usize) + Sync)) -> Result<(), TaskPanic> {
        self.pool.run_on(self.team, tasks, &|worker, task| {
            if self.cancel.is_cancelled() {
                self.skipped.store(true, Ordering::Relaxed);
            } else {
                body(worker, task);
            }
        })
    }

    /// Begins a call on so many threads, which `cancel` stops.
    pub(crate) fn begin(&mut self, team: usize, cancel: &Cancel) {
        self.team = team;
        self.cancel = cancel.clone();
        *self.skipped.get_mut() = false;
    }

    /// True where the call under way was cancelled, or a task of it was skipped.
    pub(crate) fn was_cancelled(&self) -> bool {
        self.cancel.is_cancelled() || self.skipped.load(Ordering::Relaxed)
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn a_cancelled_op_begins_no_further_task() {
        let engine = Engine {
            pool: Arc::new(Pool::new(1, None)),
            kernels: Kernels::of(Isa::Scalar).unwrap(),
            scratch: Scratch::new(1, 0),
            team: 1,
            cancel: Cancel::new(),
            skipped: AtomicBool::new(false),
        };
        let begun = AtomicUsize::new(0);
        let body = |_: usize, task: usize| {
            begun.fetch_add(1, Ordering::Relaxed);
            if task == 3 {
                engine.cancel.cancel();
            }
        };
        engine.run(100, &body).unwrap();
        assert_eq!(begun.into_inner(), 4);
        engine.cancel.reset();
        assert!(engine.was_cancelled(), "a reset does not bring back what was skipped");
    }
}
