//! `margay observe`: what can be seen of this machine, recordings of it, and reports.

use crate::{
    Outcome, Usage,
    interrupt::{Interrupt, Late},
    output,
};
use anyhow::Context;
use clap::{Args, Subcommand};
use margay::{
    Cancel,
    rooms::{
        file::write_file,
        observe::{
            Clock, Finding, RecordOptions, Recording, Root, Sampler, Sensors, Series, Timeline, TreeRecorder,
            Watched, What, machine, replay, report,
        },
    },
};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Arc,
    time::Duration,
};

const AFTER_HELP: &str = "\
EXAMPLES:
  margay observe                                    what of this machine can be seen, and why not the rest
  margay observe record -o tree.tar --seconds 10    what the sensors read, to be replayed elsewhere
  margay observe record -o tree.tar -- margay run street.png
  margay observe report --root tree.tar             the report of a recording
  margay observe report --seconds 5 --html now.html this machine now, as a page with figures
  margay observe report --root tree.tar --trace t.json     a trace for ui.perfetto.dev

What every number means, and where it is read: docs/measuring.md.";

/// Show what can be seen of this machine, record it, report it
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
pub(crate) struct Observe {
    #[command(subcommand)]
    action: Option<Action>,
    /// Look at a recording, or at a folder that holds proc and sys, in place of this machine
    #[arg(long, value_name = "TAR|DIR")]
    root: Option<PathBuf>,
    /// Look at this process as well
    #[arg(long, value_name = "P")]
    pid: Option<u32>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Keep what the sensors read, for a report elsewhere
    Record(Record),
    /// Report a recording, or this machine now
    Report(Report),
}

#[derive(Debug, Args)]
struct Record {
    /// The tar file to write
    #[arg(short, long, value_name = "TAR")]
    out: PathBuf,
    /// How long; without a command 10 seconds unless set, with one until it ends
    #[arg(long, value_name = "N")]
    seconds: Option<f64>,
    /// Milliseconds between samples
    #[arg(long, value_name = "MS", default_value_t = 100)]
    period: u64,
    /// Watch this process as well
    #[arg(long, value_name = "P", conflicts_with = "command")]
    pid: Option<u32>,
    /// Stop when the file has so many MiB
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    max_mib: u64,
    /// A command to start and to watch
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Debug, Args)]
struct Report {
    /// The recording; without one this machine is looked at
    #[arg(long, value_name = "TAR|DIR", conflicts_with_all = ["seconds", "period", "pid"])]
    root: Option<PathBuf>,
    /// How long to look at this machine
    #[arg(long, value_name = "N", default_value_t = 2.0)]
    seconds: f64,
    /// Milliseconds between samples
    #[arg(long, value_name = "MS", default_value_t = 100)]
    period: u64,
    /// Watch this process as well
    #[arg(long, value_name = "P")]
    pid: Option<u32>,
    /// Print one JSON object
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print one row a sample
    #[arg(long)]
    csv: bool,
    /// Write a page with figures
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write a trace for ui.perfetto.dev
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

/// What is told without a subcommand.
#[derive(Serialize)]
struct Seen {
    machine: Option<String>,
    findings: Vec<Finding>,
}

impl Observe {
    pub(crate) fn run(self, interrupt: &Interrupt) -> anyhow::Result<Outcome> {
        match self.action {
            Some(Action::Record(record)) => record.run(interrupt),
            Some(Action::Report(report)) => report.run(),
            None => self.look(),
        }
    }

    fn look(&self) -> anyhow::Result<Outcome> {
        let seen = match &self.root {
            Some(path) if is_tree(path) => look_at(&Root::new(path), self.pid),
            Some(path) => {
                let recording = Arc::new(open(path)?);
                let machine = recording.about().machine.clone();
                Seen { machine, findings: replay(&recording).findings }
            }
            None => look_at(&Root::system(), self.pid),
        };
        if self.json {
            output::json(&seen)?;
        } else {
            output::text(&describe(&seen))?;
        }
        Ok(Outcome::Done)
    }
}

impl Record {
    fn run(self, interrupt: &Interrupt) -> anyhow::Result<Outcome> {
        let limit = match (self.seconds, self.command.is_empty()) {
            (None, true) => Some(Duration::from_secs(10)),
            (None, false) => None,
            (Some(seconds), _) => Some(duration(seconds)?),
        };
        let cancel = Cancel::new();
        let _watch = interrupt.watch(cancel.clone(), Late::Wait);
        let mut child = self.start()?;
        let process = match (&child, self.pid) {
            (Some(child), _) => Watched::Pid(child.id()),
            (None, Some(pid)) => Watched::Pid(pid),
            (None, None) => Watched::None,
        };
        let period = Duration::from_millis(self.period.max(1));
        let options = RecordOptions {
            period,
            what: What { process, threads: true },
            most_bytes: self.max_mib.saturating_mul(1 << 20),
        };
        let root = Root::system();
        let clock = Clock::start();
        let mut recorder = TreeRecorder::begin(Vec::new(), root.clone(), &options)?;
        let mut next = Duration::ZERO;
        let ended = loop {
            if !recorder.step()? {
                break "the file is full (--max-mib)";
            }
            next += period;
            std::thread::sleep(next.saturating_sub(clock.now()));
            if cancel.is_cancelled() {
                break "stopped by Ctrl-C";
            }
            if limit.is_some_and(|limit| clock.now() >= limit) {
                break "the time is over";
            }
            let gone = match (&mut child, self.pid) {
                (Some(child), _) => child.try_wait()?.is_some(),
                (None, Some(pid)) => root.read(&format!("proc/{pid}/stat")).is_none(),
                (None, None) => false,
            };
            if gone {
                break "the process ended";
            }
        };
        if let Some(child) = &mut child
            && child.try_wait()?.is_none()
        {
            // It was started for this recording alone.
            child.kill().and_then(|()| child.wait()).context("cannot end the command")?;
        }
        let samples = recorder.samples();
        let (tar, _) = recorder.finish()?;
        write_file(&self.out, &tar)?;
        let (out, size) = (self.out.display(), report::bytes(tar.len() as u64));
        output::note(&format!("{out}: {samples} samples, {size} ({ended})"));
        Ok(Outcome::Done)
    }

    fn start(&self) -> anyhow::Result<Option<Child>> {
        let Some((program, arguments)) = self.command.split_first() else { return Ok(None) };
        let child = Command::new(program).args(arguments).spawn();
        Ok(Some(child.with_context(|| format!("cannot start {program}"))?))
    }
}

impl Report {
    fn run(self) -> anyhow::Result<Outcome> {
        let timeline = match &self.root {
            Some(path) => {
                let recording = Arc::new(open(path)?);
                let title = recording.about().machine.clone().unwrap_or_else(|| "unknown machine".to_owned());
                Timeline::of_samples(title, replay(&recording))
            }
            None => Timeline::of_samples(title(&Root::system()), self.live()?),
        };
        for (path, form) in [(&self.html, "html"), (&self.trace, "trace")] {
            if let Some(path) = path {
                write_file(path, written(&timeline, form)?.as_bytes())?;
                output::note(&format!("wrote {}", path.display()));
            }
        }
        let form = match (self.json, self.csv) {
            (true, _) => "json",
            (_, true) => "csv",
            _ if self.html.is_some() || self.trace.is_some() => return Ok(Outcome::Done),
            _ => "terminal",
        };
        output::text(&output_safe(form, written(&timeline, form)?))?;
        Ok(Outcome::Done)
    }

    fn live(&self) -> anyhow::Result<Series> {
        let what = What { process: watched(self.pid), threads: true };
        let period = Duration::from_millis(self.period.max(1));
        let sampler =
            Sampler::start(Root::system(), Clock::start(), period, what).context("cannot start sampling")?;
        std::thread::sleep(duration(self.seconds)?);
        Ok(sampler.stop())
    }
}

/// Names of zones and threads may come from a recording that somebody made to drive the terminal.
fn output_safe(form: &str, text: String) -> String {
    if form == "terminal" { output::harmless(&text).into_owned() } else { text }
}

fn written(timeline: &Timeline, form: &str) -> anyhow::Result<String> {
    let writer = report::writer(form).with_context(|| format!("no report is called {form}"))?;
    Ok(writer.write(timeline)?)
}

fn open(path: &Path) -> anyhow::Result<Recording> {
    Recording::open(path).with_context(|| path.display().to_string())
}

/// True of a folder that holds a machine's tree as it is.
fn is_tree(path: &Path) -> bool {
    ["proc", "sys"].iter().any(|name| path.join(name).is_dir())
}

fn title(root: &Root) -> String {
    machine::cpu_name(root).unwrap_or_else(|| "unknown machine".to_owned())
}

fn watched(pid: Option<u32>) -> Watched {
    pid.map_or(Watched::None, Watched::Pid)
}

fn duration(seconds: f64) -> anyhow::Result<Duration> {
    let duration =
        Duration::try_from_secs_f64(seconds).ok().filter(|d| !d.is_zero() && d.as_secs() < 1 << 32);
    Ok(duration.ok_or_else(|| Usage(format!("--seconds {seconds} is no stretch of time")))?)
}

/// Rates need two looks, and gauges some time to move.
fn look_at(root: &Root, pid: Option<u32>) -> Seen {
    let what = What { process: pid.map_or(Watched::Own, Watched::Pid), threads: false };
    let clock = Clock::start();
    let mut sensors = Sensors::probe(root, &what);
    for look in 0..3 {
        if look > 0 {
            std::thread::sleep(Duration::from_millis(150));
        }
        sensors.sample(root, clock.now());
    }
    Seen { machine: machine::cpu_name(root), findings: sensors.findings(root) }
}

fn describe(seen: &Seen) -> String {
    let (known, unknown): (Vec<_>, Vec<_>) = seen.findings.iter().partition(|f| f.value.is_some());
    let mut text = seen.machine.clone().unwrap_or_else(|| "unknown machine".to_owned()) + "\n";
    for (title, findings) in [("SEEN", known), ("UNKNOWN", unknown)] {
        text += &format!("\n{title}\n");
        let row = |finding: &&Finding| {
            let said = finding.value.clone().or(finding.why.clone()).unwrap_or_default();
            vec![finding.quantity.clone(), said, finding.path.clone()]
        };
        let rows: Vec<Vec<String>> = findings.iter().map(row).collect();
        // Reasons are sentences: they read better from the left.
        let width = rows.iter().map(|row| row[1].chars().count()).max().unwrap_or(0);
        let rows =
            rows.into_iter().map(|row| vec![row[0].clone(), format!("{:<width$}", row[1]), row[2].clone()]);
        let said = if title == "SEEN" { "now" } else { "why" };
        text += &output::table_of_words(&["quantity", said, "where"], rows.collect());
    }
    output::harmless(&text).into_owned()
}
