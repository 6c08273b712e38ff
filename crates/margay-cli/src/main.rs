//! The margay command: parses, calls, prints.
//!
//! One file per command in `commands/`. This is the only room that reads the environment and writes to the terminal;
//! both happen in few places: `output` and `progress` write, `environment` reads.
#![forbid(unsafe_code)]

mod answering;
mod commands;
mod environment;
mod gantt;
mod hub;
mod interrupt;
mod judging;
mod limits;
mod memory;
mod messages;
mod model;
mod output;
mod progress;
mod questions;
mod recorded;
mod sketch;
mod stats;
mod watching;
mod words;
mod written;

use clap::Parser;
use commands::Command;
use interrupt::Interrupt;
use output::Closed;
use std::process::ExitCode;

/// Exit codes, as `margay --help` documents them.
mod code {
    pub(crate) const FAILURE: u8 = 1;
    pub(crate) const USAGE: u8 = 2;
    pub(crate) const LIMIT: u8 = 3;
    pub(crate) const INTERRUPTED: u8 = 130;
}

/// How a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It did what it was asked to.
    Done,
    /// Ctrl-C stopped it.
    Interrupted,
    /// What was measured breaks a limit that was set.
    LimitBroken,
}

/// Words that do not fit together; ends with the usage code rather than the failure code.
#[derive(Debug)]
struct Usage(String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

const AFTER_HELP: &str = "\
EXAMPLES:
  margay run street.png \"What does the sign say?\"   ask the built-in model about a picture
  margay run model.gguf street.png --stats          ask a model of your own, and see the stage times
  margay chat model.gguf                            talk in the terminal
  margay serve model.gguf                           answer over HTTP, with a page to ask from
  margay convert ./llava-1.5-7b -o llava.gguf --type q4_k
  margay compare ./llava-1.5-7b llava.gguf --images photos --max-kl 0.05

MODELS:
  A GGUF file (its mmproj is found beside it), a Hugging Face folder, hf:OWNER/REPO[:FILE] for a model
  of a hub (see `margay pull --help`), or nothing for the built-in margay-nano.

EXIT CODES:
  0    done
  1    the model, a file or an input was at fault; one line on stderr says what and why
  2    the command line, or a variable below, was at fault
  3    what was measured breaks a limit that was set (margay compare --max-kl, --max-drop; margay bench --gate)
  130  interrupted with Ctrl-C

ENVIRONMENT:
  MARGAY_ISA   scalar, avx2, avxvnni, avx512, neon, dotprod or i8mm: use these kernels, not the best ones
  NO_COLOR     set to anything: no colours
  MARGAY_API_KEY   the key that callers of `margay serve` have to send
  HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE: see `margay pull --help`";

/// Ask a picture a question, on the device you already own.
#[derive(Debug, Parser)]
#[command(name = "margay", version, max_term_width = 100, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = Interrupt::install().and_then(|interrupt| cli.command.run(&interrupt));
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Interrupted) => ExitCode::from(code::INTERRUPTED),
        Ok(Outcome::LimitBroken) => ExitCode::from(code::LIMIT),
        // Whoever reads our output has enough: `margay ... | head -1`.
        Err(e) if e.is::<Closed>() => ExitCode::SUCCESS,
        Err(e) => {
            output::error(&e);
            ExitCode::from(if is_usage(&e) { code::USAGE } else { code::FAILURE })
        }
    }
}

/// True where what was typed was at fault, not a model or a file.
fn is_usage(error: &anyhow::Error) -> bool {
    let asked = error.downcast_ref::<margay::Error>();
    error.is::<Usage>() || matches!(asked, Some(margay::Error::Option { .. } | margay::Error::Unknown { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
