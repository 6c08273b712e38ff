//! Threads that stay, and work that is claimed piece by piece.
//!
//! A call to [`Pool::run`] opens a gate; threads that see it open step in, claim tasks from one counter until none is
//! left, and step out. The caller works too, then closes the gate and waits only for those who are inside: a thread
//! that the system has not scheduled yet is never waited for. Waiting spins for some microseconds, then yields, then
//! sleeps.
//!
//! A thread that the system takes off its core in the middle of a task is waited for. Where other processes want the
//! core, that happens again and again, and the whole pool would be slower than one thread. So a thread that was much
//! later than threads usually are, because it was taken off its core, rests for a while before it helps again, longer
//! each time. Somebody is always a little late: the last task ends after the others.
//!
//! Where another process keeps a core busy, the system may also put a thread of the pool on the core of its caller, where
//! it takes away what it gives. A thread that finds itself there does not help but sleeps, longer each time: when it
//! wakes, the system looks for a free core anew.
//!
//! Cores differ: a phone's small ones take three times as long for a task as its big ones. Claiming shares the tasks out
//! by speed all by itself, but a small core that claims one of the last keeps everybody waiting. So a thread remembers
//! how many tasks the others begin during one of its own, and leaves the last ones to them where they will be done
//! sooner.

use crate::cores::CoreSet;
use std::{
    any::Any,
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{JoinHandle, Thread},
    time::Duration,
};

/// Bit of the gate that says it is open; below it the number of threads inside, above it the generation.
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;
const GENERATION: u64 = 1 << 32;
/// Polls of the gate before a thread goes to sleep: some tens of microseconds, longer than the serial ops between two
/// layers' matrices take in decode.
const SPINS_BEFORE_SLEEP: u32 = 4000;
/// Polls before the caller yields its core to a thread that is still inside.
const SPINS_BEFORE_YIELD: u32 = 2000;
/// Yields before the caller sleeps between polls.
const YIELDS_BEFORE_NAP: u32 = 200;
const NAP: Duration = Duration::from_micros(50);
/// Naps from which on a thread can be late: about a millisecond, as naps last longer than they should. A time slice of
/// another process is some milliseconds.
const LATE_NAPS: f32 = 8.0;
/// How many times as long as usual a late thread is waited for.
const LATE_FACTOR: f32 = 4.0;
/// What is held to be usual at first, in naps, so that nobody is called late before much is known.
const USUAL_AT_FIRST: f32 = 64.0;
/// Weight of one job in what is usual.
const USUAL_WEIGHT: f32 = 1.0 / 32.0;
/// How long a thread that was late rests: at first, and at most. A system's time slices are some milliseconds.
const REST: Duration = Duration::from_millis(4);
const LONGEST_REST: Duration = Duration::from_millis(256);
/// How long a thread rests at first that finds itself on its caller's core: enough for the system to place it anew.
const SHORT_REST: Duration = NAP;
/// Jobs without being late, or in the way, after which a thread's rests are short again.
const JOBS_TO_FORGET: u32 = 256;

/// A task panicked; the pool stays usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a kernel panicked: {message}")]
pub struct TaskPanic {
    /// What the panic said.
    pub message: String,
}

thread_local! {
    /// True on a thread that is running a task: a nested call runs on that thread alone.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
    /// The cores that this thread was last confined to.
    static CONFINED: Cell<Option<CoreSet>> = const { Cell::new(None) };
}

type Body<'a> = dyn Fn(usize, usize) + Sync + 'a;

struct Shared {
    gate: AtomicU64,
    next: AtomicUsize,
    tasks: AtomicUsize,
    /// The body of the open job; read only by threads inside.
    body: Mutex<Option<&'static Body<'static>>>,
    panicked: AtomicBool,
    message: Mutex<Option<String>>,
    /// Threads that take part in the open job: workers from this number on stay out.
    team: AtomicUsize,
    workers: Box<[Worker]>,
    stop: AtomicBool,
    /// The generation whose caller last waited for threads inside for unusually long.
    late: AtomicU64,
    /// The core on which the caller opened the gate last; [`UNKNOWN_CORE`] where the system does not tell.
    caller_core: AtomicUsize,
    /// Whether threads on the caller's core keep out of the way. Only tests say no: on a machine with one core nobody
    /// but the caller would ever work.
    keeps_out: AtomicBool,
}

/// What others may know of a worker.
#[derive(Default)]
struct Worker {
    /// Set before it looks at the gate for the last time and parks.
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
    /// Tasks that all together begin while this worker does one of its own, as far as it has learned; at first 0.
    pace: AtomicUsize,
}

/// Persistent threads that share the tasks of one call at a time.
pub struct Pool {
    shared: Arc<Shared>,
    /// Held by the caller whose job is open.
    submit: Mutex<Usual>,
    handles: Vec<JoinHandle<()>>,
    /// Threads that work at most.
    limit: AtomicUsize,
    cores: Option<CoreSet>,
}

impl Pool {
    /// A pool in which `threads` threads work, the caller of [`Pool::run`] included; 0 counts as 1. Where the system
    /// refuses a thread, the pool has fewer. With `cores` all of them, a calling thread from its first call on, stay on
    /// those.
    pub fn new(threads: usize, cores: Option<CoreSet>) -> Self {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            tasks: AtomicUsize::new(0),
            body: Mutex::new(None),
            panicked: AtomicBool::new(false),
            message: Mutex::new(None),
            team: AtomicUsize::new(threads),
            workers: (0..threads).map(|_| Worker::default()).collect(),
            stop: AtomicBool::new(false),
            late: AtomicU64::new(0),
            caller_core: AtomicUsize::new(UNKNOWN_CORE),
            keeps_out: AtomicBool::new(true),
        });
        let handles = (1..threads)
            .map_while(|worker| {
                let shared = shared.clone();
                let work = move || {
                    confine(cores);
                    shared.work(worker);
                };
                let name = format!("margay-cpu-{worker}");
                std::thread::Builder::new().name(name).spawn(work).ok()
            })
            .collect();
        Pool { shared, submit: Mutex::new(Usual::new()), handles, limit: AtomicUsize::new(usize::MAX), cores }
    }

    /// Threads that work, the caller included.
    pub fn threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// Has calls from now on take at most so many threads, so that another pool can have the other cores; 0 counts as 1.
    pub fn limit(&self, threads: usize) {
        self.limit.store(threads, Ordering::Relaxed);
    }

    /// Calls `body(worker, task)` once for each task in `0..tasks`, on any thread and in any order; `worker` is below
    /// [`Pool::threads`] and held by one thread at a time. Called from within a task it runs on that thread alone,
    /// as worker 0 of its own: nested tasks must not use per-worker scratch.
    ///
    /// # Errors
    /// [`TaskPanic`] where a task panicked; tasks not yet claimed are then skipped.
    pub fn run(&self, tasks: usize, body: &Body<'_>) -> Result<(), TaskPanic> {
        self.run_on(self.threads(), tasks, body)
    }

    /// [`Pool::run`] on at most `team` of the threads; 0 counts as 1.
    ///
    /// # Errors
    /// As [`Pool::run`].
    pub fn run_on(&self, team: usize, tasks: usize, body: &Body<'_>) -> Result<(), TaskPanic> {
        if tasks == 0 {
            return Ok(());
        }
        confine(self.cores);
        let team = team.min(self.threads()).min(self.limit.load(Ordering::Relaxed));
        if tasks == 1 || team <= 1 || IN_TASK.get() {
            return serial(tasks, body);
        }
        let mut usual = self.submit.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: the lifetime is extended only until this function returns: the gate is closed and nobody is inside
        // by then, and the body is read only by threads inside.
        let body: &'static Body<'static> = unsafe { std::mem::transmute::<&Body<'_>, _>(body) };
        *shared.body.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        shared.next.store(0, Ordering::Relaxed);
        shared.tasks.store(tasks, Ordering::Relaxed);
        shared.team.store(team, Ordering::Relaxed);
        shared.panicked.store(false, Ordering::Relaxed);
        shared.caller_core.store(core(), Ordering::Relaxed);
        let generation = (shared.gate.load(Ordering::Relaxed) & !(GENERATION - 1)).wrapping_add(GENERATION);
        shared.gate.store(generation | OPEN, Ordering::SeqCst);
        shared.workers[1..team].iter().for_each(Worker::wake);
        shared.claim(0, body);
        shared.gate.fetch_and(!OPEN, Ordering::SeqCst);
        let naps = shared.wait_until_empty(&usual);
        usual.learn(naps);
        *shared.body.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if shared.panicked.load(Ordering::Acquire) {
            let message = shared.message.lock().unwrap_or_else(PoisonError::into_inner).take();
            return Err(TaskPanic { message: message.unwrap_or_default() });
        }
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.workers.iter().for_each(Worker::wake);
        for handle in self.handles.drain(..) {
            // A worker catches the panics of its tasks, so joining cannot fail with anything worth reporting.
            let _ = handle.join();
        }
    }
}

impl Worker {
    fn wake(&self) {
        if self.asleep.load(Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }
}

impl Shared {
    fn work(&self, worker: usize) {
        // Nobody else sets it.
        let _ = self.workers[worker].thread.set(std::thread::current());
        let mut seen = 0;
        let mut spins = 0;
        let mut manners = Manners::new();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            if self.is_for(worker, self.gate.load(Ordering::Relaxed), seen) && self.in_the_way() {
                spins = 0;
                self.rest(manners.in_the_way());
            } else if let Some(generation) = self.step_in(worker, seen) {
                seen = generation;
                spins = 0;
                let body = *self.body.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(body) = body {
                    self.claim(worker, body);
                }
                // Asked before the step out, after which the caller goes on to the next generation.
                let late = self.late.load(Ordering::Relaxed) == generation;
                self.gate.fetch_sub(1, Ordering::Release);
                self.rest(manners.after_a_job(late));
            } else if spins < SPINS_BEFORE_SLEEP {
                spins += 1;
                std::hint::spin_loop();
            } else {
                spins = 0;
                self.sleep(worker, seen);
            }
        }
    }

    /// Enters an open gate of a generation other than `seen` and returns that generation.
    fn step_in(&self, worker: usize, seen: u64) -> Option<u64> {
        let mut gate = self.gate.load(Ordering::Relaxed);
        while self.is_for(worker, gate, seen) {
            match self.gate.compare_exchange_weak(gate, gate + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(gate / GENERATION),
                Err(now) => gate = now,
            }
        }
        None
    }

    /// Whether that gate is open to a worker who has last seen generation `seen`. The team may be that of another
    /// generation: a worker too many does no harm, and one that is missing looks again.
    fn is_for(&self, worker: usize, gate: u64, seen: u64) -> bool {
        gate & OPEN != 0 && gate / GENERATION != seen && worker < self.team.load(Ordering::Relaxed)
    }

    /// Whether this thread is on the core that the caller works on.
    fn in_the_way(&self) -> bool {
        let here = core();
        here != UNKNOWN_CORE
            && here == self.caller_core.load(Ordering::Relaxed)
            && self.keeps_out.load(Ordering::Relaxed)
    }

    fn sleep(&self, worker: usize, seen: u64) {
        let asleep = &self.workers[worker].asleep;
        asleep.store(true, Ordering::SeqCst);
        // The caller opens the gate before it looks for sleepers, and we say that we sleep before we look at the gate.
        let gate = self.gate.load(Ordering::SeqCst);
        if !self.is_for(worker, gate, seen) && !self.stop.load(Ordering::SeqCst) {
            std::thread::park();
        }
        asleep.store(false, Ordering::SeqCst);
    }

    /// Sleeps, in pieces, so that the pool can be dropped meanwhile.
    fn rest(&self, time: Duration) {
        let mut left = time;
        while !left.is_zero() && !self.stop.load(Ordering::Relaxed) {
            let piece = left.min(REST);
            std::thread::sleep(piece);
            left -= piece;
        }
    }

    fn claim(&self, worker: usize, body: &Body<'_>) {
        let tasks = self.tasks.load(Ordering::Relaxed);
        let mut last = None;
        IN_TASK.set(true);
        // The caller never leaves a task to others: they may be asleep.
        while worker == 0 || !self.leaves_the_rest(worker, tasks) {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                break;
            }
            if let Some(last) = last.replace(task) {
                self.note_pace(worker, task - last);
            }
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(worker, task))) {
                *self.message.lock().unwrap_or_else(PoisonError::into_inner) = Some(text(&*panic));
                self.panicked.store(true, Ordering::Release);
                self.next.store(tasks, Ordering::Relaxed);
            }
        }
        IN_TASK.set(false);
    }

    /// True where the others will have done what is left before this worker would finish one more task.
    fn leaves_the_rest(&self, worker: usize, tasks: usize) -> bool {
        let pace = &self.workers[worker].pace;
        let left = tasks.saturating_sub(self.next.load(Ordering::Relaxed));
        let known = pace.load(Ordering::Relaxed);
        // During one task of ours the others begin `known - 1`. What is left takes them that long, and before that each
        // may have to finish one that it has begun.
        let others = self.team.load(Ordering::Relaxed) - 1;
        let leaves = left > 0 && left + others < known.saturating_sub(1);
        if leaves {
            // Who never works never learns that it has become faster.
            pace.store(known - 1, Ordering::Relaxed);
        }
        leaves
    }

    fn note_pace(&self, worker: usize, begun: usize) {
        let pace = &self.workers[worker].pace;
        // Rises slowly and falls at once: a thread that was taken off its core for a while is not slow.
        pace.store(begun.min(pace.load(Ordering::Relaxed) + 1), Ordering::Relaxed);
    }

    /// Waits for the threads inside, and returns how many naps that took. Who is still there after unusually many learns
    /// that it is late.
    fn wait_until_empty(&self, usual: &Usual) -> f32 {
        let late = usual.late();
        let (mut polls, mut naps) = (0u32, 0.0);
        while self.gate.load(Ordering::Acquire) & INSIDE != 0 {
            polls = polls.saturating_add(1);
            if polls < SPINS_BEFORE_YIELD {
                std::hint::spin_loop();
            } else if polls < SPINS_BEFORE_YIELD + YIELDS_BEFORE_NAP {
                std::thread::yield_now();
            } else {
                naps += 1.0;
                if naps > late {
                    let generation = self.gate.load(Ordering::Relaxed) / GENERATION;
                    self.late.store(generation, Ordering::Relaxed);
                }
                std::thread::sleep(NAP);
            }
        }
        naps
    }
}

/// How long callers usually wait for threads inside, in naps.
struct Usual(f32);

impl Usual {
    fn new() -> Self {
        Usual(USUAL_AT_FIRST)
    }

    /// Whom a caller waits for longer than so many naps is late.
    fn late(&self) -> f32 {
        LATE_NAPS.max(self.0 * LATE_FACTOR)
    }

    fn learn(&mut self, naps: f32) {
        self.0 += (naps - self.0) * USUAL_WEIGHT;
    }
}

/// What a thread learns from having been late, or in the way.
struct Manners {
    /// Times the system had taken this thread off its core, when last asked.
    preemptions: i64,
    next_rest: Duration,
    jobs_on_time: u32,
    next_short_rest: Duration,
    jobs_out_of_the_way: u32,
}

impl Manners {
    fn new() -> Self {
        Manners {
            preemptions: preemptions(),
            next_rest: REST,
            jobs_on_time: 0,
            next_short_rest: SHORT_REST,
            jobs_out_of_the_way: 0,
        }
    }

    /// How long to rest instead of helping a caller whose core this thread is on.
    fn in_the_way(&mut self) -> Duration {
        if self.jobs_out_of_the_way > JOBS_TO_FORGET {
            self.next_short_rest = SHORT_REST;
        }
        self.jobs_out_of_the_way = 0;
        longer(&mut self.next_short_rest)
    }

    /// How long to rest after a job: not at all unless it was late and this thread had been taken off its core. Late
    /// with a long task of its own is no reason.
    fn after_a_job(&mut self, late: bool) -> Duration {
        self.jobs_out_of_the_way = self.jobs_out_of_the_way.saturating_add(1);
        if !late {
            self.jobs_on_time = self.jobs_on_time.saturating_add(1);
            return Duration::ZERO;
        }
        let before = std::mem::replace(&mut self.preemptions, preemptions());
        if self.preemptions == before {
            return Duration::ZERO;
        }
        if self.jobs_on_time > JOBS_TO_FORGET {
            self.next_rest = REST;
        }
        self.jobs_on_time = 0;
        longer(&mut self.next_rest)
    }
}

/// That rest; the next is twice as long.
fn longer(next: &mut Duration) -> Duration {
    let rest = *next;
    *next = (rest * 2).min(LONGEST_REST);
    rest
}

/// What [`core`] says where nobody knows.
const UNKNOWN_CORE: usize = usize::MAX;

/// The core that the calling thread is on.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn core() -> usize {
    // SAFETY: it takes nothing and writes nothing.
    let core = unsafe { libc::sched_getcpu() };
    usize::try_from(core).unwrap_or(UNKNOWN_CORE)
}

/// The system does not tell.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn core() -> usize {
    UNKNOWN_CORE
}

/// Times the system took this thread off its core though it could have gone on; always 0 where it does not tell.
fn preemptions() -> i64 {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: the structure is as large as the system expects and all zeros are a value of it.
        let usage = unsafe {
            libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
            usage.assume_init()
        };
        #[allow(clippy::useless_conversion, reason = "the field is narrower on 32-bit systems")]
        return i64::from(usage.ru_nivcsw);
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    0
}

/// Keeps the calling thread on `cores` from now on, where it is not there already. A system that will not do so has said
/// so when the pool was made.
fn confine(cores: Option<CoreSet>) {
    if let Some(cores) = cores
        && CONFINED.get() != Some(cores)
        && cores.confine()
    {
        CONFINED.set(Some(cores));
    }
}

fn serial(tasks: usize, body: &Body<'_>) -> Result<(), TaskPanic> {
    let nested = IN_TASK.replace(true);
    let run = catch_unwind(AssertUnwindSafe(|| (0..tasks).for_each(|task| body(0, task))));
    IN_TASK.set(nested);
    run.map_err(|panic| TaskPanic { message: text(&*panic) })
}

fn text(panic: &(dyn Any + Send)) -> String {
    let known = panic.downcast_ref::<String>().cloned();
    known.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// A pool whose threads work wherever they are, for tests that wait for one of them.
    fn pushy(threads: usize) -> Pool {
        let pool = Pool::new(threads, None);
        pool.shared.keeps_out.store(false, Ordering::Relaxed);
        pool
    }

    #[test]
    fn every_task_runs_once_whatever_the_number_of_threads() {
        for threads in [0, 1, 2, 3, 8] {
            let pool = Pool::new(threads, None);
            for round in 0..300 {
                let tasks = round % 17;
                let hits: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|worker, task| {
                    assert!(worker < pool.threads());
                    hits[task].fetch_add(1, Ordering::Relaxed);
                })
                .unwrap();
                assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_panic_is_an_error_and_the_pool_works_on() {
        let pool = Pool::new(3, None);
        for _ in 0..50 {
            let err = pool.run(20, &|_, task| assert!(task != 7, "task seven")).unwrap_err();
            assert!(err.message.contains("task seven"));
            pool.run(20, &|_, _| {}).unwrap();
        }
        assert!(pool.run(1, &|_, _| panic!("alone")).is_err());
    }

    #[test]
    fn nested_calls_run_on_their_own_thread() {
        let pool = Pool::new(2, None);
        let sum = AtomicUsize::new(0);
        pool.run(8, &|_, _| {
            pool.run(5, &|_, inner| {
                sum.fetch_add(inner, Ordering::Relaxed);
            })
            .unwrap();
        })
        .unwrap();
        assert_eq!(sum.into_inner(), 8 * 10);
    }

    #[test]
    fn callers_of_one_pool_take_turns() {
        let pool = Pool::new(2, None);
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(4, &|_, task| {
                            sum.fetch_add(task, Ordering::Relaxed);
                        })
                        .unwrap();
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 200 * 6);
    }

    #[test]
    fn a_thread_taken_off_its_core_rests_longer_each_time_and_is_forgiven() {
        let mut manners = Manners::new();
        assert_eq!(manners.after_a_job(false), Duration::ZERO);
        let mut late = || {
            // As if it had been taken off its core once more.
            manners.preemptions -= 1;
            manners.after_a_job(true)
        };
        let rests: Vec<_> = (0..8).map(|_| late()).collect();
        assert_eq!(rests, [4, 8, 16, 32, 64, 128, 256, 256].map(Duration::from_millis));
        for _ in 0..=JOBS_TO_FORGET {
            assert_eq!(manners.after_a_job(false), Duration::ZERO);
        }
        manners.preemptions -= 1;
        assert_eq!(manners.after_a_job(true), REST);
    }

    #[test]
    fn who_is_on_the_callers_core_rests_longer_each_time_and_is_forgiven() {
        let mut manners = Manners::new();
        let rests: Vec<_> = (0..14).map(|_| manners.in_the_way()).collect();
        assert_eq!(rests[..3], [50, 100, 200].map(Duration::from_micros));
        assert_eq!(rests[13], LONGEST_REST);
        manners.after_a_job(false);
        assert_eq!(manners.in_the_way(), LONGEST_REST, "one job elsewhere is no proof");
        for _ in 0..=JOBS_TO_FORGET {
            manners.after_a_job(false);
        }
        assert_eq!(manners.in_the_way(), SHORT_REST);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn threads_that_share_one_core_leave_the_work_to_the_caller() {
        let here = core();
        assert_ne!(here, UNKNOWN_CORE);
        let only: CoreSet = here.to_string().parse().unwrap();
        let pool = Pool::new(3, Some(only));
        let by_others = AtomicUsize::new(0);
        for _ in 0..20 {
            // Long enough for the others to come, if they did.
            pool.run(8, &|worker, _| {
                by_others.fetch_add(usize::from(worker > 0), Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(200));
            })
            .unwrap();
        }
        assert_eq!(by_others.into_inner(), 0);
    }

    #[test]
    fn only_who_is_later_than_usual_is_late() {
        let mut usual = Usual::new();
        // Somebody always ends last: waits of always the same length become usual, however long they are.
        let lengths = [10.0, 100.0, 1000.0];
        for naps in lengths {
            (0..100).for_each(|_| usual.learn(naps));
            assert!(naps <= usual.late(), "{naps} naps");
            assert!(naps * 2.0 * LATE_FACTOR > usual.late(), "{naps} naps");
        }
        // Where others come at once, only a wait of many naps is long.
        (0..1000).for_each(|_| usual.learn(0.0));
        assert_eq!(usual.late(), LATE_NAPS);
    }

    #[test]
    fn who_is_late_learns_so_and_who_is_not_does_not() {
        let pool = pushy(2);
        let late = || pool.shared.late.load(Ordering::Relaxed);
        let learned = AtomicBool::new(false);
        let before = late();
        let patience = Instant::now() + Duration::from_secs(60);
        // On a busy machine the other thread may come when all is done.
        while !learned.load(Ordering::Relaxed) && Instant::now() < patience {
            pool.run(64, &|worker, _| {
                if worker == 0 {
                    std::thread::sleep(Duration::from_micros(50));
                    return;
                }
                while late() == before && Instant::now() < patience {
                    std::thread::sleep(NAP);
                }
                learned.store(late() != before, Ordering::Relaxed);
            })
            .unwrap();
        }
        assert!(learned.into_inner(), "the caller waited for a minute and told nobody");
    }

    #[test]
    fn a_team_leaves_the_other_threads_out() {
        let pool = pushy(4);
        for team in [2, 4, 1, 3, 2] {
            let hits: [AtomicUsize; 4] = Default::default();
            for round in 0..10 {
                pool.run_on(team, 64, &|worker, _| {
                    // Long enough for every thread to come. The first round says which team it is: a worker that looks at
                    // the gate just then may still belong to the last one.
                    std::thread::sleep(Duration::from_micros(200));
                    if round > 0 {
                        hits[worker].fetch_add(1, Ordering::Relaxed);
                    }
                })
                .unwrap();
            }
            let hits = hits.map(AtomicUsize::into_inner);
            assert_eq!(hits.iter().sum::<usize>(), 9 * 64);
            assert!(hits[..team].iter().all(|h| *h > 0), "{team}: {hits:?}");
            assert_eq!(hits[team..].iter().sum::<usize>(), 0, "{team}: {hits:?}");
        }
    }

    #[test]
    fn a_limited_pool_leaves_the_other_threads_out_until_the_limit_is_lifted() {
        let pool = pushy(3);
        for (limit, workers) in [(2, 2), (0, 1), (usize::MAX, 3)] {
            pool.limit(limit);
            let hits: [AtomicUsize; 3] = Default::default();
            for round in 0..10 {
                pool.run(48, &|worker, _| {
                    std::thread::sleep(Duration::from_micros(200));
                    // As above.
                    hits[worker].fetch_add(usize::from(round > 0), Ordering::Relaxed);
                })
                .unwrap();
            }
            let hits = hits.map(AtomicUsize::into_inner);
            assert_eq!(hits.iter().sum::<usize>(), 9 * 48);
            assert_eq!(hits[workers..].iter().sum::<usize>(), 0, "{limit}: {hits:?}");
        }
    }

    #[test]
    fn a_slow_thread_leaves_the_last_tasks_to_a_fast_one() {
        let pool = pushy(2);
        let (shared, tasks) = (&pool.shared, 60);
        let pace = || shared.workers[1].pace.load(Ordering::Relaxed);
        let patience = Instant::now() + Duration::from_secs(60);
        // Fifteen tasks of the fast thread go by in one of the slow thread's. Which task that thread began last.
        let job = || {
            let last = AtomicUsize::new(0);
            pool.run(tasks, &|worker, task| {
                std::thread::sleep(Duration::from_micros(200));
                if worker == 1 {
                    last.fetch_max(task, Ordering::Relaxed);
                    let until = tasks.min(task + 15);
                    while shared.next.load(Ordering::Relaxed) < until && Instant::now() < patience {
                        std::thread::sleep(NAP);
                    }
                }
            })
            .unwrap();
            last.into_inner()
        };
        // On a busy machine the slow thread may come when all is done.
        while pace() < 12 && Instant::now() < patience {
            job();
        }
        assert!(pace() >= 12, "the slow thread knows a pace of {}", pace());
        let last = job();
        assert!(last < tasks - 6, "the slow thread began task {last} of {tasks}");
    }

    #[test]
    fn one_long_absence_does_not_make_a_thread_slow() {
        let pool = Pool::new(2, None);
        let (shared, pace) = (&pool.shared, || pool.shared.workers[1].pace.load(Ordering::Relaxed));
        for begun in [2, 3, 500, 2, 1, 2] {
            shared.note_pace(1, begun);
        }
        assert_eq!(pace(), 2);
        assert!(!shared.leaves_the_rest(1, 1), "one of two equal threads takes the last task");
        (0..40).for_each(|_| shared.note_pace(1, 20));
        assert_eq!(pace(), 20);
        assert!(shared.leaves_the_rest(1, 10) && !shared.leaves_the_rest(1, 60));
        assert_eq!(pace(), 19, "who leaves tasks to others becomes willing again");
        assert!(!shared.leaves_the_rest(1, 0), "nothing is left");
    }

    #[test]
    fn sleeping_threads_wake_up() {
        let pool = Pool::new(4, None);
        for _ in 0..20 {
            // Long enough for every worker to go to bed.
            std::thread::sleep(Duration::from_millis(2));
            let hits = AtomicUsize::new(0);
            pool.run(64, &|_, _| {
                hits.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
            assert_eq!(hits.into_inner(), 64);
        }
    }
}
