//! `margay calibrate` and `margay quantize`, as a person uses them.
#![cfg(feature = "reference")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod program;

use program::{golden, names, run, word, written};

/// Questions about the two pictures of a golden folder, one answered.
const QUESTIONS: &[u8] = b"What is this?\tone two\nAnd this?\n";

fn calibrated(folder: &std::path::Path, out: &str) -> (String, serde_json::Value) {
    let (text, stats) = (written(folder, "questions.txt", QUESTIONS), word(folder, out));
    let words = ["calibrate", &golden("llava"), "--images", &golden("llava"), "--text", &text];
    let words = words.into_iter().chain(["--samples", "2", "--answer-tokens", "3", "--rows", "32"]);
    let report = run(words.chain(["-o", &stats, "--json"])).json();
    (stats, report)
}

#[test]
fn a_calibrated_model_is_a_model_and_its_report_tells_every_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let (stats, report) = calibrated(folder.path(), "stats.safetensors");
    assert!(report["text_tokens"].as_u64().unwrap() > 0 && report["visual_tokens"].as_u64().unwrap() > 0);
    assert!(report["made_from"].as_str().unwrap().starts_with("2 questions, 2 with a picture"));
    let (out, page) = (word(folder.path(), "small.gguf"), word(folder.path(), "report.html"));
    let words =
        ["quantize", &golden("llava"), "-o", &out, "--recipe", "mobile-int4", "--method", "awq+imatrix"];
    let report = run(words.into_iter().chain(["--calibration", &stats, "--html", &page, "--json"])).json();
    assert_eq!((&report["recipe"], &report["method"]), (&"mobile-int4".into(), &"awq+imatrix".into()));
    assert!(report["scaled_groups"].as_u64().unwrap() > 0);
    let tensors = report["tensors"].as_array().unwrap();
    let of = |name: &str| tensors.iter().find(|t| t["name"] == name).unwrap();
    assert_eq!(of("v.blk.0.attn_q.weight")["type"], "q8_0");
    assert_eq!(of("mm.0.weight")["type"], "f16");
    let down = of("blk.0.ffn_down.weight");
    assert_eq!(
        (&down["type"], &down["role"], &down["layer"]),
        (&"q4_0".into(), &"ffn_down".into(), &0.into())
    );
    assert!(down["output_error"].as_f64().unwrap() > 0.0 && down["output_error"].as_f64().unwrap() < 0.1);
    let html = std::fs::read_to_string(page).unwrap();
    assert!(html.contains("<svg") && html.contains("blk.0.ffn_down.weight") && !html.contains("http"));
    let picture = format!("{}/wide.png", golden("llava"));
    run(["run", &out, &picture, "What is this?", "--max-tokens", "4"]).ok();
}

#[test]
fn formats_are_chosen_for_a_budget_and_for_a_floor() {
    let folder = tempfile::tempdir().unwrap();
    let (stats, _) = calibrated(folder.path(), "stats.safetensors");
    let out = word(folder.path(), "small.gguf");
    let sized = |size: &str| {
        let words =
            ["quantize", &golden("llava"), "-o", &out, "--fit", size, "--calibration", &stats, "--json"];
        run(words)
    };
    let report = sized("200kB").json();
    let bytes: u64 = report["tensors"].as_array().unwrap().iter().map(|t| t["bytes"].as_u64().unwrap()).sum();
    assert!(bytes <= 200_000 && bytes > 150_000, "{bytes}");
    assert!(!report["choice"]["steps"].as_array().unwrap().is_empty());
    sized("1kB").fails(1, &["1000 bytes do not hold this model", "at its smallest"]);
    sized("a lot").fails(2, &["a lot", "1.5GiB"]);
    let text = written(folder.path(), "plain.txt", b"one two three\n");
    let words = ["quantize", &golden("llava"), "-o", &out, "--max-kl", "0.01", "--text", &text];
    let report =
        run(words.into_iter().chain(["--calibration", &stats, "--answer-tokens", "0", "--json"])).json();
    let kl = report["choice"]["kl"].as_f64().unwrap();
    assert!(kl > 0.0 && kl <= 0.01, "{kl}");
}

#[test]
fn what_is_asked_wrongly_is_said_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let out = word(folder.path(), "out.gguf");
    let quantize = |more: &[&str]| {
        let model = golden("llava");
        run(["quantize", &model, "-o", &out].into_iter().chain(more.iter().copied()))
    };
    quantize(&["--recipe", "nothing"]).fails(2, &["nothing", "mobile-int4"]);
    quantize(&["--method", "magic"]).fails(2, &["magic", "rtn"]);
    quantize(&["--method", "awq"]).fails(1, &["awq", "margay calibrate"]);
    quantize(&["--method", "gptq"]).fails(1, &["gptq", "questions"]);
    quantize(&["--max-kl", "0.1"]).fails(2, &["--images"]);
    let broken =
        written(folder.path(), "mine.toml", b"about = \"x\"\n[[rule]]\ntype = \"q4_0\"\nrole = \"nose\"\n");
    quantize(&["--recipe", &broken]).fails(2, &["nose", "ffn_down"]);
    run(["calibrate", &golden("llava"), "-o", &out]).fails(2, &["--images", "--text"]);
    let empty = word(folder.path(), "");
    run(["calibrate", &golden("llava"), "--images", &empty, "-o", &out]).fails(1, &["holds no picture"]);
    let (stats, _) = calibrated(folder.path(), "stats.safetensors");
    let other = ["quantize", &golden("imp"), "-o", &out, "--method", "imatrix", "--calibration", &stats];
    run(other).fails(1, &["another model", "margay calibrate"]);
    assert!(names(folder.path()).iter().all(|name| !name.ends_with(".gguf")), "{:?}", names(folder.path()));
}

#[test]
fn the_model_that_is_read_is_not_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let model = program::tiny_gguf(folder.path());
    let model = model.to_str().unwrap();
    run(["quantize", model, "-o", model]).fails(1, &["may be part of the model being read"]);
}
