//! `margay simulate --govern`: questions back to back, with a governor and without.

use super::govern_page;
use crate::{Outcome, Usage, output};
use clap::{Args, ValueEnum};
use margay::rooms::file::write_file;
use margay_device::{
    Actuator, Bounds, Device, Engine, Firmware, Limit, Purpose, Strategy, Survey, Surveyed, Trial, TrialRun,
    Workload,
};
use serde_json::{Value, json};
use std::{path::PathBuf, time::Duration};

/// Longest time that is simulated, and most trials.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
const MOST_TRIALS: usize = 10_000;
/// Air that is simulated, and drawn from by default, degrees Celsius.
const AIR: std::ops::RangeInclusive<f64> = -20.0..=60.0;
const AIR_OF_SURVEY: std::ops::Range<f64> = 5.0..40.0;
/// Events that are printed at the begin and at the end of the log.
const EVENTS: usize = 8;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Throttling {
    /// Nothing until the device's ceiling, then the lowest step until it is --release kelvin cooler
    Cliff,
    /// The profile's curve
    Curve,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Slower {
    /// Lower frequency: power falls faster than speed
    Frequency,
    /// Fewer threads or pauses: power falls as speed does
    Threads,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Governing")]
pub(crate) struct GovernArgs {
    /// Ask questions back to back for so long (30m, 90s, 1h), with a governor and without
    #[arg(long, value_name = "TIME", conflicts_with_all = ["study", "what_if", "speculate"])]
    govern: Option<String>,
    /// Air around it, degrees Celsius; the profile's unless given
    #[arg(long, value_name = "CELSIUS", requires = "govern", allow_negative_numbers = true)]
    ambient: Option<f64>,
    /// What the governor keeps, as in temperature<=80C; the profile's ceiling unless given
    #[arg(long, value_name = "LIMITS", requires = "govern")]
    limits: Option<String>,
    /// What the device itself does when it is hot
    #[arg(long, value_enum, default_value = "cliff", requires = "govern")]
    firmware: Throttling,
    /// How much cooler than its ceiling a device of the cliff must be to be fast again, kelvin
    #[arg(long, value_name = "KELVIN", default_value_t = 10.0, requires = "govern")]
    release: f64,
    /// How the governor makes cores slower
    #[arg(long, value_enum, default_value = "frequency", requires = "govern")]
    slower: Slower,
    /// Let decoding keep to the slowest frequency at which it waits for memory, as simulated
    #[arg(long, requires = "govern")]
    slow_decode: bool,
    /// Somebody reads along: answers may be paced
    #[arg(long, requires = "govern")]
    conversation: bool,
    /// Give up half the visual tokens before anything is slowed
    #[arg(long, requires = "govern")]
    tokens_first: bool,
    /// So many trials on random devices and engines, in random air of 5 to 40 C, in place of one
    #[arg(long, value_name = "TRIALS", requires = "govern")]
    survey: Option<usize>,
    /// Of the survey's random numbers
    #[arg(long, value_name = "N", default_value_t = 1, requires = "govern")]
    seed: u64,
    /// Write a page with figures
    #[arg(long, value_name = "FILE.html", requires = "govern", conflicts_with = "survey")]
    html: Option<PathBuf>,
}

impl GovernArgs {
    /// How long, where it is asked for.
    pub(super) fn time(&self) -> anyhow::Result<Option<Duration>> {
        let Some(text) = &self.govern else { return Ok(None) };
        let units = [("m", 60.0), ("s", 1.0), ("h", 3600.0)];
        let seconds = units
            .into_iter()
            .find_map(|(unit, seconds)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * seconds));
        let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let good = time.filter(|time| *time >= Duration::from_secs(60) && *time <= LONGEST);
        let what = || Usage(format!("--govern {text:?}: a time of 1m to 24h is needed, as in 30m"));
        Ok(Some(good.ok_or_else(what)?))
    }

    pub(super) fn run(
        &self,
        time: Duration,
        device: &Device,
        engine: &Engine,
        workload: &Workload,
        as_json: bool,
    ) -> anyhow::Result<Outcome> {
        let ambient = self.ambient.unwrap_or(device.thermal.ambient_celsius.value);
        if !AIR.contains(&ambient) {
            return Err(Usage(format!("--ambient {ambient}: air of -20 to 60 C is simulated")).into());
        }
        if !(self.release > 0.0 && self.release <= 60.0) {
            return Err(Usage(format!("--release {}: 0 to 60 kelvin", self.release)).into());
        }
        let limits = Limit::list(self.limits.as_deref().unwrap_or("")).map_err(|e| Usage(e.to_string()))?;
        let firmware = match self.firmware {
            Throttling::Cliff => Firmware::Cliff { release: self.release },
            Throttling::Curve => Firmware::Curve,
        };
        let set = |trial: &mut Trial<'_>| {
            trial.time = time;
            let (conversation, tokens_first) = (self.conversation, self.tokens_first);
            trial.bounds.purpose = Purpose { conversation, tokens_first, ..Purpose::default() };
            trial.bounds = Bounds::with(trial.bounds, &limits);
            trial.actuator = match self.slower {
                Slower::Frequency => Actuator::Frequency,
                Slower::Threads => Actuator::Threads,
            };
            if self.slow_decode {
                trial.bounds.decode_speed = trial.decode_speed().ok().flatten();
            }
        };
        if let Some(count) = self.survey {
            return self.survey(count, firmware, workload, &set, as_json);
        }
        let mut trial = Trial { firmware, ambient_celsius: ambient, ..Trial::new(device, engine, workload) };
        set(&mut trial);
        let runs = Strategy::ALL.into_iter().map(|strategy| trial.run(strategy));
        let runs = runs.collect::<Result<Vec<_>, _>>()?;
        if let Some(path) = &self.html {
            write_file(path, govern_page::page(&trial, &runs).as_bytes())?;
        }
        if as_json {
            output::json(&runs.iter().map(|run| json_of(run, true)).collect::<Vec<_>>())?;
        } else {
            output::text(&format!("{}\n{}\n{}", head(&trial), table(&runs), log(&runs)))?;
        }
        Ok(Outcome::Done)
    }

    fn survey(
        &self,
        count: usize,
        firmware: Firmware,
        workload: &Workload,
        set: &dyn Fn(&mut Trial<'_>),
        as_json: bool,
    ) -> anyhow::Result<Outcome> {
        if !(1..=MOST_TRIALS).contains(&count) {
            return Err(Usage(format!("--survey {count}: 1 to {MOST_TRIALS} trials")).into());
        }
        let (devices, engines) = (Device::ids().collect::<Vec<_>>(), Engine::ids().collect::<Vec<_>>());
        let survey =
            Survey { devices: &devices, engines: &engines, ambient_celsius: AIR_OF_SURVEY, seed: self.seed };
        let all = survey.run(count, workload, firmware, set)?;
        if as_json {
            let rows = all.iter().map(|trial| {
                json!({
                    "device": trial.device, "engine": trial.engine, "ambient_celsius": trial.ambient_celsius,
                    "hot": trial.hot(), "gain": trial.gain(),
                    "runs": trial.runs.iter().map(|run| json_of(run, false)).collect::<Vec<_>>(),
                })
            });
            output::json(&rows.collect::<Vec<_>>())?;
        } else {
            output::text(&surveyed(&all))?;
        }
        Ok(Outcome::Done)
    }
}

/// What was simulated, in words.
pub(super) fn head(trial: &Trial<'_>) -> String {
    let firmware = match trial.firmware {
        Firmware::Cliff { release } => format!(
            "at {:.0} C the device falls to its lowest step until it is {release:.0} K cooler (assumed)",
            trial.device.thermal.ceiling_celsius.value
        ),
        Firmware::Curve => "the device slows by its profile's curve".to_owned(),
    };
    let slower = match trial.actuator {
        Actuator::Frequency => "frequency",
        Actuator::Threads => "threads",
    };
    format!(
        "{} on {} by {}: {:.0} minutes of questions, air {:.0} C, ceiling {:.0} C; {firmware}; the governor slows by \
         {slower}. Simulated, not measured.\n",
        trial.workload.name,
        trial.device.name,
        trial.engine.name,
        trial.time.as_secs_f64() / 60.0,
        trial.ambient_celsius,
        trial.bounds.ceiling_celsius.unwrap_or(trial.device.thermal.ceiling_celsius.value),
    )
}

pub(super) const COLUMNS: [&str; 10] = [
    "strategy",
    "answers",
    "of race",
    "unshortened",
    "J/answer",
    "peak C",
    "s above",
    "s throttled",
    "turns",
    "turns/min",
];

pub(super) fn rows(runs: &[TrialRun]) -> Vec<Vec<String>> {
    let race = runs.first().map_or(0.0, |run| run.answers);
    let cells = |run: &TrialRun| {
        vec![
            run.strategy.name().to_owned(),
            format!("{:.1}", run.answers),
            format!("{:.2}", run.answers / race),
            format!("{:.1}", run.whole),
            format!("{:.0}", run.joules / run.answers),
            format!("{:.1}", run.peak_celsius),
            format!("{:.0}", run.seconds_above),
            format!("{:.0}", run.seconds_throttled),
            run.reversals.to_string(),
            run.reversals_a_minute.to_string(),
        ]
    };
    runs.iter().map(cells).collect()
}

fn table(runs: &[TrialRun]) -> String {
    output::table_of_words(&COLUMNS, rows(runs))
}

/// The governor's events, the middle of a long log left out.
pub(super) fn log(runs: &[TrialRun]) -> String {
    let events: Vec<_> = runs.iter().flat_map(|run| &run.events).collect();
    let mut text = format!("events of the governor: {}\n", events.len());
    for (at, event) in events.iter().enumerate() {
        if at >= EVENTS && at + EVENTS < events.len() {
            if at == EVENTS {
                text += &format!("         ({} more)\n", events.len() - 2 * EVENTS);
            }
            continue;
        }
        let (seconds, rung) = (event.at.as_secs(), event.rung);
        text += &format!("{seconds:>6} s  {rung} {} -> {}  {}\n", event.from, event.to, event.why);
    }
    text
}

fn json_of(run: &TrialRun, events: bool) -> Value {
    json!({
        "strategy": run.strategy.name(), "answers": run.answers, "unshortened": run.whole, "joules": run.joules,
        "peak_celsius": run.peak_celsius, "seconds_above": run.seconds_above,
        "seconds_throttled": run.seconds_throttled, "turns": run.reversals,
        "turns_a_minute": run.reversals_a_minute,
        "events": if events { json!(run.events) } else { json!(run.events.len()) },
    })
}

/// Gains by device, and of all that were hot.
fn surveyed(all: &[Surveyed]) -> String {
    let hot: Vec<&Surveyed> = all.iter().filter(|trial| trial.hot()).collect();
    let mut names: Vec<&str> = all.iter().map(|trial| trial.device.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let row = |name: &str, trials: &[&Surveyed], of: usize| {
        let mut gains: Vec<f64> = trials.iter().map(|trial| trial.gain()).collect();
        gains.sort_by(f64::total_cmp);
        let at = |part: f64| gains.get(((gains.len().max(1) - 1) as f64 * part).round() as usize);
        let show = |part| at(part).map_or_else(|| "-".to_owned(), |gain| format!("{gain:.2}"));
        let reached = gains.iter().filter(|gain| **gain >= 1.3).count();
        let mut cells = vec![name.to_owned(), of.to_string(), gains.len().to_string()];
        cells.extend([show(0.05), show(0.5), show(0.95), reached.to_string()]);
        cells
    };
    let of = |name: &str| all.iter().filter(|trial| trial.device == name).count();
    let mut rows: Vec<_> = names
        .iter()
        .map(|name| {
            let trials: Vec<_> = hot.iter().copied().filter(|trial| trial.device == *name).collect();
            row(name, &trials, of(name))
        })
        .collect();
    rows.push(row("all", &hot, all.len()));
    let governed =
        || all.iter().flat_map(|trial| trial.runs.iter().filter(|r| r.strategy == Strategy::Governor));
    let breaches = governed().filter(|run| run.seconds_above > 0.0).count();
    let (turns, minute) =
        (governed().map(|r| r.reversals).max(), governed().map(|r| r.reversals_a_minute).max());
    let shortened = governed().filter(|run| run.whole < run.answers).count();
    let races =
        all.iter().filter(|trial| trial.runs.first().is_some_and(|run| run.seconds_above > 0.0)).count();
    let header = ["device", "trials", "hot", "5%", "median", "95%", "at least 1.3"];
    format!(
        "answers of the governor for one of the race, where the device slowed the race (hot)\n{}\n\
         trials with a breach: governor {breaches}, race {races}; turns of a rung at most {} in all, {} in a minute; \
         answers shortened in {shortened} trials\n",
        output::table_of_words(&header, rows),
        turns.unwrap_or(0),
        minute.unwrap_or(0)
    )
}
