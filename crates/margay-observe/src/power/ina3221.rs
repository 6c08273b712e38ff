//! A Jetson's rails: which of them add up to the module differs by board.

use super::PowerSource;
use crate::{Channels, Sample, sensors::at};
use std::time::Duration;

/// Rails that together are the module's input, by board. A board that is not here has rails, but no total: adding up rails
/// that feed each other would count twice. Source: the list of supported boards of energymon's `energymon-jetson`.
const TOTALS: &[&[&str]] = &[
    &["VDD_IN"],
    &["POM_5V_IN"],
    &["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"],
    &["GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"],
];

/// Sum of the rails that make up the module.
#[derive(Debug)]
pub(super) struct Ina3221;

impl PowerSource for Ina3221 {
    fn id(&self) -> &'static str {
        "ina3221"
    }

    fn scope(&self, channels: &Channels) -> Option<String> {
        let rails = total(channels)?;
        let names: Vec<&str> = rails.iter().map(|rail| channels.rails[*rail].as_str()).collect();
        Some(format!("INA3221 {}: the module, not its carrier board", names.join(" + ")))
    }

    fn update_period(&self) -> Option<Duration> {
        None
    }

    fn watts(&self, channels: &Channels, _: Option<&Sample>, now: &Sample) -> Option<f64> {
        total(channels)?.into_iter().map(|rail| at(&now.rail_watts, rail)).sum()
    }
}

fn total(channels: &Channels) -> Option<Vec<usize>> {
    let find = |name: &&str| channels.rails.iter().position(|rail| rail == name);
    TOTALS.iter().find_map(|names| names.iter().map(find).collect())
}
