//! The battery's draw: `/sys/class/power_supply/*` of type `Battery`.
//!
//! The interface says microamperes and microvolts; some vendors write milli. The sign of a current differs by vendor, so the
//! status tells the direction, and while a charger is connected the draw is not the device's: it is refused. A phone may
//! have several supplies of type Battery of which one is frozen: the one whose numbers move counts, and until one moves none
//! does. Gauges filter and refresh slowly, often once a second. Source: Linux, `Documentation/ABI/testing/sysfs-class-power`;
//! the traps are of public reports.

use super::{Family, Finding, Moment, Sensor, at, put, told};
use crate::{
    Channels, Root, Sample,
    parse::{number, percent, signed},
};

pub(super) const FAMILY: Family = Family {
    id: "battery",
    summary: "the battery's draw, charge and temperature",
    probe: |root, _| Box::new(Battery::probe(root)),
};

const FOLDER: &str = "sys/class/power_supply";

/// A current that is greater in number is in microamperes: 20 A are beyond a phone, 20 mA are below one that computes.
const MICRO_FROM: u64 = 20_000;

/// A battery of one cell gives no more: a greater product means that a unit was taken for another.
const MOST_CELL_WATTS: f64 = 30.0;
/// Nor does a laptop's.
const MOST_WATTS: f64 = 250.0;

struct Battery {
    supplies: Vec<Supply>,
    /// `online` of what feeds the device from outside.
    chargers: Vec<String>,
}

struct Supply {
    name: String,
    folder: String,
    last: Option<[Option<i64>; 3]>,
    /// How often a number changed.
    moves: u64,
    /// Greatest current so far, as a bare number.
    greatest: u64,
    refused: Option<&'static str>,
}

impl Battery {
    fn probe(root: &Root) -> Self {
        let mut battery = Battery { supplies: Vec::new(), chargers: Vec::new() };
        for name in root.list(FOLDER) {
            let folder = format!("{FOLDER}/{name}");
            match root.read(&format!("{folder}/type")).as_deref().map(str::trim) {
                // A mouse's battery is no device's.
                Some("Battery")
                    if root.read(&format!("{folder}/scope")).is_none_or(|s| s.trim() != "Device") =>
                {
                    let (last, moves, greatest, refused) = (None, 0, 0, None);
                    battery.supplies.push(Supply { name, folder, last, moves, greatest, refused });
                }
                Some("Mains" | "USB" | "USB_PD" | "USB_DCP" | "USB_CDP" | "Wireless") => {
                    battery.chargers.push(format!("{folder}/online"));
                }
                _ => {}
            }
        }
        battery
    }
}

impl Supply {
    fn watts(&mut self, root: &Root, charger: bool) -> Option<f64> {
        let read = |file: &str| root.read(&format!("{}/{file}", self.folder));
        let raw = ["power_now", "current_now", "voltage_now"].map(|file| read(file).and_then(|t| signed(&t)));
        let status = read("status");
        if self.last.is_some_and(|last| last != raw) {
            self.moves += 1;
        }
        self.last = Some(raw);
        let [power, current, voltage] = raw;
        self.greatest = self.greatest.max(current.map_or(0, i64::unsigned_abs));
        self.refused = refusal(status.as_deref().map(str::trim), charger);
        if self.refused.is_some() {
            return None;
        }
        if let Some(micro) = power.filter(|power| *power != 0) {
            return Some(micro.unsigned_abs() as f64 / 1e6).filter(|watts| *watts <= MOST_WATTS);
        }
        watts(current?, voltage?, self.greatest)
    }
}

impl Sensor for Battery {
    fn read(&mut self, root: &Root, moment: &mut Moment<'_>) {
        let (channels, sample) = (&mut *moment.channels, &mut *moment.sample);
        if channels.batteries.is_empty() {
            channels.batteries = self.supplies.iter().map(|supply| supply.name.clone()).collect();
        }
        let online = |path: &String| root.read(path).and_then(|text| number(&text)).is_some_and(|n| n > 0);
        let charger = self.chargers.iter().any(online);
        for (position, supply) in self.supplies.iter_mut().enumerate() {
            put(&mut sample.battery_watts, position, supply.watts(root, charger));
        }
        channels.battery = moving(&self.supplies.iter().map(|supply| supply.moves).collect::<Vec<_>>());
        let Some(chosen) = channels.battery.or((!self.supplies.is_empty()).then_some(0)) else { return };
        let supply = &self.supplies[chosen];
        let read = |file: &str| root.read(&format!("{}/{file}", supply.folder));
        sample.charging = Some(supply.refused.is_some());
        sample.battery_charge_percent = read("capacity").and_then(|text| percent(&text));
        sample.battery_celsius = read("temp").and_then(|text| tenths(&text));
    }

    fn findings(&self, root: &Root, channels: &Channels, sample: &Sample) -> Vec<Finding> {
        if self.supplies.is_empty() {
            return vec![Finding::nowhere(&FAMILY, "battery power", format!("{FOLDER}/*"), "no battery")];
        }
        let mut findings = Vec::new();
        for (position, supply) in self.supplies.iter().enumerate() {
            let path = format!("{}/current_now", supply.folder);
            let power = told(at(&sample.battery_watts, position), 2, "W");
            let mut finding =
                Finding::of(&FAMILY, format!("power, battery {}", supply.name), path, power, root);
            if let Some(refused) = supply.refused {
                finding.why = Some(refused.to_owned());
            } else if self.supplies.len() > 1 && channels.battery != Some(position) {
                finding.value = None;
                finding.why = Some("its numbers do not move, or another's move more".to_owned());
            }
            findings.push(finding);
        }
        let chosen = &self.supplies[channels.battery.unwrap_or(0)].folder;
        for (name, file, value) in [
            ("battery charge", "capacity", told(sample.battery_charge_percent, 0, "%")),
            ("battery temperature", "temp", told(sample.battery_celsius, 1, "°C")),
        ] {
            findings.push(Finding::of(&FAMILY, name, format!("{chosen}/{file}"), value, root));
        }
        findings
    }
}

/// Why a battery's draw is not what the device takes; `None` where it is.
pub(crate) fn refusal(status: Option<&str>, charger: bool) -> Option<&'static str> {
    match status {
        Some("Charging") => Some("charging: what flows into the battery is not what the device takes"),
        Some("Full" | "Not charging") => Some("on external power: the battery does not feed the device"),
        _ if charger => Some("a charger is connected and feeds the device as well"),
        Some("Discharging") => None,
        // Without a charger it can only discharge.
        _ => None,
    }
}

/// Watts of a current and a voltage as bare numbers; `greatest` is the greatest current so far, which tells its unit.
pub(crate) fn watts(current: i64, voltage: i64, greatest: u64) -> Option<f64> {
    let volts = match voltage {
        1_000_000..=60_000_000 => voltage as f64 / 1e6,
        2_000..=60_000 => voltage as f64 / 1e3,
        _ => return None,
    };
    let size = current.unsigned_abs() as f64;
    let amperes = if greatest >= MICRO_FROM { size / 1e6 } else { size / 1e3 };
    let most = if volts < 5.0 { MOST_CELL_WATTS } else { MOST_WATTS };
    // Nothing computes on no current: the gauge has not measured.
    Some(amperes * volts).filter(|watts| *watts > 0.0 && *watts <= most)
}

/// Degrees of a number in tenths, as the interface has them; some gauges write thousandths.
pub(crate) fn tenths(text: &str) -> Option<f64> {
    let raw = signed(text)?;
    let degrees = if raw.unsigned_abs() >= 2_000 { raw as f64 / 1e3 } else { raw as f64 / 10.0 };
    (raw != 0 && (-40.0..=120.0).contains(&degrees)).then_some(degrees)
}

/// The only one, or the one that moved most often; `None` while none of several has.
pub(crate) fn moving(moves: &[u64]) -> Option<usize> {
    if moves.len() == 1 {
        return Some(0);
    }
    let most = moves.iter().copied().max().filter(|most| *most > 0)?;
    moves.iter().position(|count| *count == most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_units_and_both_signs_give_the_same_watts() {
        for (current, voltage, greatest) in [
            (2_900_000, 3_850_000, 2_900_000),
            (-2_900_000, 3_850_000, 2_900_000),
            (-2_900, 3_850, 2_900),
            (2_900, 3_850_000, 2_900),
        ] {
            let watts = watts(current, voltage, greatest).unwrap();
            assert!((watts - 11.165).abs() < 1e-9, "{current} {voltage}: {watts}");
        }
        assert!(watts(15_000, 3_850_000, 2_900_000).unwrap() < 0.06, "a quiet phone keeps its unit");
        for (current, voltage) in
            [(0, 3_850_000), (2_900_000, 0), (15_000, 3_850_000), (1, -5), (i64::MIN, 4_000_000)]
        {
            assert_eq!(
                watts(current, voltage, current.unsigned_abs().min(19_999)),
                None,
                "{current} {voltage}"
            );
        }
    }

    #[test]
    fn the_supply_that_moves_counts() {
        assert_eq!((moving(&[]), moving(&[0]), moving(&[0, 0])), (None, Some(0), None));
        assert_eq!((moving(&[0, 3]), moving(&[2, 2]), moving(&[1, 0, 4])), (Some(1), Some(0), Some(2)));
    }

    #[test]
    fn a_charger_makes_power_refused() {
        assert!(refusal(Some("Charging"), false).unwrap().starts_with("charging"));
        assert!(refusal(Some("Full"), false).is_some() && refusal(Some("Discharging"), true).is_some());
        assert_eq!((refusal(Some("Discharging"), false), refusal(None, false)), (None, None));
    }

    #[test]
    fn tenths_and_thousandths_of_degrees() {
        assert_eq!((tenths("312"), tenths("31200"), tenths("-50")), (Some(31.2), Some(31.2), Some(-5.0)));
        assert_eq!((tenths("0"), tenths("x"), tenths("999999")), (None, None, None));
    }
}
