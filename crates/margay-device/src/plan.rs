//! The planner: which variant of a model, on which cores and units, under limits.
//!
//! Candidates are variants x engines x sets of cores. Those that break a limit whatever happens (memory, quality, and times
//! at the top frequency) are dropped unsimulated; the others are simulated in the order of a lower bound of their score until
//! that bound is no better than the best that was found. The result is that of simulating all of them.

use crate::{
    Device, DeviceError, Engine, Kind, Limit, Metric, Run, Setup, Workload, simulate, simulate::fastest,
};
use std::cmp::Ordering;

/// A way to store and feed a model.
#[derive(Clone, Debug)]
pub struct Variant {
    /// Model.
    pub model: String,
    /// Formats of its weights.
    pub recipe: String,
    /// The formats by side and role, for people.
    pub formats: String,
    /// How keys and values are kept.
    pub kv: String,
    /// How pictures are taken.
    pub picture: String,
    /// What a question costs.
    pub workload: Workload,
    /// What Margay allocates, exactly; `None` where nobody knows.
    pub memory_bytes: Option<u64>,
    /// Percent of what the unquantized model gets right, where it was measured.
    pub quality: Option<f64>,
}

/// What is best among plans that keep all limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefer {
    /// Least energy of an answer.
    Energy,
    /// Least time of an answer.
    Speed,
    /// Highest quality, then least energy.
    Quality,
}

/// What can be chosen from.
#[derive(Clone, Copy, Debug)]
pub struct Space<'a> {
    /// The device.
    pub device: &'a Device,
    /// Where stages may run; all are tried.
    pub engines: &'a [Engine],
    /// How the model may be stored and fed.
    pub variants: &'a [Variant],
}

/// One way to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Index of the variant.
    pub variant: usize,
    /// Index of the engine.
    pub engine: usize,
    /// Cores of each cluster.
    pub cores: Vec<usize>,
}

/// A candidate with what it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// Which.
    pub candidate: Candidate,
    /// Its simulation.
    pub run: Run,
    memory_bytes: Option<u64>,
    quality: Option<f64>,
}

/// A decision.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Every limit is kept.
    Plan {
        /// The best.
        best: Box<Planned>,
        /// Candidates in all.
        candidates: usize,
        /// Those that were simulated.
        simulated: usize,
    },
    /// No candidate keeps every limit.
    Infeasible(Infeasible),
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Infeasible {
    /// The candidate whose worst breach is the least; `None` where nothing can run at all.
    pub nearest: Option<Box<Planned>>,
    /// Limits that it breaks, the worst first, with its value (`None` is unknown).
    pub broken: Vec<(Limit, Option<f64>)>,
    /// Each limit with the best value that any candidate reaches, if all others are forgotten.
    pub alone: Vec<(Limit, Option<f64>)>,
}

impl Planned {
    /// Its value of that metric; `None` where it is unknown.
    pub fn value(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Ttft => Some(self.run.ttft_seconds()),
            Metric::Time => Some(self.run.seconds()),
            Metric::Speed => self.run.tokens_per_second(),
            Metric::Power => Some(self.run.mean_watts()),
            Metric::Energy => Some(self.run.joules),
            Metric::Memory => self.memory_bytes.map(|bytes| bytes as f64),
            Metric::Temperature => Some(self.run.peak_celsius),
            Metric::Quality => self.quality,
        }
    }

    /// Whether it keeps all of them. What is unknown keeps none.
    pub fn keeps(&self, limits: &[Limit]) -> bool {
        limits.iter().all(|limit| self.value(limit.metric).is_some_and(|value| limit.holds(value)))
    }

    /// Whether it is no worse than `other` in time, energy, memory and quality, and better in one.
    fn dominates(&self, other: &Planned) -> bool {
        let mut better = false;
        for metric in [Metric::Time, Metric::Energy, Metric::Memory, Metric::Quality] {
            let (a, b) = (self.value(metric), other.value(metric));
            // Unknown is worst.
            let order = match (a, b) {
                (Some(a), Some(b)) if metric.at_most() => a.total_cmp(&b),
                (Some(a), Some(b)) => b.total_cmp(&a),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => Ordering::Equal,
            };
            match order {
                Ordering::Greater => return false,
                Ordering::Less => better = true,
                Ordering::Equal => {}
            }
        }
        better
    }
}

/// Decides.
///
/// # Errors
/// [`DeviceError`] where a size cannot be counted. Candidates that the device has no unit for are passed over.
pub fn plan(space: &Space<'_>, limits: &[Limit], prefer: Prefer) -> Result<Outcome, DeviceError> {
    let all = candidates(space);
    let mut open = vec![];
    for candidate in &all {
        let variant = &space.variants[candidate.variant];
        let Ok([first, later]) = fastest(&setup(space, candidate), &variant.workload) else { continue };
        if hopeless(variant, [first, later], limits) {
            continue;
        }
        open.push((bound(space, variant, first + later, prefer), candidate));
    }
    open.sort_by(|a, b| compare(a.0, b.0));
    let mut best: Option<([f64; 2], Planned)> = None;
    let mut simulated = 0;
    for (bound, candidate) in open {
        if best.as_ref().is_some_and(|(score, _)| compare(bound, *score) != Ordering::Less) {
            break;
        }
        let planned = run(space, candidate)?;
        simulated += 1;
        let score = score(&planned, prefer);
        if planned.keeps(limits)
            && best.as_ref().is_none_or(|(so_far, _)| compare(score, *so_far) == Ordering::Less)
        {
            best = Some((score, planned));
        }
    }
    match best {
        Some((_, best)) => Ok(Outcome::Plan { best: Box::new(best), candidates: all.len(), simulated }),
        None => Ok(Outcome::Infeasible(infeasible(space, &all, limits)?)),
    }
}

/// Every candidate that keeps the limits and that no other beats in time, energy, memory and quality together; by energy.
///
/// # Errors
/// As [`plan`].
pub fn front(space: &Space<'_>, limits: &[Limit]) -> Result<Vec<Planned>, DeviceError> {
    let mut kept: Vec<Planned> =
        every(space, &candidates(space)).into_iter().filter(|planned| planned.keeps(limits)).collect();
    kept.sort_by(|a, b| a.run.joules.total_cmp(&b.run.joules));
    let beaten: Vec<bool> = kept.iter().map(|one| kept.iter().any(|other| other.dominates(one))).collect();
    let mut front: Vec<Planned> =
        kept.into_iter().zip(beaten).filter(|(_, beaten)| !beaten).map(|(one, _)| one).collect();
    front.dedup_by(|a, b| {
        a.run.joules == b.run.joules && a.run.seconds() == b.run.seconds() && a.memory_bytes == b.memory_bytes
    });
    Ok(front)
}

/// All that there are, in a fixed order.
pub fn candidates(space: &Space<'_>) -> Vec<Candidate> {
    let clusters: Vec<usize> = space.device.units(Kind::Cpu).map(|unit| unit.cores).collect();
    let mut cores = vec![];
    for (at, most) in clusters.iter().enumerate() {
        for used in 1..=*most {
            // All cores of faster clusters come first.
            let set = clusters.iter().enumerate().map(|(i, all)| match i.cmp(&at) {
                Ordering::Less => *all,
                Ordering::Equal => used,
                Ordering::Greater => 0,
            });
            cores.push(set.collect::<Vec<_>>());
        }
    }
    let mut all = vec![];
    for variant in 0..space.variants.len() {
        for (engine, of) in space.engines.iter().enumerate() {
            let on_cpu = [&of.encode, &of.prefill, &of.decode].iter().any(|p| p.unit == Kind::Cpu);
            let sets = if on_cpu { &cores[..] } else { &cores[..1] };
            all.extend(sets.iter().map(|cores| Candidate { variant, engine, cores: cores.clone() }));
        }
    }
    all
}

/// One candidate simulated.
///
/// # Errors
/// As [`simulate`].
pub fn run(space: &Space<'_>, candidate: &Candidate) -> Result<Planned, DeviceError> {
    let variant = &space.variants[candidate.variant];
    let run = simulate(&setup(space, candidate), &variant.workload)?;
    let (memory_bytes, quality) = (variant.memory_bytes, variant.quality);
    Ok(Planned { candidate: candidate.clone(), run, memory_bytes, quality })
}

fn every(space: &Space<'_>, all: &[Candidate]) -> Vec<Planned> {
    // A device without a unit has no such candidate.
    all.iter().filter_map(|candidate| run(space, candidate).ok()).collect()
}

fn setup<'a>(space: &'a Space<'_>, candidate: &'a Candidate) -> Setup<'a> {
    Setup { cores: Some(&candidate.cores), ..Setup::new(space.device, &space.engines[candidate.engine]) }
}

/// Whether a limit is broken however cool the device stays.
fn hopeless(variant: &Variant, [first, later]: [f64; 2], limits: &[Limit]) -> bool {
    limits.iter().any(|limit| {
        let best = match limit.metric {
            Metric::Memory => variant.memory_bytes.map(|bytes| bytes as f64),
            Metric::Quality => variant.quality,
            Metric::Ttft => Some(first),
            Metric::Time => Some(first + later),
            Metric::Speed => {
                let tokens = variant.workload.query.answer_tokens.saturating_sub(1);
                Some(if later > 0.0 { tokens as f64 / later } else { f64::INFINITY })
            }
            Metric::Power | Metric::Energy | Metric::Temperature => return false,
        };
        // As far as sums of floating point numbers go.
        best.is_none_or(|value| limit.excess(value) > 1e-9)
    })
}

/// No candidate of this variant that takes at least `seconds` scores lower.
fn bound(space: &Space<'_>, variant: &Variant, seconds: f64, prefer: Prefer) -> [f64; 2] {
    let idle: f64 = space.device.unit.iter().map(|unit| unit.idle_watts.value).sum();
    let least = seconds * (idle + space.device.idle_watts.value) * (1.0 - 1e-9);
    match prefer {
        Prefer::Energy => [least, 0.0],
        Prefer::Speed => [seconds * (1.0 - 1e-9), 0.0],
        Prefer::Quality => [-variant.quality.unwrap_or(0.0), least],
    }
}

fn score(planned: &Planned, prefer: Prefer) -> [f64; 2] {
    match prefer {
        Prefer::Energy => [planned.run.joules, planned.run.seconds()],
        Prefer::Speed => [planned.run.seconds(), planned.run.joules],
        Prefer::Quality => [-planned.quality.unwrap_or(0.0), planned.run.joules],
    }
}

fn compare(a: [f64; 2], b: [f64; 2]) -> Ordering {
    a[0].total_cmp(&b[0]).then(a[1].total_cmp(&b[1]))
}

fn infeasible(space: &Space<'_>, all: &[Candidate], limits: &[Limit]) -> Result<Infeasible, DeviceError> {
    let every = every(space, all);
    let excess = |planned: &Planned, limit: &Limit| {
        planned.value(limit.metric).map_or(f64::INFINITY, |value| limit.excess(value))
    };
    let worst =
        |planned: &Planned| limits.iter().map(|limit| excess(planned, limit)).fold(f64::MIN, f64::max);
    let nearest = every.iter().min_by(|a, b| worst(a).total_cmp(&worst(b))).cloned();
    let mut broken: Vec<(f64, Limit, Option<f64>)> = nearest
        .iter()
        .flat_map(|planned| {
            limits.iter().map(|limit| (excess(planned, limit), *limit, planned.value(limit.metric)))
        })
        .filter(|(excess, ..)| *excess > 0.0)
        .collect();
    broken.sort_by(|a, b| b.0.total_cmp(&a.0));
    let alone = limits.iter().map(|limit| {
        let values = every.iter().filter_map(|planned| planned.value(limit.metric));
        (*limit, values.min_by(|a, b| limit.excess(*a).total_cmp(&limit.excess(*b))))
    });
    Ok(Infeasible {
        broken: broken.into_iter().map(|(_, limit, value)| (limit, value)).collect(),
        alone: alone.collect(),
        nearest: nearest.map(Box::new),
    })
}
