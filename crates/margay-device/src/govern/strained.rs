//! Memory and battery: how short they are says how far down to go.

use super::dwell::{Dwell, Trend};
use std::time::Duration;

/// Part of the watermark at which questions are turned away.
const LAST_PART: f64 = 0.25;
/// How far ahead a fall of memory is followed, and which part of what there is it may take: one large allocation is no trend.
const AHEAD_SECONDS: f64 = 5.0;
const MOST_FALL: f64 = 0.25;
/// Room above what a level was taken for that gives it back.
const ROOM: f64 = 1.25;
/// Percent of time that programs wait for memory: something is given up above the first, all at the second. systemd-oomd ends
/// programs at 60% for 30 s by default (oomd.conf, DefaultMemoryPressureLimit).
const PRESSURE: (f64, f64) = (10.0, 40.0);
/// Part of the battery mode's charge at which questions are turned away, and the charge above both that ends them, percent.
const BATTERY_LAST: f64 = 0.25;
const BATTERY_ROOM: f64 = 3.0;
const DWELL: Duration = Duration::from_secs(30);

/// Levels that a reading asks for: to go down to, and to climb to if it stays.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    down_to: usize,
    up_to: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Strained {
    pub(super) level: usize,
    pub(super) dwell: Dwell,
    trend: Trend,
    /// Deepest level that was asked for since it is calm.
    worst: usize,
    pub(super) why: String,
}

impl Strained {
    pub(super) fn new() -> Self {
        let dwell = Dwell::new(DWELL);
        Strained { level: 0, dwell, trend: Trend::default(), worst: 0, why: String::new() }
    }

    /// By what programs may still take, and by how long they wait for it; one of the two is enough.
    pub(super) fn memory(
        &mut self,
        at: Duration,
        available: Option<u64>,
        pressure: Option<f64>,
        watermark: u64,
        most: usize,
    ) {
        let mut asked = Asked { down_to: 0, up_to: 0 };
        if let Some(bytes) = available {
            let (bytes, mark) = (bytes as f64, watermark as f64);
            self.trend.push(at, bytes);
            let fall = -self.trend.slope().unwrap_or(0.0) * AHEAD_SECONDS;
            let soon = bytes - fall.clamp(0.0, bytes * MOST_FALL);
            let strain = |bytes: f64| (mark - bytes) / (mark * (1.0 - LAST_PART));
            asked = Asked { down_to: level(strain(soon), most), up_to: level(strain(soon / ROOM), most) };
        } else {
            self.trend.clear();
        }
        if let Some(percent) = pressure {
            let strain = |percent: f64| (percent - PRESSURE.0) / (PRESSURE.1 - PRESSURE.0);
            asked.down_to = asked.down_to.max(level(strain(percent), most));
            asked.up_to = asked.up_to.max(level(strain(percent * ROOM), most));
        }
        if self.step(at, asked) {
            let mib = |bytes: u64| format!("{:.0} MiB", bytes as f64 / 1048576.0);
            let there =
                available.map(|bytes| format!("{} available, watermark {}", mib(bytes), mib(watermark)));
            let waits = pressure.map(|percent| format!("programs wait {percent:.0}% of the time"));
            self.why = there.into_iter().chain(waits).collect::<Vec<_>>().join(", ");
        }
    }

    /// Below `mode` percent the whole ladder but its end, below a quarter of that its end as well; nothing while it charges.
    pub(super) fn battery(&mut self, at: Duration, percent: f64, charging: bool, mode: f64, most: usize) {
        let depth = |percent: f64| match percent {
            _ if charging => 0,
            p if p <= mode * BATTERY_LAST => most,
            p if p < mode => most.saturating_sub(1),
            _ => 0,
        };
        let asked = Asked { down_to: depth(percent), up_to: depth(percent - BATTERY_ROOM) };
        if self.step(at, asked) {
            let how = if charging { ", charging" } else { "" };
            self.why = format!("{percent:.0}% of the charge{how}, battery mode below {mode:.0}%");
        }
    }

    pub(super) fn unknown(&mut self) {
        self.trend.clear();
        self.dwell.may_climb(Duration::ZERO, false);
    }

    /// Whether the level moved.
    fn step(&mut self, at: Duration, asked: Asked) -> bool {
        if asked.down_to > self.level {
            self.level = asked.down_to;
            self.dwell.fell(at);
            return true;
        }
        let to = asked.up_to.max(asked.down_to);
        if self.dwell.begins() {
            self.worst = 0;
        }
        self.worst = self.worst.max(to);
        if self.dwell.may_climb(at, to < self.level) && self.worst < self.level {
            self.level = self.worst;
            self.dwell.climbed(at);
            return true;
        }
        false
    }
}

fn level(strain: f64, most: usize) -> usize {
    if strain > 0.0 { ((strain.min(1.0) * most as f64).ceil() as usize).min(most) } else { 0 }
}
