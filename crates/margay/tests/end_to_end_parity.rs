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

/// Folders of `tests/golden`, and whether they ask about a picture.
const CHECKPOINTS: &[&str] = &[
    "gemma",
    "imp",
    "llama",
    "llama-odd",
    "llama-sharded",
    "llava",
    "llava-hf",
    "mixtral",
    "mobilevlm-v1",
    "mobilevlm-v2",
    "phi2",
    "qwen2",
    "qwen3",
    "qwen3moe",
    "siglip",
    "tinyllava",
];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn f32s(tensor: &Tensor) -> Vec<f32> {
    assert_eq!(tensor.dtype(), DType::F32);
    tensor.bytes().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn relative_error(got: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(got.shape(), expected.shape());
    let (got, expected) = (f32s(got), f32s(expected));
    let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    got.iter().zip(&expected).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

struct Prompt {
    text: String,
    images: Vec<Image>,
}

fn prompt(folder: &Path) -> Prompt {
    let json = std::fs::read_to_string(folder.join("prompt.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let images = json["image"].as_str().map(|name| Image::open(folder.join(name)).unwrap());
    Prompt { text: json["prompt"].as_str().unwrap().to_owned(), images: images.into_iter().collect() }
}

/// Runs the trace and gives the worst error of each stage; panics at the first that drifts.
fn check(name: &str, load: LoadOptions) {
    let folder = golden(name);
    let expected = SafeTensors::open(folder.join("golden.safetensors")).unwrap();
    let source = ModelSource::open(&folder, None).unwrap();
    let Prompt { text, images } = prompt(&folder);
    let greedy = expected.info("greedy").map_or(0, |i| i.shape.dims()[0]);
    let options = TraceOptions { load: load.clone(), raw_prompt: true, greedy };
    let got = source.trace(&images, &text, &options).unwrap();
    let mut compared = 0;
    for (stage, tensor) in &got {
        let Ok(expected) = expected.tensor(stage) else { continue };
        compared += 1;
        if tensor.dtype() == DType::I32 {
            assert_eq!(tensor.bytes(), expected.bytes(), "{name}: {stage}");
            continue;
        }
        let error = relative_error(tensor, &expected);
        let tolerance = if stage == "logits" { LOGITS_TOLERANCE } else { STAGE_TOLERANCE };
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
    for name in CHECKPOINTS {
        check(name, LoadOptions { backend: "reference".into(), ..LoadOptions::default() });
    }
}

#[test]
fn end_to_end_cpu_matches_the_published_implementations_on_every_isa() {
    for isa in Isa::supported() {
        for name in CHECKPOINTS {
            check(name, LoadOptions { isa: Some(isa.name().to_owned()), ..LoadOptions::default() });
        }
    }
}

#[test]
fn every_isa_gives_the_same_bits() {
    for name in ["gemma", "llama-odd", "llava", "mobilevlm-v1", "phi2", "qwen2", "qwen3moe", "siglip"] {
        let folder = golden(name);
        let source = ModelSource::open(&folder, None).unwrap();
        let Prompt { text, images } = prompt(&folder);
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

#[test]
fn every_golden_folder_is_checked() {
    let folders = std::fs::read_dir(golden("")).unwrap().map(|e| e.unwrap().path());
    let mut with_weights: Vec<_> = folders
        .filter(|f| f.join("golden.safetensors").exists())
        .map(|f| f.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    with_weights.sort();
    assert_eq!(with_weights, CHECKPOINTS);
}
