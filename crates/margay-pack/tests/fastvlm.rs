//! FastVLM's tower, published or as it is trained, becomes one and the same file.

#![allow(clippy::unwrap_used, reason = "a test")]

use margay::{
    Image, ModelSource, TraceOptions,
    rooms::{
        file::{SafeTensors, TensorSource},
        tensor::{DType, Tensor},
    },
};
use margay_pack::{ConvertOptions, QuantizeReport, convert};
use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

/// As for the checkpoints themselves.
const LOGITS_TOLERANCE: f32 = 1e-4;
/// As in `end_to_end_parity.rs`: each form's own features are as near to PyTorch's.
const FEATURES_TOLERANCE: f32 = 1e-5;
/// Weights rounded to 11 bits, 2^-12 of each at most, in some tens of layers behind each other whose errors add up as
/// their squares do.
const F16_TOLERANCE: f32 = 5e-3;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn converted(source: &ModelSource, out: &Path, dtype: DType, single: bool) -> QuantizeReport {
    let options = ConvertOptions { dtype, vision_dtype: None, single };
    convert(source, out, &options, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn f32s(tensor: &Tensor) -> Vec<f32> {
    tensor.bytes().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// What the first case of the folder gives.
fn stages(source: &ModelSource) -> BTreeMap<String, Vec<f32>> {
    let folder = golden("fastvlm");
    let json = std::fs::read_to_string(folder.join("prompt.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let case = &json["cases"][0];
    let image = Image::open(folder.join(case["images"][0].as_str().unwrap())).unwrap();
    let options = TraceOptions { raw_prompt: true, ..TraceOptions::default() };
    let stages = source.trace(&[image], case["prompt"].as_str().unwrap(), &options).unwrap();
    stages.into_iter().filter(|(_, t)| t.dtype() == DType::F32).map(|(n, t)| (n, f32s(&t))).collect()
}

/// Largest difference over the largest value, of the last rows where there are more.
fn error(got: &[f32], expected: &[f32]) -> f32 {
    let got = &got[got.len() - expected.len()..];
    let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    got.iter().zip(expected).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

#[test]
fn both_forms_have_the_same_features_before_and_behind_a_conversion() {
    let out = tempfile::tempdir().unwrap();
    let published = SafeTensors::open(golden("fastvlm").join("golden.wide.safetensors")).unwrap();
    let [encode, logits] = ["encode", "logits"].map(|stage| f32s(&published.tensor(stage).unwrap()));
    let check = |what: &str, source: &ModelSource| {
        let got = stages(source);
        let (features, end) = (error(&got["encode"], &encode), error(&got["logits"], &logits));
        assert!(features <= FEATURES_TOLERANCE && end <= LOGITS_TOLERANCE, "{what}: {features:e} {end:e}");
    };
    let mut files = vec![];
    for name in ["fastvlm", "fastvlm-trained"] {
        let source = ModelSource::open(&golden(name), None).unwrap();
        check(name, &source);
        for single in [false, true] {
            let path = out.path().join(format!("{name}-{single}.gguf"));
            let report = converted(&source, &path, DType::F32, single);
            assert_eq!(report.files.len(), if single { 1 } else { 2 });
            assert!(report.notes.is_empty() && report.fallbacks.is_empty(), "{report:?}");
            let read = ModelSource::open(&path, None).unwrap();
            assert_eq!(read.family.id, "fastvlm", "TinyLLaVA has the same decoder and projector");
            assert_eq!(read.config, source.config);
            check(&format!("{name}, single {single}"), &read);
            // Of the trained form each tensor of a merged layer, under the same name and of the same shape.
            let spec = |name: &&str| format!("{name} {}", read.weights.info(name).unwrap().shape);
            let names: Vec<_> = read.weights.names().collect();
            files.push(names.iter().map(spec).collect::<Vec<_>>());
        }
    }
    assert!(files.iter().all(|names| *names == files[0]));
}

#[test]
fn odd_widths_keep_their_floats_and_are_named() {
    let out = tempfile::tempdir().unwrap();
    let source = ModelSource::open(&golden("fastvlm"), None).unwrap();
    let expected = stages(&source);
    for dtype in [DType::Q8_0, DType::Q4_0] {
        let path = out.path().join("odd.gguf");
        let report = converted(&source, &path, dtype, true);
        let fell = |name: &str| report.fallbacks.iter().any(|(weight, ..)| weight == name);
        assert!(fell("blk.0.attn_q.weight") && fell("blk.1.ffn_down.weight"), "{:?}", report.fallbacks);
        let got = stages(&ModelSource::open(&path, None).unwrap());
        let features = error(&got["encode"], &expected["encode"]);
        let worst = if dtype == DType::Q8_0 { 2e-2 } else { F16_TOLERANCE };
        assert!(features <= worst, "{dtype}: {features:e}");
    }
}

#[test]
fn converting_again_changes_no_byte() {
    let out = tempfile::tempdir().unwrap();
    for name in ["fastvlm", "fastvlm-trained"] {
        let source = ModelSource::open(&golden(name), None).unwrap();
        let [first, second] = ["first", "second"].map(|n| out.path().join(format!("{name}-{n}.gguf")));
        converted(&source, &first, DType::F16, true);
        converted(&ModelSource::open(&first, None).unwrap(), &second, DType::F16, true);
        assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap(), "{name}");
    }
}
