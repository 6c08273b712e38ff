//! `simulate`, `plan`, and `inspect` of shapes: models and devices that are not here.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

mod program;

use program::run;
use serde_json::Value;

#[test]
fn a_shape_is_inspected_as_a_file_is() {
    let of =
        |kv| run(["inspect", "shape:llava-1.5-7b:q4_0", "--context", "2048", "--kv", kv, "--json"]).json();
    let (f16, q8) = (of("f16"), of("q8"));
    assert_eq!(f16["family"], "llava");
    assert_eq!(f16["visual_tokens_per_picture"], 576);
    assert_eq!(f16["memory"]["cache_number_bytes"], 1_073_741_824u64);
    assert_eq!(q8["memory"]["cache_number_bytes"], 536_870_912u64);
    let total = |of: &Value| of["memory"]["total_bytes"].as_u64().unwrap();
    assert!(total(&f16) > total(&q8) + 400_000_000);
    // Blocks of 18 bytes for 32 numbers, the head in blocks of 210 for 256, norms in 4 bytes each.
    let layers = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008) / 32 * 18;
    let (table, head, norms) = (32000 * 4096 / 32 * 18, 32000 * 4096 / 256 * 210, 65 * 4096 * 4);
    let text = &f16["weights"][2];
    let bytes = text["bytes"].as_u64();
    assert_eq!((text["stage"].as_str(), bytes), (Some("text"), Some(layers + table + head + norms)));
    let words = run(["inspect", "shape:smolvlm-256m"]).ok();
    assert!(words.contains("HuggingFaceTB/SmolVLM-256M-Instruct") && words.contains(" B\n"), "{words}");
    run(["inspect", "shape:llava-9"]).fails(2, &["llava-1.5-7b"]);
    run(["inspect", "shape:phi-2:q9"]).fails(2, &["q9"]);
}

#[test]
fn the_study_is_printed_with_what_was_fit_and_what_was_held_out() {
    let study = run(["simulate", "--study", "--json"]).json();
    let cells = study["cells"].as_array().unwrap();
    let used = |kind: &str| cells.iter().filter(|cell| cell["used"] == kind).count();
    assert_eq!((used("fit"), used("held out")), (11, 19));
    for cell in cells.iter().filter(|cell| cell["used"] == "fit") {
        let ratio = cell["ratio"].as_f64().unwrap();
        assert!((ratio - 1.0).abs() < 0.01, "{cell}");
    }
    let words = run(["simulate", "--study"]).ok();
    for part in ["held out: times are off", "28 times", "35.5 h", "1.75 h", "= 89.1 s", "173668.7 with load"]
    {
        assert!(words.contains(part), "{part}");
    }
}

#[test]
fn opportunities_are_told_alone_and_together() {
    let ask =
        ["simulate", "--device", "oneplus-13r", "--model", "llava-1.5-7b:q4_0", "--engine", "llama.cpp"];
    let what = ["--what-if", "gpu-encode,gpu-prompt,npu-int8-output,kv-int4,overlap"];
    let words = run(ask.iter().chain(&what)).ok();
    for part in
        ["base", "all together", "study 5.2 (i)", "study 5.2 (iv)", "J per query", "cannot be", "assumed"]
    {
        assert!(words.contains(part), "{part}: {words}");
    }
    let json = run(ask.iter().chain(&what).chain(&["--json", "--context", "4096"])).json();
    let runs = json["runs"].as_array().unwrap();
    let of = |name: &str, key: &str| {
        runs.iter().find(|run| run["what_if"] == name).unwrap()[key].as_f64().unwrap()
    };
    assert_eq!(runs.len(), 7);
    assert!(of("all together", "seconds") < of("gpu-prompt", "seconds"));
    assert!(of("kv-int4", "memory_bytes") < of("base", "memory_bytes") - 1e9);
    assert_eq!(of("overlap", "seconds"), of("base", "seconds"), "one unit does both");
    let again = run(ask.iter().chain(&what).chain(&["--json", "--context", "4096"])).json();
    assert_eq!(json, again, "the same numbers every time");
    for (words, part) in [
        (&["simulate"][..], "--device"),
        (&["simulate", "--device", "nokia", "--model", "phi-2"], "oneplus-13r"),
        (&["simulate", "--device", "a17-pro", "--model", "phi-2", "--what-if", "faster"], "kv-int4"),
        (&["simulate", "--device", "a17-pro", "--model", "phi-2", "--picture", "6"], "640x480"),
        (&["simulate", "--device", "a17-pro", "--model", "phi-2", "--every", "nan"], "above 0"),
        (&["simulate", "--device", "a17-pro", "--model", "phi-2", "--answer-tokens", "0"], "1 to"),
        (&["simulate", "--device", "a17-pro", "--model", "phi-2", "--speculate", "4,2,0"], "4,0.8,0.1"),
    ] {
        run(words).fails(2, &[part]);
    }
    run(["simulate", "--device", "gone.toml", "--model", "phi-2"]).fails(1, &["gone.toml"]);
    assert!(run(["simulate", "--list"]).ok().contains("mlc-imp"));
    assert!(run(["simulate", "--device", "tensor-g4", "--numbers"]).ok().contains("source: "));
}

#[test]
fn a_governor_is_set_beside_a_race_to_throttle() {
    let ask = [
        "simulate",
        "--device",
        "flagship-phone",
        "--model",
        "mobilevlm-v2-1.7b",
        "--govern",
        "10m",
        "--ambient",
        "35",
    ];
    let folder = tempfile::tempdir().unwrap();
    let page = program::word(folder.path(), "governed.html");
    let words = run(ask.iter().chain(&["--html", &page])).ok();
    for part in
        ["race to throttle", "governor", "events of the governor", "speed 0 -> ", "Simulated, not measured"]
    {
        assert!(words.contains(part), "{part}: {words}");
    }
    let page = std::fs::read_to_string(page).unwrap();
    assert_eq!(page.matches("<svg").count(), 6);
    assert!(!page.contains("src=") && !page.contains("NaN"), "it needs nothing but itself");
    let runs = run(ask.iter().chain(&["--json"])).json();
    let of = |at: usize, key: &str| runs[at][key].as_f64().unwrap();
    assert!(of(0, "seconds_above") > 0.0 && of(2, "seconds_above") == 0.0, "{runs}");
    assert!(of(2, "answers") > of(0, "answers") && of(2, "turns_a_minute") <= 3.0, "{runs}");
    let survey = run(ask.iter().chain(&["--survey", "12", "--seed", "3"])).ok();
    assert!(survey.contains("governor 0") && survey.contains("median"), "{survey}");
    for (words, part) in [
        (["--govern", "soon"], "as in 30m"),
        (["--govern", "1s"], "1m to 24h"),
        (["--govern=30m", "--ambient=99"], "-20 to 60"),
    ] {
        run(["simulate", "--device", "a17-pro", "--model", "phi-2"].iter().chain(&words)).fails(2, &[part]);
    }
}

#[test]
fn a_plan_keeps_its_limits_and_its_memory_is_what_inspect_predicts() {
    let model = "mobilevlm-v2-1.7b:mobile-int4";
    let limits = "ttft<=60s, memory<=2GiB, temperature<=90C, quality>=98%";
    let ask = ["plan", "--device", "oneplus-13r", "--model", model, "--limits", limits];
    let plan = run(ask.iter().chain(&["--json"])).json();
    let best = &plan["decision"]["plan"];
    let of = |name: &str| best["values"][name].as_f64().unwrap();
    assert!(of("ttft") <= 60.0 && of("memory") <= 2147483648.0 && of("quality") >= 98.0, "{best}");
    let kv = best["kv"].as_str().unwrap();
    // What smaller types cost in answers is no part of a plan's quality: it would always take the smallest.
    for planned in plan["front"].as_array().unwrap().iter().chain([best]) {
        assert!(["f16", "q8"].contains(&planned["kv"].as_str().unwrap()), "{planned}");
    }
    let inspected =
        run(["inspect", &format!("shape:{model}"), "--context", "2048", "--kv", kv, "--json"]).json();
    assert_eq!(inspected["memory"]["most_bytes"].as_f64(), Some(of("memory")));
    let folder = tempfile::tempdir().unwrap();
    let page = program::word(folder.path(), "plans.html");
    let words = run(ask.iter().chain(&["--html", &page])).ok();
    let page = std::fs::read_to_string(page).unwrap();
    assert_eq!(page.matches("<circle").count(), plan["front"].as_array().unwrap().len());
    assert!(!page.contains("src=") && !page.contains("NaN"), "it needs nothing but itself");
    for part in [
        "what each limit costs",
        "margay quantize MODEL -o SMALL.gguf --recipe mobile-int4",
        "no other beats",
    ] {
        assert!(words.contains(part), "{part}: {words}");
    }
}

#[test]
fn what_cannot_be_is_named_with_what_can() {
    let ask = ["plan", "--device", "budget-phone", "--model", "smolvlm-256m:q8_0", "--limits"];
    let none = run(ask.iter().chain(&["memory<=10MiB, ttft<=600s"]));
    assert_eq!(none.code, Some(3));
    for part in ["tightest  memory", "%) over", "cannot be kept by any candidate", "can be kept alone"] {
        assert!(none.stdout.contains(part), "{part}: {}", none.stdout);
    }
    run(ask.iter().chain(&["memory<=10"])).fails(2, &["MiB"]);
    // What smaller pictures lose was not measured: no limit of quality is kept by them.
    let pictures =
        ["plan", "--device", "tablet", "--model", "qwen2-vl-2b:q4_k", "--picture", "448x448", "--json"];
    let picture = |limits: &[&str]| {
        let plan = run(pictures.iter().chain(limits)).json()["decision"]["plan"].clone();
        (plan["picture"].as_str().unwrap().to_owned(), plan["values"]["quality"].as_f64())
    };
    assert_eq!(picture(&["--limits", "quality>=98%"]), ("256 tokens".to_owned(), Some(100.0)));
    let (small, quality) = picture(&[]);
    assert!(small.contains("--max-image-tokens 64") && quality.is_none(), "{small} {quality:?}");
    run(["plan", "--device", "budget-phone", "--model", "gpt"]).fails(2, &["llava-1.5-7b"]);
}
