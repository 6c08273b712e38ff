//! `margay bench`: records, comparisons, gates and their exit codes.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

mod program;

use program::{run, word};
use serde_json::Value;

const STREET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/images/street.png");

/// Short rounds, enough of them for a gate.
fn short(more: &[&str]) -> Vec<String> {
    let words = [
        "bench",
        "--image",
        STREET,
        "--max-tokens",
        "3",
        "--repeat",
        "4",
        "--warmup",
        "0",
        "--idle",
        "100ms",
    ];
    words.iter().chain(["--cool-limit", "0s"].iter()).chain(more).map(|word| (*word).to_owned()).collect()
}

#[test]
fn a_record_is_compared_and_gated() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| word(folder.path(), name);
    let (a, html, trace) = (file("a.json"), file("a.html"), file("a.trace.json"));
    let peer = "command=printf %s \"$PROMPT\"";
    let text = run(short(&["--out", &a, "--html", &html, "--trace", &trace, "--peer", peer])).ok();
    for part in [
        "with load",
        "without load",
        "first token",
        "each token",
        "frames of 60 Hz",
        "slice-encode",
        "command",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let record: Value = serde_json::from_slice(&std::fs::read(&a).unwrap()).unwrap();
    assert_eq!(record["engines"][0]["runs"].as_array().unwrap().len(), 8);
    assert_eq!(record["engines"][1]["runs"][0]["text"], "What is in this picture?");
    assert_eq!(record["build"]["executable_sha256"].as_str().unwrap().len(), 64);
    assert!(std::fs::read_to_string(&html).unwrap().contains("prefers-color-scheme"));
    let _: Value = serde_json::from_slice(&std::fs::read(&trace).unwrap()).unwrap();

    let compared = run(["bench", "compare", &a, &a, "--json"]).json();
    assert!(compared["lines"].as_array().unwrap().iter().all(|line| line["worse"].is_null()), "{compared}");

    // A baseline whose encoder took no time is broken by any; one that took for ever by none.
    let scaled = |name: &str, factor: f64| {
        let mut record = record.clone();
        for run in record["engines"][0]["runs"].as_array_mut().unwrap() {
            let stages = run["stages"].as_object_mut().unwrap();
            for ms in stages.values_mut().filter(|ms| ms.is_number()) {
                *ms = (ms.as_f64().unwrap() * factor).into();
            }
            for key in ["with_load_ms", "without_load_ms", "ttft_ms"] {
                // What is null stays so: warm runs load nothing.
                run[key] = run[key].as_f64().map_or(Value::Null, |ms| (ms * factor).into());
            }
        }
        std::fs::write(file(name), record.to_string()).unwrap();
        file(name)
    };
    let fast = run(short(&["--gate", &scaled("fast.json", 0.01)]));
    assert_eq!(fast.code, Some(3), "{}", fast.stderr);
    assert!(fast.stderr.contains("--gate is broken: encode takes"), "{}", fast.stderr);
    let slow = run(short(&["--gate", &scaled("slow.json", 100.0)]));
    assert_eq!(slow.code, Some(0), "{}", slow.stderr);
    assert!(slow.stderr.contains("gate passed"), "{}", slow.stderr);

    let words = [
        "bench",
        "--prompt",
        "other",
        "--max-tokens",
        "3",
        "--repeat",
        "4",
        "--warmup",
        "0",
        "--idle",
        "50ms",
    ];
    let other = file("other.json");
    run(words.iter().copied().chain(["--out", &other])).ok();
    run(["bench", "compare", &a, &other]).fails(1, &["prompt", "--force"]);
    assert!(run(["bench", "compare", &a, &other, "--force"]).ok().contains("forced: the prompt differs"));
}

#[test]
fn what_is_wrong_is_said_before_anything_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let garbage = word(folder.path(), "garbage.json");
    std::fs::write(&garbage, "{\"form\": \"margay-bench/1\"}").unwrap();
    run(["bench", "compare", &garbage, &garbage]).fails(1, &["garbage.json", "missing field"]);
    run(short(&["--gate", &garbage])).fails(1, &["garbage.json", "missing field"]);
    run(["bench", "compare", "no-such.json", &garbage]).fails(1, &["no-such.json"]);
    run(["bench", "--peer", "ollama=x"]).fails(2, &["llama.cpp, command"]);
    run(["bench", "--image", "no-such.png"]).fails(1, &["no-such.png"]);
    run(["bench", "--peer", "llama.cpp=mtmd", "--image", STREET]).fails(1, &["GGUF"]);
}
