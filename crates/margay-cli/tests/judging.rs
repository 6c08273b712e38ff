//! `margay eval` and `margay compare` on the built-in model, on a few held-out pictures of its world.
#![allow(clippy::unwrap_used, reason = "a test")]

mod program;

use margay::rooms::{
    file::{Gguf, TensorSource},
    tensor::DType,
};
use program::{Ran, golden, run, word};
use std::path::{Path, PathBuf};

/// 10 pictures, written by training/nano/suite.py.
fn suite() -> String {
    path("tests/data/nano-suite")
}

fn path(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name).to_str().unwrap().to_owned()
}

fn nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../margay/assets/margay-nano.gguf")
}

/// The weights in float, as they were exported.
fn float() -> String {
    path("../../training/nano/weights")
}

fn eval(more: &[&str]) -> Ran {
    let suite = suite();
    run([&["eval", "--suite", "nano", "--data", &suite], more].concat())
}

#[test]
fn the_built_in_model_answers_the_questions_of_its_world() {
    let found = eval(&["--json"]).json();
    let n = found["questions"].as_u64().unwrap();
    assert_eq!((found["questions_of_suite"].as_u64(), found["is_subset"].as_bool()), (Some(n), Some(false)));
    // 97 % of thousands of such questions; 5 standard deviations below.
    let headline = found["headline"]["value"].as_f64().unwrap();
    assert!(n >= 80 && headline > 97.0 - 500.0 * (0.97f64 * 0.03 / n as f64).sqrt(), "{headline}% of {n}");
    assert!(found["headline"]["interval"]["low"].as_f64().unwrap() < headline);
    assert_eq!(found["model_digest"].as_str().unwrap().len(), 64);

    let text = eval(&["--limit", "20"]).ok();
    assert!(text.contains("SUBSET") && text.contains("no skill") && text.contains("95% within"), "{text}");
}

#[test]
fn a_run_goes_on_where_it_stopped_and_refuses_the_answers_of_another_model() {
    let folder = tempfile::tempdir().unwrap();
    let out = word(folder.path(), "answers.jsonl");
    let first = eval(&["--limit", "20", "--out", &out, "--json"]).json();
    let asked = first["asked_now"].as_u64().unwrap();
    assert_eq!(asked, first["questions"].as_u64().unwrap());
    // What a kill leaves: the last line is cut.
    let bytes = std::fs::read(&out).unwrap();
    std::fs::write(&out, &bytes[..bytes.len() - 3]).unwrap();
    let again = eval(&["--limit", "20", "--out", &out, "--json"]);
    assert!(again.stderr.contains(&format!("going on behind {} answers", asked - 1)), "{}", again.stderr);
    let again = again.json();
    assert_eq!(again["asked_now"], 1);
    assert_eq!((&again["headline"], &again["tasks"]), (&first["headline"], &first["tasks"]));

    let other = float();
    let refused = eval(&["--limit", "20", "--out", &out, &other]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("weights of the model"), "{}", refused.stderr);
    assert!(eval(&["--out", &out, "--kv", "q8"]).stderr.contains("settings"));
}

#[test]
fn what_is_missing_is_named_with_what_would_be_right() {
    run(["eval"]).fails(2, &["--suite", "--perplexity", "--list"]);
    let missing = run(["eval", "--suite", "pope", "--data", "no-such-folder"]);
    missing.fails(1, &["coco_pope_random.json", "pope needs coco/"]);
    let list = run(["eval", "--list"]).ok();
    for name in ["nano", "gqa", "scienceqa", "textvqa", "pope", "mme", "mmbench"] {
        assert!(list.lines().any(|line| line.starts_with(name)), "{name}: {list}");
    }
    run(["compare", "a.gguf", "b.gguf"]).fails(2, &["--images DIR", "--suite"]);
}

#[test]
fn perplexity_is_given_in_both_definitions_and_says_which_windows() {
    let text = golden("training_text.txt");
    let ran = run(["eval", &golden("llama"), "--perplexity", &text, "--window", "600"]);
    assert!(ran.stderr.contains("windows of 600 tokens; published figures have 2048"), "{}", ran.stderr);
    let table = ran.ok();
    assert!(table.contains("1642.06") && table.contains("llama.cpp"), "{table}");
    let json = run(["eval", &golden("llama"), "--perplexity", &text, "--json"]).json();
    assert_eq!(
        (&json["perplexity"][0]["window"], &json["perplexity"][1]["window"]),
        (&2048.into(), &512.into())
    );
    let short = run(["eval", "--perplexity", &golden("llama/prompt.json")]);
    short.fails(1, &["the text has", "--window"]);
}

/// nano with the scales of each matrix of its decoder in reverse order: every number is still a number.
fn with_swapped_scales(folder: &Path) -> String {
    let mut bytes = std::fs::read(nano()).unwrap();
    let file = Gguf::from_bytes(margay::rooms::tensor::Storage::from_bytes(&bytes)).unwrap();
    let mut swapped = 0;
    for name in file.names().filter(|name| name.starts_with("blk.")) {
        let tensor = file.tensor(name).unwrap();
        if tensor.dtype() != DType::Q8_0 {
            continue;
        }
        // Where it lies in the file: the same bytes are found there.
        let needle = &tensor.bytes()[..64];
        let start = bytes.windows(64).position(|window| window == needle).unwrap();
        let size = DType::Q8_0.block_bytes();
        let blocks = &mut bytes[start..start + tensor.bytes().len()];
        let scales: Vec<[u8; 2]> = blocks.chunks_exact(size).map(|block| [block[0], block[1]]).collect();
        for (block, scale) in blocks.chunks_exact_mut(size).zip(scales.iter().rev()) {
            block[..2].copy_from_slice(scale);
            swapped += 1;
        }
    }
    assert!(swapped > 10_000, "{swapped}");
    let out = word(folder, "broken.gguf");
    std::fs::write(&out, bytes).unwrap();
    out
}

#[test]
fn the_gate_fails_a_broken_quantization_and_passes_a_good_one() {
    let folder = tempfile::tempdir().unwrap();
    let (suite, float) = (suite(), float());
    let kept = word(folder.path(), "float.jsonl");
    let compare = |candidate: &str, more: &[&str]| {
        let words = ["compare", &float, candidate, "--suite", "nano", "--data", &suite, "--samples", "12"];
        let limits = ["--max-drop", "2%", "--max-kl", "0.02", "--ref-answers", &kept];
        run([&words[..], &limits, more].concat())
    };
    let page = word(folder.path(), "report.html");
    let good = compare(nano().to_str().unwrap(), &["--html", &page]);
    assert_eq!(good.code, Some(0), "{}\n{}", good.stdout, good.stderr);
    assert!(
        good.stdout.contains("greedy answers are the same") && good.stdout.contains("McNemar"),
        "{}",
        good.stdout
    );
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.contains("All limits hold") && html.matches("<svg").count() == 2);

    let broken = with_swapped_scales(folder.path());
    let bad = compare(&broken, &["--json"]);
    assert_eq!(bad.code, Some(3), "{}\n{}", bad.stdout, bad.stderr);
    assert!(bad.stderr.contains("--max-kl 0.02 is broken"), "{}", bad.stderr);
    assert!(bad.stderr.contains("--max-drop 2 is broken"), "{}", bad.stderr);
    assert!(bad.stderr.contains("going on behind"), "the reference is not asked again: {}", bad.stderr);
    let json: serde_json::Value = serde_json::from_str(&bad.stdout).unwrap();
    assert_eq!(json["broken"].as_array().unwrap().len(), 2);
    // 53 points are lost; a third of that is beyond doubt on 91 questions.
    assert!(json["suite"]["paired"]["drop"].as_f64().unwrap() > 15.0, "{}", bad.stdout);
    assert!(json["suite"]["paired"]["mcnemar_p"].as_f64().unwrap() < 0.01);
    let stages = json["difference"]["stages"].as_array().unwrap();
    assert_eq!(stages[0]["stage"], "pixels");
    assert_eq!(stages[0]["relative_error"], 0.0);
}

#[test]
fn pictures_of_a_folder_are_compared_with_questions_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let questions = program::written(
        folder.path(),
        "questions.txt",
        b"What does the sign say?\tOPEN\n\nCount the shapes.\n",
    );
    let (float, nano) = (float(), nano());
    let words =
        ["compare", &float, nano.to_str().unwrap(), "--images", &format!("{}/images", suite()), "--text"];
    let json =
        run([&words[..], &[&questions, "--samples", "3", "--json", "--answer-tokens", "4"]].concat()).json();
    assert_eq!(json["difference"]["questions"], 3);
    assert!(json["suite"].is_null());
    let same = run([
        "compare",
        &float,
        &float,
        "--images",
        &format!("{}/images", suite()),
        "--samples",
        "2",
        "--max-kl",
        "0",
    ]);
    assert!(same.ok().contains("100.00%"));
    let other = run([
        "compare",
        &float,
        &golden("llava"),
        "--images",
        &format!("{}/images", suite()),
        "--samples",
        "1",
    ]);
    other.fails(1, &["the two models cannot be compared"]);
}
