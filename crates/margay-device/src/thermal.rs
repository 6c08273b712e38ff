//! Heat: a chain of capacities and resistances from the die to the air.

use crate::device::Thermal;

/// Temperatures of the nodes, degrees Celsius, the die first.
#[derive(Clone, Debug, PartialEq)]
pub struct Temperatures(pub Vec<f64>);

impl Temperatures {
    /// Where it has drawn `watts`, at the case, for so long that nothing changes any more.
    pub fn at_rest(thermal: &Thermal, watts: f64) -> Self {
        let outwards = thermal.node.last().map_or(0.0, |node| node.kelvin_per_watt.value);
        // What the idle device draws is spread over it: the die is as warm as the case.
        Temperatures(vec![thermal.ambient_celsius.value + watts * outwards; thermal.node.len()])
    }

    /// Of the die, where it draws `die` watts and the rest of the device `rest`, for so long that nothing changes any more and
    /// nothing is throttled.
    pub fn settled(thermal: &Thermal, die: f64, rest: f64) -> f64 {
        let across: f64 = thermal.node.iter().map(|node| node.kelvin_per_watt.value).sum();
        let outwards = thermal.node.last().map_or(0.0, |node| node.kelvin_per_watt.value);
        thermal.ambient_celsius.value + die * across + rest * outwards
    }

    /// Of the die.
    pub fn die(&self) -> f64 {
        self.0.first().copied().unwrap_or_default()
    }

    /// After `seconds` with `die` watts at the die and `rest` watts at the case. Implicit Euler, which is stable for any
    /// step: `C (T' - T) / dt = (T'before - T') / Rbefore - (T' - T'after) / R + Q`, a tridiagonal system.
    #[must_use]
    pub fn after(&self, thermal: &Thermal, seconds: f64, die: f64, rest: f64) -> Self {
        let last = thermal.node.len() - 1;
        let mut upper = vec![0.0; last + 1];
        let mut known = vec![0.0; last + 1];
        for (i, node) in thermal.node.iter().enumerate() {
            let outwards = 1.0 / node.kelvin_per_watt.value;
            let inwards = if i == 0 { 0.0 } else { 1.0 / thermal.node[i - 1].kelvin_per_watt.value };
            let capacity = node.joules_per_kelvin.value / seconds;
            let mut right = capacity * self.0[i];
            right += if i == 0 { die } else { 0.0 } + if i == last { rest } else { 0.0 };
            right += if i == last { outwards * thermal.ambient_celsius.value } else { 0.0 };
            let mut middle = capacity + outwards + inwards;
            if i > 0 {
                middle += inwards * upper[i - 1];
                right += inwards * known[i - 1];
            }
            upper[i] = if i == last { 0.0 } else { -outwards / middle };
            known[i] = right / middle;
        }
        for i in (0..last).rev() {
            known[i] -= upper[i] * known[i + 1];
        }
        Temperatures(known)
    }
}

/// Part of the top frequency that the throttling curve allows at that temperature of the die.
pub fn allowed(thermal: &Thermal, celsius: f64) -> f64 {
    let points: Vec<(f64, f64)> =
        thermal.throttle.iter().map(|p| (p.celsius.value, p.fraction.value)).collect();
    let above = points.iter().position(|(at, _)| celsius < *at);
    match (above, points.last()) {
        (Some(0), _) | (None, None) => 1.0,
        (None, Some((_, fraction))) => *fraction,
        (Some(i), _) => {
            let ((from, high), (to, low)) = (points[i - 1], points[i]);
            high + (low - high) * (celsius - from) / (to - from)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn a_chain_settles_where_ohms_law_says_and_keeps_energy() {
        let thermal = Device::named("oneplus-13r").unwrap().thermal;
        let (die, case) = (&thermal.node[0], &thermal.node[1]);
        let start = Temperatures::at_rest(&thermal, 0.0);
        let settled = (0..40_000).fold(start.clone(), |t, _| t.after(&thermal, 1.0, 3.0, 0.5));
        let air = thermal.ambient_celsius.value;
        let expected = air + 3.5 * case.kelvin_per_watt.value + 3.0 * die.kelvin_per_watt.value;
        assert!((settled.die() - expected).abs() < 1e-6, "{} {expected}", settled.die());
        assert!((Temperatures::settled(&thermal, 3.0, 0.5) - expected).abs() < 1e-9);
        // In a moment nothing leaves: all of the energy is in the die.
        let soon = start.after(&thermal, 1e-6, 3.0, 0.0);
        let stored = (soon.die() - air) * die.joules_per_kelvin.value;
        assert!((stored / 3e-6 - 1.0).abs() < 1e-4, "{stored}");
        // Against small explicit steps.
        let mut by_hand = [air, air];
        for _ in 0..30_000 {
            let across = (by_hand[0] - by_hand[1]) / die.kelvin_per_watt.value;
            let out = (by_hand[1] - air) / case.kelvin_per_watt.value;
            by_hand[0] += 1e-3 * (3.0 - across) / die.joules_per_kelvin.value;
            by_hand[1] += 1e-3 * (across + 0.5 - out) / case.joules_per_kelvin.value;
        }
        let steps = (0..600).fold(start, |t, _| t.after(&thermal, 0.05, 3.0, 0.5));
        assert!((steps.die() - by_hand[0]).abs() < 0.02, "{} {}", steps.die(), by_hand[0]);
    }

    #[test]
    fn the_curve_falls_in_straight_lines() {
        let thermal = Device::named("a17-pro").unwrap().thermal;
        let at = |celsius| allowed(&thermal, celsius);
        assert_eq!((at(20.0), at(75.0), at(85.0), at(95.0), at(120.0)), (1.0, 1.0, 0.8, 0.4, 0.4));
        assert!((at(90.0) - 0.6).abs() < 1e-12);
        let none = Thermal { throttle: vec![], ..thermal };
        assert_eq!(allowed(&none, 200.0), 1.0);
    }
}
