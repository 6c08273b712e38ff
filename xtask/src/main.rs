//! Project chores, run as `cargo xtask COMMAND`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command speaks to the person who typed it")]

mod instructions;
mod models;
mod parity;
mod suite;
mod tidy;

use std::process::ExitCode;

/// A chore: its name, what it does, and the function that does it. `Ok(false)` is a chore that found fault.
type Command = (&'static str, &'static str, fn() -> anyhow::Result<bool>);

const COMMANDS: &[Command] = &[
    ("test", "run every test of the workspace, doctests included", suite::run),
    ("tidy", "check the rules of the house (part of `test`, too)", tidy::run),
    ("models", "write docs/models.md from the registry of families", models::write),
    ("parity", "compare every family with its original, and write docs/parity.md", parity::write),
    (
        "instructions",
        "count each stage's instructions under valgrind, and fail where they grew",
        instructions::check,
    ),
    ("note-instructions", "note what `instructions` counts as the new measure", instructions::note),
];

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let command = COMMANDS.iter().find(|command| wanted == [command.0]);
    let Some((name, _, run)) = command else {
        eprintln!("usage: cargo xtask COMMAND");
        for (name, what, _) in COMMANDS {
            eprintln!("  {name:17} {what}");
        }
        return ExitCode::from(2);
    };
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cargo xtask {name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
