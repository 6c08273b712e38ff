//! Limits of a plan: `ttft<=2s, power<=3W, memory<=1.5GiB, temperature<=45C, quality>=98%`.

use crate::DeviceError;

/// What can be limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Seconds to the first token, without loading.
    Ttft,
    /// Seconds of the whole answer, without loading.
    Time,
    /// Tokens a second while decoding.
    Speed,
    /// Mean watts of the device while it answers.
    Power,
    /// Joules of an answer.
    Energy,
    /// Bytes.
    Memory,
    /// Degrees Celsius of the die, the highest.
    Temperature,
    /// Percent of what the unquantized model gets right.
    Quality,
}

/// Units of a metric: as written, and the factor to the metric's own.
type Units = &'static [(&'static str, f64)];

impl Metric {
    /// All of them.
    pub const ALL: [Metric; 8] = [
        Metric::Ttft,
        Metric::Time,
        Metric::Speed,
        Metric::Power,
        Metric::Energy,
        Metric::Memory,
        Metric::Temperature,
        Metric::Quality,
    ];

    /// As it is written in a limit.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Ttft => "ttft",
            Metric::Time => "time",
            Metric::Speed => "speed",
            Metric::Power => "power",
            Metric::Energy => "energy",
            Metric::Memory => "memory",
            Metric::Temperature => "temperature",
            Metric::Quality => "quality",
        }
    }

    /// Whether little of it is good, so that it is limited from above.
    pub fn at_most(self) -> bool {
        !matches!(self, Metric::Speed | Metric::Quality)
    }

    fn units(self) -> Units {
        match self {
            Metric::Ttft | Metric::Time => &[("s", 1.0), ("ms", 1e-3), ("min", 60.0)],
            Metric::Speed => &[("tok/s", 1.0)],
            Metric::Power => &[("W", 1.0), ("mW", 1e-3)],
            Metric::Energy => &[("J", 1.0), ("kJ", 1e3), ("Wh", 3600.0)],
            Metric::Memory => &[
                ("B", 1.0),
                ("KB", 1e3),
                ("MB", 1e6),
                ("GB", 1e9),
                ("KiB", 1024.0),
                ("MiB", 1048576.0),
                ("GiB", 1073741824.0),
            ],
            Metric::Temperature => &[("C", 1.0), ("°C", 1.0)],
            Metric::Quality => &[("%", 1.0)],
        }
    }

    /// A value for people.
    pub fn show(self, value: f64) -> String {
        match self {
            Metric::Ttft | Metric::Time => format!("{value:.2} s"),
            Metric::Speed => format!("{value:.1} tok/s"),
            Metric::Power => format!("{value:.2} W"),
            Metric::Energy => format!("{value:.1} J"),
            Metric::Memory => format!("{:.3} GiB", value / 1073741824.0),
            Metric::Temperature => format!("{value:.1} C"),
            Metric::Quality => format!("{value:.1}%"),
        }
    }
}

/// A bound on a metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    /// Of what.
    pub metric: Metric,
    /// In the metric's own unit.
    pub value: f64,
}

impl Limit {
    /// Reads a list with commas between; an empty text has none.
    ///
    /// # Errors
    /// [`DeviceError::Limit`] naming the one that cannot be read, and what would be right.
    ///
    /// ```
    /// use margay_device::{Limit, Metric};
    /// let limits = Limit::list("ttft <= 1500ms, memory<=1.5GiB, quality>=98%")?;
    /// assert_eq!(limits[0], Limit { metric: Metric::Ttft, value: 1.5 });
    /// assert_eq!(limits[1].value, 1.5 * 1024.0 * 1024.0 * 1024.0);
    /// assert!(Limit::list("power >= 3W").unwrap_err().to_string().contains("power<=3W"));
    /// # Ok::<(), margay_device::DeviceError>(())
    /// ```
    pub fn list(text: &str) -> Result<Vec<Limit>, DeviceError> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let limits = parts.map(Limit::read).collect::<Result<Vec<_>, _>>()?;
        for (at, limit) in limits.iter().enumerate() {
            if limits[..at].iter().any(|earlier| earlier.metric == limit.metric) {
                return Err(bad(text, format!("{} is limited twice", limit.metric.name())));
            }
        }
        Ok(limits)
    }

    /// Whether `value` keeps it.
    pub fn holds(&self, value: f64) -> bool {
        self.excess(value) <= 0.0
    }

    /// By which part of the limit `value` breaks it; 0 or less where it does not.
    pub fn excess(&self, value: f64) -> f64 {
        let over = if self.metric.at_most() { value - self.value } else { self.value - value };
        over / self.value.abs().max(f64::MIN_POSITIVE)
    }

    fn read(text: &str) -> Result<Limit, DeviceError> {
        let (at, sign) = ["<=", ">=", "≤", "≥", "<", ">", "="]
            .into_iter()
            .filter_map(|sign| Some((text.find(sign)?, sign)))
            .min_by_key(|(at, sign)| (*at, std::cmp::Reverse(sign.len())))
            .ok_or_else(|| bad(text, "has no <= or >=, as in ttft<=2s".to_owned()))?;
        let (name, rest) = (text[..at].trim(), text[at + sign.len()..].trim());
        let metric = Metric::ALL.into_iter().find(|m| m.name() == name).ok_or_else(|| {
            let known = Metric::ALL.map(Metric::name).join(", ");
            bad(text, format!("{name:?} is not known; there are {known}"))
        })?;
        let number = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
        let (number, unit) = (&rest[..number], rest[number..].trim());
        let value: f64 = number.parse().map_err(|_| bad(text, format!("{rest:?} begins with no number")))?;
        let units = metric.units();
        let factor = units.iter().find(|(known, _)| *known == unit).map(|(_, factor)| *factor);
        let factor = factor.ok_or_else(|| {
            let known: Vec<_> = units.iter().map(|(unit, _)| *unit).collect();
            let said = if unit.is_empty() {
                "there is no unit".to_owned()
            } else {
                format!("{unit:?} is no unit of it")
            };
            bad(text, format!("{said}; {} takes {}", metric.name(), known.join(", ")))
        })?;
        let right = if metric.at_most() { "<=" } else { ">=" };
        let meant = if sign == "≤" {
            "<="
        } else if sign == "≥" {
            ">="
        } else {
            sign
        };
        if meant != right {
            let bound = if metric.at_most() { "above" } else { "below" };
            let what = format!("{} is bounded from {bound}: {}{right}{rest}", metric.name(), metric.name());
            return Err(bad(text, what));
        }
        Ok(Limit { metric, value: value * factor })
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = if self.metric.at_most() { "<=" } else { ">=" };
        write!(f, "{} {sign} {}", self.metric.name(), self.metric.show(self.value))
    }
}

fn bad(text: &str, what: String) -> DeviceError {
    DeviceError::Limit { text: text.to_owned(), what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named_with_what_would_be_right() {
        for (text, part) in [
            ("ttft", "<="),
            ("heat<=3W", "temperature"),
            ("ttft<=s", "no number"),
            ("ttft<=2", "ttft takes s, ms, min"),
            ("ttft<=2W", "\"W\""),
            ("quality<=98%", "quality>=98%"),
            ("ttft<2s", "ttft<=2s"),
            ("ttft<=2s, ttft<=3s", "twice"),
            ("memory<=1..5GiB", "no number"),
        ] {
            let error = Limit::list(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert_eq!(Limit::list(" ").unwrap(), []);
        let all = Limit::list("temperature≤45°C, energy<=1Wh, speed>=10tok/s, power<=500mW").unwrap();
        assert_eq!(all.iter().map(|l| l.value).collect::<Vec<_>>(), [45.0, 3600.0, 10.0, 0.5]);
        assert!(all[0].holds(45.0) && !all[0].holds(45.1) && all[2].holds(10.0) && !all[2].holds(9.0));
    }
}
