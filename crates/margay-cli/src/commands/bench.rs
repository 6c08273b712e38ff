//! `margay bench`: how fast this machine is, and how near its limits.

mod kernels;
mod stages;

use crate::Outcome;
use clap::{Args, Subcommand};

const AFTER_HELP: &str = "\
EXAMPLES:
  margay bench stages model.gguf
  margay bench kernels --quick
  margay bench kernels --filter gemm/q4_0 --threads 1";

/// Measure how near this machine's limits Margay comes
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Kernels(kernels::Kernels),
    Stages(stages::Stages),
}

impl Bench {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        match self.what {
            What::Kernels(kernels) => kernels.run(),
            What::Stages(stages) => stages.run(),
        }
    }
}
