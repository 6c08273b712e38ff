//! Limits of the processor: memory read bandwidth, and how fast it multiplies and adds when nothing else is in the way.
//!
//! A peak is that of bare instructions on registers, never of a kernel: a kernel is judged by it. Each figure is the
//! best of a few runs, so it says what is possible rather than what was left over by other processes.

#[cfg(target_arch = "aarch64")]
mod arm;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::{Pace, timed};
use crate::{CpuBackend, Isa, kernels::prefetch, lines::Lines, threads::TaskPanic};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes read, beyond any cache.
const READ_BYTES: usize = 256 << 20;
/// Tasks of a thread, so that threads that begin late find something left to do.
const TASKS_A_THREAD: usize = 16;
/// Streams that one task reads at once where there are several.
const STREAMS: usize = 4;
/// How far ahead memory is asked for.
const PREFETCH_BYTES: usize = 2048;
const READ_PACE: Pace = Pace { turns: 1, least_seconds: 0.0, runs: 4 };
const PEAK_PACE: Pace = Pace { turns: 500, least_seconds: 0.004, runs: 4 };
/// Turns of a task of a peak that is measured for long: some microseconds.
const SUSTAINED_TURNS: usize = 5000;
const BARRIER_PACE: Pace = Pace { turns: 100, least_seconds: 0.0, runs: 20 };
/// Polls after which a thread that has not come is given up on: some milliseconds.
const MOST_POLLS: u32 = 100_000;

/// How fast one instruction works.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// The instruction, as the processor's manual calls it, or several that belong together.
    pub instruction: &'static str,
    /// Operations a second of all threads together; a multiply-add is 2.
    pub ops_per_second: f64,
}

/// What some threads of this processor reach at most with one instruction set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// The instruction set.
    pub isa: Isa,
    /// Threads that work.
    pub threads: usize,
    /// Bytes a second of all threads together, each reading one stream.
    pub read_one_stream: f64,
    /// The same, each reading 4 streams and asking for memory 2 KiB ahead.
    pub read_four_streams: f64,
    /// Products of 8-bit integers by the fastest instruction there is, whatever it asks of its operands.
    pub int8: Peak,
    /// Products of any signed 8-bit integers with exact sums, where that takes another instruction.
    pub int8_exact: Option<Peak>,
    /// Single precision.
    pub f32: Peak,
    /// Dot products of bfloat16, where the processor has them.
    pub bf16: Option<Peak>,
    /// Seconds from handing out one task a thread, each of which waits for all others to begin, until all are done: what
    /// an op costs beside its work.
    pub barrier: f64,
}

impl Limits {
    /// Memory read bandwidth, bytes a second: the better way to read.
    pub fn read(&self) -> f64 {
        self.read_one_stream.max(self.read_four_streams)
    }

    /// The better of two measurements, figure by figure.
    pub(super) fn or_better(self, other: Limits) -> Limits {
        let peak = |a: Peak, b: Peak| if b.ops_per_second > a.ops_per_second { b } else { a };
        let maybe = |a: Option<Peak>, b: Option<Peak>| a.zip(b).map(|(a, b)| peak(a, b)).or(a).or(b);
        Limits {
            read_one_stream: self.read_one_stream.max(other.read_one_stream),
            read_four_streams: self.read_four_streams.max(other.read_four_streams),
            int8: peak(self.int8, other.int8),
            int8_exact: maybe(self.int8_exact, other.int8_exact),
            f32: peak(self.f32, other.f32),
            bf16: maybe(self.bf16, other.bf16),
            barrier: self.barrier.min(other.barrier),
            ..self
        }
    }
}

/// What [`Probe::sustained`] measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sustained {
    /// Memory, each thread 4 streams, asked for 2 KiB ahead.
    Read,
    /// As [`Limits::int8`].
    Int8,
    /// As [`Limits::f32`].
    F32,
    /// As [`Limits::bf16`].
    Bf16,
}

/// Memory to read, kept for several measurements.
pub struct Probe {
    memory: Lines<u8>,
}

impl Probe {
    /// 256 MiB, in huge pages where the system has them.
    pub fn new() -> Self {
        Self::of(READ_BYTES)
    }

    /// So many bytes, for tests.
    pub(super) fn of(bytes: usize) -> Self {
        let mut memory: Lines<u8> = Lines::zeroed(bytes);
        // Pages that were never written all share one page of zeros.
        memory.fill(1);
        Probe { memory }
    }

    /// Bytes it keeps.
    pub fn bytes(&self) -> usize {
        self.memory.len()
    }

    /// Measures the limits of the threads and the instruction set of `cpu`; takes some tenths of a second.
    ///
    /// # Errors
    /// [`TaskPanic`] where a task panicked.
    pub fn limits(&self, cpu: &CpuBackend, clock: &dyn Fn() -> f64) -> Result<Limits, TaskPanic> {
        let loops = loops(cpu.isa());
        let peak = |l: &Loop| l.peak(cpu, clock);
        Ok(Limits {
            isa: cpu.isa(),
            threads: cpu.threads(),
            read_one_stream: self.read(cpu, clock, read_one)?,
            read_four_streams: self.read(cpu, clock, read_four)?,
            int8: peak(&loops.int8)?,
            int8_exact: loops.int8_exact.as_ref().map(peak).transpose()?,
            f32: peak(&loops.f32)?,
            bf16: loops.bf16.as_ref().map(peak).transpose()?,
            barrier: timed(clock, BARRIER_PACE, |turns| (0..turns).try_for_each(|_| meet(cpu)))?[0],
        })
    }

    /// How fast one limit is for at least so many seconds on end: bytes or operations a second. [`Probe::limits`] tells of
    /// the best moment; this tells of now, for as long as the work took that it is compared with. `None` where the
    /// processor has nothing of that kind.
    ///
    /// # Errors
    /// [`TaskPanic`] where a task panicked.
    pub fn sustained(
        &self,
        cpu: &CpuBackend,
        clock: &dyn Fn() -> f64,
        what: Sustained,
        seconds: f64,
    ) -> Result<Option<f64>, TaskPanic> {
        let loops = loops(cpu.isa());
        let of = match what {
            Sustained::Read => {
                let lines = self.memory.as_chunks::<64>().0;
                let tasks = cpu.threads() * TASKS_A_THREAD;
                let each = lines.len() / tasks;
                let pass = || {
                    cpu.pool().run(tasks, &|_, task| {
                        std::hint::black_box(read_four(&lines[task * each..][..each]));
                    })
                };
                return Ok(Some((each * tasks * 64) as f64 * often(clock, seconds, pass)?));
            }
            Sustained::Int8 => Some(loops.int8),
            Sustained::F32 => Some(loops.f32),
            Sustained::Bf16 => loops.bf16,
        };
        let Some(of) = of else { return Ok(None) };
        let tasks = cpu.threads() * TASKS_A_THREAD;
        let pass = || cpu.pool().run(tasks, &|_, _| (of.run)(SUSTAINED_TURNS));
        Ok(Some((of.ops * SUSTAINED_TURNS * tasks) as f64 * often(clock, seconds, pass)?))
    }

    fn read(
        &self,
        cpu: &CpuBackend,
        clock: &dyn Fn() -> f64,
        read: fn(&[[u8; 64]]) -> [u64; 8],
    ) -> Result<f64, TaskPanic> {
        let tasks = cpu.threads() * TASKS_A_THREAD;
        let lines = self.memory.as_chunks::<64>().0;
        let each = lines.len() / tasks;
        let times = timed(clock, READ_PACE, |turns| {
            cpu.pool().run(tasks * turns, &|_, task| {
                std::hint::black_box(read(&lines[task % tasks * each..][..each]));
            })
        })?;
        Ok((each * tasks * 64) as f64 / times[0])
    }
}

impl Default for Probe {
    fn default() -> Self {
        Self::new()
    }
}

/// Every thread of `cpu` meets every other once, or gives up on one that the system does not let run.
fn meet(cpu: &CpuBackend) -> Result<(), TaskPanic> {
    let arrived = AtomicUsize::new(0);
    cpu.pool().run(cpu.threads(), &|_, _| {
        arrived.fetch_add(1, Ordering::Relaxed);
        let mut polls = 0;
        while arrived.load(Ordering::Relaxed) < cpu.threads() && polls < MOST_POLLS {
            polls += 1;
            std::hint::spin_loop();
        }
    })
}

/// How many times a second `pass` is done when it is done for at least so many.
fn often(
    clock: &dyn Fn() -> f64,
    seconds: f64,
    mut pass: impl FnMut() -> Result<(), TaskPanic>,
) -> Result<f64, TaskPanic> {
    let start = clock();
    let mut passes = 0;
    loop {
        pass()?;
        passes += 1;
        let took = clock() - start;
        if took >= seconds || passes >= super::MOST_TURNS {
            return Ok(passes as f64 / took.max(1e-9));
        }
    }
}

/// [`Probe::limits`], once.
///
/// # Errors
/// [`TaskPanic`] where a task panicked.
pub fn limits(cpu: &CpuBackend, clock: &dyn Fn() -> f64) -> Result<Limits, TaskPanic> {
    Probe::new().limits(cpu, clock)
}

#[inline(always)]
fn add_line(sums: &mut [u64; 8], line: &[u8; 64]) {
    for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
        *sum ^= u64::from_ne_bytes(*word);
    }
}

fn read_one(lines: &[[u8; 64]]) -> [u64; 8] {
    let mut sums = [0; 8];
    lines.iter().for_each(|line| add_line(&mut sums, line));
    sums
}

fn read_four(lines: &[[u8; 64]]) -> [u64; 8] {
    let mut sums = [0; 8];
    let each = lines.len() / STREAMS;
    let (streams, rest) = lines.split_at(each * STREAMS);
    for at in 0..each {
        for stream in streams.chunks_exact(each) {
            prefetch(stream[at].as_ptr().wrapping_add(PREFETCH_BYTES));
            add_line(&mut sums, &stream[at]);
        }
    }
    rest.iter().for_each(|line| add_line(&mut sums, line));
    sums
}

/// A loop over independent copies of an instruction.
struct Loop {
    instruction: &'static str,
    /// Operations of one turn.
    ops: usize,
    /// So many turns, at least one.
    run: fn(usize),
}

impl Loop {
    fn peak(&self, cpu: &CpuBackend, clock: &dyn Fn() -> f64) -> Result<Peak, TaskPanic> {
        let tasks = cpu.threads() * TASKS_A_THREAD;
        let times = timed(clock, PEAK_PACE, |turns| cpu.pool().run(tasks, &|_, _| (self.run)(turns.max(1))))?;
        Ok(Peak { instruction: self.instruction, ops_per_second: (self.ops * tasks) as f64 / times[0] })
    }
}

/// The loops that say what an instruction set can do.
struct Loops {
    int8: Loop,
    int8_exact: Option<Loop>,
    f32: Loop,
    bf16: Option<Loop>,
}

/// The loops of `isa`, which the processor must have. Portable code is compiled for the oldest processor of its
/// architecture, and its limits are those of that processor's vectors.
fn loops(isa: Isa) -> Loops {
    #[cfg(target_arch = "x86_64")]
    return x86::loops(isa);
    #[cfg(target_arch = "aarch64")]
    return arm::loops(isa);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return portable::loops(isa);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CpuOptions;
    use std::cell::Cell;

    #[test]
    fn figures_are_work_over_the_time_of_the_callers_clock() {
        let probe = Probe::of(1 << 20);
        for isa in Isa::supported() {
            let options = CpuOptions { threads: Some(2), isa: Some(isa), ..Default::default() };
            let cpu = CpuBackend::new(options).unwrap();
            // A clock on which every run takes half a second.
            let now = Cell::new(0.0);
            let clock = || {
                now.set(now.get() + 0.5);
                now.get()
            };
            let limits = probe.limits(&cpu, &clock).unwrap();
            assert_eq!((limits.isa, limits.threads), (isa, 2));
            assert_eq!(limits.barrier, 0.5 / BARRIER_PACE.turns as f64);
            let bytes = 2.0 * f64::from(1 << 20);
            assert_eq!((limits.read_one_stream, limits.read_four_streams), (bytes, bytes));
            // Three passes of half a second each take the second and a half that are asked for.
            let sustained = |what| probe.sustained(&cpu, &clock, what, 1.5).unwrap();
            assert_eq!(sustained(Sustained::Read), Some(bytes));
            let loops = loops(isa);
            let passes = (2 * SUSTAINED_TURNS * TASKS_A_THREAD * cpu.threads()) as f64;
            assert_eq!(sustained(Sustained::Int8), Some(passes * loops.int8.ops as f64));
            assert_eq!(sustained(Sustained::Bf16), loops.bf16.as_ref().map(|l| passes * l.ops as f64));
            let turns = (2 * PEAK_PACE.turns * TASKS_A_THREAD * cpu.threads()) as f64;
            let pairs = [
                (Some(limits.int8), Some(loops.int8)),
                (limits.int8_exact, loops.int8_exact),
                (Some(limits.f32), Some(loops.f32)),
                (limits.bf16, loops.bf16),
            ];
            for (peak, known) in pairs {
                assert_eq!(peak.map(|p| p.instruction), known.as_ref().map(|l| l.instruction));
                let ratio = peak.zip(known).map_or(1.0, |(p, l)| p.ops_per_second / (turns * l.ops as f64));
                assert!((ratio - 1.0).abs() < 1e-9, "{isa}: {ratio}");
            }
        }
    }

    #[test]
    fn every_line_is_read_once_whatever_the_number_of_streams() {
        for lines in 0..11u8 {
            let memory: Vec<[u8; 64]> = (0..lines).map(|i| [1 << (i % 8); 64]).collect();
            assert_eq!(read_one(&memory), read_four(&memory));
        }
        let memory: Vec<[u8; 64]> = (0..8).map(|i| [1 << i; 64]).collect();
        assert_eq!(read_four(&memory), [u64::MAX; 8]);
    }

    #[test]
    fn of_two_measurements_the_better_figures_are_kept() {
        let peak = |ops_per_second| Peak { instruction: "i", ops_per_second };
        let limits = |read, int8, bf16: Option<f64>| Limits {
            isa: Isa::Scalar,
            threads: 1,
            read_one_stream: read,
            read_four_streams: 5.0,
            int8: peak(int8),
            int8_exact: None,
            f32: peak(1.0),
            bf16: bf16.map(peak),
            barrier: 1.0 / read,
        };
        let both = limits(4.0, 2.0, None).or_better(limits(7.0, 1.0, Some(3.0)));
        assert_eq!(both, limits(7.0, 2.0, Some(3.0)), "the shorter barrier, too");
        assert_eq!((both.read(), limits(4.0, 0.0, None).read()), (7.0, 5.0));
    }
}
