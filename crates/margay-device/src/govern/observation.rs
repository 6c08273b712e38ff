//! What the governor is told at a tick, and what of it can be believed.

use std::time::Duration;

/// Temperatures outside are a broken sensor, degrees Celsius.
const CELSIUS: std::ops::RangeInclusive<f64> = -40.0..=150.0;

/// What is known at one moment. Absent is unknown, never 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Observation {
    /// Since any fixed moment; time that goes back is taken for none.
    pub at: Duration,
    /// Of what the ceiling is about: the die, or the hottest zone.
    pub temperature_celsius: Option<f64>,
    /// Part of the top frequency that the system allows, above 0, at most 1.
    pub cap_fraction: Option<f64>,
    /// What programs may still take.
    pub memory_available_bytes: Option<u64>,
    /// Percent of time that programs wait for memory, as Linux' pressure `some avg10` tells it.
    pub memory_pressure: Option<f64>,
    /// Charge, 0 to 100.
    pub battery_percent: Option<f64>,
    /// Whether it is being charged.
    pub charging: Option<bool>,
    /// Questions that wait.
    pub queue: usize,
    /// Of the running answer.
    pub tokens_per_second: Option<f64>,
}

impl Observation {
    /// The same without what cannot be: no number, or outside of its range.
    #[must_use]
    pub(super) fn believed(self) -> Self {
        let within = |value: Option<f64>, range: std::ops::RangeInclusive<f64>| {
            value.filter(|value| range.contains(value))
        };
        Observation {
            temperature_celsius: within(self.temperature_celsius, CELSIUS),
            cap_fraction: within(self.cap_fraction, f64::MIN_POSITIVE..=1.0),
            memory_pressure: within(self.memory_pressure, 0.0..=100.0),
            battery_percent: within(self.battery_percent, 0.0..=100.0),
            tokens_per_second: within(self.tokens_per_second, 0.0..=f64::MAX),
            ..self
        }
    }
}
