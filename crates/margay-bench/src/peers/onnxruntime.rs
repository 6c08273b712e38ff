//! onnxruntime: a vision encoder as an ONNX file, run by its Python package on inputs of the declared shapes.

use super::{Peer, PeerKind, split};
use crate::{BenchError, Plan, record::Run};
use serde::Deserialize;
use std::process::Command;

pub(super) const KIND: PeerKind = PeerKind {
    id: "onnxruntime",
    summary: "a vision encoder as an ONNX file, through onnxruntime's Python package",
    command,
    told,
};

/// Loads, runs once to warm up, and once for the time.
const SCRIPT: &str = include_str!("onnxruntime.py");

/// The file, then the Python that has the package.
fn command(peer: &Peer, plan: &Plan<'_>, _: Option<usize>) -> Result<Command, BenchError> {
    let fail = |what: &str| BenchError::Peer { spec: format!("{peer:?}"), what: what.to_owned() };
    let (path, more) = split(peer)?;
    if !path.ends_with(".onnx") {
        return Err(fail(
            "an ONNX file is expected, and behind it, if need be, the Python that has onnxruntime",
        ));
    }
    if plan.pictures.is_empty() {
        return Err(fail("it encodes a picture, and none is asked about"));
    }
    let mut command = Command::new(more.first().unwrap_or(&"python3"));
    command.arg("-c").arg(SCRIPT).arg(path);
    command.arg(plan.threads.unwrap_or(0).to_string());
    Ok(command)
}

/// What the script says.
#[derive(Deserialize)]
struct Said {
    load_ms: f64,
    encode_ms: f64,
}

fn told(_: &Peer, stdout: &str, _: &str, run: &mut Run) {
    // The whole process warms up as well, which no answer does.
    run.with_load_ms = None;
    let said = stdout.lines().rev().find_map(|line| serde_json::from_str::<Said>(line).ok());
    if let Some(said) = said {
        (run.stages.load, run.stages.encode) = (Some(said.load_ms), Some(said.encode_ms));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> Peer {
        Peer::parse("onnxruntime=a.onnx").unwrap()
    }

    #[test]
    fn its_last_line_of_json_is_read() {
        let mut run = Run { with_load_ms: Some(9.0), ..Run::default() };
        told(&peer(), "a warning\n{\"load_ms\": 20.5, \"encode_ms\": 300.25}\n", "", &mut run);
        assert_eq!((run.stages.load, run.stages.encode), (Some(20.5), Some(300.25)));
        assert_eq!(run.with_load_ms, None);
        let mut run = Run::default();
        told(&peer(), "{\"load_ms\": 20.5}\n", "", &mut run);
        assert_eq!(run, Run::default());
    }
}
