//! Each family, stage by stage, against tensors that the published implementations computed.
//! How they were made: `tests/golden/README.md`.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use margay::{
    Image, LoadOptions, ModelSource, TraceOptions,
    rooms::{
        cpu::Isa,
        file::{SafeTensors, TensorSource},
        tensor::{DType, Tensor},
    },
};
use std::path::{Path, PathBuf};

/// Largest difference over the largest value. Stages before the logits sum a few hundred products in float32, each
/// rounded to 2^-24; the order of summation differs between implementations.
const STAGE_TOLERANCE: f32 = 1e-5;
/// Logits have gone through every layer's rounding.
const LOGITS_TOLERANCE: f32 = 1e-4;

/// Every folder of `tests/golden` that asks something.
fn checkpoints() -> Vec<String> {
    let folders = std::fs::read_dir(golden("")).unwrap().map(|e| e.unwrap().path());
    let mut names: Vec<_> = folders
        .filter(|f| f.join("prompt.json").exists())
        .map(|f| f.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    assert!(names.len() > 10, "{names:?}");
    names
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn f32s(tensor: &Tensor) -> Vec<f32> {
    assert_eq!(tensor.dtype(), DType::F32);
    tensor.bytes().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Of logits, a file may hold the last rows only.
fn relative_error(got: &Tensor, expected: &Tensor, last_rows: bool) -> f32 {
    let (got_shape, expected_shape) = (got.shape().dims(), expected.shape().dims());
    let (mut got, expected) = (f32s(got), f32s(expected));
    if last_rows && got_shape[0] > expected_shape[0] {
        assert_eq!(got_shape[1..], expected_shape[1..]);
        got.drain(..got.len() - expected.len());
    } else {
        assert_eq!(got_shape, expected_shape);
    }
    let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    got.iter().zip(&expected).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

/// A question of a folder, and where its tensors are.
struct Case {
    name: String,
    text: String,
    images: Vec<Image>,
    golden: PathBuf,
}

/// The one case of a `prompt.json`, or those it lists.
fn cases(name: &str) -> Vec<Case> {
    let folder = golden(name);
    let json = std::fs::read_to_string(folder.join("prompt.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let open = |image: &serde_json::Value| Image::open(folder.join(image.as_str().unwrap())).unwrap();
    let text = |case: &serde_json::Value| case["prompt"].as_str().unwrap().to_owned();
    let Some(listed) = json["cases"].as_array() else {
        let images = json["image"].as_str().map(|_| open(&json["image"])).into_iter().collect();
        let golden = folder.join("golden.safetensors");
        return vec![Case { name: name.to_owned(), text: text(&json), images, golden }];
    };
    let case = |case: &serde_json::Value| {
        let of = case["name"].as_str().unwrap();
        Case {
            name: format!("{name}/{of}"),
            text: text(case),
            images: case["images"].as_array().unwrap().iter().map(open).collect(),
            golden: folder.join(format!("golden.{of}.safetensors")),
        }
    };
    assert!(!listed.is_empty(), "{name}");
    listed.iter().map(case).collect()
}

/// Runs the traces and prints the error of each stage; panics at the first that drifts.
fn check(name: &str, load: &LoadOptions) {
    let source = ModelSource::open(&golden(name), None).unwrap();
    for case in cases(name) {
        check_case(&source, &case, load);
    }
}

fn check_case(source: &ModelSource, Case { name, text, images, golden }: &Case, load: &LoadOptions) {
    let expected = SafeTensors::open(golden).unwrap();
    let greedy = expected.info("greedy").map_or(0, |i| i.shape.dims()[0]);
    let options = TraceOptions { load: load.clone(), raw_prompt: true, greedy };
    let got = source.trace(images, text, &options).unwrap();
    let mut compared = 0;
    for (stage, tensor) in &got {
        let Ok(expected) = expected.tensor(stage) else { continue };
        compared += 1;
        if tensor.dtype() == DType::I32 {
            assert_eq!(tensor.bytes(), expected.bytes(), "{name}: {stage}");
            continue;
        }
        let logits = stage == "logits";
        let error = relative_error(tensor, &expected, logits);
        let tolerance = if logits { LOGITS_TOLERANCE } else { STAGE_TOLERANCE };
        println!(
            "{name:14} {:9} {:8} {stage:13} {error:.1e}",
            load.backend,
            load.isa.as_deref().unwrap_or("-")
        );
        assert!(error <= tolerance, "{name}: {stage} drifts first: {error:e} > {tolerance:e}");
    }
    assert_eq!(compared, expected.tensors().len(), "{name}: every golden tensor is compared");
}

#[cfg(feature = "reference")]
#[test]
fn end_to_end_reference_matches_the_published_implementations() {
    for name in checkpoints() {
        check(&name, &LoadOptions { backend: "reference".into(), ..LoadOptions::default() });
    }
}

#[test]
fn end_to_end_cpu_matches_the_published_implementations_on_every_isa() {
    for isa in Isa::supported() {
        for name in checkpoints() {
            check(&name, &LoadOptions { isa: Some(isa.name().to_owned()), ..LoadOptions::default() });
        }
    }
}

#[test]
fn every_isa_gives_the_same_bits() {
    for name in [
        "fastvlm",
        "gemma",
        "llama-odd",
        "llava",
        "mobilevlm-v1",
        "moondream",
        "phi2",
        "qwen2",
        "qwen25vl",
        "qwen2vl",
        "qwen3moe",
        "siglip",
        "smolvlm",
    ] {
        let source = ModelSource::open(&golden(name), None).unwrap();
        let Case { text, images, .. } = cases(name).remove(0);
        let mut first: Option<Vec<(String, Tensor)>> = None;
        for isa in Isa::supported() {
            let load = LoadOptions { isa: Some(isa.name().to_owned()), ..LoadOptions::default() };
            let options = TraceOptions { load, raw_prompt: true, greedy: 8 };
            let stages = source.trace(&images, &text, &options).unwrap();
            let Some(first) = &first else {
                first = Some(stages);
                continue;
            };
            for ((stage, expected), (_, got)) in first.iter().zip(&stages) {
                assert_eq!(got.bytes(), expected.bytes(), "{name}: {stage} on {isa}");
            }
        }
    }
}
