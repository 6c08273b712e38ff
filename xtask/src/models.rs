//! `cargo xtask models`: writes `docs/models.md` from the registry of families, as the command line prints it. A test of
//! the command line compares the two.

use crate::tidy::ROOT;
use anyhow::{Context, ensure};
use std::{path::Path, process::Command};

/// Writes the page.
///
/// # Errors
/// Where the command line cannot be built or the page not be written.
pub(crate) fn write() -> anyhow::Result<bool> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--quiet", "--package", "margay-cli", "--", "list", "--markdown"]).current_dir(ROOT);
    let output = cargo.output().context("cannot run cargo")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    std::fs::write(Path::new(ROOT).join("docs/models.md"), output.stdout)
        .context("cannot write docs/models.md")?;
    Ok(true)
}
