//! The present machine as a profile that `margay simulate` and `margay plan` take: measured where it can be, else assumed.

use crate::{Outcome, model::ThreadArgs, output, progress::Spinner};
use anyhow::Context;
use margay::{
    LoadOptions, cpu_backend,
    rooms::{
        cpu::measure::{Limits, Probe, Sustained},
        file::write_file,
        observe::{Clock, Root, Sampler, Series, Watched, What, machine, power_source, report::bytes, today},
    },
};
use margay_device::{Battery, Device, Kind, Memory, Node, Stated, Thermal, ThrottlePoint, Unit};
use std::{path::Path, time::Duration};

/// How long the machine is watched idle, and how long it works for its power and heat.
const IDLE: Duration = Duration::from_secs(2);
const WORK_SECONDS: f64 = 4.0;
/// Between samples meanwhile.
const PERIOD: Duration = Duration::from_millis(100);
/// Why power and heat are assumed.
const NO_SENSOR: &str = "not measured: this machine shows no power to this program";
const NO_HEAT: &str = "not measured: this machine shows no temperature to this program";
/// Watts of a busy core where nobody says: between a phone's and a desktop's. Assumed.
const WATTS_A_CORE: f64 = 5.0;
/// Energy of a byte from memory: LPDDR5 and DDR5 take 5 to 10 pJ a bit. Assumed.
const JOULES_PER_BYTE: f64 = 6e-11;
/// Of a solid state disk. Assumed.
const STORAGE: f64 = 1e9;
/// Air, a die's usual limit, and a chain of heat as of a small fan-cooled machine. Assumed.
const AMBIENT: f64 = 25.0;
const CEILING: f64 = 95.0;
const DIE: (f64, f64) = (20.0, 0.3);
const CASE: (f64, f64) = (400.0, 0.5);

/// What is asked for.
pub(super) struct Asked<'a> {
    pub threads: &'a ThreadArgs,
    pub out: Option<&'a Path>,
    pub json: bool,
}

/// Measures, and writes or prints.
pub(super) fn run(asked: &Asked<'_>) -> anyhow::Result<Outcome> {
    let spinner = Spinner::start("measuring this machine");
    let device = measure(asked.threads)?;
    drop(spinner);
    let text = device.to_toml();
    if let Some(path) = asked.out {
        // What is written can be read again, or it is not written.
        Device::parse(&path.display().to_string(), &text)?;
        write_file(path, text.as_bytes())?;
        let numbers = device.numbers();
        let assumed = numbers.iter().filter(|(_, stated)| stated.assumed()).count();
        output::note(&format!(
            "wrote {}: {} numbers, {} measured now, {assumed} assumed (margay simulate --device {} --numbers)",
            path.display(),
            numbers.len(),
            numbers.len() - assumed,
            path.display()
        ));
    }
    match (asked.json, asked.out) {
        (true, _) => output::json(&device)?,
        (false, None) => output::text(&text)?,
        (false, Some(_)) => {}
    }
    Ok(Outcome::Done)
}

fn measure(threads: &ThreadArgs) -> anyhow::Result<Device> {
    let root = Root::system();
    let clock = Clock::start();
    let seconds = || clock.now().as_secs_f64();
    let date = today().unwrap_or_else(|| "on an unknown day".to_owned());
    let measured = |value: f64, how: &str| {
        Stated::source(told(value), format!("measured by margay doctor, {date}: {how}"))
    };
    let probe = Probe::new();
    let all = cpu_backend(&threads.options())?;
    let idle = watch(IDLE)?;
    let limits = probe.limits(&all, &seconds)?;
    let busy = {
        let sampler = sampler()?;
        probe.sustained(&all, &seconds, Sustained::Int8, WORK_SECONDS)?;
        sampler.stop()
    };
    let source = idle.channels.power.and_then(power_source).map(|source| source.id());
    let idle_watts = match idle.mean_watts() {
        Some(watts) => {
            measured(watts, &format!("idle for {} s, by {}", IDLE.as_secs(), source.unwrap_or("its sensor")))
        }
        None => Stated::assume(1.0, NO_SENSOR),
    };
    let active = busy.mean_watts().zip(idle.mean_watts()).map(|(busy, idle)| (busy - idle).max(0.0));
    let kinds = kinds(&root, threads, all.threads());
    let cores: usize = kinds.iter().map(|kind| kind.threads).sum();
    let mut units = vec![];
    for kind in &kinds {
        let of = match &kind.cores {
            None => limits,
            Some(list) => {
                let options = LoadOptions { cores: Some(list.clone()), ..threads.options() };
                probe.limits(&cpu_backend(&LoadOptions { threads: None, ..options })?, &seconds)?
            }
        };
        let watts = match active {
            Some(watts) => {
                let share = kind.threads as f64 / cores as f64;
                measured(
                    watts * share,
                    &format!(
                        "8-bit products on all cores for {WORK_SECONDS} s, above idle; by the number of cores"
                    ),
                )
            }
            None => Stated::assume(WATTS_A_CORE * kind.threads as f64, NO_SENSOR),
        };
        units.push(unit(kind, &of, watts, &measured));
    }
    let memory = machine::memory(&root).context("the system does not say how much memory there is")?;
    let usable = match memory.available_bytes {
        Some(available) => measured(available as f64, "what a new process could take"),
        None => Stated::assume(memory.total_bytes as f64 / 2.0, "half of it: the system does not say"),
    };
    let cpu = machine::cpu_name(&root).unwrap_or_else(|| "unknown processor".to_owned());
    let total = bytes(memory.total_bytes);
    Ok(Device {
        name: format!("{cpu}, {total}"),
        about: format!(
            "This machine, {} of its processors, by margay doctor on {date}. Rates are those of bare instructions and bare reads in a good moment.",
            all.threads()
        ),
        chip: cpu,
        idle_watts,
        budget_watts: None,
        memory: Memory {
            bytes: measured(memory.total_bytes as f64, "as the system says"),
            usable_bytes: usable,
            bytes_per_second: measured(
                limits.read(),
                "reading 256 MiB with all threads, the best of several passes",
            ),
            joules_per_byte: Stated::assume(JOULES_PER_BYTE, "not measured: DDR5 takes 5 to 10 pJ a bit"),
            storage_bytes_per_second: Stated::assume(
                STORAGE,
                "not measured: files lie in the system's memory; a solid state disk",
            ),
        },
        battery: machine::battery_watt_hours(&root).map(|watt_hours| Battery {
            watt_hours: measured(watt_hours, "what the gauge says a charge holds"),
        }),
        thermal: thermal(&idle, &busy, &measured),
        unit: units,
    })
}

/// Whole numbers as they are, rates to four digits: no more of them would come again.
fn told(value: f64) -> f64 {
    if value.fract() == 0.0 || !value.is_finite() {
        return value;
    }
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// Cores that are measured together.
struct Cluster {
    id: String,
    threads: usize,
    /// `None` where all threads are.
    cores: Option<String>,
}

/// Kinds of cores, where there are several and nobody chose some.
fn kinds(root: &Root, threads: &ThreadArgs, all: usize) -> Vec<Cluster> {
    let kinds = machine::core_kinds(root);
    if kinds.len() < 2 || threads.cores.is_some() || threads.threads.is_some() {
        return vec![Cluster { id: "cpu".to_owned(), threads: all, cores: None }];
    }
    let cluster = |(at, kind): (usize, &machine::CoreKind)| {
        let list: Vec<String> = kind.cores.iter().map(usize::to_string).collect();
        Cluster { id: format!("cpu{at}"), threads: kind.cores.len(), cores: Some(list.join(",")) }
    };
    kinds.iter().enumerate().map(cluster).collect()
}

fn unit(
    kind: &Cluster,
    limits: &Limits,
    active_watts: Stated,
    measured: &dyn Fn(f64, &str) -> Stated,
) -> Unit {
    let gops = |rate: f64, how: &str| Some(measured(rate / 1e9, how));
    let int8 = limits.int8_exact.unwrap_or(limits.int8);
    let f32 = limits.f32;
    Unit {
        id: kind.id.clone(),
        kind: Kind::Cpu,
        cores: kind.threads,
        int8_gops: gops(int8.ops_per_second, int8.instruction),
        f16_gops: gops(f32.ops_per_second, "as float32, in which halves are multiplied here"),
        f32_gops: gops(f32.ops_per_second, f32.instruction),
        bytes_per_second: measured(limits.read(), "reading 256 MiB, the best of several passes"),
        launch_seconds: measured(limits.barrier, "a barrier of its threads"),
        active_watts,
        idle_watts: Stated::assume(0.0, "counted in the whole machine's"),
        steps: vec![Stated::assume(1.0, "clock rates are the system's own affair here")],
    }
}

fn thermal(idle: &Series, busy: &Series, measured: &dyn Fn(f64, &str) -> Stated) -> Thermal {
    let rest = idle.samples.iter().filter_map(|sample| sample.temperature_celsius).next_back();
    let hot = busy.samples.iter().filter_map(|sample| sample.temperature_celsius).reduce(f64::max);
    let why = match (rest, hot) {
        (Some(rest), Some(hot)) => format!(
            "not measured: a few seconds of work took the hottest zone from {rest:.1} to {hot:.1} C, which is too short for it"
        ),
        _ => NO_HEAT.to_owned(),
    };
    let assume = |value: f64| Stated::assume(value, why.clone());
    let node = |name: &str, (capacity, resistance): (f64, f64)| Node {
        name: name.to_owned(),
        joules_per_kelvin: assume(capacity),
        kelvin_per_watt: assume(resistance),
    };
    let point =
        |celsius: f64, fraction: f64| ThrottlePoint { celsius: assume(celsius), fraction: assume(fraction) };
    Thermal {
        // At rest the machine is as warm as what is around it, or a little warmer.
        ambient_celsius: rest
            .map_or_else(|| assume(AMBIENT), |rest| measured(rest, "the hottest zone of the idle machine")),
        ceiling_celsius: assume(CEILING.max(hot.unwrap_or(CEILING))),
        node: vec![node("die", DIE), node("case", CASE)],
        throttle: vec![point(CEILING, 1.0), point(CEILING + 10.0, 0.5)],
    }
}

fn sampler() -> anyhow::Result<Sampler> {
    let what = What { process: Watched::None, threads: false };
    Sampler::start(Root::system(), Clock::start(), PERIOD, what).context("cannot start sampling")
}

fn watch(time: Duration) -> anyhow::Result<Series> {
    let sampler = sampler()?;
    std::thread::sleep(time);
    Ok(sampler.stop())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_four_digits_and_counts_all_of_theirs() {
        assert_eq!(
            [136.841_389, 1.185_7e-6, 25_276_059_648.0].map(told),
            [136.8, 1.186e-6, 25_276_059_648.0]
        );
    }
}
