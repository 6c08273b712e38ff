//! `margay run` and `margay chat`, from the words to the answer.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

mod program;

use program::{finish, golden, margay, run, tiny_gguf, word};
use std::collections::BTreeSet;

fn keys(value: &serde_json::Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn tiny(name: &str) -> (String, String) {
    (golden(name), golden(&format!("{name}/wide.png")))
}

#[test]
fn json_is_one_object_with_exactly_the_documented_keys() {
    let (model, image) = tiny("llava");
    let report = run(["run", &model, &image, "What is it?", "--json", "--max-tokens", "6"]).json();
    assert_eq!(
        keys(&report),
        BTreeSet::from(["text", "tokens", "stop", "stages", "schedule", "pictures", "peak_rss_bytes"])
    );
    assert_eq!(keys(&report["schedule"]), BTreeSet::from(["overlapped", "why", "runs"]));
    let run_keys = BTreeSet::from(["stage", "lane", "picture", "tokens", "begin_ms", "end_ms"]);
    for run in report["schedule"]["runs"].as_array().unwrap() {
        assert_eq!(keys(run), run_keys);
    }
    let stages = [
        "load_ms",
        "preprocess_ms",
        "encode_ms",
        "project_ms",
        "prefill_ms",
        "prefill_tokens",
        "reused_tokens",
        "reused_pictures",
        "visual_tokens",
        "pruned_tokens",
        "decode_ms",
        "decode_tokens",
        "drafted_tokens",
        "accepted_tokens",
        "model_drafted_tokens",
        "model_accepted_tokens",
        "draft_ms",
        "ttft_ms",
    ];
    assert_eq!(keys(&report["stages"]), BTreeSet::from(stages));
    assert_eq!(report["stages"]["visual_tokens"], 16);
    assert!(report["stages"]["encode_ms"].as_f64().unwrap() > 0.0);
    let help = run(["run", "--help"]).ok();
    for key in stages {
        assert!(help.contains(key), "{key} is documented");
    }
}

#[test]
fn what_is_kept_of_a_picture_is_told_with_its_reason() {
    let (model, image) = tiny("llava");
    let kept = |words: &[&str]| {
        let all = [&["run", &model, &image, "What is it?", "--json", "--max-tokens", "2"], words].concat();
        run(all).json()["pictures"][0].clone()
    };
    for method in ["merge", "visionzip", "prumerge"] {
        let told = kept(&["--keep-image-tokens", "50%", "--reduce", method]);
        assert_eq!(told, serde_json::json!({ "tokens": 8, "of": 16, "why": "share" }));
    }
    let told = kept(&["--keep-image-tokens", "auto"]);
    assert!(told["why"] == "text" || told["why"] == "redundancy", "{told}");
    let repeats = kept(&["--skip-repeated-patches", "255"]);
    assert_eq!(repeats, serde_json::json!({ "tokens": 1, "of": 16, "why": "repeats" }));
}

#[test]
fn visual_tokens_are_left_out_inside_the_decoder() {
    let (model, image) = (golden("llava"), format!("--image={}", golden("llava/wide.png")));
    let words = ["run", &model, &image, "What is it?", "--max-tokens", "2", "--prune-image-tokens"];
    let stages =
        |rest: &[&str]| run([&words[..], &["25%", "--json", "--prune-layer", "1"], rest].concat()).json();
    for by in ["attention", "diverse", "even", "random"] {
        let told = stages(&["--prune-by", by]);
        assert_eq!(
            (&told["stages"]["visual_tokens"], &told["stages"]["pruned_tokens"]),
            (&16.into(), &12.into())
        );
    }
    let told = run([&words[..], &["25%", "--prune-layer", "1", "--stats"]].concat());
    assert!(told.stderr.contains("4 of 16 visual tokens seen by all layers"), "{}", told.stderr);
    run([&words[..], &["25%"]].concat()).fails(2, &["2 layers"]);
    for (rest, why) in [
        (vec!["0%"], "0%"),
        (vec!["25%", "--evict", "h2o", "--kv-budget", "64"], "--evict"),
        (vec!["25%", "--kv-image", "q8"], "--kv-image"),
    ] {
        let refused = run([&words[..], &rest].concat());
        assert!(refused.code == Some(2) && refused.stderr.contains(why), "{}", refused.stderr);
    }
}

#[test]
fn a_folder_of_frames_is_a_video() {
    let folder = tempfile::tempdir().unwrap();
    for (at, name) in ["wide", "wide", "wide", "tall", "tall", "wide"].iter().enumerate() {
        let frame = golden(&format!("llava/{name}.png"));
        std::fs::copy(frame, folder.path().join(format!("f{}.png", at + 8))).unwrap();
    }
    let video = folder.path().display().to_string();
    let model = golden("llava");
    let told = run(["run", &model, "--video", &video, "What?", "--json", "--max-tokens", "2"]).json();
    let video = &told["video"];
    assert_eq!((&video["frames"], &video["still"]), (&6.into(), &3.into()), "{video}");
    assert_eq!((&video["held"], &video["tokens"]), (&3.into(), &12.into()), "{video}");
    assert_eq!(told["stages"]["visual_tokens"], 12);
}

#[test]
fn a_stage_that_did_not_run_is_null() {
    let report = run(["run", &golden("llama"), "hello", "--json", "--max-tokens", "1"]).json();
    for stage in ["preprocess_ms", "encode_ms", "project_ms", "decode_ms"] {
        assert!(report["stages"][stage].is_null(), "{stage}: {report}");
    }
    assert!(report["stages"]["prefill_ms"].as_f64().is_some());
}

#[test]
fn words_in_any_order_options_and_json_give_the_same_answer() {
    let (model, image) = tiny("mobilevlm-v2");
    let text = run(["run", &model, &image, "What", "is it?", "--max-tokens", "8"]).ok();
    assert!(text.ends_with('\n'));
    assert_eq!(run(["run", "What", "is it?", &image, &model, "--max-tokens", "8"]).ok(), text);
    let options = [
        "run",
        "--prompt",
        "What is it?",
        "--image",
        &image,
        "--model",
        &model,
        "--max-tokens",
        "8",
        "--json",
    ];
    assert_eq!(run(options).json()["text"].as_str().unwrap(), text.trim_end_matches('\n'));
}

#[test]
fn a_conversation_in_a_file_goes_on_where_it_ends() {
    let (model, image) = tiny("mobilevlm-v2");
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(&image, folder.path().join("a.png")).unwrap();
    let file = |messages: serde_json::Value| {
        let path = folder.path().join("chat.json");
        std::fs::write(&path, messages.to_string()).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let seen = serde_json::json!({ "role": "user", "content": [
        { "type": "image_url", "image_url": { "url": "a.png" } }, { "type": "text", "text": "What is it?" }] });
    let system = serde_json::json!({ "role": "system", "content": "Be brief." });
    let ask =
        |messages: &str| run(["run", &model, "--messages", messages, "--max-tokens", "8", "--json"]).json();

    let one = ask(&file(serde_json::json!([seen])));
    let words = run(["run", &model, &image, "What is it?", "--max-tokens", "8", "--json"]).json();
    assert_eq!(one["tokens"], words["tokens"]);
    let brief = ask(&file(serde_json::json!([system, seen])));
    let words =
        run(["run", &model, &image, "What is it?", "--system", "Be brief.", "--max-tokens", "8", "--json"])
            .json();
    assert_eq!(brief["tokens"], words["tokens"]);

    let answered = serde_json::json!({ "role": "assistant", "content": "A margay." });
    let more = serde_json::json!({ "role": "user", "content": "Where?" });
    let longer = file(serde_json::json!([seen, answered, more]));
    let told = ask(&longer);
    assert_eq!(told["stages"]["visual_tokens"], one["stages"]["visual_tokens"]);
    let tokens = |report: &serde_json::Value| report["stages"]["prefill_tokens"].as_u64().unwrap();
    assert!(tokens(&told) > tokens(&one));

    run(["run", &model, "--messages", &longer, &image]).fails(2, &["--messages"]);
    assert_eq!(run(["run", &model, "--messages", &longer, "--system", "x"]).code, Some(2));
    let unanswered = file(serde_json::json!([seen, answered]));
    run(["run", &model, "--messages", &unanswered]).fails(1, &["last one asks nothing"]);
    run(["run", &model, "--messages", &model]).fails(1, &["cannot read the messages"]);
}

#[test]
fn a_picture_alone_is_described() {
    let (model, image) = tiny("llava");
    let alone = run(["run", &model, &image, "--json", "--max-tokens", "8"]).json();
    let asked = run(["run", &model, &image, "Describe the picture.", "--json", "--max-tokens", "8"]).json();
    assert_eq!(alone["tokens"], asked["tokens"]);
    let blank = run(["run", &model, &image, "-p", "  ", "--json", "--max-tokens", "8"]).json();
    assert_eq!(blank["tokens"], asked["tokens"]);
}

#[test]
fn a_question_comes_from_a_pipe_where_none_is_given() {
    let asked = run(["run", &golden("llama"), "hello there", "--max-tokens", "8"]).ok();
    let piped = finish(margay().args(["run", &golden("llama"), "--max-tokens", "8"]), "hello there\n").ok();
    let dash =
        finish(margay().args(["run", &golden("llama"), "-", "--max-tokens", "8"]), "hello there\n").ok();
    assert_eq!((piped, dash), (asked.clone(), asked));
}

#[test]
fn the_model_inside_the_program_answers_the_same_on_every_kernel() {
    let (_, image) = tiny("mobilevlm-v2");
    let words = ["run", &image, "Is there a red circle?", "--json", "--max-tokens", "16"];
    let best = run(words).json();
    let scalar = finish(margay().args(words).env("MARGAY_ISA", "scalar"), "").json();
    assert_eq!(best["tokens"], scalar["tokens"]);
    assert!(best["stages"]["visual_tokens"].as_u64().unwrap() > 0);
}

#[test]
fn a_seed_repeats_and_another_differs() {
    let answer = |seed: &str| {
        let sampled =
            ["--temperature", "5", "--top-k", "0", "--top-p", "1", "--min-p", "0", "--max-tokens", "32"];
        run(["run", &golden("llama"), "hello", "--json", "--seed", seed].iter().chain(&sampled)).json()["tokens"]
            .clone()
    };
    assert_eq!(answer("1"), answer("1"));
    assert_ne!(answer("1"), answer("2"));
}

#[test]
fn stats_go_to_stderr_and_name_every_stage_by_both_names() {
    let (model, image) = tiny("llava");
    let ran = run(["run", &model, &image, "hi", "--stats", "--max-tokens", "4"]);
    let table = ran.stderr.clone();
    assert!(!ran.ok().contains("slice-encode"));
    for name in
        ["load", "preprocess", "encode", "project", "prefill", "decode", "slice-encode", "prompt-eval"]
    {
        assert!(table.contains(name), "{name}: {table}");
    }
    assert!(!table.contains('\x1b'), "no colours into a pipe");
}

#[test]
fn stages_that_overlap_give_the_same_answer_and_are_shown_at_their_times() {
    let (model, image) = tiny("smolvlm");
    let asked = |way: &str| {
        let pictures = ["--image", &image, "--image", &image, "--threads", "2", "--stats"];
        let words = ["run", "--model", &model, "--prompt", "one", "--max-tokens", "4", "--overlap", way];
        let ran = run(words.iter().chain(&pictures));
        let told = ran.stderr.clone();
        (ran.ok(), told)
    };
    let (serial, told) = asked("off");
    assert!(told.contains("one stage behind the other") && told.contains("turned off"), "{told}");
    for way in ["auto", "on"] {
        let (answer, told) = asked(way);
        assert_eq!(answer, serial, "{way}");
        let chart: Vec<&str> = told.lines().filter(|line| line.contains("|") && line.contains('#')).collect();
        assert!(chart.iter().any(|line| line.contains("encode")), "{told}");
        assert!(told.contains("begin ms") && told.contains("schedule"), "{told}");
    }
    let often = run(["run", "--model", &model, "--prompt", "x", "--overlap", "often"]);
    assert!(often.code == Some(2) && often.stderr.contains("auto"), "{}", often.stderr);
}

#[test]
fn gguf_pairs_its_mmproj_and_answers_like_the_checkpoint_in_float32() {
    let folder = tempfile::tempdir().unwrap();
    let (model, image) = tiny("llava");
    let gguf = word(folder.path(), "tiny.gguf");
    run(["convert", &model, "-o", &gguf, "--type", "f32"]).ok();
    let ask = |model: &str| run(["run", model, &image, "What is it?", "--json", "--max-tokens", "12"]).json();
    assert_eq!(ask(&gguf)["tokens"], ask(&model)["tokens"]);
}

#[test]
fn chat_takes_a_line_a_turn_and_goes_on_after_a_mistake() {
    let (_, image) = tiny("llava");
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_gguf(folder.path());
    let words = ["chat", model.to_str().unwrap(), "--max-tokens", "4", "--context", "512"];
    let script = format!("hello\n\n/image {image}\nWhat is it?\n/stats\n/clear\nhello\n/quit\nnever read\n");
    let ran = finish(margay().args(words), &script);
    let stderr = ran.stderr.clone();
    let stdout = ran.ok();
    assert!(stderr.contains("56 x 56 pixels") || stderr.contains("pixels; ask about it"), "{stderr}");
    assert!(stderr.contains("token-eval"), "{stderr}");
    let answers: Vec<&str> = stdout.lines().collect();
    assert!(answers.len() >= 3, "{stdout}");
    let again = finish(margay().args(words), "hello\n").ok();
    assert!(stdout.starts_with(&again), "the first answer is that of a fresh chat");
    assert!(stdout.ends_with(&again), "after /clear the answer is that of a fresh chat");

    let mistake = finish(margay().args(words), "/image gone.png\n/nonsense\nhello\n");
    assert_eq!(mistake.code, Some(1));
    assert_eq!(mistake.stdout, again);
    assert!(mistake.stderr.contains("gone.png") && mistake.stderr.contains("/nonsense is no command"));
}

/// What cannot be kept to, or would say nothing, is refused before a model is loaded.
#[test]
fn bounds_of_the_cache_and_of_the_device_are_checked() {
    for (words, says) in [
        (&["--kv", "q3"][..], "kivi2"),
        (&["--evict", "snapkv"], "--kv-budget"),
        (&["--kv-window", "64", "--evict", "h2o", "--kv-budget", "50%"], "cannot be used with"),
        (&["--evict", "h2o", "--kv-budget", "0%"], "above 0%"),
        (&["--ceiling", "nan"], "degrees Celsius"),
        (&["--battery-mode", "120"], "percent"),
        (&["--keep-free", "0"], "--keep-free"),
    ] {
        let ran = run(["run", "--json", "hello"].iter().chain(words).copied());
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{words:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(says), "{words:?}: {}", ran.stderr);
    }
    for (words, says) in [
        (&["--kv-window", "64", "--context", "128"][..], "kv-window"),
        (&["--evict", "snapkv", "--kv-budget", "8"], "kv-budget"),
    ] {
        run(["run", "--json", "hello"].iter().chain(words).copied()).fails(2, &[says]);
    }
}
