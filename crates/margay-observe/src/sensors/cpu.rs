//! Time on the processors: `/proc/stat`.
//!
//! Ticks of 10 ms, charged to whoever runs when the tick comes, so that one sample of 100 ms is good to a tenth of a core
//! and the mean of many to much less. Cores that are offline vanish from the file. Time that a hypervisor took (`steal`) is
//! neither busy nor idle, but part of the whole. Source: Linux, `Documentation/filesystems/proc.rst`, 1.7.

use super::{Family, Finding, Moment, Sensor, at, put, told};
use crate::{Channels, Root, Sample, parse::share};
use std::collections::BTreeMap;

pub(super) const FAMILY: Family =
    Family { id: "cpu", summary: "all cores and each of them", probe: |_, _| Box::new(Cpu::default()) };

const PATH: &str = "proc/stat";

/// Cores beyond this number are taken for nonsense.
const MOST_CORES: u32 = 1024;

/// Ticks of one core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ticks {
    pub busy: u64,
    pub whole: u64,
}

#[derive(Default)]
struct Cpu {
    before: BTreeMap<u32, Ticks>,
}

impl Sensor for Cpu {
    fn read(&mut self, root: &Root, moment: &mut Moment<'_>) {
        let now = root.read(PATH).map(|text| cores(&text)).unwrap_or_default();
        let mut total = None;
        for (core, ticks) in &now {
            let position = position(moment.channels, *core);
            let busy = self.before.get(core).and_then(|before| busy_percent(*before, *ticks));
            put(&mut moment.sample.core_percent, position, busy);
            if let Some(busy) = busy {
                *total.get_or_insert(0.0) += busy;
            }
        }
        moment.sample.cpu_percent = total;
        self.before = now;
    }

    fn findings(&self, root: &Root, channels: &Channels, sample: &Sample) -> Vec<Finding> {
        let all = told(sample.cpu_percent, 0, "% (100 = one core)");
        let mut findings = vec![Finding::of(&FAMILY, "CPU, all cores", PATH, all, root)];
        for (position, core) in channels.cores.iter().enumerate() {
            let busy = told(at(&sample.core_percent, position), 0, "%");
            let why = busy.is_none().then(|| "offline, or one reading only".to_owned());
            let quantity = format!("core {core}");
            findings.push(Finding { sensor: FAMILY.id, quantity, path: PATH.to_owned(), value: busy, why });
        }
        findings
    }
}

/// Where a core stands in the lists; a new one is appended.
pub(super) fn position(channels: &mut Channels, core: u32) -> usize {
    channels.cores.iter().position(|c| *c == core).unwrap_or_else(|| {
        channels.cores.push(core);
        channels.cores.len() - 1
    })
}

/// Ticks of each core that the text names.
pub(crate) fn cores(stat: &str) -> BTreeMap<u32, Ticks> {
    stat.lines().filter_map(core).collect()
}

fn core(line: &str) -> Option<(u32, Ticks)> {
    let mut words = line.split_ascii_whitespace();
    let core: u32 = words.next()?.strip_prefix("cpu")?.parse().ok()?;
    // user nice system idle iowait irq softirq steal; guest time is part of user.
    let mut ticks = [0u64; 8];
    let mut seen = 0;
    for (tick, word) in ticks.iter_mut().zip(words) {
        *tick = word.parse().ok()?;
        seen += 1;
    }
    let [user, nice, system, idle, iowait, irq, softirq, steal] = ticks;
    let busy = [user, nice, system, irq, softirq].into_iter().try_fold(0u64, u64::checked_add)?;
    let whole = [busy, idle, iowait, steal].into_iter().try_fold(0u64, u64::checked_add)?;
    (seen >= 4 && core < MOST_CORES).then_some((core, Ticks { busy, whole }))
}

/// Busy part of the time between two readings; `None` where no tick passed or the counters were reset.
pub(crate) fn busy_percent(before: Ticks, now: Ticks) -> Option<f64> {
    let busy = now.busy.checked_sub(before.busy)?;
    share(busy as f64, now.whole.checked_sub(before.whole)? as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_user_nice_system_and_interrupts_of_the_whole() {
        let text =
            "cpu  0 0 0 0\ncpu0 10 1 2 50 7 3 4 8 99 99\ncpu3 1 1 1 1\ncpuX 1 1 1 1\ncpu9 1 2\nintr 5\n";
        let cores = cores(text);
        assert_eq!(cores.keys().copied().collect::<Vec<_>>(), [0, 3]);
        assert_eq!(cores[&0], Ticks { busy: 20, whole: 85 });
        let now = Ticks { busy: 25, whole: 95 };
        assert_eq!(busy_percent(cores[&0], now), Some(50.0));
        assert_eq!(busy_percent(now, cores[&0]), None, "a counter that falls");
        assert_eq!(busy_percent(now, now), None, "no time passed");
    }
}
