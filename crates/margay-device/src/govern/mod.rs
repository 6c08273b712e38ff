//! The governor: what to give up, in which order, before a device overheats, runs out of memory or of charge.
//!
//! A pure state machine: observations in, settings and events out. No clock, no files, no threads; the same observations give
//! the same settings. An engine asks it once a second, a simulator does so on virtual time.
//!
//! ```
//! use margay_device::{Bounds, Governor, Observation};
//! use std::time::Duration;
//! let mut governor = Governor::new(Bounds { ceiling_celsius: Some(80.0), ..Bounds::default() });
//! let mut seen = Observation { temperature_celsius: Some(60.0), ..Observation::default() };
//! assert_eq!(governor.tick(&seen).settings.speed, 1.0);
//! // 3 K a second: in 5 s it would be above the ceiling.
//! seen.at = Duration::from_secs(4);
//! seen.temperature_celsius = Some(72.0);
//! let tick = governor.tick(&seen);
//! assert!(tick.settings.speed < 1.0);
//! assert_eq!(tick.events[0].rung, "speed");
//! ```
//!
//! What is unknown moves nothing, and is told in [`Tick::unknown`].

mod dwell;
mod heat;
mod ladder;
mod observation;
mod settings;
mod strained;

use crate::{Limit, Metric};
pub use ladder::{LADDER, Purpose, Resource, Rung};
pub use observation::Observation;
pub use settings::{Admission, KvStep, LEAST_SPEED, Settings};

use heat::Heat;
use ladder::{HOLD, PACE, QUEUE, REFUSE, RUNGS, SPEED, Steps, before_speed, path, steps};
use serde::Serialize;
use std::time::Duration;
use strained::Strained;

/// Shortest time that a refusal names.
const LEAST_RETRY: Duration = Duration::from_secs(1);
/// What a refusal names where too many questions wait.
const RETRY_OF_QUEUE: Duration = Duration::from_secs(30);

/// What is to be kept. A resource without a bound is not watched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// What the observed temperature must not pass.
    pub ceiling_celsius: Option<f64>,
    /// Memory that should stay available: below it things are given up, at a quarter of it questions are turned away. It has
    /// to be above what the system ends programs at.
    pub watermark_bytes: Option<u64>,
    /// The battery mode begins below this charge; at a quarter of it questions are turned away.
    pub battery_percent: Option<f64>,
    /// Slowest speed at which decoding still waits for memory, where somebody knows it: what is above only heats, so that
    /// decoding keeps to it as soon as anything is slowed at all.
    pub decode_speed: Option<f64>,
    /// Questions that may wait.
    pub most_waiting: usize,
    /// What it is used for.
    pub purpose: Purpose,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            ceiling_celsius: None,
            watermark_bytes: None,
            battery_percent: None,
            decode_speed: None,
            most_waiting: 8,
            purpose: Purpose::default(),
        }
    }
}

impl Bounds {
    /// With the ceiling of a plan's limits, if one is among them. The others bound what is planned, not what is observed.
    #[must_use]
    pub fn with(mut self, limits: &[Limit]) -> Self {
        let ceiling = limits.iter().find(|limit| limit.metric == Metric::Temperature);
        self.ceiling_celsius = ceiling.map(|limit| limit.value).or(self.ceiling_celsius);
        self
    }
}

/// What a tick decides.
#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    /// Until the next one.
    pub settings: Settings,
    /// Rungs that moved.
    pub events: Vec<Event>,
    /// Resources with a bound of which nothing is known now: their rungs stay.
    pub unknown: Vec<Resource>,
}

/// A rung that moved.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// When, as the observations count.
    pub at: Duration,
    /// Which, by its id.
    pub rung: &'static str,
    /// Steps down it before.
    pub from: usize,
    /// And after.
    pub to: usize,
    /// What asked for it.
    pub resource: Resource,
    /// The reading that decided.
    pub why: String,
}

/// How often a rung moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Moves {
    /// Steps down it now.
    pub step: usize,
    /// Moves down, of one or more steps.
    pub down: u64,
    /// Moves up.
    pub up: u64,
    /// Moves in the other direction than the move before.
    pub reversals: u64,
    last_down: Option<bool>,
}

/// The state machine.
#[derive(Clone, Debug)]
pub struct Governor {
    bounds: Bounds,
    at: Duration,
    paths: [Vec<usize>; 3],
    heat: Heat,
    memory: Strained,
    battery: Strained,
    moves: [Moves; RUNGS],
    /// Who moved each rung down last.
    holders: [usize; RUNGS],
    unknown_ticks: u64,
}

impl Governor {
    /// At the top of the ladder. Bounds that are no numbers are none.
    pub fn new(mut bounds: Bounds) -> Self {
        bounds.ceiling_celsius = bounds.ceiling_celsius.filter(|celsius| celsius.is_finite());
        bounds.watermark_bytes = bounds.watermark_bytes.filter(|bytes| *bytes > 0);
        bounds.battery_percent = bounds.battery_percent.filter(|percent| *percent > 0.0);
        bounds.decode_speed = bounds.decode_speed.filter(|speed| (LEAST_SPEED..=1.0).contains(speed));
        Governor {
            bounds,
            at: Duration::ZERO,
            paths: Resource::ALL.map(|resource| path(resource, bounds.purpose)),
            heat: Heat::new(),
            memory: Strained::new(),
            battery: Strained::new(),
            moves: [Moves::default(); RUNGS],
            holders: [0; RUNGS],
            unknown_ticks: 0,
        }
    }

    /// Looks at an observation and decides.
    pub fn tick(&mut self, seen: &Observation) -> Tick {
        let seen = seen.believed();
        self.at = self.at.max(seen.at);
        let unknown = self.look(&seen);
        self.unknown_ticks += u64::from(!unknown.is_empty());
        let asked = self.asked();
        let mut events = vec![];
        for rung in 0..RUNGS {
            let moves = &mut self.moves[rung];
            // Where resources ask for the same, the first one is named.
            let most = (0..3).rev().max_by_key(|resource| asked[*resource][rung]).unwrap_or(0);
            let to = asked[most][rung];
            if to == moves.step {
                continue;
            }
            let down = to > moves.step;
            // Up goes what its holder gives back.
            let holder = if down { most } else { self.holders[rung] };
            let (resource, from) = (Resource::ALL[holder], moves.step);
            *if down { &mut moves.down } else { &mut moves.up } += 1;
            moves.reversals += u64::from(moves.last_down.is_some_and(|last| last != down));
            (moves.last_down, moves.step) = (Some(down), to);
            self.holders[rung] = most;
            events.push(Event {
                at: self.at,
                rung: LADDER[rung].id,
                from,
                to,
                resource,
                why: self.why(resource),
            });
        }
        Tick { settings: self.settings(&asked, seen.queue), events, unknown }
    }

    /// Of each rung of [`LADDER`], by its id.
    pub fn metrics(&self) -> impl Iterator<Item = (&'static str, Moves)> {
        LADDER.iter().zip(self.moves).map(|(rung, moves)| (rung.id, moves))
    }

    /// Ticks at which a watched resource was unknown.
    pub fn unknown_ticks(&self) -> u64 {
        self.unknown_ticks
    }

    /// How far down the heat's own ladder it is, 0 to 1: for plots.
    pub fn heat_depth(&self) -> f64 {
        if self.heat.hold { 1.0 } else { self.heat.level as f64 / self.paths[0].len().max(1) as f64 }
    }

    fn look(&mut self, seen: &Observation) -> Vec<Resource> {
        let at = self.at;
        let mut unknown = vec![];
        if let Some(ceiling) = self.bounds.ceiling_celsius {
            match (seen.temperature_celsius, seen.cap_fraction) {
                (Some(now), _) => {
                    let paces = |step| {
                        let pace = pace(step);
                        seen.tokens_per_second.zip(pace).is_none_or(|(speed, pace)| pace < speed)
                    };
                    self.heat.tick(at, now, ceiling, &self.paths[0], &paces);
                }
                (None, Some(cap)) => {
                    unknown.push(Resource::Heat);
                    let level = match level_of_speed(cap) {
                        0 => 0,
                        steps => steps + before_speed(&self.paths[0]),
                    };
                    self.heat.tick_by_cap(at, cap, level);
                }
                (None, None) => {
                    unknown.push(Resource::Heat);
                    self.heat.unknown();
                    self.heat.dwell.may_climb(at, false);
                }
            }
        }
        if let Some(watermark) = self.bounds.watermark_bytes {
            let (bytes, pressure) = (seen.memory_available_bytes, seen.memory_pressure);
            if bytes.is_none() && pressure.is_none() {
                unknown.push(Resource::Memory);
                self.memory.unknown();
            } else {
                self.memory.memory(at, bytes, pressure, watermark, self.paths[1].len());
            }
        }
        if let Some(mode) = self.bounds.battery_percent {
            match seen.battery_percent {
                // Whether it charges being unknown, it does not.
                Some(percent) => {
                    let charging = seen.charging == Some(true);
                    self.battery.battery(at, percent, charging, mode, self.paths[2].len());
                }
                None => {
                    unknown.push(Resource::Battery);
                    self.battery.unknown();
                }
            }
        }
        unknown
    }

    fn why(&self, resource: Resource) -> String {
        match resource {
            Resource::Heat => self.heat.why(),
            Resource::Memory => self.memory.why.clone(),
            Resource::Battery => self.battery.why.clone(),
        }
    }

    /// Steps of each rung that each resource asks for.
    fn asked(&self) -> [Steps; 3] {
        let levels = [self.heat.level, self.memory.level, self.battery.level];
        let mut asked = [0, 1, 2].map(|resource| steps(&self.paths[resource], levels[resource]));
        asked[0][HOLD] = usize::from(self.heat.hold);
        asked
    }

    fn settings(&self, asked: &[Steps; 3], queue: usize) -> Settings {
        let mut settings = Settings::FULL;
        for (rung, moves) in LADDER.iter().zip(self.moves).filter(|(_, moves)| moves.step > 0) {
            (rung.set)(&mut settings, moves.step);
        }
        if let Some(enough) = self.bounds.decode_speed.filter(|_| self.moves[SPEED].step > 0) {
            settings.decode_speed = settings.speed.min(enough);
        }
        let dwells = [&self.heat.dwell, &self.memory.dwell, &self.battery.dwell];
        let refusing = (0..3).filter(|resource| asked[*resource][REFUSE] > 0);
        let wait = refusing.map(|resource| dwells[resource].left(self.at)).max();
        let full = (queue >= self.bounds.most_waiting).then_some(RETRY_OF_QUEUE);
        settings.admission = match wait.or(full) {
            Some(wait) => Admission::Refuse { retry_after: wait.max(LEAST_RETRY) },
            None if self.moves[QUEUE].step > 0 || settings.hold => Admission::Queue,
            None => Admission::Accept,
        };
        settings
    }
}

/// Tokens a second of a step of pacing.
fn pace(step: usize) -> Option<f64> {
    let mut settings = Settings::FULL;
    (LADDER[PACE].set)(&mut settings, step.max(1));
    settings.pace
}

/// Steps of speed that are no faster than that part of the top frequency, or the slowest.
fn level_of_speed(part: f64) -> usize {
    let speed = &LADDER[SPEED];
    let most = speed.reach.first().map_or(0, |(_, steps)| *steps);
    let slow_enough = |steps: &usize| {
        let mut settings = Settings::FULL;
        (speed.set)(&mut settings, *steps);
        settings.speed <= part + 1e-9
    };
    (0..=most).find(slow_enough).unwrap_or(most)
}
