//! `margay bench compare`: what changed between two records, and whether that is too much.

use crate::{Outcome, output};
use clap::Args;
use margay_bench::{Broken, Comparison, Record, compare, report::comparison_text};
use std::path::PathBuf;

const AFTER_HELP: &str = "\
EXAMPLES:
  margay bench compare before.json after.json
  margay bench compare before.json after.json --json
  margay bench compare phone.json laptop.json         says that the devices differ
  margay bench compare q8.json q4.json --force        another model: refused unless forced

A difference counts where the 95 % interval of the ratio of medians (bootstrap, seeded) leaves 1 out and the ranks (Mann
and Whitney, exact) have a chance of at most 5 %. Fewer than 4 runs a side cannot show one.";

/// Compare two records of `margay bench --out`: what changed beyond noise
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Compare {
    /// The first record
    #[arg(value_name = "A.json")]
    a: PathBuf,
    /// The second record
    #[arg(value_name = "B.json")]
    b: PathBuf,
    /// Compare records of different models, prompts or pictures all the same
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Compare {
    pub(crate) fn run(&self) -> anyhow::Result<Outcome> {
        let (a, b) = (Record::read(&self.a)?, Record::read(&self.b)?);
        let comparison = compare(&a, &b, self.force)?;
        if self.json {
            output::json(&comparison)?;
        } else {
            output::text(&output::harmless(&comparison_text(&comparison)))?;
        }
        Ok(Outcome::Done)
    }
}

/// Tells whether a record passes against a baseline; false where a figure is worse beyond noise and by more than `percent`.
pub(crate) fn passes(baseline: &Record, record: &Record, percent: f64) -> anyhow::Result<bool> {
    let comparison = compare(baseline, record, false)?;
    output::note(&format!(
        "\ngate: A is the baseline, B is this\n{}",
        output::harmless(&comparison_text(&comparison))
    ));
    // Work is counted: it needs no rounds.
    if comparison.says_nothing() && comparison.more_work().next().is_none() {
        anyhow::bail!("the gate can say nothing: it needs 4 rounds in the baseline and in this record");
    }
    let more: Vec<_> = comparison.more_work().collect();
    for work in &more {
        output::note(&format!(
            "margay: --gate is broken: {} does {} {}, the baseline {}",
            work.stage, work.b, work.of, work.a
        ));
    }
    let broken = comparison.broken(percent);
    broken.iter().for_each(|broken| output::note(&words(broken, percent)));
    let passes = broken.is_empty() && more.is_empty();
    if passes {
        output::note(&passed(&comparison, percent));
    }
    Ok(passes)
}

fn words(broken: &Broken, percent: f64) -> String {
    let (low, high) = broken.interval;
    format!(
        "margay: --gate is broken: {} takes {:.2} times the baseline (within {low:.2} to {high:.2}), more than {percent} % over it",
        broken.name, broken.ratio
    )
}

fn passed(comparison: &Comparison, percent: f64) -> String {
    let worse = comparison.lines.iter().filter(|line| line.worse == Some(true)).count();
    match worse {
        0 => format!("gate passed: nothing is slower beyond noise and over {percent} %"),
        worse => format!(
            "gate passed: nothing that it looks at is more than {percent} % slower, though {worse} figures are worse"
        ),
    }
}
