//! Many callers of one model.
//!
//! One thread makes all answers, a step of each in turn: those that decode go on together, one token each in one run of the
//! decoder, so that the weights are read once for all of them; and between two such runs one other answer may encode or
//! compute a piece of its prompt, for a bounded time. A conversation that goes on finds the KV cache of its earlier turns.

use crate::{
    AskOptions, Error, Event, Model, Session, Turn,
    governed::Doing,
    prompt::{Outline, Prompt},
    work::{Pace, Work},
};
use margay_device::Admission;
use margay_graph::{BackendError, Cancel, Segment};
use margay_observe::Stopwatch;
use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

/// Tokens of a prompt that are computed in one step at least: fewer would read all weights for little.
const LEAST_CHUNK: usize = 16;

/// How many callers a [`Scheduler`] serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchedulerOptions {
    /// Answers that are made at the same time.
    pub slots: usize,
    /// Requests that may wait for one.
    pub queue: usize,
    /// Conversations whose KV cache is kept when they are answered.
    pub kept: usize,
    /// How long others that decode may be kept waiting by one answer's encode or prompt, an op or 16 tokens
    /// more or less.
    pub slice: Duration,
}

impl Default for SchedulerOptions {
    fn default() -> Self {
        SchedulerOptions { slots: 4, queue: 32, kept: 4, slice: Duration::from_millis(20) }
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
    _worker: Arc<Worker>,
}

struct Shared {
    model: Model,
    options: SchedulerOptions,
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    running: Vec<Cancel>,
    cached_tokens: usize,
    cache_bytes: usize,
    closed: bool,
}

struct Waiting {
    prompt: Prompt,
    outline: Arc<Outline>,
    /// Whether one that came later was begun before it.
    passed_over: bool,
    options: AskOptions,
    cancel: Cancel,
    tell: Tell,
}

/// Ends the thread with the last clone.
struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
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
        let shared = Arc::new(Shared { model, options, queue: Mutex::default(), wake: Condvar::new() });
        let own = shared.clone();
        let thread = std::thread::Builder::new().name("scheduler".to_owned()).spawn(move || own.serve());
        let thread =
            thread.map_err(|e| Error::Option { option: "slots", what: format!("no thread: {e}") })?;
        Ok(Scheduler { _worker: Arc::new(Worker { shared: shared.clone(), thread: Some(thread) }), shared })
    }

    /// Takes a request, or says at once that there is no room; `tell` is called from another thread, and should not keep it.
    /// The flag that comes back ends the request: one that waits with [`BackendError::Cancelled`], one that runs with its report.
    ///
    /// # Errors
    /// [`Error::Busy`] where the queue is full or the scheduler is being closed, [`Error::Refused`] where the governor takes no
    /// questions now; else as [`Session::ask_turns`].
    pub fn submit(&self, job: Job, tell: Tell) -> Result<Cancel, Error> {
        drop(self.shared.room()?);
        self.shared.model.admit()?;
        // Tokenising and looking at pixels take time, which only this caller should wait for.
        let prompt = Prompt::of_turns(&self.shared.model, &job.turns)?;
        self.shared.model.check(&job.options)?;
        let cancel = Cancel::new();
        let outline = Arc::new(prompt.outline()?);
        let passed_over = false;
        let waiting =
            Waiting { prompt, outline, passed_over, options: job.options, cancel: cancel.clone(), tell };
        self.shared.room()?.waiting.push_back(waiting);
        self.shared.wake.notify_one();
        Ok(cancel)
    }

    /// How busy it is.
    pub fn load(&self) -> Load {
        let queue = self.shared.lock();
        Load {
            running: queue.running.len(),
            waiting: queue.waiting.len(),
            cached_tokens: queue.cached_tokens,
            cache_bytes: queue.cache_bytes,
        }
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

impl Drop for Worker {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.closed = true;
        queue.waiting.clear();
        queue.running.iter().for_each(Cancel::cancel);
        drop(queue);
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there was told by its own message.
            let _ = thread.join();
        }
    }
}

/// An answer being made.
struct Running {
    session: Session,
    work: Work,
    outline: Arc<Outline>,
    cancel: Cancel,
    tell: Tell,
}

impl Running {
    /// Tells what has happened.
    fn tell(&mut self) {
        while let Some(event) = self.work.told() {
            if !(self.tell)(Ok(event)) {
                self.cancel.cancel();
            }
        }
    }
}

/// What the thread has.
struct Desk<'s> {
    shared: &'s Shared,
    running: Vec<Running>,
    /// Conversations that were answered, the last one last.
    idle: Vec<Session>,
    /// Whose turn it is to encode or to compute its prompt.
    turn: usize,
    /// How long a token of a prompt took last; nothing is known at first.
    prefill: Option<Duration>,
}

/// Closes the queue when the thread ends, in a panic too: nobody may wait for an answer that does not come.
struct Closing<'s>(&'s Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.closed = true;
        queue.waiting.clear();
        queue.running.clear();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queue, where it has room.
    fn room(&self) -> Result<MutexGuard<'_, Queue>, Error> {
        let queue = self.lock();
        // A free slot is room, too: who waits in front of one does not wait for long.
        let free = self.options.slots.saturating_sub(queue.running.len());
        if queue.closed || queue.waiting.len() >= self.options.queue + free {
            return Err(Error::Busy { waiting: queue.waiting.len() });
        }
        Ok(queue)
    }

    fn serve(&self) {
        let _closing = Closing(self);
        let mut desk = Desk { shared: self, running: vec![], idle: vec![], turn: 0, prefill: None };
        while desk.admit() {
            desk.advance_one();
            desk.decode_all();
            desk.end_some();
            desk.clear();
        }
    }
}

impl Desk<'_> {
    /// Begins what waits while there are free slots; waits where there is nothing to do. False at the end.
    fn admit(&mut self) -> bool {
        loop {
            let mut queue = self.shared.lock();
            queue.running = self.running.iter().map(|running| running.cancel.clone()).collect();
            let sessions = self.running.iter().map(|running| &running.session).chain(&self.idle);
            (queue.cached_tokens, queue.cache_bytes) = sessions.fold((0, 0), |(tokens, bytes), session| {
                (tokens + session.used_tokens(), bytes + session.cache_bytes())
            });
            // Who left while waiting makes room at once.
            if let Some(at) = queue.waiting.iter().position(|waiting| waiting.cancel.is_cancelled()) {
                let left = queue.waiting.remove(at);
                drop(queue);
                if let Some(Waiting { mut tell, .. }) = left {
                    tell(Err(BackendError::Cancelled.into()));
                }
                continue;
            }
            if self.running.len() < self.slots(queue.waiting.len())
                && let Some(at) = queue.waiting.iter().position(|waiting| !self.is_computed_soon(waiting))
                && let Some(waiting) = queue.waiting.remove(at)
            {
                // Nobody is passed over twice.
                queue.waiting.iter_mut().take(at).for_each(|waiting| waiting.passed_over = true);
                drop(queue);
                self.begin(waiting);
                continue;
            }
            if !self.running.is_empty() {
                return true;
            }
            if queue.closed {
                return false;
            }
            drop(self.shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Answers that may be made at the same time: one where the governor has questions wait.
    fn slots(&self, waiting: usize) -> usize {
        let Some(governed) = self.shared.model.governed() else { return self.shared.options.slots };
        governed.set_queue(waiting);
        match governed.look().0.admission {
            Admission::Accept => self.shared.options.slots,
            Admission::Queue | Admission::Refuse { .. } => 1,
        }
    }

    /// Whether most of a prompt is being computed for somebody else: it is then worth waiting for, and not computing twice.
    fn is_computed_soon(&self, waiting: &Waiting) -> bool {
        let outline = &waiting.outline;
        let computing = self.running.iter().filter(|running| running.work.is_in_prompt());
        let soon = computing.map(|running| running.outline.shared(outline)).max().unwrap_or(0);
        if waiting.passed_over || 2 * soon <= outline.len() {
            return false;
        }
        let sessions = self.running.iter().map(|running| &running.session).chain(&self.idle);
        let now = sessions.map(|session| session.shared_tokens(&waiting.prompt)).max().unwrap_or(0);
        soon >= now + LEAST_CHUNK
    }

    fn begin(&mut self, Waiting { prompt, outline, options, cancel, mut tell, .. }: Waiting) {
        let begun = self.session_for(&prompt, options.embed).and_then(|mut session| {
            session.cancel = cancel.clone();
            let work = session.begin(prompt, &options)?;
            Ok((session, work))
        });
        match begun {
            Ok((session, work)) => self.running.push(Running { session, work, outline, cancel, tell }),
            Err(e) => _ = tell(Err(e)),
        }
    }

    /// The conversation that the prompt goes on with; else a new one that shares what another one begins with, an empty one, or
    /// the one that was idle for longest.
    fn session_for(&mut self, prompt: &Prompt, embeds: bool) -> Result<Session, Error> {
        // A conversation goes on as it was computed; another one begins as things are now.
        let goes_on = prompt.messages.iter().filter(|message| message.role == "user").count() > 1;
        let share = |session: &Session| match goes_on || session.is_as_now(prompt) {
            true => session.shared_tokens(prompt),
            false => 0,
        };
        let shared: Vec<usize> = self.idle.iter().map(share).collect();
        let best = (0..shared.len()).max_by_key(|at| shared[*at]);
        let running = self.running.iter().map(|running| (share(&running.session), &running.session));
        let running = running.max_by_key(|(shared, _)| *shared);
        // One of which little would be left is worth more as it is, and one that shares less than another less.
        let is_best = |at: &usize| {
            shared[*at] * 2 > self.idle[*at].used_tokens()
                && running.as_ref().is_none_or(|(running, _)| shared[*at] >= *running)
        };
        if let Some(best) = best.filter(is_best) {
            return Ok(self.idle.remove(best));
        }
        let idle = best.map(|at| (shared[at], &self.idle[at]));
        let most = running.into_iter().chain(idle).max_by_key(|(shared, _)| *shared);
        let most = most.filter(|(shared, other)| *shared >= LEAST_CHUNK && other.is_as_now(prompt));
        // Of a backend that shares nothing it is computed anew.
        let forked = most.and_then(|(_, other)| other.fork(prompt).ok());
        // What is embedded is no conversation, and takes no other's place.
        let full = self.idle.len() >= self.shared.options.kept.max(1) && !embeds;
        let oldest = full.then(|| self.idle.remove(0)).map(|mut oldest| {
            oldest.clear();
            oldest
        });
        match forked.or(oldest) {
            Some(session) => Ok(session),
            None => self.shared.model.session(),
        }
    }

    /// Ends what has come to its end, or was cancelled: that takes no time.
    fn end_some(&mut self) {
        for running in &mut self.running {
            while !running.work.is_over() && (running.work.has_ended() || running.cancel.is_cancelled()) {
                let mut pace = Pace { prefill: 0, pause: &mut || true };
                if let Err(e) = running.work.advance(&mut running.session, &mut pace) {
                    (running.tell)(Err(e));
                }
                running.tell();
            }
        }
    }

    /// One step of one answer that does not decode.
    fn advance_one(&mut self) {
        let shared = self.shared;
        let decoding = self.running.iter().filter(|r| r.work.next_token(&r.session).is_some()).count();
        if decoding == self.running.len() {
            return;
        }
        // The tower holds one tile at a time.
        let count = self.running.len();
        let waits = |at: &usize| self.running[*at].work.next_token(&self.running[*at].session).is_none();
        let at = match self.running.iter().position(|running| running.work.is_encoding()) {
            Some(at) => at,
            None => match (0..count).map(|at| (self.turn + at) % count).find(waits) {
                Some(at) => at,
                None => return,
            },
        };
        let alone = decoding == 0;
        let slice = shared.options.slice;
        let chunk = match self.prefill {
            _ if alone => usize::MAX,
            None => LEAST_CHUNK,
            Some(each) => (slice.as_nanos() / each.as_nanos().max(1)) as usize,
        };
        let clock = Stopwatch::start();
        let mut pause = || if alone { false } else { clock.elapsed() >= slice };
        let mut pace = Pace { prefill: chunk.max(LEAST_CHUNK), pause: &mut pause };
        let running = &mut self.running[at];
        let before = running.session.used_tokens();
        let done = running.work.advance(&mut running.session, &mut pace);
        let tokens = running.session.used_tokens().saturating_sub(before);
        if tokens >= LEAST_CHUNK {
            self.prefill = Some(clock.elapsed() / tokens as u32);
        }
        running.tell();
        if let Err(e) = done {
            (running.tell)(Err(e));
        }
        if !running.work.is_encoding() {
            self.turn = at + 1;
        }
    }

    /// One token for each answer that decodes, as many as can be together.
    fn decode_all(&mut self) {
        let model = self.shared.model.clone();
        let only = self.running.len() == 1;
        let ready = self.running.iter_mut().filter(|r| r.work.next_token(&r.session).is_some());
        let mut ready: Vec<&mut Running> = ready.collect();
        if let [alone] = &mut ready[..] {
            // Alone, it may draft ahead; a draft model catches up in pieces where others compute their prompts.
            let prefill = if only { usize::MAX } else { LEAST_CHUNK };
            let mut pace = Pace { prefill, pause: &mut || false };
            if let Err(e) = alone.work.advance(&mut alone.session, &mut pace) {
                (alone.tell)(Err(e));
            }
            alone.tell();
            return;
        }
        let governed = model.governed();
        if let Some(governed) = governed.as_ref().filter(|governed| governed.look().0.hold) {
            governed.hold();
            return;
        }
        for running in &mut ready {
            if let Err(e) = running.work.make_room(&mut running.session) {
                running.fail(e);
            }
        }
        ready.retain(|running| !running.work.is_over());
        while !ready.is_empty() {
            let mut engine = match model.engine() {
                Ok(engine) => engine,
                Err(_) => {
                    ready.iter_mut().for_each(|running| running.fail(Error::Poisoned));
                    return;
                }
            };
            let rest = ready.split_off(ready.len().min(engine.together()));
            let clock = Stopwatch::start();
            // Asked once: who is cancelled in between has no next token any more.
            let next = ready.into_iter().filter_map(|r| Some((r.work.next_token(&r.session)?, r)));
            let (tokens, mut together): (Vec<_>, Vec<_>) = next.unzip();
            ready = rest;
            if tokens.is_empty() {
                continue;
            }
            let mut segments: Vec<Segment<'_>> = together
                .iter_mut()
                .map(|running| Segment { state: running.session.state.as_mut(), rows: 1 })
                .collect();
            // Nobody's flag stops the others.
            let logits = engine.decode(&tokens, &mut segments, &Cancel::new()).map(|logits| {
                let took = clock.elapsed();
                let width = logits.len() / tokens.len();
                for (running, logits) in together.iter_mut().zip(logits.chunks_exact(width)) {
                    if let Err(e) = running.work.decoded(&mut running.session, logits, took) {
                        (running.tell)(Err(e));
                    }
                }
            });
            drop(engine);
            if let Some(governed) = &governed {
                // Nobody's flag ends the rest of the others, which is short.
                governed.rest(Doing::Decode(1), clock.elapsed(), &Cancel::new());
            }
            if let Err(e) = logits {
                let what = e.to_string();
                together.iter_mut().for_each(|running| running.fail(Error::Run { what: what.clone() }));
            }
            together.iter_mut().for_each(|running| running.tell());
        }
    }

    /// Puts answers that have ended away.
    fn clear(&mut self) {
        for at in (0..self.running.len()).rev() {
            let running = &mut self.running[at];
            if running.work.is_over() {
                running.tell();
                let Running { mut session, mut work, .. } = self.running.remove(at);
                work.remember(&mut session);
                session.cancel = Cancel::new();
                if session.used_tokens() > 0 && !work.embeds() {
                    self.idle.push(session);
                }
            }
        }
        let surplus = self.idle.len().saturating_sub(self.shared.options.kept);
        self.idle.drain(..surplus);
    }
}

impl Running {
    fn fail(&mut self, error: Error) {
        self.work.stop();
        (self.tell)(Err(error));
    }
}

#[cfg(test)]
mod tests;
