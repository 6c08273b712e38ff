//! `convert`, `inspect`, `tokenize`, `trace`, `doctor`, `bench`, and the help.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

mod program;

use margay::rooms::file::{SafeTensors, TensorSource};
use program::{finish, golden, margay, names, run, tiny_gguf, word};

const COMMANDS: [&str; 11] = [
    "run", "chat", "inspect", "convert", "prepack", "tokenize", "trace", "doctor", "bench", "simulate",
    "plan",
];

/// Greatest difference of logits, relative to the greatest logit, that float32 in another order may make.
const LOGITS_TOLERANCE: f64 = 1e-4;

fn floats(file: &SafeTensors, name: &str) -> Vec<f64> {
    let tensor = file.tensor(name).unwrap();
    tensor.bytes().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect()
}

#[test]
fn help_documents_exit_codes_and_every_command_shows_examples() {
    let help = run(["--help"]).ok();
    for text in ["EXAMPLES", "EXIT CODES", "130", "MARGAY_ISA"] {
        assert!(help.contains(text), "{text}");
    }
    for command in COMMANDS {
        assert!(help.contains(command));
        let help = run([command, "--help"]).ok();
        let examples = help.split("EXAMPLES:").nth(1).unwrap_or_else(|| panic!("{command} has examples"));
        assert!(examples.contains(&format!("margay {command}")), "{command}");
        assert!(!help.contains('\x1b'), "no colours into a pipe");
    }
    assert!(run(["--version"]).ok().starts_with("margay "));
}

#[test]
fn every_type_converts_and_answers() {
    let folder = tempfile::tempdir().unwrap();
    let types = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k"];
    for kind in types {
        let out = word(folder.path(), &format!("{kind}.gguf"));
        let report = run(["convert", &golden("llama"), "-o", &out, "--type", kind, "--json"]).json();
        assert_eq!(report["files"][0]["path"], out);
        let size = std::fs::metadata(&out).unwrap().len();
        assert_eq!(report["files"][0]["bytes"], size, "{kind}");
        run(["run", &out, "hello", "--max-tokens", "3"]).ok();
    }
    assert_eq!(names(folder.path()).len(), types.len(), "and nothing else is left");
}

#[test]
fn two_files_and_a_single_one_hold_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    let [two, one] = ["two", "one"].map(|name| folder.path().join(name));
    std::fs::create_dir(&two).unwrap();
    std::fs::create_dir(&one).unwrap();
    let model = golden("mobilevlm-v2");
    let (pair, single) = (word(&two, "m.gguf"), word(&one, "m.gguf"));
    let ran = run(["convert", &model, "-o", &pair]);
    assert!(ran.stderr.contains("100%"), "progress in a pipe is lines: {}", ran.stderr);
    assert!(ran.ok().contains("mmproj-m.gguf"));
    run(["convert", &model, "-o", &single, "--single"]).ok();
    assert_eq!(names(&two), ["m.gguf", "mmproj-m.gguf"]);
    assert_eq!(names(&one), ["m.gguf"]);
    let image = golden("mobilevlm-v2/wide.png");
    let ask =
        |model: &str| run(["run", model, &image, "--json", "--max-tokens", "8"]).json()["tokens"].clone();
    assert_eq!(ask(&pair), ask(&single));
    assert_eq!(ask(two.to_str().unwrap()), ask(&single), "a folder with one model is that model");
}

#[test]
fn a_model_is_not_written_over_itself() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_gguf(folder.path());
    let before = std::fs::read(&model).unwrap();
    let path = model.to_str().unwrap();
    run(["convert", path, "-o", path, "--type", "q8_0"]).fails(1, &["choose another output"]);
    assert!(std::fs::read(&model).unwrap() == before);
}

#[test]
fn inspect_tells_a_whole_model_a_half_and_an_unknown_one() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_gguf(folder.path());
    let whole = run(["inspect", model.to_str().unwrap(), "--json", "--context", "100"]).json();
    assert_eq!(whole["family"], "llava");
    assert_eq!(whole["visual_tokens_per_picture"], 16);
    let files = whole["files"].as_array().unwrap();
    assert_eq!(files.len(), 2);
    assert!(files.iter().all(|file| file["path"].as_str().unwrap().ends_with(".gguf")), "{files:?}");
    // 2 layers, 4 kv heads of 8, whose values take the room of 16; two bytes each; 100 tokens are two blocks of 64.
    assert_eq!(whole["memory"]["cache_bytes_per_token"], 2 * 4 * (8 + 16) * 2);
    assert_eq!(whole["memory"]["cache_bytes"], 128 * 2 * 4 * (8 + 16) * 2);
    let q8 = run(["inspect", model.to_str().unwrap(), "--json", "--context", "64", "--kv", "q8"]).json();
    // A byte each, and a scale of four for the keys and for the values of a head.
    assert_eq!(q8["memory"]["cache_bytes"], 64 * 2 * 4 * (8 + 16 + 2 * 4));
    let stages: Vec<_> =
        whole["weights"].as_array().unwrap().iter().map(|w| w["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, ["encode", "project", "text", "all"]);
    assert!(whole.get("tensors").is_none());

    let half = word(folder.path(), "mmproj-llava.gguf");
    let half = run(["inspect", &half, "--json", "--tensors"]).json();
    assert!(half["family"].is_null());
    assert!(half["problem"].as_str().unwrap().contains("vision part"), "{half}");
    assert_eq!(half["visual_tokens_per_picture"], 16);
    let tensors = half["tensors"].as_array().unwrap();
    assert!(tensors.iter().any(|t| t["name"] == "v.patch_embd.weight"));

    let unknown = run(["inspect", &golden("gguf/all_kv_types.gguf")]).ok();
    assert!(unknown.contains("unknown") && unknown.contains("general.architecture"), "{unknown}");
    assert!(unknown.lines().all(|line| line.chars().count() < 400), "long values are cut");

    let alone = run(["inspect", &golden("llama/model.safetensors"), "--tensors"]).ok();
    assert!(alone.contains("model.embed_tokens.weight") && alone.contains("unknown"), "{alone}");
}

#[test]
fn inspect_predicts_the_memory_of_each_golden_model_and_the_cost_of_a_picture() {
    for model in [
        "imp",
        "llama",
        "llama-sharded",
        "llava",
        "llava-hf",
        "mobilevlm-v1",
        "mobilevlm-v2",
        "phi2",
        "siglip",
    ] {
        let seen = run(["inspect", &golden(model), "--json"]).json();
        let memory = &seen["memory"];
        assert!(memory["text_buffer_bytes"].as_u64().unwrap() > 0, "{model}");
        assert_eq!(
            memory["encode_buffer_bytes"].is_null(),
            ["llama", "llama-sharded", "phi2"].contains(&model),
            "{model}"
        );
        // The last panel of each matrix is filled up.
        let stored = seen["weights"].as_array().unwrap().last().unwrap()["bytes"].as_u64().unwrap();
        assert!(memory["weight_bytes"].as_u64().unwrap() >= stored, "{model}");
    }
    let seen = run(["inspect", "--json", "--image", &golden("llava/wide.png")]).json();
    assert_eq!(seen["picture"]["visual_tokens"], seen["visual_tokens_per_picture"]);
    assert!(run(["inspect"]).ok().contains("inside the program"));
}

#[test]
fn tokens_go_there_and_back() {
    let model = golden("llama");
    let text = "What does the sign say?";
    let there = run(["tokenize", &model, text, "--json"]).json();
    let ids: Vec<String> = there["ids"].as_array().unwrap().iter().map(ToString::to_string).collect();
    assert!(!ids.is_empty() && ids.len() == there["pieces"].as_array().unwrap().len());
    let back = run(["tokenize", &model, "--decode", &ids.join(","), "--json"]).json();
    assert_eq!(back["text"].as_str().unwrap().trim_start(), text);
    let with_bos = run(["tokenize", "--model", &model, text, "--json", "--bos"]).json();
    assert_eq!(with_bos["ids"].as_array().unwrap().len(), ids.len() + 1);
    let piped = finish(margay().args(["tokenize", &model, "-", "--json"]), text).json();
    assert_eq!(piped["ids"], there["ids"]);
    let inside = run(["tokenize", text, "--json"]).json();
    assert!(!inside["ids"].as_array().unwrap().is_empty());
    run(["tokenize", &model, "--decode", "99999999"]).fails(1, &["99999999", "outside the vocabulary"]);
}

#[test]
fn user_text_never_becomes_a_control_token_unless_asked_for() {
    let ids = |more: &[&str]| {
        let words = ["tokenize", &golden("llama"), "a</s>b", "--json"];
        run(words.iter().chain(more)).json()["ids"].as_array().unwrap().clone()
    };
    assert!(!ids(&[]).contains(&2.into()));
    assert!(ids(&["--special"]).contains(&2.into()));
}

#[test]
fn an_int8_encoder_changes_the_encoding_a_little_and_nothing_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let image = golden("llava/wide.png");
    let stages = |name: &str, more: &[&str]| {
        let out = word(folder.path(), name);
        let words = ["trace", &golden("llava"), "--image", &image, "-p", "hello", "-o", &out];
        run([&words[..], more].concat()).ok();
        SafeTensors::open(&out).unwrap()
    };
    let (exact, int8) = (stages("exact", &[]), stages("int8", &["--int8-encoder"]));
    let both = |stage: &str| (floats(&exact, stage), floats(&int8, stage));
    let (a, b) = both("pixel_values");
    assert_eq!(a, b);
    let (a, b) = both("encode");
    assert_ne!(a, b);
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let cosine = dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt();
    assert!(cosine > 0.999, "{cosine}");
    let words = ["run", &golden("llava"), &image, "--int8-encoder", "--backend", "reference"];
    run(words).fails(2, &["int8_encoder", "cpu"]);
}

#[test]
fn an_8_bit_cache_changes_the_logits_a_little_and_nothing_before_them() {
    let folder = tempfile::tempdir().unwrap();
    let image = golden("llava/wide.png");
    let stages = |name: &str, more: &[&str]| {
        let out = word(folder.path(), name);
        let words = ["trace", &golden("llava"), "--image", &image, "-p", "hello", "-o", &out];
        run([&words[..], more].concat()).ok();
        SafeTensors::open(&out).unwrap()
    };
    let (exact, int8) = (stages("exact", &[]), stages("int8", &["--kv", "q8"]));
    assert_eq!(floats(&exact, "project"), floats(&int8, "project"));
    let (a, b) = (floats(&exact, "logits"), floats(&int8, "logits"));
    assert_ne!(a, b);
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let cosine = dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt();
    assert!(cosine > 0.999, "{cosine}");
    run(["run", &golden("llava"), &image, "--kv", "q8", "--backend", "reference"]).fails(2, &["kv", "cpu"]);
}

#[test]
fn inspect_tells_the_tiles_of_a_picture_that_is_cut_by_its_size() {
    for (image, tiles) in [("wide", 7), ("tall", 4)] {
        let image = golden(&format!("smolvlm/{image}.png"));
        let seen = run(["inspect", &golden("smolvlm"), "-i", &image, "--json"]).json();
        assert_eq!(
            (&seen["picture"]["tiles"], &seen["picture"]["visual_tokens"]),
            (&tiles.into(), &(4 * tiles).into())
        );
        assert_eq!(seen["visual_tokens_per_tile"], 4);
        assert!(seen["visual_tokens_per_picture"].is_null());
        assert_eq!(seen["memory"]["visual_bytes_per_picture"], 4 * tiles * 30 * 4);
    }
}

#[test]
fn inspect_tells_the_tiles_of_a_picture_whose_features_are_stitched() {
    for (image, tiles) in [("wide", 9), ("small", 1)] {
        let image = golden(&format!("moondream/{image}.png"));
        let seen = run(["inspect", &golden("moondream"), "-i", &image, "--json"]).json();
        assert_eq!(
            (&seen["picture"]["tiles"], &seen["picture"]["visual_tokens"]),
            (&tiles.into(), &25.into())
        );
    }
}

#[test]
fn inspect_tells_what_a_limit_on_visual_tokens_does() {
    let image = golden("qwen2vl/wide.png");
    let seen = |more: &[&str]| {
        let model = golden("qwen2vl");
        run([&["inspect", &model, "-i", &image, "--json"][..], more].concat()).json()
    };
    let (free, limited) = (seen(&[]), seen(&["--max-image-tokens", "8"]));
    assert_eq!(free["picture"]["visual_tokens"], 32);
    let tokens = limited["picture"]["visual_tokens"].as_u64().unwrap();
    assert!((1..=8).contains(&tokens), "{tokens}");
    let bytes = |of: &serde_json::Value| of["memory"]["visual_bytes_per_picture"].as_u64().unwrap();
    assert_eq!(bytes(&limited) * 32, bytes(&free) * tokens);
}

#[test]
fn inspect_tells_the_slices_of_a_picture() {
    for (image, tiles) in [("wide", 7), ("small", 1)] {
        let image = golden(&format!("minicpmv/{image}.png"));
        let seen = run(["inspect", &golden("minicpmv"), "-i", &image, "--json"]).json();
        let picture = &seen["picture"];
        assert_eq!((&picture["tiles"], &picture["visual_tokens"]), (&tiles.into(), &(6 * tiles).into()));
        assert_eq!(picture["slice_patches"].is_null(), tiles == 1);
        assert_eq!(seen["memory"]["visual_bytes_per_picture"], 6 * tiles * 128 * 4);
        assert_eq!(seen["visual_tokens_per_tile"], 6);
    }
}

#[test]
fn trace_on_the_reference_backend_equals_the_original() {
    let folder = tempfile::tempdir().unwrap();
    for model in ["imp", "llama", "llava", "llava-hf", "mobilevlm-v1", "mobilevlm-v2", "phi2", "siglip"] {
        let prompt = std::fs::read(golden(&format!("{model}/prompt.json"))).unwrap();
        let prompt: serde_json::Value = serde_json::from_slice(&prompt).unwrap();
        let out = word(folder.path(), "stages.safetensors");
        let case = &prompt["cases"][0];
        let (model_path, text) = (golden(model), case["prompt"].as_str().unwrap());
        let mut words = vec!["trace", &model_path, "-o", &out, "--raw-prompt", "-p", text, "--json"];
        words.extend(["--backend", "reference", "--greedy", "32"]);
        let image = case["images"][0].as_str().map(|image| golden(&format!("{model}/{image}")));
        if let Some(image) = &image {
            words.extend(["-i", image]);
        }
        let report = run(words).json();
        let (ours, original) = (
            SafeTensors::open(&out).unwrap(),
            SafeTensors::open(golden(&format!(
                "{model}/golden.{}.safetensors",
                case["name"].as_str().unwrap()
            )))
            .unwrap(),
        );
        for (name, info) in original.tensors().filter(|(name, _)| *name != "logits") {
            let mine = ours.info(name).unwrap_or_else(|| panic!("{model}: {name} is traced"));
            assert_eq!(&mine, info, "{model}: {name}");
        }
        for name in ["input_ids", "greedy"] {
            let bytes = |file: &SafeTensors| file.tensor(name).unwrap().bytes().to_vec();
            assert_eq!(bytes(&ours), bytes(&original), "{model}: {name}");
        }
        let (mine, theirs) = (floats(&ours, "logits"), floats(&original, "logits"));
        // The original holds the last positions.
        let mine = &mine[mine.len() - theirs.len()..];
        let scale = theirs.iter().fold(0.0f64, |most, v| most.max(v.abs()));
        let worst = mine.iter().zip(&theirs).fold(0.0f64, |worst, (a, b)| worst.max((a - b).abs()));
        assert!(worst / scale <= LOGITS_TOLERANCE, "{model}: {}", worst / scale);
        let rows = report["tensors"].as_array().unwrap();
        assert_eq!(rows.len(), ours.tensors().len());
        assert!(rows.iter().all(|row| row["not_finite"] == 0));
    }
}

#[test]
fn doctor_tells_the_machine_and_the_kernels() {
    let text = run(["doctor"]).ok();
    for name in ["cpu", "cores", "memory", "reference", "scalar", "kernels"] {
        assert!(text.contains(name), "{name}: {text}");
    }
    let json = run(["doctor", "--json"]).json();
    assert_eq!(json["architecture"], std::env::consts::ARCH);
    assert!(json["margay_isa"].is_null());
    let limits = json["measured"].as_array().unwrap().last().unwrap();
    assert_eq!(limits["threads"], json["threads"]);
    for name in ["memory read", "int8", "float32"] {
        assert!(text.contains(name), "{name}: {text}");
        let of_name = |l: &&serde_json::Value| l["name"] == name;
        let limit = limits["limits"].as_array().unwrap().iter().find(of_name).unwrap();
        assert!(limit["giga_per_second"].as_f64().unwrap() > 0.0, "{limit}");
    }
    let forced = finish(margay().args(["doctor", "--json"]).env("MARGAY_ISA", "scalar"), "").json();
    assert_eq!(forced["margay_isa"], "scalar");
}

#[test]
fn bench_measures_what_is_asked_for_and_lists_what_there_is() {
    let list = run(["bench", "kernels", "--list", "--json"]).json();
    let listed = |kernel: &str| list.as_array().unwrap().iter().filter(|c| c["kernel"] == kernel).count();
    assert!(listed("gemm/q4_0") > 1 && listed("attention/decode") > 1);
    let text = run(["bench", "kernels", "--list", "--filter", "NORM/"]).ok();
    assert!(text.lines().skip(1).all(|line| line.starts_with("norm/")), "{text}");

    let words = ["bench", "kernels", "--filter", "softmax", "--quick", "--threads", "1", "--isa", "scalar"];
    let ran = run(words.iter().chain(&["--json"]));
    assert!(ran.stderr.contains("100%"), "progress in a pipe is lines: {}", ran.stderr);
    let records = ran.json();
    let [record] = &records.as_array().unwrap()[..] else { panic!("{records}") };
    let fields: Vec<_> = record.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = ["kernel", "isa", "shape", "threads", "gops", "gbytes_per_s", "percent_of_peak", "bound"];
    assert_eq!(fields, expected);
    assert_eq!((&record["kernel"], &record["isa"]), (&"softmax/block".into(), &"scalar".into()));
    assert_eq!((&record["threads"], &record["bound"]), (&1.into(), &"compute".into()));
    assert!(record["gops"].as_f64().unwrap() > 0.0 && record["percent_of_peak"].as_f64().unwrap() > 0.0);
    let table = run(words).ok();
    assert!(
        table.contains("softmax/block") && table.contains("limits") && !table.contains('\x1b'),
        "{table}"
    );

    run(["bench", "kernels", "--filter", "no such"]).fails(2, &["no such", "--list"]);
    let missing = if cfg!(target_arch = "x86_64") { "neon" } else { "avx2" };
    run(["bench", "kernels", "--isa", missing]).fails(2, &[missing, "there are"]);
}

#[test]
fn bench_times_the_stages_of_a_model_and_does_what_it_is_ordered_to() {
    let words = ["bench", "stages", "--depths", "0,24", "--decode", "2", "--rounds", "2", "--threads", "1"];
    let told = run(words.iter().chain(&["--json"])).json();
    let figures = told["figures"].as_array().unwrap();
    let named: Vec<_> =
        figures.iter().map(|f| (f["stage"].as_str().unwrap(), f["depth"].as_u64().unwrap())).collect();
    assert_eq!(named, [("encode", 0), ("decode", 0), ("prefill", 0), ("decode", 24)]);
    for figure in figures {
        let positive = |field: &str| {
            let values = figure[field].as_array().unwrap();
            values.len() == 2 && values.iter().all(|v| v.as_f64().unwrap() > 0.0)
        };
        assert!(positive("ms") && positive("shares"), "{figure}");
    }
    let operations = |at: usize| figures[at]["operations"].as_u64().unwrap();
    // Two tokens behind 24 attend to more keys than two behind one.
    assert!(operations(3) > operations(1) && operations(2) > 8 * operations(3), "{figures:?}");
    let table = run(words).ok();
    assert!(table.contains("prefill 24") && table.contains("decode at 24"), "{table}");

    // A token reads the experts it chooses, a prompt all of them; of other models both read the same weights.
    for (name, fewer) in [("mixtral", true), ("llama", false)] {
        let words =
            ["bench", "stages", &golden(name), "--depths", "24", "--decode", "1", "--rounds", "1", "--json"];
        let told = run(words).json();
        let bytes = |at: usize| told["figures"][at]["bytes"].as_u64().unwrap();
        assert_eq!(bytes(1) < bytes(0), fewer, "{name}: {told}");
    }

    let mut orders = margay();
    orders.args(["bench", "stages", "--orders", "--context", "40", "--threads", "1"]);
    let lines = r#"{"do": "prefill", "tokens": 32}
{"do": "decode", "tokens": 8}
{"do": "encode"}
{"do": "limits"}
{"do": "sustain", "limit": "float32", "ms": 1}
{"do": "sustain", "limit": "memory read", "ms": 1}
{"do": "memory"}
"#;
    let ran = finish(&mut orders, lines).ok();
    let answers: Vec<serde_json::Value> = ran.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let [prefill, decode, encode, limits, float32, read, memory] = &answers[..] else { panic!("{ran}") };
    assert!([prefill, decode, encode].iter().all(|a| a["ms"].as_f64().unwrap() > 0.0), "{ran}");
    assert!(limits["limits"].as_array().unwrap().len() > 3 && limits["threads"] == 1, "{ran}");
    assert!([float32, read].iter().all(|a| a["giga_per_second"].as_f64().unwrap() > 0.0), "{ran}");
    assert!(memory["cache_bytes"].as_u64().unwrap() > 0, "{ran}");

    let told = run(["bench", "stages", "--ops", "--rounds", "1", "--depths", "8"]).ok();
    for part in
        ["encode", "prefill 8", "decode at 8", "attention 6 x 32", "linear 192 to 768", "% of the stage"]
    {
        assert!(told.contains(part), "no {part:?} in: {told}");
    }

    let mut orders = margay();
    let too_many = finish(
        orders.args(["bench", "stages", "--orders", "--context", "8"]),
        r#"{"do": "prefill", "tokens": 9}"#,
    );
    too_many.fails(1, &["9", "8"]);
    let mut orders = margay();
    finish(orders.args(["bench", "stages", "--orders"]), r#"{"do": "dance"}"#).fails(2, &["dance"]);
    run(["bench", "stages", "--decode", "0"]).fails(2, &["--decode"]);
}

#[test]
#[cfg(target_os = "linux")]
fn threads_stay_on_the_cores_asked_for_and_others_are_refused() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let allowed = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    let last = allowed.rsplit([',', '-']).next().unwrap();
    let doctor = run(["doctor", "--json", "--cores", last]).json();
    assert_eq!(doctor["threads"], 1, "one thread for each of the cores");
    let barrier = doctor["measured"][0]["barrier_microseconds"].as_f64().unwrap();
    assert!(barrier > 0.0, "{barrier}");
    let ask = |more: &[&str]| run([&["run", "hello", "--max-tokens", "2"], more].concat());
    assert_eq!(ask(&["--cores", last, "--decode-threads", "1"]).ok(), ask(&[]).ok());
    ask(&["--cores", "1023"]).fails(2, &["cores", "1023", allowed]);
    ask(&["--cores", "3-1"]).fails(2, &["3-1", "0-3,6"]);
    ask(&["--cores", last, "--threads", "2"]).fails(2, &["threads", "1 cores"]);
    ask(&["--decode-threads", "2000"]).fails(2, &["decode_threads", "1024"]);
    ask(&["--backend", "reference", "--cores", last]).fails(2, &["cpu backend"]);
}

#[test]
fn a_packed_file_is_made_used_ignored_and_told_from_a_damaged_one() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_gguf(folder.path());
    let model = model.to_str().unwrap();
    let small = run(["prepack", model, "--json"]).json();
    assert_eq!(small["files"][0]["why_not"], "too_small");
    assert_eq!(names(folder.path()).len(), 2, "the model and its mmproj");
    assert!(run(["prepack", model, "--verify"]).ok().contains("no packed file"));

    let report = run(["prepack", model, "--force", "--json"]).json();
    let files = report["files"].as_array().unwrap();
    assert_eq!(files.len(), 2);
    for file in files {
        let path = file["path"].as_str().unwrap();
        assert!(path.ends_with(".packed"));
        assert_eq!(file["bytes"], std::fs::metadata(path).unwrap().len());
    }
    assert_eq!(run(["prepack", model, "--verify", "--json"]).json()["sound"].as_array().unwrap().len(), 2);
    let ask = ["run", model, "hello", "--max-tokens", "3"];
    let kept = run(ask);
    assert_eq!(kept.stderr.matches("packing anew").count(), 0, "{}", kept.stderr);

    let packed = files[0]["path"].as_str().unwrap();
    let mut bytes = std::fs::read(packed).unwrap();
    bytes[4096] ^= 1;
    std::fs::write(packed, &bytes).unwrap();
    run(["prepack", model, "--verify"]).fails(1, &["damaged", "--force"]);
    std::fs::write(packed, &bytes[..bytes.len() / 2]).unwrap();
    let anew = run(ask);
    assert!(anew.stderr.contains("packing anew") && anew.stderr.contains("cut off"), "{}", anew.stderr);
    let ignored = run([&ask[..], &["--no-packed"]].concat());
    assert!(!ignored.stderr.contains("packing anew"), "{}", ignored.stderr);
    let answer = kept.ok();
    assert_eq!(anew.ok(), answer);
    assert_eq!(ignored.ok(), answer);
    run(["prepack", &golden("llava")]).fails(1, &["margay convert"]);
}
