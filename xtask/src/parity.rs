//! `cargo xtask parity`: writes `docs/parity.md`, how far each family is from the published implementation at each stage.
//! The comparison is that of the tests; this runs the one that writes what it measured.

use crate::tidy::ROOT;
use anyhow::Context;
use std::process::Command;

/// Compares and writes the page. `Ok(false)` where a stage drifts, as the output tells.
///
/// # Errors
/// Where cargo cannot be run.
pub(crate) fn write() -> anyhow::Result<bool> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["test", "--quiet", "--workspace", "--test", "end_to_end_parity", "--"]);
    cargo.args(["--ignored", "--exact", "write_the_parity_table"]).current_dir(ROOT);
    Ok(cargo.status().context("cannot run cargo")?.success())
}
