//! An answer on virtual time: no clock is read, and the same input gives the same numbers.
//!
//! A part of a stage (linear layers, attention, the head) takes `max(operations / (rate x efficiency x f), bytes /
//! (bandwidth x efficiency)) + launches`, where `f` is the part of the top frequency that the throttling curve allows at the
//! die's present temperature, rounded down to a step of the unit. While it runs, the unit draws
//! `idle + (active - idle) x f^2.5 x (0.6 + 0.4 x share of time that computes)`, and memory its energy a byte. Heat goes
//! through the network of [`crate::Temperatures`] every [`TICK_SECONDS`].

use crate::{
    Device, DeviceError, Engine, Kind, Part, Piece, Placement, Precision, Step, Temperatures, Workload,
    device::Unit, thermal::allowed,
};
use serde::Serialize;

/// Steps of virtual time at most.
pub const TICK_SECONDS: f64 = 0.1;
/// Steps of a stage at most: those of very slow devices are longer.
const MOST_TICKS: f64 = 1e5;
/// Power falls with frequency and the square of the voltage, which falls more slowly: between 2 and 3. Assumed.
const FREQUENCY_EXPONENT: f64 = 2.5;
/// What a unit that waits for memory draws of what it draws computing. Assumed.
const STALL: f64 = 0.6;

/// What runs where.
#[derive(Clone, Debug)]
pub struct Setup<'a> {
    /// On which device.
    pub device: &'a Device,
    /// By which engine.
    pub engine: &'a Engine,
    /// Cores of each cluster of the device, in its order; `None` is all.
    pub cores: Option<&'a [usize]>,
    /// Where the head runs while decoding, if not where the rest does.
    pub head: Option<&'a Placement>,
    /// Text before the picture is computed while the picture is encoded, where that is another unit.
    pub overlap: bool,
    /// At the beginning; `None` is the idle device at rest.
    pub start: Option<&'a Temperatures>,
}

impl<'a> Setup<'a> {
    /// All cores, nothing special, at rest.
    pub fn new(device: &'a Device, engine: &'a Engine) -> Self {
        Setup { device, engine, cores: None, head: None, overlap: false, start: None }
    }
}

/// What a stage took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StageRun {
    /// Which.
    pub step: Step,
    /// Virtual time.
    pub seconds: f64,
    /// Of the whole device.
    pub joules: f64,
    /// Highest temperature of the die.
    pub peak_celsius: f64,
    /// What it waited for.
    pub bound: Bound,
}

/// What a stage waits for most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the field's own words")]
pub enum Bound {
    Compute,
    Memory,
    Launch,
    Storage,
}

impl Bound {
    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Bound::Compute => "compute",
            Bound::Memory => "memory",
            Bound::Launch => "launches",
            Bound::Storage => "storage",
        }
    }
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Stages that had work.
    pub stages: Vec<StageRun>,
    /// Seconds that overlapping stages hid.
    pub hidden_seconds: f64,
    /// Of the device, from the end of loading to the end of the answer.
    pub joules: f64,
    /// Highest temperature of the die after loading.
    pub peak_celsius: f64,
    /// Lowest part of the top frequency that heat left.
    pub slowest: f64,
    /// At the end.
    pub end: Temperatures,
    answer_tokens: usize,
}

impl Run {
    /// That stage; 0 where it has no work.
    pub fn stage_seconds(&self, step: Step) -> f64 {
        self.stages.iter().filter(|s| s.step == step).map(|s| s.seconds).sum()
    }

    /// Without loading.
    pub fn seconds(&self) -> f64 {
        let all: f64 = self.stages.iter().filter(|s| s.step != Step::Load).map(|s| s.seconds).sum();
        all - self.hidden_seconds
    }

    /// To the first token, without loading.
    pub fn ttft_seconds(&self) -> f64 {
        self.seconds() - self.stage_seconds(Step::Decode)
    }

    /// Of the whole device, without loading.
    pub fn mean_watts(&self) -> f64 {
        if self.seconds() > 0.0 { self.joules / self.seconds() } else { 0.0 }
    }

    /// Decoded after the first; `None` for answers of one token.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let (later, seconds) = (self.answer_tokens.saturating_sub(1), self.stage_seconds(Step::Decode));
        (later > 0 && seconds > 0.0).then(|| later as f64 / seconds)
    }
}

/// Simulates one answer.
///
/// # Errors
/// [`DeviceError::Placement`] where the device lacks a unit, or a unit a precision.
pub fn simulate(setup: &Setup<'_>, workload: &Workload) -> Result<Run, DeviceError> {
    let device = setup.device;
    let idle: f64 = device.unit.iter().map(|unit| unit.idle_watts.value).sum();
    let idle = idle + device.idle_watts.value;
    let mut heat = setup.start.cloned().unwrap_or_else(|| Temperatures::at_rest(&device.thermal, idle));
    let mut stages = vec![];
    let mut slowest = 1.0f64;
    let load = workload.weight_bytes
        / (device.memory.storage_bytes_per_second.value * setup.engine.load.value).max(1.0);
    heat = heat.after(&device.thermal, load.max(1e-9), 0.0, idle);
    stages.push(StageRun {
        step: Step::Load,
        seconds: load,
        joules: load * idle,
        peak_celsius: heat.die(),
        bound: Bound::Storage,
    });
    for step in Step::ALL.into_iter().filter(|step| *step != Step::Load) {
        let parts = parts(setup, workload, step)?;
        if parts.is_empty() {
            continue;
        }
        let mut stage =
            StageRun { step, seconds: 0.0, joules: 0.0, peak_celsius: heat.die(), bound: Bound::Compute };
        let mut waits = [0.0; 3];
        let mut left = 1.0;
        while left > 0.0 {
            let limit = allowed(&device.thermal, heat.die());
            let taken = Taken::sum(parts.iter().map(|part| part.take(device, limit)));
            let tick = TICK_SECONDS.max(taken.seconds / MOST_TICKS);
            let seconds = (taken.seconds * left).min(tick);
            let share = if taken.seconds > 0.0 { seconds / taken.seconds } else { left };
            left = if share >= left { 0.0 } else { left - share };
            let watts = if taken.seconds > 0.0 { taken.joules / taken.seconds } else { 0.0 };
            heat = heat.after(&device.thermal, seconds.max(1e-9), watts, idle);
            stage.seconds += seconds;
            stage.joules += seconds * (watts + idle);
            stage.peak_celsius = stage.peak_celsius.max(heat.die());
            slowest = slowest.min(taken.fraction);
            waits.iter_mut().zip(taken.waits).for_each(|(sum, wait)| *sum += wait * share);
        }
        let most = (0..3).max_by(|a, b| waits[*a].total_cmp(&waits[*b])).unwrap_or(0);
        stage.bound = [Bound::Compute, Bound::Memory, Bound::Launch][most];
        stages.push(stage);
    }
    let seconds = |step| stages.iter().filter(|s| s.step == step).map(|s| s.seconds).sum::<f64>();
    let apart = setup.engine.encode.unit != setup.engine.prefill.unit;
    let hidden_seconds = if setup.overlap && apart {
        let prefix = seconds(Step::PrefillText) * workload.prefix;
        prefix.min(seconds(Step::Encode) + seconds(Step::Project))
    } else {
        0.0
    };
    let after_load = || stages.iter().filter(|s| s.step != Step::Load);
    let joules = after_load().map(|s| s.joules).sum::<f64>() - hidden_seconds * idle;
    let peak_celsius = after_load().map(|s| s.peak_celsius).fold(f64::MIN, f64::max);
    let answer_tokens = workload.query.answer_tokens;
    Ok(Run { stages, hidden_seconds, joules, peak_celsius, slowest, end: heat, answer_tokens })
}

/// Seconds of all stages after loading at the top frequency: no run is faster. First those to the first token, then those
/// of decoding.
///
/// # Errors
/// As [`simulate`].
pub fn fastest(setup: &Setup<'_>, workload: &Workload) -> Result<[f64; 2], DeviceError> {
    let mut seconds = [0.0; 2];
    for step in Step::ALL.into_iter().filter(|step| *step != Step::Load) {
        let parts = parts(setup, workload, step)?;
        let taken = Taken::sum(parts.iter().map(|part| part.take(setup.device, 1.0)));
        seconds[usize::from(step == Step::Decode)] += taken.seconds;
    }
    Ok(seconds)
}

/// A piece of work where it runs.
pub(crate) struct Placed<'a> {
    units: Vec<(&'a Unit, f64)>,
    rates: Vec<f64>,
    placement: &'a Placement,
    piece: Piece,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    pub(crate) seconds: f64,
    /// Above idle.
    pub(crate) joules: f64,
    waits: [f64; 3],
    fraction: f64,
}

impl Taken {
    pub(crate) fn sum(parts: impl Iterator<Item = Taken>) -> Taken {
        let none = Taken { seconds: 0.0, joules: 0.0, waits: [0.0; 3], fraction: 1.0 };
        parts.fold(none, |sum, part| Taken {
            seconds: sum.seconds + part.seconds,
            joules: sum.joules + part.joules,
            waits: std::array::from_fn(|i| sum.waits[i] + part.waits[i]),
            fraction: sum.fraction.min(part.fraction),
        })
    }
}

impl Placed<'_> {
    pub(crate) fn take(&self, device: &Device, limit: f64) -> Taken {
        let piece = &self.piece;
        let steps: Vec<f64> = self.units.iter().map(|(unit, _)| unit.step(limit)).collect();
        let rate: f64 = self.rates.iter().zip(&steps).map(|(rate, step)| rate * step).sum();
        let compute = piece.operations / (rate * self.placement.compute.value);
        let drawn: f64 = self.units.iter().map(|(unit, share)| unit.bytes_per_second.value * share).sum();
        let bandwidth = drawn.min(device.memory.bytes_per_second.value) * self.placement.bandwidth.value;
        let bytes = piece.weight_bytes + piece.cache_bytes;
        let memory = bytes / bandwidth;
        let launch = self.units.iter().map(|(unit, _)| unit.launch_seconds.value).fold(0.0, f64::max);
        let launch = launch * piece.launches;
        let seconds = compute.max(memory) + launch;
        let busy = if seconds > 0.0 { compute / seconds } else { 0.0 };
        let watts: f64 = self
            .units
            .iter()
            .zip(&steps)
            .map(|((unit, share), step)| {
                let above = (unit.active_watts.value - unit.idle_watts.value).max(0.0);
                above * share * step.powf(FREQUENCY_EXPONENT) * (STALL + (1.0 - STALL) * busy)
            })
            .sum();
        let joules = seconds * watts + bytes * device.memory.joules_per_byte.value;
        let waits = if compute >= memory { [compute, 0.0, launch] } else { [0.0, memory, launch] };
        let fraction = steps.iter().copied().fold(1.0, f64::min);
        Taken { seconds, joules, waits, fraction }
    }
}

pub(crate) fn parts<'a>(
    setup: &Setup<'a>,
    workload: &Workload,
    step: Step,
) -> Result<Vec<Placed<'a>>, DeviceError> {
    let mut placed = vec![];
    for part in [Part::Body, Part::Attention, Part::Head] {
        let piece = *workload.work(step).piece(part);
        if piece == Piece::default() {
            continue;
        }
        let own = setup.head.filter(|_| part == Part::Head && step == Step::Decode);
        let placement = own.unwrap_or_else(|| setup.engine.placement(step));
        placed.push(place(setup, placement, part, piece, step)?);
    }
    Ok(placed)
}

fn place<'a>(
    setup: &Setup<'a>,
    placement: &'a Placement,
    part: Part,
    piece: Piece,
    step: Step,
) -> Result<Placed<'a>, DeviceError> {
    let device = setup.device;
    let fail =
        |what: String| DeviceError::Placement { device: device.name.clone(), stage: step.name(), what };
    let mut units: Vec<(&Unit, f64)> = device.units(placement.unit).map(|unit| (unit, 1.0)).collect();
    if let (Kind::Cpu, Some(cores)) = (placement.unit, setup.cores) {
        for ((unit, share), cores) in units.iter_mut().zip(cores.iter().chain(std::iter::repeat(&0))) {
            *share = (*cores).min(unit.cores) as f64 / unit.cores as f64;
        }
        units.retain(|(_, share)| *share > 0.0);
    }
    if units.is_empty() {
        return Err(fail(format!("it has no {}", placement.unit.name())));
    }
    // Scores are not worth integers; where a unit has no halves, its own precision.
    let wanted: &[Precision] = match part {
        Part::Attention => &[Precision::F16, Precision::F32, placement.precision],
        Part::Body | Part::Head => &[placement.precision],
    };
    let rates: Option<Vec<f64>> = units
        .iter()
        .map(|(unit, share)| Some(wanted.iter().find_map(|precision| unit.rate(*precision))? * share))
        .collect();
    let rates = rates.ok_or_else(|| {
        let precision = format!("{:?}", placement.precision).to_lowercase();
        fail(format!("nobody says how fast its {} multiplies {precision}", placement.unit.name()))
    })?;
    Ok(Placed { units, rates, placement, piece })
}
