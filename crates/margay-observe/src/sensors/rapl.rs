//! Energy counters of x86 processors: `/sys/class/powercap/intel-rapl:*`, which AMD's driver fills too.
//!
//! Microjoules that wrap to 0 behind `max_energy_range_uj`: at 100 W after about three quarters of an hour, so that between
//! two samples it happens once at most. Only root reads them since Linux 5.10 (CVE-2020-8694), and virtual machines have
//! none. `intel-rapl-mmio` counts the same package again and is left out. Source: Linux,
//! `Documentation/power/powercap/powercap.rst`.

use super::{Family, Finding, Moment, Sensor, at, put, told};
use crate::{Channels, Root, Sample, parse::number};

pub(super) const FAMILY: Family = Family {
    id: "rapl",
    summary: "energy counters of x86 processors",
    probe: |root, _| Box::new(Rapl::probe(root)),
};

const FOLDER: &str = "sys/class/powercap";
const ZONE: &str = "intel-rapl:";

/// Zones that are read: four domains of each of 16 packages.
const MOST_ZONES: usize = 64;

struct Rapl {
    zones: Vec<Zone>,
    /// Zones that are there and cannot be read.
    refused: Vec<String>,
}

struct Zone {
    name: String,
    path: String,
    range: Option<u64>,
    before: Option<u64>,
    joules: Option<f64>,
}

impl Rapl {
    fn probe(root: &Root) -> Self {
        let names = root.list(FOLDER).into_iter().filter(|name| name.starts_with(ZONE));
        let mut rapl = Rapl { zones: Vec::new(), refused: Vec::new() };
        for folder in names.take(MOST_ZONES) {
            let read = |folder: &str, file: &str| root.read(&format!("{FOLDER}/{folder}/{file}"));
            let named = |folder: &str| read(folder, "name").map(|name| name.trim().to_owned());
            // `intel-rapl:0:1` lies within `intel-rapl:0`.
            let parent = folder.rsplit_once(':').map(|(parent, _)| parent).filter(|p| p.contains(':'));
            let own = named(&folder).unwrap_or_else(|| folder.clone());
            let name = match parent.and_then(named) {
                Some(parent) => format!("{parent}/{own}"),
                None => own,
            };
            let path = format!("{FOLDER}/{folder}/energy_uj");
            match root.read(&path).and_then(|text| number(&text)) {
                None => rapl.refused.push(path),
                Some(_) => {
                    let range = read(&folder, "max_energy_range_uj").and_then(|text| number(&text));
                    rapl.zones.push(Zone { name, path, range, before: None, joules: Some(0.0) });
                }
            }
        }
        rapl
    }
}

impl Sensor for Rapl {
    fn read(&mut self, root: &Root, moment: &mut Moment<'_>) {
        if moment.channels.counters.is_empty() {
            moment.channels.counters = self.zones.iter().map(|zone| zone.name.clone()).collect();
        }
        for (position, zone) in self.zones.iter_mut().enumerate() {
            let now = root.read(&zone.path).and_then(|text| number(&text));
            if let (Some(before), Some(now)) = (zone.before, now) {
                // What was lost at a fall of unknown range is lost for good: the sum is unknown from there on.
                let spent = spent(before, now, zone.range);
                zone.joules = zone.joules.zip(spent).map(|(sum, micros)| sum + micros as f64 / 1e6);
            }
            // A reading that failed is bridged: the counter ran on.
            zone.before = now.or(zone.before);
            put(&mut moment.sample.counter_joules, position, zone.joules.filter(|_| now.is_some()));
        }
    }

    fn findings(&self, root: &Root, _: &Channels, sample: &Sample) -> Vec<Finding> {
        let of = |(position, zone): (usize, &Zone)| {
            let joules = told(at(&sample.counter_joules, position), 3, "J since the first look");
            Finding::of(&FAMILY, format!("energy, {}", zone.name), &zone.path, joules, root)
        };
        let mut findings: Vec<Finding> = self.zones.iter().enumerate().map(of).collect();
        findings.extend(self.refused.iter().map(|path| Finding::of(&FAMILY, "energy", path, None, root)));
        if findings.is_empty() {
            let why = "no energy counter: another processor, or a virtual machine";
            findings.push(Finding::nowhere(&FAMILY, "energy", format!("{FOLDER}/{ZONE}*"), why));
        }
        findings
    }
}

/// Microjoules between two readings of a counter that wraps to 0 behind `range`; `None` where it fell and the range is
/// unknown or smaller than what was read.
pub(crate) fn spent(before: u64, now: u64, range: Option<u64>) -> Option<u64> {
    if now >= before {
        return Some(now - before);
    }
    let left = range?.checked_sub(before)?;
    // The step from the greatest value to 0 is one as well.
    left.checked_add(now)?.checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_wraps_goes_on() {
        let range = Some(262_143_328_850);
        assert_eq!(spent(100, 350, range), Some(250));
        assert_eq!(spent(262_143_328_800, 1_000, range), Some(1_051));
        assert_eq!(spent(100, 50, None), None, "it fell, nobody knows from where");
        assert_eq!(spent(200, 50, Some(100)), None, "it was beyond its range");
        assert_eq!(spent(u64::MAX, 0, Some(u64::MAX)), Some(1));
    }
}
