//! Power: where it is measured at all, and what exactly is measured there.

mod battery;
mod ina3221;
mod rapl;

use crate::{Channels, Sample};
use std::time::Duration;

/// A way to know the power of this device. Sources read samples, never files: what a recording holds gives the same watts.
pub trait PowerSource: Sync + std::fmt::Debug {
    /// Name of it, which is that of its file here.
    fn id(&self) -> &'static str;

    /// What it measures here, in words; `None` where it is not there.
    fn scope(&self, channels: &Channels) -> Option<String>;

    /// How often its numbers change by its design, where that is known.
    fn update_period(&self) -> Option<Duration>;

    /// Mean power since the sample before, or that of the moment, by the source's nature.
    fn watts(&self, channels: &Channels, before: Option<&Sample>, now: &Sample) -> Option<f64>;
}

/// Every source, the best first: counters of energy miss nothing, rails are sampled, batteries are slow.
pub const POWER_SOURCES: &[&dyn PowerSource] = &[&rapl::Rapl, &ina3221::Ina3221, &battery::Battery];

/// The source of an id.
pub fn power_source(id: &str) -> Option<&'static dyn PowerSource> {
    POWER_SOURCES.iter().copied().find(|source| source.id() == id)
}

/// Picks the source once, and fills the sample's watts.
pub(crate) fn decide(channels: &mut Channels, before: Option<&Sample>, sample: &mut Sample) {
    if channels.power.is_none() {
        let present = POWER_SOURCES.iter().find(|source| source.scope(channels).is_some());
        channels.power = present.map(|source| source.id());
    }
    let Some(source) = channels.power.and_then(power_source) else { return };
    channels.power_scope = source.scope(channels);
    let watts = source.watts(channels, before, sample);
    sample.power_watts = watts.filter(|watts| watts.is_finite() && *watts >= 0.0);
}
