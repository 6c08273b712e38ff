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
    let text = run(short(&["--out", &a, "--html", &html, "--trace", &trace, "--ops", "--peer", peer])).ok();
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
    let trace: Value = serde_json::from_slice(&std::fs::read(&trace).unwrap()).unwrap();
    let slices = |category: &str| -> Vec<(f64, f64)> {
        let events = trace["traceEvents"].as_array().unwrap().iter().filter(|event| event["cat"] == category);
        let number = |event: &Value, key: &str| event[key].as_f64().unwrap();
        events.map(|event| (number(event, "ts"), number(event, "ts") + number(event, "dur"))).collect()
    };
    let (stages, ops) = (slices("stage"), slices("op"));
    assert!(ops.len() > 100, "{} ops", ops.len());
    for (from, to) in ops {
        assert!(
            stages.iter().any(|stage| stage.0 - 1.0 <= from && to <= stage.1 + 1.0),
            "an op of no stage at {from}"
        );
    }

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
fn a_shape_is_measured_with_random_weights_that_are_gone_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let out = word(folder.path(), "run.json");
    let mut command = program::margay();
    let words = [
        "bench",
        "--shape",
        "smolvlm-256m",
        "--type",
        "q4_0",
        "--prompt",
        "What is this?",
        "--max-tokens",
        "2",
        "--repeat",
        "1",
        "--warmup",
        "0",
        "--idle",
        "50ms",
        "--context",
        "128",
        "--out",
        &out,
        "--ops",
    ];
    command.args(words).env("TMPDIR", folder.path());
    let ran = program::finish(&mut command, "");
    assert!(ran.stderr.contains("of random weights") && ran.stderr.contains("removed"), "{}", ran.stderr);
    let text = ran.ok().split_whitespace().collect::<Vec<_>>().join(" ");
    for part in
        ["weights are random", "weights random (shape smolvlm-256m:q4_0", "decode of 8 tokens, op by op"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["run.json"], "the weights are gone");
    let record: Value = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
    let inspected = run(["inspect", "shape:smolvlm-256m:q4_0", "--json"]).json();
    let parts = inspected["weights"].as_array().unwrap();
    let all = parts.iter().find(|part| part["stage"] == "all").unwrap();
    assert_eq!(record["model"]["weights_bytes"], all["bytes"], "what a file of that model would take");
    let stages: Vec<_> = record["work"].as_array().unwrap().iter().map(|w| &w["stage"]).collect();
    assert_eq!(stages, ["prefill", "decode"]);
    assert!(record["ops"][0]["ops"][0]["ms"].as_f64() > Some(0.0));
    assert!(record["engines"][0]["runs"][1]["stages"]["text_prefill"].is_number());

    // A stage that does one operation more than the baseline breaks the gate, without any round to compare.
    let mut less = record.clone();
    let prefill = &mut less["work"][0]["operations"];
    *prefill = (prefill.as_u64().unwrap() - 1).into();
    std::fs::write(word(folder.path(), "less.json"), less.to_string()).unwrap();
    let compared = run(["bench", "compare", &word(folder.path(), "less.json"), &out, "--json"]).json();
    assert_eq!(compared["work"][0]["stage"], "prefill", "{compared}");

    for (words, part) in [
        (&["bench", "--shape", "llava-9"][..], "llava-1.5-7b"),
        (&["bench", "--shape", "phi-2:q4_0", "--type", "q8_0"], "one too many"),
    ] {
        run(words).fails(2, &[part]);
    }
    let both = run(["bench", "model.gguf", "--shape", "phi-2"]);
    assert!(both.code == Some(2) && both.stderr.contains("cannot be used with"), "{}", both.stderr);
    // 2^24 tokens of keys and values of a 7B model are 8 TiB.
    run(["bench", "--shape", "llama-2-7b", "--context", "16777216"]).fails(1, &["memory", "context"]);
}

#[test]
fn a_gate_is_broken_by_work_that_the_baseline_did_not_do() {
    let folder = tempfile::tempdir().unwrap();
    let baseline = word(folder.path(), "a.json");
    run(short(&["--out", &baseline])).ok();
    let mut record: Value = serde_json::from_slice(&std::fs::read(&baseline).unwrap()).unwrap();
    for run in record["engines"][0]["runs"].as_array_mut().unwrap() {
        // However slow the baseline was.
        for ms in run["stages"].as_object_mut().unwrap().values_mut().filter(|ms| ms.is_number()) {
            *ms = (ms.as_f64().unwrap() * 100.0).into();
        }
    }
    let operations = &mut record["work"][0]["operations"];
    *operations = (operations.as_u64().unwrap() - 2).into();
    std::fs::write(&baseline, record.to_string()).unwrap();
    let gated = run(short(&["--gate", &baseline]));
    assert_eq!(gated.code, Some(3), "{}", gated.stderr);
    assert!(gated.stderr.contains("--gate is broken: encode does"), "{}", gated.stderr);
}

#[test]
fn a_record_is_advised_on_and_simulated_beside() {
    let folder = tempfile::tempdir().unwrap();
    let (record, me) = (word(folder.path(), "run.json"), word(folder.path(), "me.toml"));
    run(short(&["--out", &record])).ok();
    let text = run(["advise", &record]).ok();
    assert!(text.contains("margay-nano on") && text.contains("not told"), "{text}");
    let json = run(["advise", &record, "--json"]).json();
    assert!(json["advised"]["fine"].is_array() && json["model"] == "margay-nano", "{json}");
    let garbage = word(folder.path(), "garbage.json");
    std::fs::write(&garbage, "{\"form\": 3}").unwrap();
    run(["advise", &garbage]).fails(1, &["garbage.json", "no record"]);
    run(["advise", "no-such.json"]).fails(1, &["no-such.json"]);
    let alone = run(["advise", &record, "--device", "tablet"]);
    assert!(alone.code == Some(2) && alone.stderr.contains("--model"), "{}", alone.stderr);

    let wrote = run(["doctor", "--profile", "-o", &me]);
    assert!(wrote.stderr.contains("measured now"), "{}", wrote.stderr);
    wrote.ok();
    let numbers = run(["simulate", "--device", &me, "--numbers"]).ok();
    assert!(numbers.contains("measured by margay doctor, 20"), "{numbers}");
    let beside =
        run(["simulate", "--device", &me, "--model", "margay-nano", "--beside", &record, "--json"]).json();
    let stages: Vec<_> = beside["stages"].as_array().unwrap().iter().map(|s| s["stage"].clone()).collect();
    assert_eq!(stages, ["load (cold)", "encode", "project", "prefill", "decode"]);
    for stage in beside["stages"].as_array().unwrap() {
        assert!(stage["simulated_ms"].as_f64() > Some(0.0) && stage["measured_ms"].as_f64() > Some(0.0));
    }
    let priced =
        run(["advise", &record, "--device", "oneplus-13r", "--model", "margay-nano", "--json"]).json();
    let told = priced.to_string();
    assert!(told.contains("\"gpu\"") && !told.contains("give --device"), "{told}");
    run(["plan", "--device", &me, "--model", "smolvlm-256m:q8_0", "--json"]).json();
}

#[test]
fn what_is_wrong_is_said_before_anything_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let garbage = word(folder.path(), "garbage.json");
    std::fs::write(&garbage, "{\"form\": \"margay-bench/1\"}").unwrap();
    run(["bench", "compare", &garbage, &garbage]).fails(1, &["garbage.json", "missing field"]);
    run(short(&["--gate", &garbage])).fails(1, &["garbage.json", "missing field"]);
    run(["bench", "compare", "no-such.json", &garbage]).fails(1, &["no-such.json"]);
    run(["bench", "--peer", "ollama=x"]).fails(2, &["llama.cpp, llama-bench, onnxruntime, command"]);
    run(["bench", "--image", "no-such.png"]).fails(1, &["no-such.png"]);
    run(["bench", "--peer", "llama.cpp=mtmd", "--image", STREET]).fails(1, &["GGUF"]);
}
