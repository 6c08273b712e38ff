//! Any command line: only the time of its whole process is known.

use super::{Peer, PeerKind};
use crate::{BenchError, Plan, record::Run};
use std::process::Command;

pub(super) const KIND: PeerKind =
    PeerKind { id: "command", summary: "any command line: time of the whole process", command, told };

/// The shell reads it; what is asked stands in variables.
fn command(peer: &Peer, plan: &Plan<'_>, _: Option<usize>) -> Result<Command, BenchError> {
    let mut command = Command::new("sh");
    command.arg("-c").arg(&peer.what);
    command.env("PROMPT", &plan.prompt).env("MAX_TOKENS", plan.ask.max_tokens.to_string());
    if let Some(picture) = plan.pictures.first() {
        command.env("IMAGE", picture);
    }
    if let Some(model) = &plan.model_file {
        command.env("MODEL", model);
    }
    Ok(command)
}

fn told(_: &Peer, stdout: &str, _: &str, run: &mut Run) {
    run.text = Some(stdout.trim().to_owned());
}
