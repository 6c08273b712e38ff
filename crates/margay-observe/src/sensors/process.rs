//! Time on the processors of the watched process and its threads.
//!
//! `/proc/PID/stat` counts ticks of 10 ms and includes threads that have ended; `/proc/PID/task/TID/schedstat` counts
//! nanoseconds of threads that live. The nanoseconds are taken, kept within two ticks of what the ticks say in all.
//! Sources: Linux, `Documentation/filesystems/proc.rst` (1.1, table 1-4) and `Documentation/scheduler/sched-stats.rst`.

use super::{Family, Finding, Moment, Sensor, told};
use crate::{Channels, Root, Sample, ThreadCpu};
use std::collections::BTreeMap;

pub(super) const FAMILY: Family = Family {
    id: "process",
    summary: "processor time of the watched process and its threads",
    probe: |_, what| {
        let (folder, tree) = (what.process.folder(), what.process.tree());
        // Threads of children are not looked at: where only some are, the ticks count.
        let threads = what.threads && tree.is_none();
        Box::new(Process { folder, tree, threads, before: None, counted: 0 })
    },
};

/// Nanoseconds of a tick in /proc. The interface fixes 100 ticks a second on every architecture Margay is built for.
/// Source: `USER_HZ`, `include/asm-generic/param.h` of Linux.
const TICK_NANOS: u64 = 10_000_000;

/// Threads beyond this are not looked at one by one.
const MOST_THREADS: usize = 256;

/// Children beyond this are not looked at.
const MOST_DESCENDANTS: usize = 256;

/// Names of threads that are kept: a pool that is made anew for each answer must not fill memory.
const MOST_NAMES: usize = 1024;

struct Process {
    folder: Option<String>,
    /// The process whose children count as well.
    tree: Option<u32>,
    threads: bool,
    before: Option<Times>,
    /// Nanoseconds that samples were told so far, from where the ticks stood at the first.
    counted: u64,
}

#[derive(Default)]
struct Times {
    /// All threads, ended ones too.
    nanos: u64,
    by_thread: BTreeMap<u32, u64>,
}

impl Process {
    fn times(&self, root: &Root, folder: &str, channels: &mut Channels) -> Option<Times> {
        let text = root.read(&format!("{folder}/stat"))?;
        if let Some(pid) = self.tree {
            let of = |pid: u32| with_waited(&root.read(&format!("proc/{pid}/stat"))?);
            let ticks = descendants(root, pid)
                .into_iter()
                .filter_map(of)
                .fold(with_waited(&text)?, u64::saturating_add);
            return Some(Times { nanos: ticks.checked_mul(TICK_NANOS)?, ..Times::default() });
        }
        let stat = stat(&text)?;
        let mut times = Times { nanos: stat.ticks.checked_mul(TICK_NANOS)?, ..Times::default() };
        if self.threads {
            for name in root.list(&format!("{folder}/task")).into_iter().take(MOST_THREADS) {
                let Ok(tid) = name.parse::<u32>() else { continue };
                let task = format!("{folder}/task/{tid}");
                if !channels.threads.contains_key(&tid) && channels.threads.len() < MOST_NAMES {
                    let name = root.read(&format!("{task}/comm")).map(|n| n.trim().to_owned());
                    channels.threads.insert(tid, name.unwrap_or_default());
                }
                let nanos = root.read(&format!("{task}/schedstat")).and_then(|text| schedstat(&text));
                times.by_thread.extend(nanos.map(|nanos| (tid, nanos)));
            }
        }
        Some(times)
    }
}

impl Sensor for Process {
    fn read(&mut self, root: &Root, moment: &mut Moment<'_>) {
        let Some(folder) = self.folder.clone() else { return };
        let now = self.times(root, &folder, moment.channels);
        if let (Some(before), Some(now), Some(seconds)) = (&self.before, &now, moment.over_seconds) {
            let percent = |nanos: u64| 100.0 * nanos as f64 / 1e9 / seconds;
            let ran = |(tid, nanos): (&u32, &u64)| {
                let spent = nanos.checked_sub(before.by_thread.get(tid).copied().unwrap_or(*nanos))?;
                (spent > 0).then_some((*tid, spent))
            };
            let threads: Vec<(u32, u64)> = now.by_thread.iter().filter_map(ran).collect();
            let fine = threads.iter().fold(0u64, |sum, (_, nanos)| sum.saturating_add(*nanos));
            // Counters that fall are of another process under the same number.
            if now.nanos >= before.nanos {
                let counted = match now.by_thread.is_empty() {
                    true => now.nanos.max(self.counted),
                    false => agreed(self.counted, fine, now.nanos),
                };
                moment.sample.process_cpu_percent = Some(percent(counted - self.counted));
                self.counted = counted;
            }
            let cpu = |(tid, nanos): (u32, u64)| ThreadCpu { tid, percent: percent(nanos) };
            moment.sample.thread_cpu = threads.into_iter().map(cpu).collect();
        }
        if let Some(now) = now.as_ref().filter(|now| self.before.as_ref().is_none_or(|b| b.nanos > now.nanos))
        {
            self.counted = now.nanos;
        }
        self.before = now;
    }

    fn findings(&self, root: &Root, channels: &Channels, sample: &Sample) -> Vec<Finding> {
        let Some(folder) = &self.folder else {
            return vec![Finding::nowhere(&FAMILY, "process CPU", "proc/PID/stat", "no process is watched")];
        };
        let value = told(sample.process_cpu_percent, 0, "% (100 = one core)");
        let mut findings = vec![Finding::of(&FAMILY, "process CPU", format!("{folder}/stat"), value, root)];
        for thread in &sample.thread_cpu {
            let name = channels.threads.get(&thread.tid).filter(|name| !name.is_empty());
            let name = name.map_or_else(|| thread.tid.to_string(), |name| format!("{} {name}", thread.tid));
            let path = format!("{folder}/task/{}/schedstat", thread.tid);
            let value = told(Some(thread.percent), 0, "%");
            findings.push(Finding::of(&FAMILY, format!("thread {name}"), path, value, root));
        }
        findings
    }
}

/// Nanoseconds so far: what the threads ran more, kept within two ticks of what the ticks say in all. Ticks lag by less than
/// one for each reading; threads that ended, or were never seen, are missing from the threads' sum. The sum over a series is
/// therefore that of the ticks, whatever single samples say.
fn agreed(counted: u64, threads_nanos: u64, ticks_nanos: u64) -> u64 {
    let fine = counted.saturating_add(threads_nanos);
    let bounds = (ticks_nanos.saturating_sub(2 * TICK_NANOS), ticks_nanos.saturating_add(2 * TICK_NANOS));
    fine.clamp(bounds.0, bounds.1).max(counted)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// User and system time.
    pub ticks: u64,
}

/// Fields of `/proc/PID/stat`. The name stands in parentheses and may hold anything, parentheses too.
pub(crate) fn stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    // Behind the name: state is field 3, utime 14, stime 15.
    let mut words = rest.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(Stat { ticks: user.checked_add(system)? })
}

/// Ticks of a process and of those of its children that ended and that it waited for: fields 14 to 17.
fn with_waited(text: &str) -> Option<u64> {
    let (_, rest) = text.rsplit_once(')')?;
    let words = rest.split_ascii_whitespace().skip(11).take(4);
    let ticks: Vec<u64> = words.map(str::parse).collect::<Result<_, _>>().ok()?;
    (ticks.len() == 4).then(|| ticks.into_iter().fold(0, u64::saturating_add))
}

/// Processes that a process started, and those that they started; at most [`MOST_DESCENDANTS`].
pub(super) fn descendants(root: &Root, pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        for thread in root.list(&format!("proc/{parent}/task")).into_iter().take(MOST_THREADS) {
            let children = root.read(&format!("proc/{parent}/task/{thread}/children")).unwrap_or_default();
            for child in children.split_ascii_whitespace().filter_map(|word| word.parse::<u32>().ok()) {
                if found.len() < MOST_DESCENDANTS && child != pid && !found.contains(&child) {
                    found.push(child);
                    parents.push(child);
                }
            }
        }
    }
    found
}

/// Nanoseconds on a processor: the first of the three numbers.
pub(crate) fn schedstat(text: &str) -> Option<u64> {
    let mut words = text.split_ascii_whitespace();
    let nanos = words.next()?.parse().ok()?;
    (words.count() == 2).then_some(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_shift_the_fields() {
        let line =
            |name: &str| format!("42 ({name}) R 1 42 42 0 -1 4194304 99 0 0 0 150 25 0 0 20 0 4 0 17 3 35");
        for name in ["margay", "a) R 1 2 3", "(((", ") 9 9 9 9 9 9 9 9 9 9 9 9 9 9 (x"] {
            assert_eq!(stat(&line(name)), Some(Stat { ticks: 175 }), "{name}");
        }
        for text in ["", "42 (x", "42 (x) R 1", "42 (x) R 1 2 3 4 5 6 7 8 9 10 18446744073709551615 1"] {
            assert_eq!(stat(text), None, "{text}");
        }
        assert_eq!(schedstat("1020226 0 1\n"), Some(1_020_226));
        assert_eq!((schedstat("1 2"), schedstat("x 0 1"), schedstat("")), (None, None, None));
    }

    #[test]
    fn children_count_whether_they_run_or_have_ended() {
        let folder = tempfile::tempdir().unwrap();
        let process = |pid: u32, children: &str, ticks: &str| {
            let task = folder.path().join(format!("proc/{pid}/task/{pid}"));
            std::fs::create_dir_all(&task).unwrap();
            std::fs::write(task.join("children"), children).unwrap();
            let stat = format!("{pid} (x) R 1 1 1 0 -1 0 9 0 0 0 {ticks} 20 0 1 0 17 3 35");
            std::fs::write(folder.path().join(format!("proc/{pid}/stat")), stat).unwrap();
        };
        process(10, "11 12 ", "1 2 30 4");
        process(11, "13", "100 0 0 0");
        // A kernel that lies about its tree is not followed for ever.
        process(13, "10 11 13", "5 5 5 5");
        let root = Root::new(folder.path());
        let mut found = descendants(&root, 10);
        found.sort_unstable();
        assert_eq!(found, [11, 12, 13]);
        let process = Process {
            folder: Some("proc/10".to_owned()),
            tree: Some(10),
            threads: false,
            before: None,
            counted: 0,
        };
        let times = process.times(&root, "proc/10", &mut Channels::default()).unwrap();
        assert_eq!(times.nanos, (37 + 100 + 20) * TICK_NANOS);
        assert_eq!(with_waited("10 (x) R 1 1 1 0 -1 0 9 0 0 0 1 2 3"), None);
    }

    #[test]
    fn nanoseconds_count_unless_a_thread_is_missing() {
        let millis = |n: u64| n * 1_000_000;
        assert_eq!(agreed(millis(500), millis(95), millis(600)), millis(595));
        assert_eq!(agreed(millis(500), millis(40), millis(600)), millis(580), "a thread ended");
        assert_eq!(agreed(millis(500), millis(90), millis(540)), millis(560), "nor does it run away");
        // Readings that come late each time add up to what the ticks say.
        let end =
            (1..=100u64).fold(0, |counted, step| agreed(counted, millis(step % 3 * 30), millis(35 * step)));
        assert!(end.abs_diff(millis(3500)) <= 2 * TICK_NANOS, "{end}");
    }
}
