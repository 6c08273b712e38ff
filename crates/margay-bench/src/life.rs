//! How long a battery lasts, by a formula that is printed with its result.

/// Hours of a battery with one answer a period.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatteryLife {
    /// What the battery holds.
    pub watt_hours: f64,
    /// Mean power.
    pub watts: f64,
    /// `watt_hours / watts`.
    pub hours: f64,
}

impl BatteryLife {
    /// The formula in words.
    pub const FORMULA: &str =
        "hours = Wh / mean W; mean W = (J of an answer + idle W x (period - time of an answer)) / period";
}

/// Battery life with one answer each `period` seconds, the device idle between; energy of an answer is all of it, idle
/// included. `None` where an answer takes longer than the period, or a number is no power.
pub fn battery_life(
    watt_hours: f64,
    (answer_joules, answer_seconds): (f64, f64),
    idle_watts: f64,
    period_seconds: f64,
) -> Option<BatteryLife> {
    let watts = (answer_joules + idle_watts * (period_seconds - answer_seconds)) / period_seconds;
    let fits = answer_seconds <= period_seconds && period_seconds > 0.0;
    (fits && watts > 0.0 && watts.is_finite()).then(|| BatteryLife {
        watt_hours,
        watts,
        hours: watt_hours / watts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_are_those_of_the_formula_and_not_of_the_study() {
        // 5000 mAh at 3.85 V. The study says "almost two days" of the first and "about 8 h" of the last.
        let phone = 19.25;
        let imp = battery_life(phone, (1.3 * 25.0, 25.0), 0.0, 60.0).unwrap();
        assert!((imp.hours - 35.54).abs() < 0.01, "{imp:?}");
        let idle = battery_life(phone, (1.3 * 25.0, 25.0), 0.4, 60.0).unwrap();
        assert!((idle.watts - (32.5 + 0.4 * 35.0) / 60.0).abs() < 1e-12 && idle.hours < 25.0, "{idle:?}");
        assert_eq!(battery_life(phone, (11.0 * 82.2, 82.2), 0.4, 60.0), None, "the answer does not fit");
        assert_eq!(battery_life(phone, (0.0, 1.0), 0.0, 60.0), None, "no power, no life");
    }
}
