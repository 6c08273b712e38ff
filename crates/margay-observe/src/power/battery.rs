//! The battery: the whole device, slowly.

use super::PowerSource;
use crate::{Channels, Sample, sensors::at};
use std::time::Duration;

/// What the battery that moves gives.
#[derive(Debug)]
pub(super) struct Battery;

impl PowerSource for Battery {
    fn id(&self) -> &'static str {
        "battery"
    }

    fn scope(&self, channels: &Channels) -> Option<String> {
        match (channels.battery.and_then(|chosen| channels.batteries.get(chosen)), channels.batteries.len()) {
            (Some(name), _) => Some(format!("battery {name}: the whole device, filtered by its gauge")),
            (None, 0) => None,
            (None, _) => Some("several batteries, none of which has moved".to_owned()),
        }
    }

    fn update_period(&self) -> Option<Duration> {
        None
    }

    fn watts(&self, channels: &Channels, _: Option<&Sample>, now: &Sample) -> Option<f64> {
        at(&now.battery_watts, channels.battery?)
    }
}
