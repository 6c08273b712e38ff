//! A converted model is the same model.

#![allow(clippy::unwrap_used, reason = "a test")]

use margay::{
    Image, ModelSource, TraceOptions,
    rooms::{
        file::{
            Gguf, SafeTensors, TensorSource,
            gguf::{Metadata, write_gguf},
        },
        tensor::{DType, Shape, Tensor},
    },
};
use margay_pack::{ConvertOptions, PackError, QuantizeReport, convert, mmproj_path};
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

const FOLDERS: &[&str] = &[
    "awq",
    "gemma",
    "gptq",
    "imp",
    "llama",
    "llama-odd",
    "llava",
    "llava-gemma",
    "llava-hf",
    "minicpmv",
    "mixtral",
    "mobilevlm-v1",
    "mobilevlm-v2",
    "olmoe",
    "phi2",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
    "siglip",
    "tinyllava",
    "tinyllava-clip",
    "tinyllava-gemma",
    "tinyllava-llama",
    "tinyllava-phi",
];
/// As for the checkpoints themselves: float32 weights go through the file unchanged.
const LOGITS_TOLERANCE: f32 = 1e-4;

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

fn logits(source: &ModelSource, folder: &Path) -> Vec<f32> {
    let prompt: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("prompt.json")).unwrap()).unwrap();
    let cases = prompt["cases"].as_array().unwrap();
    let case = cases.iter().find(|case| case["name"] == "wide").unwrap_or(&cases[0]);
    let open = |name: &serde_json::Value| Image::open(folder.join(name.as_str().unwrap())).unwrap();
    let images: Vec<Image> = case["images"].as_array().unwrap().iter().map(open).collect();
    let options = TraceOptions { raw_prompt: true, ..TraceOptions::default() };
    let stages = source.trace(&images, case["prompt"].as_str().unwrap(), &options).unwrap();
    f32s(&stages.iter().find(|(name, _)| name == "logits").unwrap().1)
}

/// Logits of the last positions of a folder's first case.
fn golden_logits(folder: &Path, images: bool) -> Vec<f32> {
    let case = if images { "wide" } else { "text" };
    let golden = SafeTensors::open(folder.join(format!("golden.{case}.safetensors"))).unwrap();
    f32s(&golden.tensor("logits").unwrap())
}

/// Largest difference over the largest value.
fn error(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    got.iter().zip(expected).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

#[test]
fn converted_checkpoints_keep_the_published_logits() {
    let out = tempfile::tempdir().unwrap();
    for name in FOLDERS {
        let folder = golden(name);
        let source = ModelSource::open(&folder, None).unwrap();
        let expected = golden_logits(&folder, source.config.vision.is_some());
        for single in [false, true] {
            let path = out.path().join(format!("{name}-{single}")).join("model.gguf");
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let report = converted(&source, &path, DType::F32, single);
            assert_eq!(
                report.files.len(),
                if single || source.config.vision.is_none() { 1 } else { 2 },
                "{name}"
            );
            let read = ModelSource::open(&path, None).unwrap();
            assert_eq!(read.family.id, source.family.id, "{name}");
            assert_eq!(read.config.text, source_text(&source), "{name}");
            assert_eq!(read.config.vision.is_some(), source.config.vision.is_some(), "{name}");
            assert_eq!(read.template_source, source.template_source, "{name}");
            let logits = logits(&read, &folder);
            let error = error(&logits[logits.len() - expected.len()..], &expected);
            assert!(error <= LOGITS_TOLERANCE, "{name}, single {single}: {error:e}");
            // GGUF has no key of its own for a dummy space at the start of the prompt alone; ours says it.
            assert_eq!(
                report.notes.len(),
                usize::from(["llava-hf", "siglip"].contains(name)),
                "{name}: {:?}",
                report.notes
            );
        }
    }
}

/// A file holds the divisors of the rotary frequencies themselves.
fn source_text(source: &ModelSource) -> margay::rooms::model::TextConfig {
    let mut text = source.config.text.clone();
    if matches!(text.rope_scaling, margay::rooms::model::RopeScaling::Llama3 { .. }) {
        text.rope_scaling = margay::rooms::model::RopeScaling::Factors;
    }
    text
}

#[test]
fn converting_a_converted_model_changes_no_byte() {
    let out = tempfile::tempdir().unwrap();
    for name in [
        "gemma",
        "imp",
        "llama",
        "llava",
        "llava-hf",
        "mobilevlm-v1",
        "qwen2",
        "qwen2moe",
        "qwen3moe",
        "siglip",
    ] {
        let source = ModelSource::open(&golden(name), None).unwrap();
        let [first, second] = ["first", "second"].map(|n| out.path().join(format!("{name}-{n}.gguf")));
        converted(&source, &first, DType::F16, true);
        converted(&ModelSource::open(&first, None).unwrap(), &second, DType::F16, true);
        assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap(), "{name}");
    }
}

#[test]
fn a_public_siglip_file_needs_none_of_our_own_keys() {
    let out = tempfile::tempdir().unwrap();
    let folder = golden("siglip");
    let source = ModelSource::open(&folder, None).unwrap();
    let path = out.path().join("m.gguf");
    converted(&source, &path, DType::F32, false);
    // Public converters know nothing of `margay.*`, and say `use_gelu`, mean and deviation only.
    let ours = Gguf::open(mmproj_path(&path)).unwrap();
    let mut public = Metadata::new();
    for (key, value) in ours.metadata().iter().filter(|(key, _)| !key.starts_with("margay.")) {
        public.insert(key, value.clone());
    }
    let theirs = out.path().join("theirs.gguf");
    let tensors: Vec<_> = ours.tensors().map(|(name, _)| (name, ours.tensor(name).unwrap())).collect();
    let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    write_gguf(&theirs, &public, &named).unwrap();

    let read = ModelSource::open(&path, Some(&theirs)).unwrap();
    assert_eq!(read.config.vision, source.config.vision);
    let error = error(&logits(&read, &folder), &logits(&source, &folder));
    assert!(error <= LOGITS_TOLERANCE, "{error:e}");
}

#[test]
fn a_public_smolvlm_file_is_read_as_the_checkpoint() {
    let out = tempfile::tempdir().unwrap();
    let folder = golden("smolvlm");
    let source = ModelSource::open(&folder, None).unwrap();
    let path = out.path().join("m.gguf");
    converted(&source, &path, DType::F32, false);
    let wide = Image::open(folder.join("wide.png")).unwrap();
    let options = TraceOptions { raw_prompt: true, greedy: 8, ..TraceOptions::default() };
    let stages =
        |source: &ModelSource| source.trace(std::slice::from_ref(&wide), "a<image>b", &options).unwrap();
    let expected = stages(&source);

    // llama.cpp's `convert_hf_to_gguf.py`, `SmolVLMModel`, names no feature layer and nothing of `margay.*`.
    let ours = Gguf::open(mmproj_path(&path)).unwrap();
    let mut public = Metadata::new();
    let theirs = |key: &str| !key.starts_with("margay.") && key != "clip.vision.feature_layer";
    for (key, value) in ours.metadata().iter().filter(|(key, _)| theirs(key)) {
        public.insert(key, value.clone());
    }
    let stripped = out.path().join("theirs.gguf");
    let tensors: Vec<_> = ours.tensors().map(|(name, _)| (name, ours.tensor(name).unwrap())).collect();
    let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    write_gguf(&stripped, &public, &named).unwrap();

    for mmproj in [None, Some(stripped.as_path())] {
        let read = ModelSource::open(&path, mmproj).unwrap();
        assert_eq!(read.family.id, "smolvlm");
        assert_eq!(read.config.vision, source.config.vision);
        assert_eq!(read.template_source, source.template_source);
        for ((name, got), (_, expected)) in stages(&read).iter().zip(&expected) {
            assert_eq!(got.bytes(), expected.bytes(), "{name}");
        }
    }
    let names: Vec<_> = ours.tensors().map(|(name, _)| name).collect();
    assert!(names.contains(&"mm.model.fc.weight") && names.contains(&"v.post_ln.weight"), "{names:?}");
}

#[test]
fn queries_keys_and_values_in_one_matrix_are_the_same_model() {
    let out = tempfile::tempdir().unwrap();
    let folder = golden("phi2");
    let path = out.path().join("apart.gguf");
    converted(&ModelSource::open(&folder, None).unwrap(), &path, DType::F32, true);
    let apart = Gguf::open(&path).unwrap();
    let is_part = |name: &str| ["attn_q.", "attn_k.", "attn_v."].iter().any(|part| name.contains(part));
    let mut tensors: Vec<(String, Tensor)> = apart
        .tensors()
        .filter(|(name, _)| !is_part(name))
        .map(|(name, _)| (name.to_owned(), apart.tensor(name).unwrap()))
        .collect();
    for (layer, kind) in [(0, "weight"), (0, "bias"), (1, "weight"), (1, "bias")] {
        let parts = ["q", "k", "v"].map(|p| apart.tensor(&format!("blk.{layer}.attn_{p}.{kind}")).unwrap());
        let mut dims = parts[0].shape().dims().to_vec();
        dims[0] *= 3;
        let values: Vec<f32> = parts.iter().flat_map(f32s).collect();
        let whole = Tensor::from_f32(Shape::from(dims), &values).unwrap();
        tensors.push((format!("blk.{layer}.attn_qkv.{kind}"), whole));
    }
    let fused = out.path().join("fused.gguf");
    let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    write_gguf(&fused, apart.metadata(), &named).unwrap();
    let [apart, fused] = [path, fused].map(|path| ModelSource::open(&path, None).unwrap());
    assert_eq!(logits(&fused, &folder), logits(&apart, &folder));

    // Converting takes them apart.
    let again = out.path().join("again.gguf");
    converted(&fused, &again, DType::F32, true);
    assert_eq!(std::fs::read(&again).unwrap(), std::fs::read(out.path().join("apart.gguf")).unwrap());
}

#[test]
fn every_format_is_written_and_read() {
    let out = tempfile::tempdir().unwrap();
    let folder = golden("llava");
    let source = ModelSource::open(&folder, None).unwrap();
    let expected = logits(&source, &folder);
    // Root mean square of the difference over that of the logits; random weights at width 32 are a hard case.
    for (dtype, limit) in [
        (DType::BF16, 0.02),
        (DType::F16, 0.005),
        (DType::Q8_0, 0.03),
        (DType::Q5_1, 0.15),
        (DType::Q5_0, 0.2),
        (DType::Q4_1, 0.3),
        (DType::Q4_0, 0.35),
    ] {
        let path = out.path().join(format!("{dtype}.gguf"));
        converted(&source, &path, dtype, true);
        let got = logits(&ModelSource::open(&path, None).unwrap(), &folder);
        let square = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x * x)).sum::<f64>();
        let noise = square(&mut got.iter().zip(&expected).map(|(a, b)| a - b));
        let error = (noise / square(&mut expected.iter().copied())).sqrt();
        assert!(error < limit, "{dtype}: {error}");
    }
}

#[test]
fn a_row_that_fits_no_block_is_reported_and_kept() {
    let out = tempfile::tempdir().unwrap();
    let source = ModelSource::open(&golden("llama-odd"), None).unwrap();
    let path = out.path().join("odd.gguf");
    let report = converted(&source, &path, DType::Q4_0, true);
    assert!(
        report
            .fallbacks
            .iter()
            .any(|(name, dtype, _)| name == "blk.0.ffn_down.weight" && *dtype == DType::F16)
    );
    ModelSource::open(&path, None).unwrap();
}

#[test]
fn stopping_leaves_nothing() {
    let out = tempfile::tempdir().unwrap();
    let source = ModelSource::open(&golden("llava"), None).unwrap();
    let options = ConvertOptions { dtype: DType::Q8_0, vision_dtype: None, single: false };
    let mut steps = 0;
    let result = convert(&source, &out.path().join("m.gguf"), &options, &mut |p| {
        steps += 1;
        if p.done == p.of { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(result, Err(PackError::Stopped)));
    assert!(steps > 10);
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
}

/// What the first public converters wrote: no `feature_layer` and no type, fc1 as `ffn_down` and fc2 as `ffn_up`, sizes of
/// 1 of a convolution left out, positions in half precision.
#[test]
fn a_legacy_clip_file_is_the_same_model() {
    let out = tempfile::tempdir().unwrap();
    let folder = golden("mobilevlm-v1");
    let source = ModelSource::open(&folder, None).unwrap();
    let path = out.path().join("m.gguf");
    converted(&source, &path, DType::F32, false);
    let expected = logits(&source, &folder);
    let ours = Gguf::open(mmproj_path(&path)).unwrap();
    let mut legacy = Metadata::new();
    let today = ["margay.", "general.type", "clip.vision.feature_layer"];
    for (key, value) in ours.metadata().iter().filter(|(key, _)| !today.iter().any(|t| key.starts_with(t))) {
        legacy.insert(key, value.clone());
    }
    // Ten bits of a position are rounded: the logits may move by some of these steps.
    for (half_positions, tolerance) in [(false, 0.0), (true, 5e-3)] {
        let (mut swapped, mut squeezed) = (0, 0);
        let mut tensors = vec![];
        for (name, _) in ours.tensors() {
            let mut tensor = ours.tensor(name).unwrap();
            let mut to = name.to_owned();
            for (a, b) in [("ffn_up", "ffn_down"), ("ffn_down", "ffn_up")] {
                if name.contains(a) {
                    to = name.replace(a, b);
                    swapped += 1;
                }
            }
            let dims = tensor.shape().dims().to_vec();
            if dims.len() == 4 && dims.contains(&1) {
                let dims: Vec<_> = dims.into_iter().filter(|d| *d != 1).collect();
                tensor = tensor.reshape(Shape::from(dims)).unwrap();
                squeezed += 1;
            }
            if half_positions && name == "v.position_embd.weight" {
                let shape = tensor.shape().clone();
                tensor = margay_quant::encode_tensor(&f32s(&tensor), shape, DType::F16).unwrap();
            }
            tensors.push((to, tensor));
        }
        assert!(swapped > 0 && squeezed > 0, "{swapped} {squeezed}");
        let theirs = out.path().join(format!("legacy-{half_positions}.gguf"));
        let named: Vec<(&str, &Tensor)> =
            tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        write_gguf(&theirs, &legacy, &named).unwrap();
        let read = ModelSource::open(&path, Some(&theirs)).unwrap();
        let error = error(&logits(&read, &folder), &expected);
        assert!(error <= tolerance, "half precision {half_positions}: {error:e}");
        assert_eq!(error > 0.0, half_positions);
    }
}

/// What public converters write since they say `general.type`: all blocks, also those behind the features, and the norm behind
/// them; only the family knows where the features are taken.
#[test]
fn a_public_clip_file_holds_blocks_that_do_not_run() {
    let out = tempfile::tempdir().unwrap();
    for name in ["mobilevlm-v1", "llava", "imp"] {
        let folder = golden(name);
        let source = ModelSource::open(&folder, None).unwrap();
        let path = out.path().join(format!("{name}.gguf"));
        converted(&source, &path, DType::F32, false);
        let ours = Gguf::open(mmproj_path(&path)).unwrap();
        let mut public = Metadata::new();
        let theirs = |key: &str| !key.starts_with("margay.") && key != "clip.vision.feature_layer";
        for (key, value) in ours.metadata().iter().filter(|(key, _)| theirs(key)) {
            public.insert(key, value.clone());
        }
        let mut tensors: Vec<(String, Tensor)> =
            ours.tensors().map(|(name, _)| (name.to_owned(), ours.tensor(name).unwrap())).collect();
        let blocks = tensors.iter().filter(|(name, _)| name.ends_with(".ln1.weight")).count();
        // They would spoil everything.
        let spoilt = |tensor: &Tensor| {
            let shape = tensor.shape().clone();
            let values = vec![f32::NAN; shape.elements().unwrap()];
            Tensor::from_f32(shape, &values).unwrap()
        };
        for (name, tensor) in tensors.clone() {
            if let Some(inner) = name.strip_prefix("v.blk.0.") {
                tensors.push((format!("v.blk.{blocks}.{inner}"), spoilt(&tensor)));
            }
            if let Some(kind) = name.strip_prefix("v.blk.0.ln1.") {
                tensors.push((format!("v.post_ln.{kind}"), spoilt(&tensor)));
            }
        }
        public.insert("clip.vision.block_count", blocks as u32 + 1);
        let theirs = out.path().join(format!("{name}-public.gguf"));
        let named: Vec<(&str, &Tensor)> =
            tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        write_gguf(&theirs, &public, &named).unwrap();
        let read = ModelSource::open(&path, Some(&theirs)).unwrap();
        assert_eq!(read.family.id, source.family.id);
        assert_eq!(logits(&read, &folder), logits(&source, &folder), "{name}");
    }
}

/// Moondream's GGUF pair of early 2024 has the parts of Imp's: it is told by its name, the block that its runtime left out is
/// left out here, and its projector has a width and a GELU of its own.
#[test]
fn moondreams_first_files_are_not_taken_for_imps() {
    const HIDDEN: usize = 52;
    let out = tempfile::tempdir().unwrap();
    let imp = out.path().join("imp.gguf");
    converted(&ModelSource::open(&golden("imp"), None).unwrap(), &imp, DType::F32, false);
    let (text, vision) = (Gguf::open(&imp).unwrap(), Gguf::open(mmproj_path(&imp)).unwrap());
    let legacy = |file: &Gguf, name: Option<&str>| {
        let today = ["margay.", "general.type", "general.name", "clip.vision.feature_layer", "clip.use_"];
        let mut meta = Metadata::new();
        for (key, value) in
            file.metadata().iter().filter(|(key, _)| !today.iter().any(|t| key.starts_with(t)))
        {
            meta.insert(key, value.clone());
        }
        if let Some(name) = name {
            meta.insert("general.name", name);
        }
        meta
    };
    let tensors = |file: &Gguf| -> Vec<(String, Tensor)> {
        file.tensors().map(|(name, _)| (name.to_owned(), file.tensor(name).unwrap())).collect()
    };
    let write = |path: &Path, meta: &Metadata, tensors: &[(String, Tensor)]| {
        let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, t)| (name.as_str(), t)).collect();
        write_gguf(path, meta, &named).unwrap();
    };
    let made = |dims: &[usize], of: &dyn Fn(usize) -> f32| {
        let values: Vec<f32> = (0..dims.iter().product()).map(of).collect();
        Tensor::from_f32(Shape::from(dims.to_vec()), &values).unwrap()
    };
    let (width, decoder) = (36, 40);
    let mut parts: Vec<_> =
        tensors(&vision).into_iter().filter(|(name, _)| !name.starts_with("mm.")).collect();
    let blocks = parts.iter().filter(|(name, _)| name.ends_with(".ln1.weight")).count();
    // The spare block would spoil everything.
    for (name, tensor) in parts.clone() {
        if let Some(inner) = name.strip_prefix("v.blk.0.") {
            let spare = made(tensor.shape().dims(), &|_| f32::NAN);
            parts.push((format!("v.blk.{blocks}.{inner}"), spare));
        }
    }
    let wave = |i: usize| ((i * 37 % 101) as f32 / 101.0 - 0.5) * 0.6;
    parts.retain(|(name, _)| !name.starts_with("v.post_ln"));
    for (name, tensor) in [
        ("v.post_ln.weight", made(&[width], &|_| 1.0)),
        ("v.post_ln.bias", made(&[width], &|_| 0.0)),
        ("mm.0.weight", made(&[HIDDEN, width], &wave)),
        ("mm.0.bias", made(&[HIDDEN], &wave)),
        ("mm.2.weight", made(&[decoder, HIDDEN], &wave)),
        ("mm.2.bias", made(&[decoder], &wave)),
    ] {
        parts.push((name.to_owned(), tensor));
    }
    let pair =
        |text_name: Option<&str>, vision_name: Option<&str>, side: Option<u32>, family: Option<&str>| {
            let [path, mmproj] = ["m.gguf", "mmproj.gguf"].map(|name| out.path().join(name));
            let mut meta = legacy(&text, text_name);
            if let Some(family) = family {
                meta.insert("margay.family", family);
            }
            write(&path, &meta, &tensors(&text));
            let mut meta = legacy(&vision, vision_name);
            meta.insert("clip.vision.block_count", blocks as u32 + 1);
            meta.insert("clip.use_gelu", true);
            if let Some(side) = side {
                meta.insert("clip.vision.image_size", side);
            }
            write(&mmproj, &meta, &parts);
            ModelSource::open(&path, Some(&mmproj))
        };
    let source = pair(Some("moondream2"), None, None, None).unwrap();
    assert_eq!(source.family.id, "moondream2024");
    for named in
        [pair(None, Some("vikhyatk/moondream2"), None, None), pair(None, None, None, Some("moondream2024"))]
    {
        assert_eq!(named.unwrap().family.id, "moondream2024");
    }
    let unnamed = pair(None, None, Some(378), None).err().unwrap().to_string();
    assert!(unnamed.contains("margay.family") && unnamed.contains("moondream2024"), "{unnamed}");

    let picture = Image::open(golden("imp").join("wide.png")).unwrap();
    let stages = |source: &ModelSource| {
        source.trace(std::slice::from_ref(&picture), "What?", &TraceOptions::default()).unwrap()
    };
    let found = |stages: &[(String, Tensor)], name: &str| {
        f32s(&stages.iter().find(|(stage, _)| stage == name).unwrap().1)
    };
    let got = stages(&source);
    let encode = found(&got, "encode");
    for row in encode.chunks_exact(width) {
        let mean = row.iter().sum::<f32>() / width as f32;
        let square = row.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / width as f32;
        assert!(mean.abs() < 1e-4 && (square - 1.0).abs() < 1e-3, "behind the final norm: {mean} {square}");
    }
    let gelu = |x: f64| 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044715 * x.powi(3))).tanh());
    let linear = |x: &[f64], out: usize| -> Vec<f64> {
        let weight = |o: usize, i: usize| f64::from(wave(o * x.len() + i));
        let row = |o: usize| x.iter().enumerate().map(|(i, x)| x * weight(o, i)).sum::<f64>();
        (0..out).map(|o| row(o) + f64::from(wave(o))).collect()
    };
    let project = found(&got, "project");
    for (row, got) in encode.chunks_exact(width).zip(project.chunks_exact(decoder)) {
        let row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
        let inner: Vec<f64> = linear(&row, HIDDEN).into_iter().map(gelu).collect();
        for (got, expected) in got.iter().zip(linear(&inner, decoder)) {
            assert!((f64::from(*got) - expected).abs() < 1e-4, "{got} {expected}");
        }
    }
    let written = out.path().join("again.gguf");
    converted(&source, &written, DType::F32, false);
    let again = ModelSource::open(&written, None).unwrap();
    assert_eq!((again.family.id, &again.config.vision), (source.family.id, &source.config.vision));
    for ((name, got), (_, again)) in got.iter().zip(&stages(&again)) {
        assert_eq!(got.bytes(), again.bytes(), "{name}");
    }
}

/// What public converters write: none of our own keys, no projection width, fc1 as `ffn_down`, positions of a square.
#[test]
fn a_public_file_of_a_resampler_is_the_same_model() {
    let out = tempfile::tempdir().unwrap();
    let folder = golden("minicpmv");
    let source = ModelSource::open(&folder, None).unwrap();
    let path = out.path().join("m.gguf");
    converted(&source, &path, DType::F32, false);
    let ours = Gguf::open(mmproj_path(&path)).unwrap();
    let mut public = Metadata::new();
    let today = ["margay.", "general.type", "clip.vision.feature_layer", "clip.vision.projection_dim"];
    for (key, value) in ours.metadata().iter().filter(|(key, _)| !today.iter().any(|t| key.starts_with(t))) {
        public.insert(key, value.clone());
    }
    public.insert("clip.vision.projection_dim", 0u32);
    let tensors: Vec<(String, Tensor)> = ours
        .tensors()
        .map(|(name, _)| {
            let to = match name.contains("ffn_up") {
                true => name.replace("ffn_up", "ffn_down"),
                false => name.replace("ffn_down", "ffn_up"),
            };
            let tensor = match name {
                "resampler.pos_embed_k" => Tensor::from_f32(Shape::from([4, 128]), &[9.0; 4 * 128]).unwrap(),
                _ => ours.tensor(name).unwrap(),
            };
            (to, tensor)
        })
        .collect();
    assert!(tensors.iter().any(|(name, _)| name == "resampler.pos_embed_k"));
    let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let theirs = out.path().join("public.gguf");
    write_gguf(&theirs, &public, &named).unwrap();
    let read = ModelSource::open(&path, Some(&theirs)).unwrap();
    assert_eq!(read.config.vision, source.config.vision);
    let expected = golden_logits(&folder, true);
    let logits = logits(&read, &folder);
    let error = error(&logits[logits.len() - expected.len()..], &expected);
    assert!(error <= LOGITS_TOLERANCE, "{error:e}");

    // Another generation of the model has the same names.
    public.insert("clip.minicpmv_version", 2i32);
    let other = out.path().join("other.gguf");
    write_gguf(&other, &public, &named).unwrap();
    let error = ModelSource::open(&path, Some(&other)).err().unwrap().to_string();
    assert!(error.contains("clip.minicpmv_version") && error.contains("2.6"), "{error}");
}

#[test]
fn a_model_whose_tiles_overlap_goes_through_a_file_unchanged() {
    for folder in ["moondream", "moondream-ids"] {
        goes_through_a_file_unchanged(&golden(folder));
    }
}

/// It would be read as other words.
#[test]
fn the_vocabulary_of_another_revision_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden("moondream-ids")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    ModelSource::open(folder.path(), None).unwrap();
    std::fs::copy(golden("moondream").join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    let error = ModelSource::open(folder.path(), None).err().unwrap().to_string();
    assert!(error.contains("starmie-v1") && error.contains("tokenizer.json"), "{error}");
}

fn goes_through_a_file_unchanged(folder: &Path) {
    let out = tempfile::tempdir().unwrap();
    let source = ModelSource::open(folder, None).unwrap();
    let picture = Image::open(folder.join("wide.png")).unwrap();
    let options = TraceOptions { greedy: 8, ..TraceOptions::default() };
    let stages =
        |source: &ModelSource| source.trace(std::slice::from_ref(&picture), "What?", &options).unwrap();
    let expected = stages(&source);
    for single in [true, false] {
        let path = out.path().join(format!("{single}.gguf"));
        converted(&source, &path, DType::F32, single);
        let read = ModelSource::open(&path, None).unwrap();
        assert_eq!(read.template_source, source.template_source);
        assert_eq!((&read.config.vision, &read.config.text), (&source.config.vision, &source.config.text));
        for ((name, got), (_, expected)) in stages(&read).iter().zip(&expected) {
            assert_eq!(got.bytes(), expected.bytes(), "{name}");
        }
    }
}
