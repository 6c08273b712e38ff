//! Questions back to back for half an hour: a governor beside a device that runs until it throttles.
//!
//! Physics is that of [`crate::simulate`], in steps of [`TICK_SECONDS`]; strategies see the die's temperature once a second, as
//! programs do. A speed between two steps of a unit is both of them in turn, faster than a die notices.

use crate::{
    Bounds, Device, DeviceError, Engine, Event, Governor, Observation, Settings, Setup, Step, TICK_SECONDS,
    Temperatures, Workload,
    device::Thermal,
    govern::Admission,
    simulate::{Taken, parts},
    thermal::allowed,
};
use std::time::Duration;

/// Ticks of physics between two looks of a strategy: a second.
const LOOK: u64 = 10;
/// Points of a trace are so many ticks apart.
const TRACE: u64 = 20;
/// The thermostat stops so far below the ceiling, and goes on so far below it, kelvin.
const THERMOSTAT: (f64, f64) = (2.0, 10.0);
/// Times of decoding that count as the same.
const HARDLY_LONGER: f64 = 1.02;
/// Window in which reversals are counted.
const MINUTE: Duration = Duration::from_secs(60);

/// What the device itself does about heat, whoever runs on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Firmware {
    /// Nothing until the device's ceiling; there it falls to the lowest step until it is so many kelvin cooler.
    Cliff {
        /// Kelvin.
        release: f64,
    },
    /// The profile's curve.
    Curve,
}

/// Who decides how fast to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Nobody: full speed until the firmware acts.
    Race,
    /// Full speed or none, by two temperatures.
    Thermostat,
    /// The governor.
    Governor,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Strategy; 3] = [Strategy::Race, Strategy::Thermostat, Strategy::Governor];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Strategy::Race => "race to throttle",
            Strategy::Thermostat => "on/off thermostat",
            Strategy::Governor => "governor",
        }
    }
}

/// How a speed below the top is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actuator {
    /// Lower frequency: power falls faster than speed.
    Frequency,
    /// Fewer threads or pauses: power falls as speed does.
    Threads,
}

/// A device, what it runs, and the air around it.
#[derive(Clone, Debug)]
pub struct Trial<'a> {
    /// On which device.
    pub device: &'a Device,
    /// By which engine.
    pub engine: &'a Engine,
    /// One question of many.
    pub workload: &'a Workload,
    /// Of the device.
    pub firmware: Firmware,
    /// Air.
    pub ambient_celsius: f64,
    /// What the governor keeps; a breach is of its ceiling, or of the device's where it has none.
    pub bounds: Bounds,
    /// How the governor's speed is made.
    pub actuator: Actuator,
    /// Sensors are wrong by up to so much either way, kelvin.
    pub noise: f64,
    /// How long.
    pub time: Duration,
}

/// A moment of a trial.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Since the beginning.
    pub at: Duration,
    /// Of the die, the highest since the point before.
    pub celsius: f64,
    /// Mean part of the full speed since the point before: of work done, not of frequency.
    pub speed: f64,
    /// How far down the heat's ladder, 0 to 1; of other strategies 1 while they are held back.
    pub depth: f64,
}

/// What a strategy made of it.
#[derive(Clone, Debug, PartialEq)]
pub struct TrialRun {
    /// Which.
    pub strategy: Strategy,
    /// Answers, parts of the running one counted by the time that they take at full speed.
    pub answers: f64,
    /// Those of them that nothing but speed was taken from.
    pub whole: f64,
    /// Of the device.
    pub joules: f64,
    /// Highest temperature of the die.
    pub peak_celsius: f64,
    /// Above the ceiling.
    pub seconds_above: f64,
    /// In which the firmware allowed less than the top frequency.
    pub seconds_throttled: f64,
    /// Changes of direction of the rung that changed it most often, in all; of other strategies of their switch.
    pub reversals: usize,
    /// The most of them in a minute.
    pub reversals_a_minute: usize,
    /// Of the governor.
    pub events: Vec<Event>,
    /// For plots.
    pub trace: Vec<Point>,
}

impl<'a> Trial<'a> {
    /// Half an hour in the profile's own air, firmware of the cliff that releases 10 K below, the device's ceiling, exact
    /// sensors.
    pub fn new(device: &'a Device, engine: &'a Engine, workload: &'a Workload) -> Self {
        let ceiling_celsius = Some(device.thermal.ceiling_celsius.value);
        Trial {
            device,
            engine,
            workload,
            firmware: Firmware::Cliff { release: 10.0 },
            ambient_celsius: device.thermal.ambient_celsius.value,
            bounds: Bounds { ceiling_celsius, ..Bounds::default() },
            actuator: Actuator::Frequency,
            noise: 0.0,
            time: Duration::from_secs(1800),
        }
    }

    /// Slowest step of frequency at which decoding takes hardly longer than at the top, for [`Bounds::decode_speed`]: what a
    /// planner knows. Simulated memory is as fast at any frequency of the cores, which flatters it.
    ///
    /// # Errors
    /// As [`crate::simulate`].
    pub fn decode_speed(&self) -> Result<Option<f64>, DeviceError> {
        let work = Work::new(self)?;
        let decode = work.stages.iter().find(|stage| stage.step == Step::Decode);
        Ok(decode.and_then(|stage| {
            let enough = |(_, take): &&(f64, Taken)| take.seconds <= stage.full_seconds * HARDLY_LONGER;
            stage.takes.iter().find(enough).map(|(step, _)| *step)
        }))
    }

    /// Runs it.
    ///
    /// # Errors
    /// As [`crate::simulate`].
    pub fn run(&self, strategy: Strategy) -> Result<TrialRun, DeviceError> {
        let device = self.device;
        let mut thermal = device.thermal.clone();
        thermal.ambient_celsius = thermal.ambient_celsius.with(self.ambient_celsius);
        let idle =
            device.unit.iter().map(|unit| unit.idle_watts.value).sum::<f64>() + device.idle_watts.value;
        let top = thermal.ceiling_celsius.value;
        let ceiling = self.bounds.ceiling_celsius.unwrap_or(top);
        let mut heat = Temperatures::at_rest(&thermal, idle);
        let mut work = Work::new(self)?;
        let mut control = Control::new(strategy, self.bounds, ceiling);
        let mut tripped = false;
        let mut noise = self.noise_of_sensor();
        let mut run = TrialRun {
            strategy,
            answers: 0.0,
            whole: 0.0,
            joules: 0.0,
            peak_celsius: heat.die(),
            seconds_above: 0.0,
            seconds_throttled: 0.0,
            reversals: 0,
            reversals_a_minute: 0,
            events: vec![],
            trace: vec![],
        };
        let mut point = (f64::MIN, 0.0);
        for tick in 0..(self.time.as_secs_f64() / TICK_SECONDS) as u64 {
            let at = Duration::from_secs_f64(tick as f64 * TICK_SECONDS);
            let limit = self.limit(&thermal, heat.die(), &mut tripped);
            if strategy == Strategy::Race && matches!(self.firmware, Firmware::Cliff { .. }) {
                control.switch(at, tripped);
            }
            if tick % LOOK == 0 {
                control.look(at, heat.die() + noise(), work.tokens_per_second());
            }
            let did = work.go(TICK_SECONDS, limit, &control.settings);
            heat = heat.after(&thermal, TICK_SECONDS, did.joules / TICK_SECONDS, idle);
            run.answers += did.answers;
            run.whole += did.whole;
            run.joules += did.joules + idle * TICK_SECONDS;
            run.peak_celsius = run.peak_celsius.max(heat.die());
            run.seconds_throttled += if limit < 1.0 { TICK_SECONDS } else { 0.0 };
            run.seconds_above += if heat.die() > ceiling { TICK_SECONDS } else { 0.0 };
            point = (point.0.max(heat.die()), point.1 + did.answers * work.full_seconds / TICK_SECONDS);
            if (tick + 1) % TRACE == 0 {
                let (celsius, speed) = (point.0, point.1 / TRACE as f64);
                run.trace.push(Point { at, celsius, speed, depth: control.depth() });
                point = (f64::MIN, 0.0);
            }
        }
        (run.reversals, run.reversals_a_minute) = control.reversals();
        run.events = control.events;
        Ok(run)
    }

    /// Part of the top frequency that the firmware allows.
    fn limit(&self, thermal: &Thermal, die: f64, tripped: &mut bool) -> f64 {
        let top = thermal.ceiling_celsius.value;
        match self.firmware {
            Firmware::Curve => allowed(thermal, die),
            Firmware::Cliff { release } => {
                *tripped = if *tripped { die > top - release } else { die >= top };
                if *tripped { 0.0 } else { 1.0 }
            }
        }
    }

    /// The same for every strategy.
    fn noise_of_sensor(&self) -> impl FnMut() -> f64 + use<> {
        let (most, mut random) = (self.noise, crate::Random::new(1));
        move || most * (2.0 * random.part() - 1.0)
    }
}

/// A strategy at work.
struct Control {
    strategy: Strategy,
    governor: Governor,
    settings: Settings,
    ceiling: f64,
    off: bool,
    events: Vec<Event>,
    /// Moves: what moved, when, and whether down.
    moves: Vec<(&'static str, Duration, bool)>,
}

impl Control {
    fn new(strategy: Strategy, bounds: Bounds, ceiling: f64) -> Self {
        let governor = Governor::new(bounds);
        Control {
            strategy,
            governor,
            settings: Settings::FULL,
            ceiling,
            off: false,
            events: vec![],
            moves: vec![],
        }
    }

    fn switch(&mut self, at: Duration, off: bool) {
        if off != self.off {
            self.off = off;
            self.moves.push(("switch", at, off));
        }
    }

    fn look(&mut self, at: Duration, celsius: f64, tokens_per_second: Option<f64>) {
        match self.strategy {
            Strategy::Race => {}
            Strategy::Thermostat => {
                let (stop, start) = (self.ceiling - THERMOSTAT.0, self.ceiling - THERMOSTAT.1);
                let off = if self.off { celsius > start } else { celsius >= stop };
                self.switch(at, off);
                self.settings.hold = off;
            }
            Strategy::Governor => {
                let temperature_celsius = Some(celsius);
                let seen =
                    Observation { at, temperature_celsius, tokens_per_second, ..Observation::default() };
                let tick = self.governor.tick(&seen);
                self.settings = tick.settings;
                self.moves.extend(tick.events.iter().map(|event| (event.rung, at, event.to > event.from)));
                self.events.extend(tick.events);
            }
        }
    }

    fn depth(&self) -> f64 {
        if self.strategy == Strategy::Governor {
            self.governor.heat_depth()
        } else {
            f64::from(u8::from(self.off))
        }
    }

    /// In all and in a minute, of the rung with the most.
    fn reversals(&self) -> (usize, usize) {
        let mut most = (0, 0);
        let mut rungs: Vec<&str> = self.moves.iter().map(|(rung, ..)| *rung).collect();
        rungs.sort_unstable();
        rungs.dedup();
        for rung in rungs {
            let moves: Vec<_> = self.moves.iter().filter(|(of, ..)| *of == rung).collect();
            let turns: Vec<Duration> =
                moves.windows(2).filter(|pair| pair[0].2 != pair[1].2).map(|pair| pair[1].1).collect();
            let within =
                |from: &Duration| turns.iter().filter(|at| *at >= from && **at - *from < MINUTE).count();
            most = (most.0.max(turns.len()), most.1.max(turns.iter().map(within).max().unwrap_or(0)));
        }
        most
    }
}

/// What was done in a tick.
#[derive(Default)]
struct Did {
    answers: f64,
    whole: f64,
    /// Above idle.
    joules: f64,
}

/// A stage at each step of frequency, ascending.
struct Stage {
    step: Step,
    takes: Vec<(f64, Taken)>,
    full_seconds: f64,
}

/// Questions back to back.
struct Work {
    stages: Vec<Stage>,
    /// Of one answer at full speed.
    full_seconds: f64,
    later_tokens: f64,
    actuator: Actuator,
    /// The running answer: its stage, what is left of that stage, and what it began with.
    running: Option<(usize, f64, Settings)>,
    /// Seconds of the stage at the speed of the tick before.
    stage_seconds: f64,
}

impl Work {
    fn new(trial: &Trial<'_>) -> Result<Self, DeviceError> {
        let setup = Setup::new(trial.device, trial.engine);
        let units = trial.device.unit.iter();
        let mut steps: Vec<f64> = units.flat_map(|unit| &unit.steps).map(|step| step.value).collect();
        steps.sort_by(f64::total_cmp);
        steps.dedup();
        let mut stages = vec![];
        for step in Step::ALL.into_iter().filter(|step| *step != Step::Load) {
            let parts = parts(&setup, trial.workload, step)?;
            let take = |at: f64| Taken::sum(parts.iter().map(|part| part.take(trial.device, at)));
            let full_seconds = take(1.0).seconds;
            if full_seconds > 0.0 {
                let takes = steps.iter().map(|at| (*at, take(*at))).collect();
                stages.push(Stage { step, takes, full_seconds });
            }
        }
        Ok(Work {
            full_seconds: stages.iter().map(|stage| stage.full_seconds).sum(),
            stages,
            later_tokens: trial.workload.query.answer_tokens.saturating_sub(1) as f64,
            actuator: trial.actuator,
            running: None,
            stage_seconds: 0.0,
        })
    }

    fn tokens_per_second(&self) -> Option<f64> {
        let (stage, ..) = self.running?;
        let decodes = self.stages[stage].step == Step::Decode && self.stage_seconds > 0.0;
        decodes.then(|| self.later_tokens / self.stage_seconds)
    }

    fn go(&mut self, seconds: f64, limit: f64, settings: &Settings) -> Did {
        let mut did = Did::default();
        let mut left = seconds;
        while left > 1e-9 && !settings.hold && !self.stages.is_empty() {
            let admitted = settings.admission == Admission::Accept;
            let Some((at, part, began)) = self.running.or(admitted.then_some((0, 1.0, *settings))) else {
                break;
            };
            let stage = &self.stages[at];
            let size = size(stage.step, &began);
            let decodes = stage.step == Step::Decode;
            let speed = if decodes { settings.decode_speed } else { settings.speed };
            let (mut time, joules) = stage.at(limit, speed, self.actuator);
            if let (Step::Decode, Some(pace)) = (stage.step, settings.pace) {
                time = time.max(self.later_tokens / pace);
            }
            let (time, joules) = (time * size, joules * size);
            let share = part.min(left / time);
            left -= share * time;
            let answers = share * stage.full_seconds / self.full_seconds;
            did.answers += answers;
            did.whole += if began.whole() { answers } else { 0.0 };
            did.joules += share * joules;
            self.stage_seconds = time;
            let goes_on = part - share > 1e-9;
            let next = if goes_on { at } else { at + 1 };
            let left_of_next = if goes_on { part - share } else { 1.0 };
            self.running = (next < self.stages.len()).then_some((next, left_of_next, began));
        }
        did
    }
}

/// Which part of a stage smaller pictures and fewer visual tokens leave: a tower's work goes by its pixels, a prompt's by its
/// tokens; what attention and the cache save beyond is left out.
fn size(step: Step, began: &Settings) -> f64 {
    let pixels = began.resolution * began.resolution;
    match step {
        Step::Encode | Step::Project => pixels,
        Step::PrefillImage => pixels * began.visual_tokens,
        Step::Load | Step::PrefillText | Step::Decode => 1.0,
    }
}

impl Stage {
    /// Seconds and joules of all of it, no faster than `limit` rounded down to a step, at a speed.
    fn at(&self, limit: f64, speed: f64, actuator: Actuator) -> (f64, f64) {
        let top = self.takes.iter().rposition(|(step, _)| *step <= limit + 1e-9).unwrap_or(0);
        let (highest, full) = self.takes[top];
        if speed >= highest {
            return (full.seconds, full.joules);
        }
        if actuator == Actuator::Threads {
            let part = (speed / highest).min(1.0);
            return (full.seconds / part, full.joules);
        }
        let above = self.takes.iter().position(|(step, _)| *step >= speed - 1e-9).unwrap_or(top);
        let ((high, fast), below) = (self.takes[above], above.checked_sub(1).map(|i| self.takes[i]));
        let Some((low, slow)) = below else {
            // Slower than the lowest step: it waits in between.
            return (fast.seconds * high / speed, fast.joules);
        };
        // In turns: part of the time at each step.
        let part = ((speed - low) / (high - low)).clamp(0.0, 1.0);
        let rate = part / fast.seconds + (1.0 - part) / slow.seconds;
        let watts = part * fast.joules / fast.seconds + (1.0 - part) * slow.joules / slow.seconds;
        (1.0 / rate, watts / rate)
    }
}
