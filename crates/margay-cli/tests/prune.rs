//! `margay prune`, as a person uses it.
#![allow(clippy::unwrap_used, reason = "a test")]

mod program;

use program::{golden, names, run, word};

#[test]
fn zeros_are_told_and_the_file_is_said_to_be_no_smaller() {
    let folder = tempfile::tempdir().unwrap();
    let out = word(folder.path(), "sparse.gguf");
    let text = run(["prune", "-o", &out, "--pattern", "2:4", "--single"]).ok();
    assert!(text.contains("are zero (50.0%)") && text.contains("no smaller for that"), "{text}");
    let report = run(["prune", "-o", &out, "--pattern", "2:4", "--single", "--json"]).json();
    assert_eq!(report["before"], report["after"]);
    let zeros = report["zeros"].as_u64().unwrap();
    assert!(zeros * 2 >= report["pruned_elements"].as_u64().unwrap() && zeros > 0);
    let mask = report["bytes_as_mask_and_values"].as_u64().unwrap();
    assert!(mask < report["after"]["bytes"].as_u64().unwrap());
    run(["run", &out, "What is this?", "--max-tokens", "2"]).ok();
}

#[test]
#[cfg(feature = "reference")]
fn parts_go_by_what_questions_show_and_a_vision_file_lies_beside() {
    let folder = tempfile::tempdir().unwrap();
    let out = word(folder.path(), "small.gguf");
    let words =
        ["prune", &golden("llava-hf"), "-o", &out, "--method", "wanda", "--heads", "50%", "--layers", "1"];
    let words =
        words.into_iter().chain(["--channels", "50%", "--stage", "encode,text", "--type", "f16", "--json"]);
    let pictures = golden("llava-hf");
    let report = run(words.chain(["--images", &pictures, "--samples", "2", "--answer-tokens", "2"])).json();
    assert_eq!(names(folder.path()), ["mmproj-small.gguf", "small.gguf"]);
    let bytes = |when: &str| report[when]["bytes"].as_u64().unwrap();
    assert!(bytes("after") < bytes("before"));
    assert_eq!(report["layers"].as_array().unwrap().len(), 1);
    let kinds: Vec<_> =
        report["kept"].as_array().unwrap().iter().map(|k| (&k["stage"], &k["what"])).collect();
    assert!(kinds.contains(&(&"encode".into(), &"channels".into())), "{kinds:?}");
    assert!(kinds.contains(&(&"text".into(), &"heads".into())), "{kinds:?}");
    run(["run", &out, &format!("{pictures}/wide.png"), "What is this?", "--max-tokens", "2"]).ok();
}

#[test]
fn what_is_asked_wrongly_is_said_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let out = word(folder.path(), "out.gguf");
    for (words, code, part) in [
        ("", 2, "--pattern"),
        ("--pattern 4:2", 2, "keeps 4 of 2"),
        ("--pattern 2:4 --method magic", 2, "sparsegpt"),
        ("--pattern 2:4 --stage hear", 2, "hear"),
        ("--heads 1 --stage encode", 2, "--stage"),
        ("--heads 0", 1, "is none"),
        ("--heads 6", 1, "leaves none"),
        ("--channels 100%", 2, "100%"),
        ("--layers 0", 2, "--layers"),
        ("--layers 1", 1, "questions"),
        ("--pattern 2:4 --type q4_k", 1, "--type"),
        ("--pattern 2:4 --method wanda", 1, "calibration"),
    ] {
        run(["prune", "-o", &out].into_iter().chain(words.split_whitespace())).fails(code, &[part]);
    }
    let both = run(["prune", "-o", &out, "--pattern", "2:4", "--heads", "1"]);
    assert!(both.code == Some(2) && both.stderr.contains("cannot be used with"), "{}", both.stderr);
    let model = word(folder.path(), "m.gguf");
    run(["prune", "-o", &model, "--single", "--pattern", "1:2"]).ok();
    run(["prune", &model, "-o", &model, "--pattern", "2:4"])
        .fails(1, &["may be part of the model being read"]);
    assert_eq!(names(folder.path()), ["m.gguf"]);
}
