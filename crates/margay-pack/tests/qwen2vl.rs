//! Qwen2-VL as GGUF: what is written, and what public converters write.

#![allow(clippy::unwrap_used, reason = "a test")]

use margay::{
    Image, ModelSource, TraceOptions,
    rooms::{
        file::{
            Gguf, SafeTensors, TensorSource,
            gguf::{Metadata, Value, write_gguf},
        },
        tensor::{DType, Tensor},
    },
};
use margay_pack::{ConvertOptions, convert, mmproj_path};
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

/// As for the checkpoints themselves: float32 weights go through the file unchanged.
const LOGITS_TOLERANCE: f32 = 1e-4;
/// The case that is asked: one picture.
const CASE: usize = 1;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn f32s(tensor: &Tensor) -> Vec<f32> {
    tensor.bytes().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn logits(source: &ModelSource, folder: &Path) -> Vec<f32> {
    let prompt = std::fs::read_to_string(folder.join("prompt.json")).unwrap();
    let prompt: serde_json::Value = serde_json::from_str(&prompt).unwrap();
    let case = &prompt["cases"][CASE];
    let open = |name: &serde_json::Value| Image::open(folder.join(name.as_str().unwrap())).unwrap();
    let images: Vec<Image> = case["images"].as_array().unwrap().iter().map(open).collect();
    let options = TraceOptions { raw_prompt: true, ..TraceOptions::default() };
    let stages = source.trace(&images, case["prompt"].as_str().unwrap(), &options).unwrap();
    f32s(&stages.iter().find(|(name, _)| name == "logits").unwrap().1)
}

fn assert_published(source: &ModelSource, folder: &Path, what: &str) {
    let expected = SafeTensors::open(folder.join("golden.tall.safetensors")).unwrap();
    let expected = f32s(&expected.tensor("logits").unwrap());
    let got = logits(source, folder);
    let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let last = got[got.len() - expected.len()..].iter();
    let error = last.zip(&expected).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / largest;
    assert!(error <= LOGITS_TOLERANCE, "{what}: {error:e}");
}

fn numbers(meta: &Metadata, key: &str) -> Vec<i32> {
    meta.opt_i32s(key).unwrap().unwrap().to_vec()
}

#[test]
fn converted_files_and_those_of_public_converters_keep_the_published_logits() {
    let out = tempfile::tempdir().unwrap();
    for (name, projector) in [("qwen2vl", "qwen2vl_merger"), ("qwen25vl", "qwen2.5vl_merger")] {
        let folder = golden(name);
        let source = ModelSource::open(&folder, None).unwrap();
        let path = out.path().join(name).join("model.gguf");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        for single in [true, false] {
            let options = ConvertOptions { dtype: DType::F32, vision_dtype: None, single };
            convert(&source, &path, &options, &mut |_| ControlFlow::Continue(())).unwrap();
            let read = ModelSource::open(&path, None).unwrap();
            assert_eq!(
                (&read.config.text, &read.config.vision),
                (&source.config.text, &source.config.vision)
            );
            assert_published(&read, &folder, &format!("{name}, single {single}"));
        }

        let text = Gguf::open(&path).unwrap();
        assert_eq!(text.metadata().str("general.architecture").unwrap(), "qwen2vl");
        assert_eq!(numbers(text.metadata(), "qwen2vl.rope.dimension_sections"), [2, 3, 3, 0]);
        let ours = Gguf::open(mmproj_path(&path)).unwrap();
        let meta = ours.metadata();
        assert_eq!(meta.str("clip.projector_type").unwrap(), projector);
        let windowed = name == "qwen25vl";
        assert_eq!(meta.opt_usize("clip.vision.n_wa_pattern").unwrap(), windowed.then_some(2));
        for kernel in ["v.patch_embd.weight", "v.patch_embd.weight.1"] {
            assert_eq!(ours.info(kernel).unwrap().shape.dims(), [24, 3, 4, 4], "{kernel}");
        }

        // Without our own keys, with the decoder's width where the feed-forward width should stand, and of the first
        // generation with both layers of a block under each other's name: what converters of 2024 wrote.
        let mut legacy = Metadata::new();
        for (key, value) in meta.iter().filter(|(key, _)| !key.starts_with("margay.")) {
            legacy.insert(key, value.clone());
        }
        legacy.insert("clip.vision.feed_forward_length", Value::from(48u32));
        let swap = |name: &str| match (windowed, name.contains("ffn_up"), name.contains("ffn_down")) {
            (false, true, _) => name.replace("ffn_up", "ffn_down"),
            (false, _, true) => name.replace("ffn_down", "ffn_up"),
            _ => name.to_owned(),
        };
        let tensors: Vec<(String, Tensor)> =
            ours.tensors().map(|(name, _)| (swap(name), ours.tensor(name).unwrap())).collect();
        let named: Vec<(&str, &Tensor)> =
            tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let theirs = out.path().join(format!("{name}.mmproj.gguf"));
        write_gguf(&theirs, &legacy, &named).unwrap();
        let read = ModelSource::open(&path, Some(&theirs)).unwrap();
        assert_published(&read, &folder, &format!("{name}, as others write it"));
    }
}

#[test]
fn files_that_contradict_themselves_are_refused() {
    let out = tempfile::tempdir().unwrap();
    let source = ModelSource::open(&golden("qwen25vl"), None).unwrap();
    let path = out.path().join("model.gguf");
    let options = ConvertOptions { dtype: DType::F32, vision_dtype: None, single: false };
    convert(&source, &path, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    for (vision, key, value, why) in [
        (false, "qwen2vl.rope.dimension_sections", Value::from(vec![2, 3, 4, 0]), "9 pairs"),
        (false, "qwen2vl.rope.dimension_sections", Value::from(vec![2, 3, 3, 1]), "not supported"),
        (false, "qwen2vl.rope.dimension_sections", Value::from(vec![-2, 3, 7]), "not supported"),
        (true, "clip.vision.n_wa_pattern", Value::from(0u32), "n_wa_pattern"),
        (true, "clip.vision.spatial_merge_size", Value::from(0u32), "merge size"),
        (true, "clip.vision.attention.head_count", Value::from(5u32), "vision heads"),
        (true, "clip.vision.window_size", Value::from(3u32), "window size"),
        (true, "clip.vision.patch_size", Value::from(5u32), "image size"),
    ] {
        let stored = if vision { mmproj_path(&path) } else { path.clone() };
        let file = Gguf::open(&stored).unwrap();
        let mut meta = file.metadata().clone();
        meta.insert(key, value);
        let tensors: Vec<(String, Tensor)> =
            file.tensors().map(|(name, _)| (name.to_owned(), file.tensor(name).unwrap())).collect();
        let named: Vec<(&str, &Tensor)> =
            tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let wrong = out.path().join("wrong.gguf");
        write_gguf(&wrong, &meta, &named).unwrap();
        let (text, mmproj) = if vision { (&path, &wrong) } else { (&wrong, &mmproj_path(&path)) };
        let error = ModelSource::open(text, Some(mmproj)).err().unwrap().to_string();
        assert!(error.contains(why), "{key}: {error}");
    }
}
