//! `margay doctor`
use crate::Outcome;
use clap::Args;

/// Show what this machine can do
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        Ok(Outcome::Done)
    }
}
