//! What Ctrl-C does.

use crate::{code, output};
use anyhow::Context;
use margay::Cancel;
use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How long a stopped task may take to end by itself before [`Late::Leave`] leaves. A kernel over a long prompt can run
/// for longer than a person wants to wait.
const GRACE: Duration = Duration::from_millis(30);

/// Listens for Ctrl-C. With no task watched it ends the process; a watched task is asked to stop, and a second press
/// ends the process all the same.
#[derive(Clone)]
pub(crate) struct Interrupt(Arc<Shared>);

struct Shared {
    task: Mutex<Option<Task>>,
    ended: Condvar,
}

struct Task {
    cancel: Cancel,
    late: Late,
    pressed: bool,
}

/// What to do about a task that does not stop at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Late {
    /// Wait for it: something must be tidied up, or goes on afterwards.
    Wait,
    /// End the process.
    Leave,
}

impl Interrupt {
    /// Starts to listen.
    pub(crate) fn install() -> anyhow::Result<Self> {
        let interrupt = Interrupt(Arc::new(Shared { task: Mutex::new(None), ended: Condvar::new() }));
        let shared = interrupt.0.clone();
        ctrlc::set_handler(move || shared.press()).context("cannot listen for Ctrl-C")?;
        Ok(interrupt)
    }

    /// From now until the guard is dropped, Ctrl-C cancels `cancel`.
    pub(crate) fn watch(&self, cancel: Cancel, late: Late) -> Watch<'_> {
        *self.0.task() = Some(Task { cancel, late, pressed: false });
        Watch(self)
    }
}

/// A task that Ctrl-C stops.
pub(crate) struct Watch<'i>(&'i Interrupt);

impl Watch<'_> {
    /// True once Ctrl-C was pressed.
    pub(crate) fn pressed(&self) -> bool {
        self.0.0.task().as_ref().is_some_and(|task| task.pressed)
    }

    /// Cancels again what was cancelled before the task was ready to hear it.
    pub(crate) fn repeat(&self) {
        if let Some(task) = self.0.0.task().as_ref().filter(|task| task.pressed) {
            task.cancel.cancel();
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        *self.0.0.task() = None;
        self.0.0.ended.notify_all();
    }
}

impl Shared {
    fn task(&self) -> MutexGuard<'_, Option<Task>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs on the thread that the signal is delivered to, never on the main thread.
    fn press(&self) {
        let mut guard = self.task();
        match guard.as_mut().filter(|task| !task.pressed) {
            Some(task) => {
                task.pressed = true;
                task.cancel.cancel();
                if task.late == Late::Leave {
                    let waited = self.ended.wait_timeout_while(guard, GRACE, |task| task.is_some());
                    let (guard, _) = waited.unwrap_or_else(PoisonError::into_inner);
                    if guard.is_some() {
                        leave();
                    }
                }
            }
            None => leave(),
        }
    }
}

fn leave() -> ! {
    output::restore_terminal();
    std::process::exit(code::INTERRUPTED.into())
}
