//! Pressure: the share of time in which something had to wait for a core, for memory or for a disk.
//!
//! The kernel counts microseconds of stall (`total`); the share is taken over the time between samples, because its own
//! averages are of 10 seconds and more. A stand-in for "how fluent is the phone", which studies judge by eye. Source: Linux,
//! `Documentation/accounting/psi.rst`.

use super::{Family, Finding, Moment, Sensor, told};
use crate::{
    Channels, Root, Sample,
    parse::{increase, share},
};

pub(super) const FAMILY: Family = Family {
    id: "pressure",
    summary: "share of the time in which something waited for CPU, memory or disk",
    probe: |_, _| Box::new(Pressure::default()),
};

const PATHS: [&str; 3] = ["proc/pressure/cpu", "proc/pressure/memory", "proc/pressure/io"];

#[derive(Default)]
struct Pressure {
    before: [Option<u64>; 3],
}

impl Sensor for Pressure {
    fn read(&mut self, root: &Root, moment: &mut Moment<'_>) {
        let now = PATHS.map(|path| root.read(path).and_then(|text| some_total(&text)));
        let shares = [0, 1, 2].map(|at| {
            let micros = increase(self.before[at]?, now[at]?)?;
            share(micros as f64 / 1e6, moment.over_seconds?)
        });
        let sample = &mut *moment.sample;
        [sample.cpu_pressure_percent, sample.memory_pressure_percent, sample.io_pressure_percent] = shares;
        self.before = now;
    }

    fn findings(&self, root: &Root, _: &Channels, sample: &Sample) -> Vec<Finding> {
        let shares =
            [sample.cpu_pressure_percent, sample.memory_pressure_percent, sample.io_pressure_percent];
        let names = ["waiting for CPU", "waiting for memory", "waiting for disk"];
        let of = |at: usize| Finding::of(&FAMILY, names[at], PATHS[at], told(shares[at], 1, "%"), root);
        (0..3).map(of).collect()
    }
}

/// Microseconds in which at least one task was stalled: `total` of the line `some`.
pub(crate) fn some_total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    line.split_ascii_whitespace().find_map(|word| word.strip_prefix("total="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_of_some_is_read() {
        let text = "some avg10=0.00 avg60=0.12 avg300=0.04 total=112233\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        assert_eq!(some_total(text), Some(112_233));
        for text in ["", "full total=7", "some total=", "some total=-1", "sometotal=1"] {
            assert_eq!(some_total(text), None, "{text}");
        }
    }
}
