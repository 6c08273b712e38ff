//! Many callers of one model.

use crate::{AskOptions, Error, Event, Model, Turn};
use margay_graph::Cancel;
use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::JoinHandle,
};

/// How many callers a [`Scheduler`] serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchedulerOptions {
    /// Answers that are made at the same time.
    pub slots: usize,
    /// Requests that may wait for one.
    pub queue: usize,
}

impl Default for SchedulerOptions {
    fn default() -> Self {
        SchedulerOptions { slots: 4, queue: 32 }
    }
}

/// A conversation to go on with.
#[derive(Clone, Debug)]
pub struct Job {
    /// The conversation; its last turn is the question.
    pub turns: Vec<Turn>,
    /// How to answer.
    pub options: AskOptions,
}

/// Told every event of an answer, the last of which is [`Event::Done`] or an error; false ends the answer.
pub type Tell = Box<dyn FnMut(Result<Event, Error>) -> bool + Send>;

/// How busy a [`Scheduler`] is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Answers being made.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Tokens in the KV caches of all conversations, idle ones too.
    pub cached_tokens: usize,
    /// Bytes allocated for them.
    pub cache_bytes: usize,
}

/// Shares one model among callers. Dropping the last clone cancels what runs.
#[derive(Clone)]
pub struct Scheduler {
    shared: Arc<Shared>,
    _workers: Arc<Workers>,
}

struct Shared {
    model: Model,
    options: SchedulerOptions,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    running: Vec<Cancel>,
    closed: bool,
}

struct Waiting {
    job: Job,
    cancel: Cancel,
    tell: Tell,
}

struct Workers {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Scheduler {
    /// Starts to serve.
    ///
    /// # Errors
    /// [`Error::Option`] for no slots.
    pub fn new(model: Model, options: SchedulerOptions) -> Result<Self, Error> {
        if options.slots == 0 {
            return Err(Error::Option { option: "slots", what: "0 answer nobody".to_owned() });
        }
        let slots = options.slots;
        let shared = Arc::new(Shared { model, options, state: Mutex::default(), wake: Condvar::new() });
        let start = |_| {
            let shared = shared.clone();
            std::thread::spawn(move || shared.work())
        };
        let threads = Mutex::new((0..slots).map(start).collect());
        Ok(Scheduler { _workers: Arc::new(Workers { shared: shared.clone(), threads }), shared })
    }

    /// Takes a request, or says at once that there is no room; `tell` is called from another thread. The flag that comes
    /// back ends it, waiting or running.
    ///
    /// # Errors
    /// [`Error::Busy`] where the queue is full or the scheduler is being closed. What is wrong with the request itself,
    /// `tell` is told.
    pub fn submit(&self, job: Job, tell: Tell) -> Result<Cancel, Error> {
        let mut state = self.shared.lock();
        if state.closed || state.waiting.len() >= self.shared.options.queue {
            return Err(Error::Busy { waiting: state.waiting.len() });
        }
        let cancel = Cancel::new();
        state.waiting.push_back(Waiting { job, cancel: cancel.clone(), tell });
        self.shared.wake.notify_one();
        Ok(cancel)
    }

    /// How busy it is.
    pub fn load(&self) -> Load {
        let state = self.shared.lock();
        Load { running: state.running.len(), waiting: state.waiting.len(), ..Load::default() }
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.shared.model
    }

    /// Takes no more requests; those that wait or run are finished.
    pub fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        loop {
            let mut state = self.lock();
            let waiting = loop {
                match state.waiting.pop_front() {
                    Some(waiting) => break waiting,
                    None if state.closed => return,
                    None => state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
                }
            };
            state.running.push(waiting.cancel.clone());
            drop(state);
            let cancel = waiting.cancel.clone();
            self.answer(waiting);
            self.lock().running.retain(|running| !running.same(&cancel));
        }
    }

    fn answer(&self, Waiting { job, cancel, mut tell }: Waiting) {
        let mut session = match self.model.session() {
            Ok(session) => session,
            Err(e) => {
                tell(Err(e));
                return;
            }
        };
        let stop = session.cancel();
        match session.ask_turns(&job.turns, &job.options) {
            Ok(answer) => {
                for event in answer {
                    if !tell(event) || cancel.is_cancelled() {
                        stop.cancel();
                    }
                }
            }
            Err(e) => {
                tell(Err(e));
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        state.waiting.clear();
        state.running.iter().for_each(Cancel::cancel);
        drop(state);
        self.shared.wake.notify_all();
        for thread in self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = thread.join();
        }
    }
}
