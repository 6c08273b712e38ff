//! What a Raspberry Pi's firmware says of its supply: too little voltage slows it down, and spoils a measurement.
//!
//! `hwmon` has an alarm named `rpi_volt`; the vendor's kernel has `get_throttled`, bits in hexadecimal: 0 too little voltage
//! now, 1 clock capped, 2 throttled, 3 soft temperature limit, and the same from 16 on for "has happened since boot".
//! Power itself is only in `vcgencmd pmic_read_adc` (Pi 5), which is no file. Sources: Linux,
//! `drivers/hwmon/raspberrypi-hwmon.c`; Raspberry Pi documentation, "vcgencmd".

use super::{Family, Finding, Moment, Sensor};
use crate::{Channels, Root, Sample, parse::number};

pub(super) const FAMILY: Family = Family {
    id: "raspberry",
    summary: "a Raspberry Pi's undervoltage and throttling",
    probe: |root, _| Box::new(Raspberry::probe(root)),
};

const HWMON: &str = "sys/class/hwmon";
const THROTTLED: &[&str] = &[
    "sys/devices/platform/soc/soc:firmware/get_throttled",
    "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled",
];

/// What the bits say now.
const NOW: &[(u32, &str)] = &[
    (1 << 0, "undervoltage"),
    (1 << 1, "clock capped"),
    (1 << 2, "throttled"),
    (1 << 3, "soft temperature limit"),
];

struct Raspberry {
    alarm: Option<String>,
    throttled: Option<&'static str>,
}

impl Raspberry {
    fn probe(root: &Root) -> Self {
        let chips = root.list(HWMON).into_iter().map(|chip| format!("{HWMON}/{chip}"));
        let mut chips = chips
            .filter(|folder| root.read(&format!("{folder}/name")).is_some_and(|n| n.trim() == "rpi_volt"));
        let mut throttled = THROTTLED.iter().copied();
        Raspberry {
            alarm: chips.next().map(|folder| folder + "/in0_lcrit_alarm"),
            throttled: throttled.find(|path| root.read(path).is_some()),
        }
    }
}

impl Sensor for Raspberry {
    fn read(&mut self, root: &Root, moment: &mut Moment<'_>) {
        let alarm = self.alarm.as_ref().and_then(|path| alarm(&root.read(path)?));
        let throttled = self.throttled.and_then(|path| bits(&root.read(path)?));
        moment.sample.undervoltage = alarm.or(throttled.map(|bits| bits & 1 != 0));
        moment.sample.throttled_bits = throttled;
    }

    fn findings(&self, root: &Root, _: &Channels, sample: &Sample) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Some(path) = &self.alarm {
            let value = sample.undervoltage.map(|low| if low { "YES" } else { "no" }.to_owned());
            findings.push(Finding::of(&FAMILY, "undervoltage", path, value, root));
        }
        if let Some(path) = self.throttled {
            let value = sample.throttled_bits.map(describe);
            findings.push(Finding::of(&FAMILY, "throttling", path, value, root));
        }
        findings
    }
}

/// What the bits say, in words.
pub(crate) fn describe(bits: u32) -> String {
    let words = |shift: u32| {
        let set = NOW.iter().filter(|(bit, _)| bits & (bit << shift) != 0);
        set.map(|(_, word)| *word).collect::<Vec<_>>().join(", ")
    };
    match (words(0), words(16)) {
        (now, before) if now.is_empty() && before.is_empty() => "none since boot".to_owned(),
        (now, before) if now.is_empty() => format!("not now; since boot: {before}"),
        (now, _) => format!("NOW: {now}"),
    }
}

/// 0 or 1.
pub(crate) fn alarm(text: &str) -> Option<bool> {
    number(text).filter(|n| *n <= 1).map(|n| n == 1)
}

/// Bits that are defined.
const DEFINED: u32 = 0xf_000f;

/// Hexadecimal bits, as the node (`50005`) and as `vcgencmd` (`throttled=0x50005`) write them; one with a bit that is not defined is something
/// else.
pub(crate) fn bits(text: &str) -> Option<u32> {
    let text = text.trim();
    let text = text.strip_prefix("throttled=").unwrap_or(text);
    u32::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok().filter(|bits| bits & !DEFINED == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_hexadecimal_in_both_spellings() {
        assert_eq!(
            (bits("50005\n"), bits("throttled=0x50005"), bits("0")),
            (Some(0x50005), Some(0x50005), Some(0))
        );
        assert_eq!((bits("x"), bits(""), bits("123456789")), (None, None, None));
        assert_eq!(describe(0x50005), "NOW: undervoltage, throttled");
        assert_eq!(describe(0x50000), "not now; since boot: undervoltage, throttled");
        assert_eq!(describe(0), "none since boot");
        assert_eq!((alarm("1\n"), alarm("0"), alarm("2"), alarm("")), (Some(true), Some(false), None, None));
    }
}
