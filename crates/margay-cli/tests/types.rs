//! Checkpoints as they are: quantized at load, and packed in four bits by other tools.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

mod program;

use program::{golden, run, word, written};
use std::path::Path;

#[test]
fn a_model_quantized_at_load_answers_as_the_converted_one() {
    let folder = tempfile::tempdir().unwrap();
    let (model, picture) = (golden("llava"), format!("{}/wide.png", golden("llava")));
    let answer = |words: &[&str]| {
        let words =
            [&["run", "--json", "--max-tokens", "12", "--image", &picture, "--prompt", "what?"], words]
                .concat();
        run(words).json()["tokens"].clone()
    };
    for (dtype, vision) in [("q8_0", "q8_0"), ("q4_0", "f16"), ("bf16", "q8_0")] {
        let out = word(folder.path(), "m.gguf");
        run(["convert", &model, "-o", &out, "--type", dtype, "--vision-type", vision]).ok();
        let types = ["--type", dtype, "--vision-type", vision];
        assert_eq!(
            answer(&[&["--model", &model][..], &types].concat()),
            answer(&["--model", &out]),
            "{dtype} {vision}"
        );
    }
    let bytes = |words: &[&str]| {
        let words = [&["inspect", "--json"][..], words].concat();
        run(words).json()["memory"]["weight_bytes"].as_u64().unwrap()
    };
    let (stored, quantized) = (bytes(&[&model]), bytes(&[&model, "--type", "q8_0"]));
    let out = word(folder.path(), "q8.gguf");
    run(["convert", &model, "-o", &out, "--type", "q8_0"]).ok();
    assert_eq!(quantized, bytes(&[&out]), "as predicted, of {stored} stored");
    let again = run(["run", &out, "hello", "--type", "q4_0"]);
    again.fails(2, &["q8_0 already", "only float weights"]);
    run(["run", &model, "hello", "--vision-type", "q8_0"]).code.filter(|code| *code == 2).unwrap();
}

#[test]
fn every_format_of_a_file_can_be_converted_to() {
    let folder = tempfile::tempdir().unwrap();
    let formats = "f32 f16 bf16 q8_0 q6_k q5_k q5_1 q5_0 q4_k q4_1 q4_0 iq4_nl iq4_xs mxfp4 q3_k q2_k";
    for dtype in formats.split(' ') {
        let out = word(folder.path(), "m.gguf");
        let report = run(["convert", &golden("awq"), "-o", &out, "--type", dtype, "--json"]).json();
        let tensors = report["formats"][dtype]["tensors"].as_u64().unwrap_or(0);
        // Blocks of 256 fit `ffn_down` of its two layers alone.
        assert!(tensors >= 2, "{dtype}: {report}");
        run(["inspect", &out]).ok();
    }
}

#[test]
fn weights_of_awq_and_gptq_are_read_as_numbers() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["awq", "gptq"] {
        let inspected = run(["inspect", &golden(name), "--tensors", "--json"]).json();
        assert_eq!(inspected["family"], "llama", "{inspected}");
        let tensors: Vec<&str> =
            inspected["tensors"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
        assert!(tensors.contains(&"model.layers.1.mlp.down_proj.weight"), "{tensors:?}");
        assert!(
            !tensors.iter().any(|name| name.contains("qweight") || name.contains("g_idx")),
            "{tensors:?}"
        );
        let out = word(folder.path(), "m.gguf");
        let report = run(["convert", &golden(name), "-o", &out, "--type", "q4_1", "--json"]).json();
        assert_eq!(report["formats"]["q4_1"]["tensors"], 15, "{report}");
    }
    // What is not supported is named before anything is read.
    for entry in Path::new(&golden("gptq")).read_dir().unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let config = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
    let three = config.replace("\"bits\": 4", "\"bits\": 3");
    assert_ne!(three, config);
    std::fs::remove_file(folder.path().join("m.gguf")).unwrap();
    written(folder.path(), "config.json", three.as_bytes());
    run(["run", folder.path().to_str().unwrap(), "hello"])
        .fails(1, &["bits", "3 is not supported with gptq"]);
}
