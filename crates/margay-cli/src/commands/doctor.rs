//! `margay doctor`: what this machine is, and which kernels it gets.

mod profile;

use crate::{Outcome, environment, limits::Measured, model::ThreadArgs, output};
use clap::Args;
use margay::{
    BACKENDS, LoadOptions, backend, cpu_backend,
    rooms::{
        cpu::{Isa, measure},
        observe::{Clock, Root, machine, report::bytes},
    },
};
use serde::Serialize;
use std::path::PathBuf;

const AFTER_HELP: &str = "\
EXAMPLES:
  margay doctor
  margay doctor --json
  MARGAY_ISA=scalar margay doctor     the portable kernels
  margay doctor --profile -o me.toml  this machine as a profile: margay plan --device me.toml, margay simulate --device me.toml

PROFILE:
  Rates of products, reading, a barrier, memory, and power and heat where the machine shows them: seven seconds. Every number
  says \"measured by margay doctor, DATE\", or that it is assumed and why.";

/// Show what this machine is, and which kernels it gets
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Doctor {
    #[command(flatten)]
    threads: ThreadArgs,
    /// Measure this machine as a device profile (TOML)
    #[arg(long)]
    profile: bool,
    /// Write the profile to this file
    #[arg(long, short, value_name = "FILE.toml", requires = "profile")]
    out: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Everything that is told; what the system does not say is `None`.
#[derive(Debug, Serialize)]
struct Findings {
    margay: &'static str,
    architecture: &'static str,
    system: &'static str,
    cpu: Option<String>,
    logical_cores: Option<usize>,
    physical_cores: Option<usize>,
    /// The fastest first.
    core_kinds: Vec<machine::CoreKind>,
    memory: Option<machine::Memory>,
    /// Value of `MARGAY_ISA`, where it is set.
    margay_isa: Option<String>,
    instruction_sets: Vec<IsaFinding>,
    threads: usize,
    /// One line a kind of kernel: which one runs, and why.
    kernels: Vec<String>,
    /// What the processor reaches now, with one thread and with all; other work on it lowers these.
    measured: Vec<Measured>,
    backends: Vec<BackendFinding>,
}

#[derive(Debug, Serialize)]
struct IsaFinding {
    name: &'static str,
    supported: bool,
    chosen: bool,
    why: &'static str,
}

#[derive(Debug, Serialize)]
struct BackendFinding {
    id: &'static str,
    summary: &'static str,
    /// What it runs on here.
    here: String,
}

impl Doctor {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        if self.profile {
            let asked = profile::Asked { threads: &self.threads, out: self.out.as_deref(), json: self.json };
            return profile::run(&asked);
        }
        let findings = self.look()?;
        if self.json {
            output::json(&findings)?
        } else {
            output::text(&findings.describe())?
        }
        Ok(Outcome::Done)
    }

    fn look(&self) -> anyhow::Result<Findings> {
        let root = Root::system();
        let margay_isa = environment::isa();
        let cpu = LoadOptions::default().backend;
        let backends = BACKENDS.iter().map(|entry| -> anyhow::Result<BackendFinding> {
            // Only the CPU backend chooses its threads.
            let mut options = if entry.id == cpu { self.threads.options() } else { LoadOptions::default() };
            options.backend = entry.id.to_owned();
            let here = backend(&options)?.describe();
            Ok(BackendFinding { id: entry.id, summary: entry.summary, here })
        });
        let backends: Vec<_> = backends.collect::<Result<_, _>>()?;
        let options = self.threads.options();
        let cpu = cpu_backend(&options)?;
        let clock = Clock::start();
        let seconds = || clock.now().as_secs_f64();
        let probe = measure::Probe::new();
        let mut measured = vec![];
        if cpu.threads() > 1 {
            let one = cpu_backend(&LoadOptions { threads: Some(1), ..options })?;
            measured.push(Measured::of(&probe.limits(&one, &seconds)?));
        }
        measured.push(Measured::of(&probe.limits(&cpu, &seconds)?));
        Ok(Findings {
            instruction_sets: Isa::ALL
                .iter()
                .map(|isa| look_at(*isa, cpu.isa(), margay_isa.is_some()))
                .collect(),
            threads: cpu.threads(),
            kernels: cpu.kernels(),
            measured,
            backends,
            margay: env!("CARGO_PKG_VERSION"),
            architecture: std::env::consts::ARCH,
            system: std::env::consts::OS,
            cpu: machine::cpu_name(&root),
            logical_cores: machine::logical_cores(&root),
            physical_cores: machine::physical_cores(&root),
            core_kinds: machine::core_kinds(&root),
            memory: machine::memory(&root),
            margay_isa,
        })
    }
}

/// Which cores, and how fast they are said to be.
fn describe_kind(kind: &machine::CoreKind) -> String {
    let list: Vec<String> = kind.cores.iter().map(usize::to_string).collect();
    let mut text = format!("--cores {}", list.join(","));
    if let Some(capacity) = kind.capacity {
        text += &format!(", capacity {capacity} of 1024");
    }
    if let Some(khz) = kind.max_khz {
        text += &format!(", at most {:.2} GHz", khz as f64 / 1e6);
    }
    text
}

fn look_at(isa: Isa, chosen: Isa, forced: bool) -> IsaFinding {
    let supported = isa.is_supported();
    let why = match (isa == chosen, supported) {
        (true, _) if forced => "MARGAY_ISA asks for it",
        (true, _) => "the best this processor has",
        (false, true) if forced => "MARGAY_ISA asks for another",
        (false, true) => "a better one is here",
        (false, false) => "this processor lacks it",
    };
    IsaFinding { name: isa.name(), supported, chosen: isa == chosen, why }
}

impl Findings {
    fn describe(&self) -> String {
        let unknown = || "unknown".to_owned();
        let mut text = String::new();
        let mut fact =
            |name: &str, value: String| text += &format!("{name:<12}{}\n", output::harmless(&value));
        fact("margay", format!("{} for {} on {}", self.margay, self.architecture, self.system));
        fact("cpu", self.cpu.clone().unwrap_or_else(unknown));
        fact("cores", self.logical_cores.map_or_else(unknown, |n| n.to_string()));
        if let (Some(logical), Some(physical)) = (self.logical_cores, self.physical_cores)
            && physical < logical
        {
            fact("", format!("{physical} physical: two threads of one core share its arithmetic units"));
        }
        if self.core_kinds.len() > 1 {
            self.core_kinds.iter().for_each(|kind| fact("", describe_kind(kind)));
        }
        let available = |m: &machine::Memory| m.available_bytes.map_or_else(unknown, bytes);
        let memory = self.memory.map(|m| format!("{}, {} available", bytes(m.total_bytes), available(&m)));
        fact("memory", memory.unwrap_or_else(unknown));
        fact("MARGAY_ISA", self.margay_isa.clone().unwrap_or_else(|| "not set".to_owned()));
        let rows = self.backends.iter().map(|b| vec![b.id.to_owned(), b.here.clone()]).collect();
        text += &format!("\n{}", output::table_of_words(&["backend", "here"], rows));
        let word = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
        let row = |isa: &IsaFinding| {
            vec![isa.name.to_owned(), word(isa.supported), word(isa.chosen), isa.why.to_owned()]
        };
        let rows = self.instruction_sets.iter().map(row).collect();
        text += &format!("\n{}", output::table_of_words(&["instructions", "here", "chosen", "why"], rows));
        text += &format!("\nkernels on {} threads\n", self.threads);
        for kernel in &self.kernels {
            text += &format!("  {kernel}\n");
        }
        text += &format!("\nlimits of {} instructions, measured now\n{}", self.chosen(), self.limits());
        for measured in self.measured.iter().filter(|m| m.threads > 1) {
            let (threads, microseconds) = (measured.threads, measured.barrier_microseconds);
            text += &format!("  a barrier of {threads} threads takes {microseconds:.2} microseconds\n");
        }
        text
    }

    fn chosen(&self) -> &'static str {
        self.instruction_sets.iter().find(|isa| isa.chosen).map_or("unknown", |isa| isa.name)
    }

    /// A row a limit, a column a number of threads.
    fn limits(&self) -> String {
        let threads = |n: usize| if n == 1 { "1 thread".to_owned() } else { format!("{n} threads") };
        let columns: Vec<String> = self.measured.iter().map(|m| threads(m.threads)).collect();
        let header: Vec<&str> =
            ["limit"].into_iter().chain(columns.iter().map(String::as_str)).chain(["unit", "by"]).collect();
        let all = self.measured.last().map_or(&[][..], |m| &m.limits);
        let rows = all.iter().enumerate().map(|(at, limit)| {
            let cells = self.measured.iter().map(|m| format!("{:.1}", m.limits[at].giga_per_second));
            let name = [limit.name.to_owned()].into_iter();
            name.chain(cells).chain([limit.unit, limit.how].map(str::to_owned)).collect()
        });
        output::table_of_words(&header, rows.collect())
    }
}
