//! Temperatures: `/sys/class/thermal/thermal_zone*`.
//!
//! The interface says thousandths of a degree; some vendors' zones hold whole degrees. Zones of phones also carry what is no
//! temperature (currents, voltages, charge, trip points), and dead ones hold 0, -274000 or a million. Sources: Linux,
//! `Documentation/driver-api/thermal/sysfs-api.rst`; `bcl_int_names` of Qualcomm's `bcl_pmic5.c`; public dumps of phones' zones.

use super::{Family, Finding, Moment, Sensor, at, put, told};
use crate::{Channels, Root, Sample, parse::signed};

pub(super) const FAMILY: Family =
    Family { id: "thermal", summary: "thermal zones", probe: |root, _| Box::new(Thermal::probe(root)) };

const FOLDER: &str = "sys/class/thermal";

/// Zones that are read: phones have about a hundred.
const MOST_ZONES: usize = 256;

/// Parts of types that are no temperature.
const NO_TEMPERATURES: &[&str] = &["ibat", "vbat", "bcl", "hw-trip"];

struct Thermal {
    /// Type and file.
    zones: Vec<(String, String)>,
}

impl Thermal {
    fn probe(root: &Root) -> Self {
        let names = root.list(FOLDER).into_iter().filter(|name| name.starts_with("thermal_zone"));
        let zones = names.take(MOST_ZONES).filter_map(|name| {
            let path = format!("{FOLDER}/{name}/temp");
            let kind = root.read(&format!("{FOLDER}/{name}/type")).map(|kind| kind.trim().to_owned());
            let kind = kind.filter(|kind| !kind.is_empty()).unwrap_or(name);
            (is_temperature(&kind) && root.read(&path).is_some()).then_some((kind, path))
        });
        Thermal { zones: zones.collect() }
    }
}

impl Sensor for Thermal {
    fn read(&mut self, root: &Root, moment: &mut Moment<'_>) {
        if moment.channels.zones.is_empty() {
            moment.channels.zones = self.zones.iter().map(|(kind, _)| kind.clone()).collect();
        }
        for (position, (_, path)) in self.zones.iter().enumerate() {
            let degrees = root.read(path).and_then(|text| celsius(&text));
            put(&mut moment.sample.zone_celsius, position, degrees);
        }
        moment.sample.temperature_celsius =
            moment.sample.zone_celsius.iter().flatten().copied().reduce(f64::max);
    }

    fn findings(&self, root: &Root, _: &Channels, sample: &Sample) -> Vec<Finding> {
        if self.zones.is_empty() {
            let why = "no zone: a virtual machine or a container";
            return vec![Finding::nowhere(&FAMILY, "temperature", format!("{FOLDER}/thermal_zone*"), why)];
        }
        let of = |(position, (kind, path)): (usize, &(String, String))| {
            Finding::of(&FAMILY, kind, path, told(at(&sample.zone_celsius, position), 1, "°C"), root)
        };
        self.zones.iter().enumerate().map(of).collect()
    }
}

/// False of zones that carry a current, a voltage, a charge or a trip point.
pub(crate) fn is_temperature(kind: &str) -> bool {
    !NO_TEMPERATURES.iter().any(|part| kind.contains(part)) && kind != "soc" && kind != "socd"
}

/// Degrees of a zone: thousandths from 1000 on, whole degrees up to 150. Between them, exactly 0 (a dead zone), and outside
/// of -40 to 150 degrees it is unknown.
pub(crate) fn celsius(text: &str) -> Option<f64> {
    let raw = signed(text)?;
    let degrees = match raw {
        0 => return None,
        -40..=150 => raw as f64,
        _ if raw.unsigned_abs() >= 1000 => raw as f64 / 1000.0,
        _ => return None,
    };
    (-40.0..=150.0).contains(&degrees).then_some(degrees)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousandths_and_whole_degrees_are_told_apart_and_nonsense_is_unknown() {
        for (text, degrees) in [
            ("45123\n", 45.123),
            ("45", 45.0),
            ("-5000", -5.0),
            ("-7", -7.0),
            ("1000", 1.0),
            ("150000", 150.0),
        ] {
            assert_eq!(celsius(text), Some(degrees), "{text}");
        }
        for text in ["0", "-274", "-274000", "-256000", "1000000", "151000", "412", "-93", "", "x", "4e1"] {
            assert_eq!(celsius(text), None, "{text}");
        }
    }

    #[test]
    fn currents_voltages_and_charge_are_no_temperatures() {
        for kind in ["pm8550b-ibat-lvl0", "vbat", "pm8550-bcl-lvl1", "socd", "soc", "cpu-hw-trip-0"] {
            assert!(!is_temperature(kind), "{kind}");
        }
        for kind in ["cpu-1-0-0", "soc-thermal", "battery", "skin-therm", "x86_pkg_temp"] {
            assert!(is_temperature(kind), "{kind}");
        }
    }
}
