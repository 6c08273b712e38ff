//! The sensors: one family of files each, all below a root. What is absent is unknown.

mod adreno;
mod amdgpu;
mod battery;
mod cgroup;
mod cooling;
mod cpu;
mod drm;
mod frequency;
mod ina3221;
mod mali;
mod memory;
mod npu;
mod pressure;
mod process;
mod rapl;
mod raspberry;
mod tegra;
mod thermal;

use crate::{Channels, Root, Sample, power};
use serde::Serialize;
use std::time::Duration;

/// A family of sensors.
#[derive(Debug)]
pub struct Family {
    /// Name of it, which is that of its file here.
    pub id: &'static str,
    /// What it tells, in a few words.
    pub summary: &'static str,
    /// Looks for its files.
    pub(crate) probe: fn(&Root, &What) -> Box<dyn Sensor>,
}

/// Every family, in the order in which they are read. Of the GPU's files the first family that has one counts.
pub const SENSORS: &[Family] = &[
    cpu::FAMILY,
    frequency::FAMILY,
    process::FAMILY,
    memory::FAMILY,
    cgroup::FAMILY,
    pressure::FAMILY,
    adreno::FAMILY,
    mali::FAMILY,
    tegra::FAMILY,
    amdgpu::FAMILY,
    drm::FAMILY,
    npu::FAMILY,
    thermal::FAMILY,
    cooling::FAMILY,
    rapl::FAMILY,
    ina3221::FAMILY,
    battery::FAMILY,
    raspberry::FAMILY,
];

/// What to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct What {
    /// The process to watch.
    pub process: Watched,
    /// Its threads one by one as well: two small files for each of them.
    pub threads: bool,
}

/// A process to watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// No process, only the machine.
    None,
    /// This process.
    Own,
    /// The process of that number.
    Pid(u32),
    /// The process of that number with all that it started: processor time and memory are sums. A child that its parent
    /// left behind is not found; kernels without `children` files in /proc tell of children that have ended only.
    Tree(u32),
}

impl Watched {
    /// Its folder below the root.
    pub(crate) fn folder(self) -> Option<String> {
        match self {
            Watched::None => None,
            Watched::Own => Some("proc/self".to_owned()),
            Watched::Pid(pid) | Watched::Tree(pid) => Some(format!("proc/{pid}")),
        }
    }

    /// The process whose children count as well.
    pub(crate) fn tree(self) -> Option<u32> {
        match self {
            Watched::Tree(pid) => Some(pid),
            Watched::None | Watched::Own | Watched::Pid(_) => None,
        }
    }
}

impl Default for What {
    fn default() -> Self {
        What { process: Watched::Own, threads: true }
    }
}

/// One quantity: where it is read, and what it is now or why it is unknown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Family that reads it.
    pub sensor: &'static str,
    /// What it is.
    pub quantity: String,
    /// Where, below the root.
    pub path: String,
    /// What it is now, with its unit.
    pub value: Option<String>,
    /// Why it is unknown.
    pub why: Option<String>,
}

/// One family at work: it remembers which files there are, and counters of the time before.
pub(crate) trait Sensor: Send {
    /// Reads, and writes what it learns into the sample.
    fn read(&mut self, root: &Root, moment: &mut Moment<'_>);

    /// What it reads, as of `sample`; at least one finding, which says why there is nothing where there is nothing.
    fn findings(&self, root: &Root, channels: &Channels, sample: &Sample) -> Vec<Finding>;
}

/// The sample that is being taken.
pub(crate) struct Moment<'m> {
    /// Seconds since the sample before; `None` at the first.
    pub over_seconds: Option<f64>,
    pub channels: &'m mut Channels,
    pub sample: &'m mut Sample,
}

/// Every family's sensor below one root, or below the moments of one recording.
pub struct Sensors {
    sensors: Vec<(&'static Family, Box<dyn Sensor>)>,
    channels: Channels,
    last: Option<Sample>,
}

impl std::fmt::Debug for Sensors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sensors").field("channels", &self.channels).finish_non_exhaustive()
    }
}

impl Sensors {
    /// Looks which files there are.
    pub fn probe(root: &Root, what: &What) -> Self {
        let sensors = SENSORS.iter().map(|family| (family, (family.probe)(root, what))).collect();
        let process = match what.process {
            Watched::Pid(pid) | Watched::Tree(pid) => Some(pid),
            Watched::None | Watched::Own => None,
        };
        Sensors { sensors, channels: Channels { process, ..Channels::default() }, last: None }
    }

    /// Reads every sensor at `at`, which must not be before the sample before.
    pub fn sample(&mut self, root: &Root, at: Duration) -> Sample {
        let over = self.last.as_ref().map(|last| at.saturating_sub(last.at));
        let mut sample = Sample { at, over: over.unwrap_or_default(), ..Sample::default() };
        let over_seconds = over.map(|over| over.as_secs_f64()).filter(|seconds| *seconds > 0.0);
        for (_, sensor) in &mut self.sensors {
            sensor
                .read(root, &mut Moment { over_seconds, channels: &mut self.channels, sample: &mut sample });
        }
        power::decide(&mut self.channels, self.last.as_ref(), &mut sample);
        self.last = Some(sample.clone());
        sample
    }

    /// What the positions of lists in the samples so far stand for.
    pub fn channels(&self) -> &Channels {
        &self.channels
    }

    /// Every quantity that was looked for, as of the last sample.
    pub fn findings(&self, root: &Root) -> Vec<Finding> {
        let Some(last) = &self.last else { return Vec::new() };
        let found = self.sensors.iter().flat_map(|(_, s)| s.findings(root, &self.channels, last));
        found.collect()
    }
}

impl Finding {
    /// A quantity of a file; where it has no value, the root says why.
    pub(crate) fn of(
        sensor: &Family,
        quantity: impl Into<String>,
        path: impl Into<String>,
        value: Option<String>,
        root: &Root,
    ) -> Finding {
        let path = path.into();
        let why = value.is_none().then(|| root.why_unknown(&path).to_owned());
        Finding { sensor: sensor.id, quantity: quantity.into(), path, value, why }
    }

    /// A quantity that has no file here.
    pub(crate) fn nowhere(
        sensor: &Family,
        quantity: impl Into<String>,
        path: impl Into<String>,
        why: impl Into<String>,
    ) -> Finding {
        Finding {
            sensor: sensor.id,
            quantity: quantity.into(),
            path: path.into(),
            value: None,
            why: Some(why.into()),
        }
    }
}

/// Sets element `at` of a list, filling with unknown up to it.
pub(crate) fn put<T>(list: &mut Vec<Option<T>>, at: usize, value: Option<T>) {
    if list.len() <= at {
        list.resize_with(at + 1, || None);
    }
    list[at] = value;
}

/// A value for people.
pub(crate) fn told(value: Option<f64>, digits: usize, unit: &str) -> Option<String> {
    value.map(|value| format!("{value:.digits$} {unit}"))
}

/// Element of a list, unknown where there is none.
pub(crate) fn at<T: Copy>(list: &[Option<T>], position: usize) -> Option<T> {
    list.get(position).copied().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{parse, recording, root};
    use proptest::prelude::*;

    /// A percent, or unknown.
    fn is_share(share: Option<f64>) -> bool {
        share.is_none_or(|share| (0.0..=100.0).contains(&share))
    }

    fn within(value: Option<f64>, range: std::ops::RangeInclusive<f64>) -> bool {
        value.is_none_or(|value| range.contains(&value))
    }

    /// Every parser meets the text, and says nothing that cannot be.
    fn meet(text: &str) {
        assert!(
            is_share(parse::percent(text)) && is_share(adreno::pair(text)) && is_share(tegra::permille(text))
        );
        assert!(within(parse::hertz_of_load(text), 1.0..=1e11) && within(frequency::hertz(text), 1.0..=1e11));
        assert!(
            within(thermal::celsius(text), -40.0..=150.0) && within(battery::tenths(text), -40.0..=120.0)
        );
        assert!(
            within(ina3221::watts(text, "1000"), 0.0..=1e4)
                && within(ina3221::watts("5000", text), 0.0..=1e4)
        );
        let (_, _, _) = (parse::number(text), parse::signed(text), cgroup::group(text));
        for ticks in cpu::cores(text).into_values() {
            assert!(ticks.busy <= ticks.whole);
            assert!(is_share(cpu::busy_percent(cpu::Ticks::default(), ticks)));
        }
        let (_, _, _) = (process::stat(text), process::schedstat(text), pressure::some_total(text));
        let (_, _) = (drm::engines(text), thermal::is_temperature(text));
        let _ = raspberry::bits(text).map(raspberry::describe);
        let (_, _) = (raspberry::alarm(text), battery::refusal(Some(text), false));
        let (_, _) = (root::kib_field(text, "VmRSS"), root::stays_inside(text));
        assert_eq!(recording::unescape(&recording::escape(text)).as_deref(), Some(text));
        let _ = recording::unescape(text);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

        #[test]
        fn every_parser_meets_any_text(text in any::<String>()) {
            meet(&text);
        }

        #[test]
        fn every_parser_meets_what_looks_like_its_own(
            text in "(cpu[0-9]{1,4}|some|VmRSS:|drm-driver:|drm-engine-x:|utilization|throttled|0::/)?[ =:]?\
                     (-?[0-9]{0,21}[ %@.x\n]{0,2}){0,12}(Hz|ns|kB|total=[0-9]{1,21})?",
        ) {
            meet(&text);
        }

        #[test]
        fn watts_of_a_battery_are_possible_or_unknown(current: i64, voltage: i64, greatest: u64) {
            prop_assert!(within(battery::watts(current, voltage, greatest), 0.0..=250.0));
        }

        #[test]
        fn a_counter_gives_what_was_spent(before: u64, spent in 0..1u64 << 40, range in 1u64 << 41..u64::MAX) {
            let before = before % range;
            // What the counter shows: it steps from `range` to 0.
            let now = ((u128::from(before) + u128::from(spent)) % (u128::from(range) + 1)) as u64;
            prop_assert_eq!(rapl::spent(before, now, Some(range)), Some(spent));
        }
    }
}
