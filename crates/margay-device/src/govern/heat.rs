//! Heat: down before the ceiling is met, up when the hottest of a while leaves room for it.

use super::{
    dwell::{Dwell, Trend},
    ladder::PACE,
};
use std::time::Duration;

/// How far ahead the temperature's slope is followed: half of what a die needs to answer (its capacity times its resistance is
/// about 25 s in the profiles), and several ticks.
const AHEAD: Duration = Duration::from_secs(5);
/// The prediction stays so far below the ceiling, kelvin: sensors tell whole or tenth degrees, late by a tick.
const MARGIN: f64 = 2.0;
/// A level is given back where the hottest of the dwell is so far below the ceiling: margin, and what a level costs (5 K), and 1.
const ROOM: f64 = 8.0;
/// What a level of speed is worth where it is worth much, kelvin.
const KELVIN_PER_LEVEL: f64 = 5.0;
/// Levels at once, down and up.
const MOST_DOWN: usize = 8;
const MOST_UP: usize = 4;
/// Running answers wait where the next tick may be nearer than this to the ceiling, and go on where it is so far below.
const EDGE: f64 = 0.5;
const RELEASE: f64 = 4.0;
/// Wait before a level is given back, and before running answers go on: a die needs about 25 s to show what was done.
const DWELL: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub(super) struct Heat {
    pub(super) level: usize,
    pub(super) hold: bool,
    pub(super) dwell: Dwell,
    hold_dwell: Dwell,
    trend: Trend,
    /// Highest since it is calm.
    peak: f64,
    last: Option<Duration>,
    why: Why,
}

#[derive(Clone, Copy, Debug)]
enum Why {
    Nothing,
    Degrees { now: f64, slope: f64, ceiling: f64 },
    Cap(f64),
}

impl Heat {
    pub(super) fn new() -> Self {
        Heat {
            level: 0,
            hold: false,
            dwell: Dwell::new(DWELL),
            hold_dwell: Dwell::new(DWELL),
            trend: Trend::default(),
            peak: f64::MIN,
            last: None,
            why: Why::Nothing,
        }
    }

    /// By temperature.
    pub(super) fn tick(
        &mut self,
        at: Duration,
        now: f64,
        ceiling: f64,
        path: &[usize],
        paces: &dyn Fn(usize) -> bool,
    ) {
        let period = self.last.map_or(Duration::ZERO, |last| at.saturating_sub(last)).min(AHEAD);
        self.last = Some(at);
        self.trend.push(at, now);
        let slope = self.trend.slope().unwrap_or(0.0);
        self.why = Why::Degrees { now, slope, ceiling };
        let rising = slope.max(0.0);
        let ahead = AHEAD.max(2 * period).as_secs_f64();
        let over = now + rising * ahead - (ceiling - MARGIN);
        if over > 0.0 {
            let levels = ((over / KELVIN_PER_LEVEL).ceil() as usize).clamp(1, MOST_DOWN);
            self.down(at, levels, path, paces);
        } else {
            if self.dwell.begins() {
                self.peak = f64::MIN;
            }
            self.peak = self.peak.max(now);
            let room = ceiling - ROOM - self.peak;
            if self.dwell.may_climb(at, room > 0.0) && self.level > 0 {
                let levels = ((room / KELVIN_PER_LEVEL).ceil() as usize).clamp(1, MOST_UP);
                self.level = self.level.saturating_sub(levels);
                self.dwell.climbed(at);
            }
        }
        let soon = now + rising * 1.5 * period.as_secs_f64().max(1.0);
        if !self.hold && soon >= ceiling - EDGE {
            self.hold = true;
            self.hold_dwell.fell(at);
            self.down(at, MOST_DOWN, path, paces);
        } else if self.hold && self.hold_dwell.may_climb(at, now < ceiling - RELEASE) {
            self.hold = false;
            self.hold_dwell.climbed(at);
        }
    }

    /// Where no temperature is known: no faster than the system's own cap, which falls when it is hot.
    pub(super) fn tick_by_cap(&mut self, at: Duration, cap: f64, level_of_cap: usize) {
        self.unknown();
        self.why = Why::Cap(cap);
        if level_of_cap > self.level {
            self.level = level_of_cap;
            self.dwell.fell(at);
        } else if self.level > 0 && self.dwell.may_climb(at, level_of_cap == 0) {
            self.level = self.level.saturating_sub(MOST_UP);
            self.dwell.climbed(at);
        }
    }

    /// Nothing is known of the temperature.
    pub(super) fn unknown(&mut self) {
        self.trend.clear();
        self.last = None;
        self.hold_dwell.may_climb(Duration::ZERO, false);
    }

    pub(super) fn why(&self) -> String {
        match self.why {
            Why::Nothing => "nothing is known".to_owned(),
            Why::Degrees { now, slope, ceiling } => {
                format!("{now:.1} C, {slope:+.2} K/s, ceiling {ceiling:.1} C")
            }
            Why::Cap(cap) => format!("the system allows {:.0}% of the top frequency", cap * 100.0),
        }
    }

    fn down(&mut self, at: Duration, levels: usize, path: &[usize], paces: &dyn Fn(usize) -> bool) {
        let before = self.level;
        self.level = (self.level + levels).min(path.len());
        // A pace above the speed that there is changes nothing.
        while path.get(self.level.wrapping_sub(1)) == Some(&PACE)
            && self.level < path.len()
            && !paces(path[..self.level].iter().filter(|rung| **rung == PACE).count())
        {
            self.level += 1;
        }
        if self.level > before {
            // What was done changes the slope, which the old readings do not know.
            self.trend.restart();
        }
        self.dwell.fell(at);
    }
}
