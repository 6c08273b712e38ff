//! llama.cpp's `llama-bench`: a prompt of as many tokens as Margay's and as many tokens of answer, both of the text side alone.
//!
//! Source: llama.cpp `tools/llama-bench/llama-bench.cpp` (`-o json`: an array of tests with `n_prompt`, `n_gen` and `avg_ns`, the
//! mean of `-r` repetitions behind one that warms up). Loading is not told, and decoding begins from an empty context.

use super::{Peer, PeerKind, needs_gguf, split};
use crate::{BenchError, Plan, record::Run};
use serde::Deserialize;
use std::process::Command;

pub(super) const KIND: PeerKind = PeerKind {
    id: "llama-bench",
    summary: "llama.cpp's llama-bench: prompt and answer of the text side",
    command,
    told,
};

fn command(peer: &Peer, plan: &Plan<'_>, prompt_tokens: Option<usize>) -> Result<Command, BenchError> {
    let (path, more) = split(peer)?;
    let mut command = Command::new(path);
    if !more.iter().any(|word| ["-m", "--model"].contains(word)) {
        command.arg("-m").arg(needs_gguf(peer, plan)?);
    }
    if let Some(threads) = plan.threads
        && !more.iter().any(|word| ["-t", "--threads"].contains(word))
    {
        command.arg("-t").arg(threads.to_string());
    }
    // Until Margay has answered once nobody knows how long the prompt is, and then nothing is run.
    command.arg("-p").arg(prompt_tokens.unwrap_or(512).to_string());
    // As many as are decoded: the first comes with the prompt.
    command.arg("-n").arg(plan.ask.max_tokens.saturating_sub(1).max(1).to_string());
    command.args(["-r", "1", "-o", "json"]).args(more);
    Ok(command)
}

/// What is read of a test.
#[derive(Deserialize)]
struct Test {
    n_prompt: usize,
    n_gen: usize,
    avg_ns: f64,
}

fn told(_: &Peer, stdout: &str, _: &str, run: &mut Run) {
    // The whole process warms up as well, which no answer does.
    run.with_load_ms = None;
    let Ok(tests) = serde_json::from_str::<Vec<Test>>(stdout) else { return };
    for test in tests.iter().filter(|test| test.avg_ns.is_finite() && test.avg_ns >= 0.0) {
        match (test.n_prompt, test.n_gen) {
            (tokens @ 1.., 0) => {
                (run.stages.prefill, run.prompt_tokens) = (Some(test.avg_ns / 1e6), Some(tokens));
            }
            (0, tokens @ 1..) => {
                (run.stages.decode, run.decode_tokens) = (Some(test.avg_ns / 1e6), Some(tokens));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program writes (llama.cpp as of llama-cpp-python 0.3.36) of a model of random weights.
    const JSON: &str = include_str!("../../tests/data/llama-bench.json");

    fn peer() -> Peer {
        Peer::parse("llama-bench=llama-bench").unwrap()
    }

    #[test]
    fn prompt_and_answer_are_read_and_what_is_no_json_is_unknown() {
        let mut run = Run { with_load_ms: Some(9.0), ..Run::default() };
        told(&peer(), JSON, "", &mut run);
        let tests: serde_json::Value = serde_json::from_str(JSON).unwrap();
        let ns = |at: usize| tests[at]["avg_ns"].as_f64().unwrap() / 1e6;
        assert_eq!((run.stages.prefill, run.prompt_tokens), (Some(ns(0)), Some(48)));
        assert_eq!((run.stages.decode, run.decode_tokens), (Some(ns(1)), Some(7)));
        assert_eq!((run.with_load_ms, run.without_load_ms), (None, None));
        for text in
            ["", "[", "{}", "[{\"n_prompt\": 1}]", "[{\"n_prompt\": 5, \"n_gen\": 0, \"avg_ns\": -1}]"]
        {
            let mut run = Run::default();
            told(&peer(), text, "", &mut run);
            assert_eq!(run, Run::default(), "{text}");
        }
    }
}
