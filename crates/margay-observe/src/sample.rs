//! One look at every sensor.

use serde::{Serialize, Serializer};
use std::{collections::BTreeMap, time::Duration};

/// What the positions in a [`Sample`]'s lists stand for. Lists grow while samples are taken (a core comes online), they
/// never shrink or change order; a sample's list may be shorter than the names here, what is missing is unknown.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Channels {
    /// The system's numbers of the cores.
    pub cores: Vec<u32>,
    /// Highest clock rate of each core by its design.
    pub core_top_hertz: Vec<Option<f64>>,
    /// Thermal zones, by type.
    pub zones: Vec<String>,
    /// Cooling devices, by type.
    pub cooling: Vec<String>,
    /// State of each cooling device at which it cools most.
    pub cooling_max: Vec<Option<u64>>,
    /// Energy counters.
    pub counters: Vec<String>,
    /// Measured rails.
    pub rails: Vec<String>,
    /// Batteries.
    pub batteries: Vec<String>,
    /// Position of the battery that counts: the only one, or the one whose numbers move.
    pub battery: Option<usize>,
    /// Names of the threads of the watched process.
    pub threads: BTreeMap<u32, String>,
    /// Number of the watched process; `None` where it is this one, or none is watched.
    pub process: Option<u32>,
    /// Which file tells how busy the GPU is.
    pub gpu: Option<String>,
    /// Which file tells how busy the NPU is.
    pub npu: Option<String>,
    /// Id of the [`PowerSource`](crate::PowerSource) that `power_watts` is of.
    pub power: Option<&'static str>,
    /// What that source measures, in words.
    pub power_scope: Option<String>,
}

/// Time on the processor of one thread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ThreadCpu {
    /// The system's number of it.
    pub tid: u32,
    /// 100 is one core all the time.
    pub percent: f64,
}

/// What the sensors said at one time; what they did not say is `None`, never 0.
///
/// Rates (percents, watts of counters) are means over the time since the sample before, which `over` tells; the first
/// sample has none. Temperatures, bytes and states are those of the moment. Processor time is counted as the field's
/// studies do: 100 % is one core, so that eight busy cores are 800 %.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Sample {
    /// When, on the clock of the spans.
    #[serde(rename = "at_seconds", serialize_with = "seconds")]
    pub at: Duration,
    /// How long since the sample before.
    #[serde(rename = "over_seconds", serialize_with = "seconds")]
    pub over: Duration,
    /// All cores together: 100 is one core.
    pub cpu_percent: Option<f64>,
    /// Each core, 0 to 100.
    pub core_percent: Vec<Option<f64>>,
    /// Clock rate of each core.
    pub core_hertz: Vec<Option<f64>>,
    /// Highest clock rate that each core is allowed now; a fall below its top is a cap, mostly for heat.
    pub core_cap_hertz: Vec<Option<f64>>,
    /// The watched process: 100 is one core.
    pub process_cpu_percent: Option<f64>,
    /// Its threads that ran.
    pub thread_cpu: Vec<ThreadCpu>,
    /// Resident memory of the process, mapped files included.
    pub rss_bytes: Option<u64>,
    /// The part of it that is the process's own.
    pub anonymous_bytes: Option<u64>,
    /// The part of it that is pages of files, which the system can take back.
    pub file_bytes: Option<u64>,
    /// Most resident memory so far.
    pub peak_rss_bytes: Option<u64>,
    /// What a new process could take on this machine.
    pub available_bytes: Option<u64>,
    /// Memory of the process's control group, where there is one with a memory controller of version 2.
    pub cgroup_bytes: Option<u64>,
    /// Most memory of the group so far.
    pub cgroup_peak_bytes: Option<u64>,
    /// The part of it that is pages of files, which the system takes back before the group is full.
    pub cgroup_file_bytes: Option<u64>,
    /// What the group may take; unknown where there is no limit.
    pub cgroup_max_bytes: Option<u64>,
    /// Share of the time in which something waited for a core.
    pub cpu_pressure_percent: Option<f64>,
    /// Share of the time in which something waited for memory.
    pub memory_pressure_percent: Option<f64>,
    /// Share of the time in which something waited for a disk.
    pub io_pressure_percent: Option<f64>,
    /// GPU of the machine, 0 to 100.
    pub gpu_percent: Option<f64>,
    /// Clock rate of the GPU.
    pub gpu_hertz: Option<f64>,
    /// The busiest engine of the GPU, by what the process gave it, 0 to 100.
    pub process_gpu_percent: Option<f64>,
    /// NPU, 0 to 100.
    pub npu_percent: Option<f64>,
    /// Each thermal zone.
    pub zone_celsius: Vec<Option<f64>>,
    /// The hottest of them.
    pub temperature_celsius: Option<f64>,
    /// State of each cooling device; 0 cools least.
    pub cooling_state: Vec<Option<u64>>,
    /// Each battery's draw; `None` where it does not say, and while a charger feeds the device.
    pub battery_watts: Vec<Option<f64>>,
    /// How full the battery is, 0 to 100.
    pub battery_charge_percent: Option<f64>,
    /// Temperature of the battery.
    pub battery_celsius: Option<f64>,
    /// True while the battery's draw is not the device's: it charges, or a charger is connected.
    pub charging: Option<bool>,
    /// Energy of each counter since the first sample, with its wraps undone.
    pub counter_joules: Vec<Option<f64>>,
    /// Power of each rail.
    pub rail_watts: Vec<Option<f64>>,
    /// Power by the source that [`Channels::power`] names.
    pub power_watts: Option<f64>,
    /// True while the supply gives too little voltage (Raspberry Pi).
    pub undervoltage: Option<bool>,
    /// Bits of the firmware's `get_throttled` (Raspberry Pi).
    pub throttled_bits: Option<u32>,
}

impl Sample {
    /// This sample and the one that follows it as one that covers both: rates are weighted means, of bytes, temperatures
    /// and states the greatest stays, counters and clocks are the later.
    pub fn merged(&self, next: &Sample) -> Sample {
        let (a, b) = (self.over.as_secs_f64(), next.over.as_secs_f64());
        let mean = |x: Option<f64>, y: Option<f64>| match (x, y) {
            (Some(x), Some(y)) if a + b > 0.0 => Some((x * a + y * b) / (a + b)),
            (x, y) => y.or(x),
        };
        let means = |x: &[Option<f64>], y: &[Option<f64>]| pairs(x, y).map(|(x, y)| mean(x, y)).collect();
        let most = |x: Option<f64>, y: Option<f64>| match (x, y) {
            (Some(x), Some(y)) => Some(x.max(y)),
            (x, y) => x.or(y),
        };
        let least = |x: Option<u64>, y: Option<u64>| x.into_iter().chain(y).min();
        let later = |x: &[Option<f64>], y: &[Option<f64>]| pairs(x, y).map(|(x, y)| y.or(x)).collect();
        Sample {
            at: next.at,
            over: self.over + next.over,
            cpu_percent: mean(self.cpu_percent, next.cpu_percent),
            core_percent: means(&self.core_percent, &next.core_percent),
            core_hertz: means(&self.core_hertz, &next.core_hertz),
            core_cap_hertz: later(&self.core_cap_hertz, &next.core_cap_hertz),
            process_cpu_percent: mean(self.process_cpu_percent, next.process_cpu_percent),
            thread_cpu: merged_threads(&self.thread_cpu, &next.thread_cpu, a, b),
            rss_bytes: self.rss_bytes.max(next.rss_bytes),
            anonymous_bytes: self.anonymous_bytes.max(next.anonymous_bytes),
            file_bytes: self.file_bytes.max(next.file_bytes),
            peak_rss_bytes: self.peak_rss_bytes.max(next.peak_rss_bytes),
            available_bytes: least(self.available_bytes, next.available_bytes),
            cgroup_bytes: self.cgroup_bytes.max(next.cgroup_bytes),
            cgroup_peak_bytes: self.cgroup_peak_bytes.max(next.cgroup_peak_bytes),
            cgroup_file_bytes: next.cgroup_file_bytes.or(self.cgroup_file_bytes),
            cgroup_max_bytes: next.cgroup_max_bytes.or(self.cgroup_max_bytes),
            cpu_pressure_percent: mean(self.cpu_pressure_percent, next.cpu_pressure_percent),
            memory_pressure_percent: mean(self.memory_pressure_percent, next.memory_pressure_percent),
            io_pressure_percent: mean(self.io_pressure_percent, next.io_pressure_percent),
            gpu_percent: mean(self.gpu_percent, next.gpu_percent),
            gpu_hertz: mean(self.gpu_hertz, next.gpu_hertz),
            process_gpu_percent: mean(self.process_gpu_percent, next.process_gpu_percent),
            npu_percent: mean(self.npu_percent, next.npu_percent),
            zone_celsius: pairs(&self.zone_celsius, &next.zone_celsius).map(|(x, y)| most(x, y)).collect(),
            temperature_celsius: most(self.temperature_celsius, next.temperature_celsius),
            cooling_state: pairs(&self.cooling_state, &next.cooling_state).map(|(x, y)| x.max(y)).collect(),
            battery_watts: means(&self.battery_watts, &next.battery_watts),
            battery_charge_percent: next.battery_charge_percent.or(self.battery_charge_percent),
            battery_celsius: most(self.battery_celsius, next.battery_celsius),
            charging: self.charging.max(next.charging),
            counter_joules: later(&self.counter_joules, &next.counter_joules),
            rail_watts: means(&self.rail_watts, &next.rail_watts),
            power_watts: mean(self.power_watts, next.power_watts),
            undervoltage: self.undervoltage.max(next.undervoltage),
            throttled_bits: match (self.throttled_bits, next.throttled_bits) {
                (Some(x), Some(y)) => Some(x | y),
                (x, y) => x.or(y),
            },
        }
    }
}

/// Elements of both by position; what the shorter lacks is unknown.
fn pairs<T: Copy>(x: &[Option<T>], y: &[Option<T>]) -> impl Iterator<Item = (Option<T>, Option<T>)> {
    let at = |list: &[Option<T>], i: usize| list.get(i).copied().flatten();
    (0..x.len().max(y.len())).map(move |i| (at(x, i), at(y, i)))
}

fn merged_threads(x: &[ThreadCpu], y: &[ThreadCpu], a: f64, b: f64) -> Vec<ThreadCpu> {
    let mut shares: BTreeMap<u32, f64> = BTreeMap::new();
    for (threads, weight) in [(x, a), (y, b)] {
        for thread in threads {
            *shares.entry(thread.tid).or_default() += thread.percent * weight;
        }
    }
    let whole = (a + b).max(f64::MIN_POSITIVE);
    shares.into_iter().map(|(tid, time)| ThreadCpu { tid, percent: time / whole }).collect()
}

pub(crate) fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    // Microseconds are what a reader can use; more digits would double the size of a file.
    serializer.serialize_f64((time.as_secs_f64() * 1e6).round() / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_samples_merge_by_their_length_and_unknown_stays_apart() {
        let one = Sample {
            at: Duration::from_millis(100),
            over: Duration::from_millis(100),
            cpu_percent: Some(100.0),
            core_percent: vec![Some(10.0)],
            rss_bytes: Some(5),
            zone_celsius: vec![Some(50.0), None],
            thread_cpu: vec![ThreadCpu { tid: 7, percent: 80.0 }],
            ..Sample::default()
        };
        let two = Sample {
            at: Duration::from_millis(400),
            over: Duration::from_millis(300),
            cpu_percent: Some(200.0),
            core_percent: vec![Some(20.0), Some(4.0)],
            rss_bytes: None,
            zone_celsius: vec![Some(40.0), None],
            ..Sample::default()
        };
        let both = one.merged(&two);
        assert_eq!((both.at, both.over), (Duration::from_millis(400), Duration::from_millis(400)));
        assert_eq!(both.cpu_percent, Some(175.0));
        assert_eq!(both.core_percent, [Some(17.5), Some(4.0)]);
        assert_eq!((both.rss_bytes, both.gpu_percent), (Some(5), None));
        assert_eq!(both.zone_celsius, [Some(50.0), None]);
        assert_eq!(both.thread_cpu, [ThreadCpu { tid: 7, percent: 20.0 }], "it slept in the second");
    }
}
