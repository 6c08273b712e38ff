//! `margay doctor`: what this machine is, and which kernels it gets.

use crate::{Outcome, environment, output};
use clap::Args;
use margay::{
    BACKENDS, LoadOptions, backend,
    rooms::observe::{Root, machine, report::bytes},
};
use serde::Serialize;
use std::num::NonZeroUsize;

const AFTER_HELP: &str = "\
EXAMPLES:
  margay doctor
  margay doctor --json
  MARGAY_ISA=scalar margay doctor     what the portable kernels are";

/// Show what this machine is, and which kernels it gets
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Doctor {
    /// Threads; one per core unless given
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
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
    memory: Option<machine::Memory>,
    /// Value of `MARGAY_ISA`, where it is set.
    margay_isa: Option<String>,
    backends: Vec<BackendFinding>,
}

#[derive(Debug, Serialize)]
struct BackendFinding {
    id: &'static str,
    summary: &'static str,
    /// What it runs on here, or why it cannot.
    here: String,
}

impl Doctor {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
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
        let backends = BACKENDS.iter().map(|entry| -> anyhow::Result<BackendFinding> {
            let options = LoadOptions {
                backend: entry.id.to_owned(),
                threads: self.threads.map(NonZeroUsize::get),
                isa: margay_isa.clone(),
                ..LoadOptions::default()
            };
            let here = backend(&options)?.describe();
            Ok(BackendFinding { id: entry.id, summary: entry.summary, here })
        });
        Ok(Findings {
            backends: backends.collect::<Result<_, _>>()?,
            margay: env!("CARGO_PKG_VERSION"),
            architecture: std::env::consts::ARCH,
            system: std::env::consts::OS,
            cpu: machine::cpu_name(&root),
            logical_cores: machine::logical_cores(&root),
            memory: machine::memory(&root),
            margay_isa,
        })
    }
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
        let available = |m: &machine::Memory| m.available_bytes.map_or_else(unknown, bytes);
        let memory = self.memory.map(|m| format!("{}, {} available", bytes(m.total_bytes), available(&m)));
        fact("memory", memory.unwrap_or_else(unknown));
        fact("MARGAY_ISA", self.margay_isa.clone().unwrap_or_else(|| "not set".to_owned()));
        for (at, backend) in self.backends.iter().enumerate() {
            let title = if at == 0 { "backends" } else { "" };
            fact(title, format!("{}: {} ({})", backend.id, backend.here, backend.summary));
        }
        text
    }
}
