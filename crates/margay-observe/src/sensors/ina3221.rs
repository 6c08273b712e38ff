//! Power of rails: the INA3221 monitors of NVIDIA's Jetson boards, through `hwmon`.
//!
//! `inN_input` is millivolts, `currN_input` milliamperes, of up to three channels a chip. What the carrier board takes is not
//! measured. Source: Linux, `Documentation/hwmon/ina3221.rst`.

use super::{Family, Finding, Moment, Sensor, at, put, told};
use crate::{Channels, Root, Sample, parse::signed};

pub(super) const FAMILY: Family = Family {
    id: "ina3221",
    summary: "power of a Jetson's rails",
    probe: |root, _| Box::new(Ina3221::probe(root)),
};

const FOLDER: &str = "sys/class/hwmon";

struct Ina3221 {
    rails: Vec<Rail>,
}

struct Rail {
    name: String,
    millivolts: String,
    milliamperes: String,
}

impl Ina3221 {
    fn probe(root: &Root) -> Self {
        let mut rails = Vec::new();
        for chip in root.list(FOLDER) {
            let folder = format!("{FOLDER}/{chip}");
            if root.read(&format!("{folder}/name")).is_none_or(|name| name.trim() != "ina3221") {
                continue;
            }
            for channel in 1..=3 {
                let label = root.read(&format!("{folder}/in{channel}_label"));
                let label = label.map(|label| label.trim().to_owned()).filter(|label| !label.is_empty());
                let millivolts = format!("{folder}/in{channel}_input");
                let milliamperes = format!("{folder}/curr{channel}_input");
                let reads = |path: &str| root.read(path).is_some();
                // NVIDIA labels unconnected channels so.
                if label.as_deref() != Some("NC") && reads(&millivolts) && reads(&milliamperes) {
                    let name = label.unwrap_or_else(|| format!("{chip} channel {channel}"));
                    rails.push(Rail { name, millivolts, milliamperes });
                }
            }
        }
        Ina3221 { rails }
    }
}

impl Sensor for Ina3221 {
    fn read(&mut self, root: &Root, moment: &mut Moment<'_>) {
        if moment.channels.rails.is_empty() {
            moment.channels.rails = self.rails.iter().map(|rail| rail.name.clone()).collect();
        }
        for (position, rail) in self.rails.iter().enumerate() {
            let [millivolts, milliamperes] =
                [&rail.millivolts, &rail.milliamperes].map(|path| root.read(path));
            let watts = millivolts.zip(milliamperes).and_then(|(v, a)| watts(&v, &a));
            put(&mut moment.sample.rail_watts, position, watts);
        }
    }

    fn findings(&self, root: &Root, _: &Channels, sample: &Sample) -> Vec<Finding> {
        if self.rails.is_empty() {
            let path = format!("{FOLDER}/hwmon*/name");
            return vec![Finding::nowhere(&FAMILY, "rail power", path, "no INA3221: not a Jetson")];
        }
        let of = |(position, rail): (usize, &Rail)| {
            let power = told(at(&sample.rail_watts, position), 2, "W");
            Finding::of(&FAMILY, format!("power, {}", rail.name), &rail.milliamperes, power, root)
        };
        self.rails.iter().enumerate().map(of).collect()
    }
}

/// Watts of millivolts and milliamperes. A little below zero is the monitor's offset, and 0; more is unknown, as is more
/// than 100 V or 100 A.
pub(crate) fn watts(millivolts: &str, milliamperes: &str) -> Option<f64> {
    let volts = signed(millivolts).filter(|mv| (0..=100_000).contains(mv))?;
    let amperes = signed(milliamperes).filter(|ma| (-50..=100_000).contains(ma))?;
    Some(volts as f64 * amperes.max(0) as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn millivolts_by_milliamperes() {
        assert_eq!(watts("5056\n", "1240\n"), Some(6.269_44));
        assert_eq!(watts("5056", "-8"), Some(0.0));
        for (v, a) in [("", "1"), ("5056", "-900"), ("-1", "1"), ("5056", "x"), ("200000", "1")] {
            assert_eq!(watts(v, a), None, "{v} {a}");
        }
    }
}
