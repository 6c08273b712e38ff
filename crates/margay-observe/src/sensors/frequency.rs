//! Clock rates of the cores and what they are allowed: `cpufreq`.
//!
//! `scaling_max_freq` below `cpuinfo_max_freq` is a cap: the kernel's answer to heat, or a power mode that was chosen.
//! Numbers are kHz. Source: Linux, `Documentation/admin-guide/pm/cpufreq.rst`.

use super::{Family, Finding, Moment, Sensor, What, at, cpu::position, put, told};
use crate::{
    Channels, Root, Sample,
    parse::{number, plausible_hertz},
};

pub(super) const FAMILY: Family = Family {
    id: "frequency",
    summary: "clock rate of each core, and its cap",
    probe: |root, what| Box::new(Frequency::probe(root, what)),
};

const CORES: &str = "sys/devices/system/cpu";

struct Frequency {
    cores: Vec<Core>,
}

struct Core {
    number: u32,
    now: String,
    cap: String,
    top_hertz: Option<f64>,
}

impl Frequency {
    fn probe(root: &Root, _: &What) -> Self {
        let numbers = root.list(CORES);
        let numbers = numbers.iter().filter_map(|name| name.strip_prefix("cpu")?.parse::<u32>().ok());
        let cores = numbers.filter_map(|number| {
            let folder = format!("{CORES}/cpu{number}/cpufreq");
            let top_hertz = root.read(&format!("{folder}/cpuinfo_max_freq")).and_then(|t| hertz(&t));
            let [now, cap] = ["scaling_cur_freq", "scaling_max_freq"].map(|file| format!("{folder}/{file}"));
            let known = top_hertz.is_some() || root.read(&now).is_some();
            known.then_some(Core { number, now, cap, top_hertz })
        });
        Frequency { cores: cores.collect() }
    }
}

impl Sensor for Frequency {
    fn read(&mut self, root: &Root, moment: &mut Moment<'_>) {
        for core in &self.cores {
            let at = position(moment.channels, core.number);
            put(&mut moment.channels.core_top_hertz, at, core.top_hertz);
            put(&mut moment.sample.core_hertz, at, root.read(&core.now).and_then(|t| hertz(&t)));
            put(&mut moment.sample.core_cap_hertz, at, root.read(&core.cap).and_then(|t| hertz(&t)));
        }
    }

    fn findings(&self, root: &Root, channels: &Channels, sample: &Sample) -> Vec<Finding> {
        if self.cores.is_empty() {
            let path = format!("{CORES}/cpu*/cpufreq");
            let why = "no such folder: a virtual machine, or a kernel without cpufreq";
            return vec![Finding::nowhere(&FAMILY, "clock rates", path, why)];
        }
        let mut findings = Vec::new();
        for core in &self.cores {
            let Some(position) = channels.cores.iter().position(|c| *c == core.number) else { continue };
            let mega = |value: Option<f64>| told(value.map(|hertz| hertz / 1e6), 0, "MHz");
            let now = mega(at(&sample.core_hertz, position));
            findings.push(Finding::of(&FAMILY, format!("core {} clock", core.number), &core.now, now, root));
            let cap = mega(at(&sample.core_cap_hertz, position)).map(|cap| match mega(core.top_hertz) {
                Some(top) => format!("{cap} of {top}"),
                None => cap,
            });
            findings.push(Finding::of(&FAMILY, format!("core {} cap", core.number), &core.cap, cap, root));
        }
        findings
    }
}

/// Hertz of a number in kHz.
pub(crate) fn hertz(text: &str) -> Option<f64> {
    plausible_hertz(number(text)?.checked_mul(1000)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn khz_become_hertz_and_nonsense_is_unknown() {
        assert_eq!(hertz("3187200\n"), Some(3_187_200_000.0));
        for text in ["", "0", "-1", "<unknown>", "18446744073709551615", "999999999999"] {
            assert_eq!(hertz(text), None, "{text}");
        }
    }
}
