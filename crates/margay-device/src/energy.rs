//! Joules, batteries and the cloud: arithmetic whose formulas are printed with it.

use crate::{DeviceError, Stated, error::profile};
use serde::{Deserialize, Serialize};

/// The cloud's assumptions inside the program.
const CLOUD: &str = include_str!("../profiles/cloud/cloud.toml");

/// Formula of [`per_charge`], for people.
pub const PER_CHARGE: &str = "queries per charge = Wh x 3600 / J per query";
/// Formula of [`at_rate`], for people.
pub const AT_RATE: &str =
    "hours = Wh / W, W = (J per query + W idle x (period - seconds)) / period, if seconds <= period";

/// How long a battery lasts at a steady rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AtRate {
    /// So many hours.
    Hours(f64),
    /// A query takes longer than the period: hours of answering without a pause.
    TooSlow {
        /// Until the battery is empty.
        continuous_hours: f64,
    },
}

/// Whole queries of a charge, each drawing `joules`.
///
/// ```
/// // 5000 mAh at 3.85 V, 11 W for 82.2 s.
/// assert_eq!(margay_device::per_charge(19.25, 11.0 * 82.2), 76);
/// ```
pub fn per_charge(watt_hours: f64, joules: f64) -> u64 {
    if joules > 0.0 { (watt_hours * 3600.0 / joules) as u64 } else { 0 }
}

/// Hours of a charge at one query every `period` seconds, of queries that take `seconds` and `joules`.
///
/// ```
/// use margay_device::{AtRate, at_rate};
/// let AtRate::Hours(hours) = at_rate(19.25, 60.0, 25.0, 1.3 * 25.0, 0.0) else { panic!() };
/// assert_eq!(hours.round(), 36.0);
/// let AtRate::Hours(with_idle) = at_rate(19.25, 60.0, 25.0, 1.3 * 25.0, 0.4) else { panic!() };
/// assert!((with_idle - 19.25 * 60.0 / (32.5 + 0.4 * 35.0)).abs() < 1e-9);
/// assert!(matches!(at_rate(19.25, 60.0, 82.2, 904.0, 0.0), AtRate::TooSlow { continuous_hours } if (continuous_hours - 1.75).abs() < 0.01));
/// ```
pub fn at_rate(watt_hours: f64, period: f64, seconds: f64, joules: f64, idle_watts: f64) -> AtRate {
    if seconds > period {
        return AtRate::TooSlow { continuous_hours: watt_hours * seconds / joules };
    }
    AtRate::Hours(watt_hours * period / (joules + idle_watts * (period - seconds)))
}

/// What an answer from a data centre is assumed to take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cloud {
    /// In the data centre, for an answer.
    pub joules_per_answer: Stated,
    /// Of the picture that is sent.
    pub picture_bytes: Stated,
    /// Of the network between.
    pub network_joules_per_byte: Stated,
    /// Of the phone's radio while it sends and waits.
    pub radio_joules: Stated,
}

impl Cloud {
    /// The one inside the program.
    ///
    /// # Errors
    /// [`DeviceError::Profile`] where it breaks its rules.
    pub fn assumed() -> Result<Self, DeviceError> {
        toml::from_str(CLOUD).map_err(|e| profile("cloud", e.to_string()))
    }

    /// All of it.
    pub fn joules(&self) -> f64 {
        self.joules_per_answer.value
            + self.picture_bytes.value * self.network_joules_per_byte.value
            + self.radio_joules.value
    }
}

/// Speed-up of speculative decoding by the formula of the lesson "LLM Optimization for Mobile": drafts / (1 + rejection rate).
/// Kept for its exercises alone: it leaves out what drafting costs, and never falls below half the drafts.
pub fn lesson_speedup(drafts: f64, rejected: f64) -> f64 {
    drafts / (1.0 + rejected)
}

/// Speed-up of speculative decoding, by which plans are made: `(1 - a^(g+1)) / ((1 - a) (g c + 1))` with `drafts` g tokens, of
/// which each is accepted with probability `accepted` a, and a draft token that costs `cost` c of a target token.
/// Source: Leviathan et al., arXiv 2211.17192, theorem 3.8.
///
/// ```
/// use margay_device::speculative_speedup;
/// assert_eq!(format!("{:.2}", speculative_speedup(4, 0.8, 0.1)), "2.40");
/// assert_eq!(format!("{:.2}", speculative_speedup(3, 0.5, 0.2)), "1.17");
/// assert_eq!(speculative_speedup(4, 1.0, 0.0), 5.0);
/// ```
pub fn speculative_speedup(drafts: u32, accepted: f64, cost: f64) -> f64 {
    // The geometric sum, which is also right where all are accepted.
    let tokens: f64 = (0..=drafts).map(|i| accepted.powi(i as i32)).sum();
    tokens / (f64::from(drafts) * cost + 1.0)
}
