//! `cargo xtask instructions`: instructions of small fixed workloads, stage by stage, held against those noted in
//! `bench/instructions.txt`. Counts are the same on every machine with the same kernels, however busy it is, so that a
//! slower kernel is seen where times would be noise. valgrind shows programs a processor with AVX2 and no AVX-512.

use anyhow::{Context, bail};
use std::{fmt::Write, path::PathBuf, process::Command};

/// Percent that a stage may cost more than noted.
const TOLERANCE: u64 = 10;
const NOTES: &str = "bench/instructions.txt";

/// A stage: the function that is it, and how many tokens are answered.
struct Stage {
    name: &'static str,
    function: &'static str,
    tokens: u32,
    /// Tokens of a second run whose count is taken off.
    less: Option<u32>,
}

const STAGES: [Stage; 4] = [
    Stage { name: "encode", function: "margay::engine::Engine::encode", tokens: 1, less: None },
    Stage { name: "project", function: "margay::engine::Engine::project", tokens: 1, less: None },
    Stage { name: "prefill", function: "margay::engine::Engine::run_text", tokens: 1, less: None },
    // 16 tokens of a description.
    Stage { name: "decode", function: "margay::engine::Engine::run_text", tokens: 17, less: Some(1) },
];

/// Compares with the notes. `Ok(false)` where a stage costs more than allowed.
///
/// # Errors
/// Where the program cannot be built or valgrind is missing.
pub(crate) fn check() -> anyhow::Result<bool> {
    let path = root()?.join(NOTES);
    let noted = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let counted = count()?;
    let (table, good) = compare(&noted, &counted)?;
    print!("{table}");
    if !good {
        println!(
            "a stage takes over {}% more instructions than noted: make it cheaper, or say why",
            TOLERANCE
        );
        println!("in the change and note the new counts with `cargo xtask note-instructions`");
    }
    Ok(good)
}

/// Writes the notes anew.
///
/// # Errors
/// As [`check`].
pub(crate) fn note() -> anyhow::Result<bool> {
    let mut text = String::new();
    for (name, count) in count()? {
        writeln!(text, "{name} {count}")?;
    }
    std::fs::write(root()?.join(NOTES), &text)?;
    print!("{text}");
    Ok(true)
}

fn root() -> anyhow::Result<PathBuf> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    Ok(here.parent().context("xtask lies in the workspace")?.to_owned())
}

/// The stages beside what was noted of them, and whether all are within the tolerance.
fn compare(noted: &str, counted: &[(&str, u64)]) -> anyhow::Result<(String, bool)> {
    let mut table = format!("{:8} {:>15} {:>15} {:>8}\n", "stage", "noted", "now", "change");
    let mut good = true;
    for (name, now) in counted {
        let before = noted.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let before: u64 = before.with_context(|| format!("{NOTES} has no {name}"))?.trim().parse()?;
        let change = *now as f64 / before as f64 - 1.0;
        good &= u128::from(*now) * 100 <= u128::from(before) * u128::from(100 + TOLERANCE);
        writeln!(table, "{name:8} {before:>15} {now:>15} {:>+7.1}%", 100.0 * change)?;
    }
    Ok((table, good))
}

fn count() -> anyhow::Result<Vec<(&'static str, u64)>> {
    let root = root()?;
    let built = Command::new(env!("CARGO"))
        .args(["build", "--workspace", "--bin", "margay"])
        .current_dir(&root)
        .status()?;
    if !built.success() {
        bail!("the program does not build");
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let program = target.join("debug/margay");
    let run = |function: &str, tokens: u32| -> anyhow::Result<u64> {
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(format!("--toggle-collect={function}"))
            .arg(&program)
            .args(["run", "examples/images/street.png", "--threads", "1", "--temperature", "0"])
            .args(["--max-tokens", &tokens.to_string()])
            .env_remove("MARGAY_ISA")
            .current_dir(&root)
            .output()
            .context("cannot start valgrind: install it")?;
        let said = String::from_utf8_lossy(&output.stderr);
        let collected = said.lines().find_map(|line| line.split_once("Collected :")).map(|(_, n)| n.trim());
        match collected.map(str::parse::<u64>) {
            Some(Ok(count)) if count > 0 && output.status.success() => Ok(count),
            _ => bail!("no count of {function}:\n{said}"),
        }
    };
    STAGES
        .iter()
        .map(|stage| {
            let less = stage.less.map(|tokens| run(stage.function, tokens)).transpose()?.unwrap_or(0);
            Ok((stage.name, run(stage.function, stage.tokens)?.saturating_sub(less)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_a_tenth_is_too_much_and_less_is_welcome() {
        let noted = "encode 1000\ndecode 50\n";
        let (table, good) = compare(noted, &[("encode", 1100), ("decode", 20)]).unwrap();
        assert!(good && table.contains("+10.0%") && table.contains("-60.0%"), "{table}");
        assert!(!compare(noted, &[("encode", 1101)]).unwrap().1);
        assert!(compare(noted, &[("prefill", 1)]).unwrap_err().to_string().contains("no prefill"));
    }
}
