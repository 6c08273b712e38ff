//! `cargo xtask test`: every test of the workspace, and one closing line with the totals.
//!
//! Runs with cargo-nextest where it is installed and with `cargo test` where it is not, then the doctests, which
//! nextest does not know. All in the dev profile: dependencies are optimised there, and the workspace's own crates enough
//! for their tests, while building takes a fraction of the release profile's time.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, bail};

/// Tests counted in the output of a runner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Totals) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Runs the suite. `Ok(false)` where a test failed.
///
/// # Errors
/// Where a test could not be built or run, so that there is no total to speak of.
pub(crate) fn run() -> anyhow::Result<bool> {
    let with_nextest = cargo(&["nextest", "--version"]).output().is_ok_and(|output| output.status.success());
    let suite: &[&str] = if with_nextest {
        &["nextest", "run", "--workspace", "--no-fail-fast"]
    } else {
        &["test", "--workspace", "--no-fail-fast", "--lib", "--bins", "--tests", "--examples"]
    };
    let doctests = &["test", "--workspace", "--no-fail-fast", "--doc"];

    let mut totals = Totals::default();
    let mut every_run_succeeded = true;
    for arguments in [suite, doctests] {
        let (success, counted) = run_counted(arguments)?;
        // A runner that fails without a failed test did not get as far as running: a build error, for instance.
        if !success && counted.failed == 0 {
            bail!("`cargo {}` failed before its tests ran, see above", arguments.join(" "));
        }
        every_run_succeeded &= success;
        totals += counted;
    }
    if totals.skipped > 0 {
        println!("{} ignored", totals.skipped);
    }
    println!("{} passed, {} failed", totals.passed, totals.failed);
    Ok(every_run_succeeded && totals.failed == 0)
}

/// Runs cargo, shows its output line by line and counts what the lines report.
fn run_counted(arguments: &[&str]) -> anyhow::Result<(bool, Totals)> {
    println!("$ cargo {}", arguments.join(" "));
    let mut child = cargo(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `cargo {}`", arguments.join(" ")))?;
    let errors = child.stderr.take().context("invariant: stderr was piped")?;
    let output = child.stdout.take().context("invariant: stdout was piped")?;
    let errors = thread::spawn(move || count(errors, |line| eprintln!("{line}")));
    let mut totals = count(output, |line| println!("{line}"))?;
    totals += errors.join().map_err(|_| anyhow::anyhow!("the reader of stderr panicked"))??;
    Ok((child.wait()?.success(), totals))
}

fn cargo(arguments: &[&str]) -> Command {
    // The cargo that runs this program, so that a toolchain override holds for its children.
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(crate::tidy::ROOT);
    command
}

fn count(stream: impl Read, show: impl Fn(&str)) -> anyhow::Result<Totals> {
    let mut totals = Totals::default();
    for line in BufReader::new(stream).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        show(&line);
        totals += reported(&line).unwrap_or_default();
    }
    Ok(totals)
}

/// The totals that a closing line of either runner reports, or `None` for any other line.
///
/// `test result: ok. 9 passed; 0 failed; 1 ignored; 0 measured; ...` and
/// `     Summary [   0.5s] 20 tests run: 18 passed (1 slow), 1 failed, 1 timed out, 3 skipped`.
fn reported(line: &str) -> Option<Totals> {
    // An indented `test result` is nextest quoting a failed test, which its summary counts as well.
    let counts = if line.starts_with("test result: ") {
        line.split_once(". ")?.1
    } else if line.trim_start().starts_with("Summary [") {
        line.split_once("run: ")?.1
    } else {
        return None;
    };
    let mut totals = Totals::default();
    for part in counts.split([',', ';']) {
        let Some((number, what)) = part.trim().split_once(' ') else { continue };
        let Ok(number) = number.parse::<u64>() else { continue };
        match what.split(' ').next()? {
            "passed" => totals.passed += number,
            "failed" | "timed" | "exec" => totals.failed += number,
            "skipped" | "ignored" => totals.skipped += number,
            _ => {}
        }
    }
    Some(totals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_of_both_runners_are_counted() {
        let totals = |passed, failed, skipped| Some(Totals { passed, failed, skipped });
        for (line, expected) in [
            (
                "test result: ok. 9 passed; 0 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.09s",
                totals(9, 0, 1),
            ),
            ("test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured", totals(2, 3, 0)),
            ("     Summary [   0.5s] 7 tests run: 7 passed, 2 skipped", totals(7, 0, 2)),
            (
                "     Summary [  61.0s] 9/12 tests run: 6 passed (1 slow), 1 failed, 1 timed out, 1 exec failed, 0 skipped",
                totals(6, 3, 0),
            ),
            ("    test result: FAILED. 0 passed; 1 failed; 0 ignored", None),
            ("test decodes_9_passed ... ok", None),
        ] {
            assert_eq!(reported(line), expected, "{line}");
        }
    }

    #[test]
    fn a_stream_is_shown_and_summed() {
        let text = "test result: ok. 2 passed; 0 failed\nnoise\ntest result: FAILED. 1 passed; 4 failed";
        let shown = std::cell::Cell::new(0);
        let totals = count(text.as_bytes(), |_| shown.set(shown.get() + 1)).unwrap();
        assert_eq!(totals, Totals { passed: 3, failed: 4, skipped: 0 });
        assert_eq!(shown.get(), 3);
    }
}
