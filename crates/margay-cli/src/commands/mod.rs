//! The commands: one file each, one variant in [`Command`].

mod advise;
mod bench;
mod calibrate;
mod chat;
mod compare;
mod convert;
mod doctor;
mod eval;
mod inspect;
mod list;
mod observe;
mod plan;
mod prepack;
mod prune;
mod pull;
mod quantize;
mod run;
mod serve;
mod simulate;
mod tokenize;
mod trace;

use crate::{Outcome, interrupt::Interrupt};
use clap::Subcommand;

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(run::Run),
    Chat(chat::Chat),
    Serve(serve::Serve),
    Inspect(inspect::Inspect),
    List(list::List),
    Convert(convert::Convert),
    Calibrate(calibrate::Calibrate),
    Quantize(quantize::Quantize),
    Prune(prune::Prune),
    Prepack(prepack::Prepack),
    Pull(pull::Pull),
    Tokenize(tokenize::Tokenize),
    Trace(trace::Trace),
    Eval(eval::Eval),
    Compare(compare::Compare),
    Doctor(doctor::Doctor),
    Observe(observe::Observe),
    Bench(bench::Bench),
    Advise(advise::Advise),
    Simulate(simulate::Simulate),
    Plan(plan::Plan),
}

impl Command {
    /// Does it.
    pub(crate) fn run(self, interrupt: &Interrupt) -> anyhow::Result<Outcome> {
        match self {
            Command::Run(c) => c.run(interrupt),
            Command::Chat(c) => c.run(interrupt),
            Command::Serve(c) => c.run(interrupt),
            Command::Inspect(c) => c.run(),
            Command::List(c) => c.run(),
            Command::Convert(c) => c.run(interrupt),
            Command::Calibrate(c) => c.run(interrupt),
            Command::Quantize(c) => c.run(interrupt),
            Command::Prune(c) => c.run(interrupt),
            Command::Prepack(c) => c.run(interrupt),
            Command::Pull(c) => c.run(interrupt),
            Command::Tokenize(c) => c.run(),
            Command::Trace(c) => c.run(interrupt),
            Command::Eval(c) => c.run(interrupt),
            Command::Compare(c) => c.run(interrupt),
            Command::Doctor(c) => c.run(),
            Command::Observe(c) => c.run(interrupt),
            Command::Bench(c) => c.run(interrupt),
            Command::Advise(c) => c.run(),
            Command::Simulate(c) => c.run(),
            Command::Plan(c) => c.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use std::collections::BTreeSet;

    #[test]
    fn files_modules_and_subcommands_are_the_same_list() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/commands");
        let files: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .filter(|stem| stem != "mod")
            .collect();
        let modules: BTreeSet<String> = include_str!("mod.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'))
            .map(str::to_owned)
            .collect();
        let cli = crate::Cli::command();
        let commands: BTreeSet<String> = cli.get_subcommands().map(|c| c.get_name().to_owned()).collect();
        assert_eq!(files, modules);
        assert_eq!(files, commands);
    }
}
