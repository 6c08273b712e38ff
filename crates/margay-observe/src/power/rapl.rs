//! The processor's own counters: packages and memory, not the screen, the disk or the radio.

use super::PowerSource;
use crate::{Channels, Sample, sensors::at};
use std::time::Duration;

/// Sum of all packages and of memory that is counted apart.
#[derive(Debug)]
pub(super) struct Rapl;

impl PowerSource for Rapl {
    fn id(&self) -> &'static str {
        "rapl"
    }

    fn scope(&self, channels: &Channels) -> Option<String> {
        let names: Vec<&str> = counted(channels).map(|(_, name)| name.as_str()).collect();
        (!names.is_empty())
            .then(|| format!("RAPL {}: the processor, not the whole device", names.join(" + ")))
    }

    /// Source: Intel SDM, volume 3B, "RAPL Interfaces": the energy status is updated every millisecond or so.
    fn update_period(&self) -> Option<Duration> {
        Some(Duration::from_millis(1))
    }

    fn watts(&self, channels: &Channels, before: Option<&Sample>, now: &Sample) -> Option<f64> {
        let before = before?;
        let sum = |sample: &Sample| -> Option<f64> {
            counted(channels).map(|(position, _)| at(&sample.counter_joules, position)).sum()
        };
        let seconds = now.over.as_secs_f64();
        let joules = sum(now)? - sum(before)?;
        (seconds > 0.0).then(|| joules / seconds)
    }
}

/// Packages, and memory beside them. Cores and graphics are parts of their package, the platform holds all of them.
fn counted(channels: &Channels) -> impl Iterator<Item = (usize, &String)> {
    let counts = |name: &str| (name.starts_with("package") && !name.contains('/')) || name.ends_with("/dram");
    channels.counters.iter().enumerate().filter(move |(_, name)| counts(name))
}
