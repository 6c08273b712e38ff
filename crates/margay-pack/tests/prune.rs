//! Pruned models are models: of the sizes their files say, with the zeros asked for, and without the right parts.

#![cfg(feature = "calibrate")]
#![allow(clippy::unwrap_used, reason = "a test")]

use margay::{AskOptions, Image, LoadOptions, Model, ModelSource, PromptInputs};
use margay_file::{Gguf, TensorSource, gguf::write_gguf};
use margay_graph::Stage;
use margay_pack::{
    Amount, CalibrateOptions, Calibration, ConvertOptions, PackError, Parts, PruneMethod, PruneOptions,
    PruneReport, PruneTarget, Question, Recipe, calibrate, convert, logits, parse_pattern, prompts, prune,
};
use margay_quant::decode_tensor;
use margay_tensor::{DType, Tensor};
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

/// Logits of two programs that compute the same by sums of other lengths, float32.
const CLOSE: f32 = 1e-4;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name)
}

fn golden(name: &str) -> ModelSource {
    ModelSource::open(&folder("tests/golden").join(name), None).unwrap()
}

/// Questions with answers; about pictures where the model sees.
fn asked(source: &ModelSource) -> Vec<PromptInputs> {
    let picture = |name: &str| match source.config.vision {
        Some(_) => vec![Image::open(folder("tests/golden/llava-hf").join(name)).unwrap()],
        None => vec![],
    };
    let question = |name: &str, text: &str, answer: &[u32]| Question {
        images: picture(name),
        text: text.to_owned(),
        answer: answer.to_vec(),
    };
    let all =
        [question("wide.png", "What is this?", &[5, 6, 7]), question("tall.png", "one two three", &[8, 4])];
    prompts(source, &all).unwrap()
}

fn seen(source: &ModelSource, asked: &[PromptInputs]) -> Calibration {
    let options = CalibrateOptions { sample_rows: 64, gradients: false };
    calibrate(source, asked, "questions", &options, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn weights(pattern: &str, stages: &[Stage]) -> PruneTarget {
    PruneTarget::Weights { pattern: parse_pattern(pattern).unwrap(), stages: stages.to_vec() }
}

fn pruned(
    source: &ModelSource,
    out: &Path,
    method: PruneMethod,
    target: &PruneTarget,
    calibration: Option<&Calibration>,
    prompts: &[PromptInputs],
) -> Result<PruneReport, PackError> {
    let options =
        PruneOptions { method, target, recipe: None, single: true, calibration, prompts, measure: true };
    prune(source, out, &options, &mut |_| ControlFlow::Continue(()))
}

fn answer_logits(source: &ModelSource, asked: &[PromptInputs]) -> Vec<f32> {
    logits(source, asked, &mut |_| ControlFlow::Continue(())).unwrap().concat()
}

/// The model with other numbers, as a float32 file.
fn edited(source: &ModelSource, out: &Path, edit: impl Fn(&str, &[usize], &mut [f32])) -> ModelSource {
    let plain = out.with_extension("plain.gguf");
    let options = ConvertOptions { dtype: DType::F32, vision_dtype: None, single: true };
    convert(source, &plain, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    let file = Gguf::open(&plain).unwrap();
    let tensors: Vec<(String, Tensor)> = file
        .tensors()
        .map(|(name, _)| {
            let tensor = file.tensor(name).unwrap();
            let mut values = decode_tensor(&tensor).unwrap();
            edit(name, tensor.shape().dims(), &mut values);
            (name.to_owned(), Tensor::from_f32(tensor.shape().clone(), &values).unwrap())
        })
        .collect();
    let tensors: Vec<(&str, &Tensor)> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    write_gguf(out, file.metadata(), &tensors).unwrap();
    ModelSource::open(out, None).unwrap()
}

/// Part and layer of `blk.LAYER.PART`.
fn place(name: &str) -> Option<(usize, &str)> {
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, part))
}

/// Zeros in these columns of a matrix.
fn clear(dims: &[usize], values: &mut [f32], columns: std::ops::Range<usize>) {
    values.chunks_mut(dims[1]).for_each(|row| row[columns.clone()].fill(0.0));
}

fn assert_close(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let size = a.iter().fold(0f32, |m, x| m.max(x.abs())).max(1.0);
    let off = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(off <= CLOSE * size, "{what}: off by {off} of {size}");
}

/// It answers on the engine itself.
fn runs(source: &ModelSource) {
    let model = Model::from_source(source.clone(), &LoadOptions::default()).unwrap();
    let options = AskOptions { max_tokens: 3, ..AskOptions::default() };
    let images = match source.config.vision {
        Some(_) => vec![Image::open(folder("tests/golden/llava-hf/wide.png")).unwrap()],
        None => vec![],
    };
    let mut session = model.session().unwrap();
    session.ask_with(&images, "What is this?", &options).unwrap().report().unwrap();
}

#[test]
fn every_method_leaves_two_of_four_in_the_file_and_nothing_else_changes() {
    for (source, place) in [(Model::nano_source().unwrap(), "nano"), (golden("llava-hf"), "llava-hf")] {
        let asked = asked(&source);
        let calibration = seen(&source, &asked);
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("sparse.gguf");
        for method in PruneMethod::ALL {
            for calibration in [None, Some(&calibration)] {
                let target = weights("2:4", &[Stage::Text]);
                let report = pruned(&source, &out, method, &target, calibration, &asked).unwrap();
                assert!(report.plain.is_empty(), "{place} {method:?}: {:?}", report.plain);
                let file = Gguf::open(&out).unwrap();
                let mut count = 0;
                for t in &report.tensors {
                    let values = decode_tensor(&file.tensor(&t.name).unwrap()).unwrap();
                    let Some(zeros) = t.zeros else {
                        let stored = decode_tensor(&source.weights.tensor(&t.name).unwrap()).unwrap();
                        assert_eq!(values, stored, "{place} {}", t.name);
                        continue;
                    };
                    count += 1;
                    assert!(t.name.starts_with("blk.") && t.stage == "text", "{}", t.name);
                    let left = |group: &[f32]| group.iter().filter(|w| **w != 0.0).count();
                    assert!(values.chunks(4).all(|group| left(group) <= 2), "{place} {method:?} {}", t.name);
                    assert!(values.iter().any(|w| *w != 0.0));
                    assert_eq!(zeros, values.iter().filter(|w| **w == 0.0).count() as u64);
                    assert!(t.error.unwrap() > 0.0);
                }
                assert_eq!(count, 7 * source.config.text.layers, "{place} {method:?}");
                assert_eq!(report.after(), report.before, "{place}: no smaller");
            }
            let back = ModelSource::open(&out, None).unwrap();
            assert_eq!(back.config.text, source.config.text);
            runs(&back);
        }
    }
}

#[test]
fn the_vision_side_loses_weights_where_it_is_asked_to() {
    let source = golden("llava-hf");
    let asked = asked(&source);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("sparse.gguf");
    for method in [PruneMethod::Magnitude, PruneMethod::Wanda, PruneMethod::SparseGpt] {
        let target = weights("row:0.5", &[Stage::Encode, Stage::Project]);
        let report = pruned(&source, &out, method, &target, None, &asked).unwrap();
        let stages: std::collections::BTreeSet<&str> =
            report.tensors.iter().filter(|t| t.zeros.is_some()).map(|t| t.stage).collect();
        assert_eq!(stages.into_iter().collect::<Vec<_>>(), ["encode", "project"]);
        runs(&ModelSource::open(&out, None).unwrap());
    }
}

#[test]
fn parts_that_go_leave_a_model_of_the_sizes_its_file_says() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("small.gguf");
    // All at once: heads of their own and shared ones, biases, rows of blocks and of floats, with and without pictures.
    for name in ["nano", "llava-hf", "phi2", "qwen2", "smolvlm"] {
        let source = if name == "nano" { Model::nano_source().unwrap() } else { golden(name) };
        let asked = asked(&source);
        let calibration = seen(&source, &asked);
        let text = &source.config.text;
        let group = if text.kv_heads > 1 { text.heads / text.kv_heads } else { 1 };
        let tower = source.config.vision.as_ref().and_then(|vision| vision.tower.ffn());
        let parts = Parts {
            heads: Some(Amount::Count(group)),
            channels: Some(Amount::Share(0.4)),
            encoder_channels: tower.map(|_| Amount::Share(0.4)),
            layers: 1,
        };
        for method in [PruneMethod::Magnitude, PruneMethod::Wanda, PruneMethod::Taylor] {
            let parts = match method {
                PruneMethod::Taylor => Parts { encoder_channels: None, ..parts },
                _ => parts,
            };
            let target = PruneTarget::Parts(parts);
            let report = pruned(&source, &out, method, &target, Some(&calibration), &asked).unwrap();
            let back = ModelSource::open(&out, None).unwrap();
            let now = &back.config.text;
            assert_eq!(now.layers, text.layers - 1, "{name}");
            assert_eq!(now.heads, text.heads - group, "{name}");
            assert_eq!(now.kv_heads, if text.kv_heads > 1 { text.kv_heads - 1 } else { 1 }, "{name}");
            assert_eq!(now.head_dim, text.head_dim);
            assert!(
                now.ffn < text.ffn && now.ffn * 10 >= text.ffn * 6 - 5,
                "{name}: {} of {}",
                now.ffn,
                text.ffn
            );
            if let (Some(before), Some(_)) = (tower, parts.encoder_channels) {
                assert!(back.config.vision.as_ref().unwrap().tower.ffn().unwrap() < before);
            }
            let programs = back.config.programs().unwrap();
            for program in programs.encode.iter().chain(&programs.project).chain([&programs.text]) {
                back.weights.check_program(program).unwrap();
            }
            assert!(back.weights.unused().is_empty());
            assert_eq!(report.layers.as_ref().unwrap().len(), now.layers);
            assert!(report.after().0 < report.before.0 && report.after().1 < report.before.1);
            assert!(answer_logits(&back, &asked).iter().all(|x| x.is_finite()));
            runs(&back);
        }
    }
}

#[test]
fn heads_and_channels_that_add_nothing_go_and_the_logits_stay() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["llava-hf", "llama", "phi2", "qwen2", "mixtral", "qwen3"] {
        let source = golden(name);
        let text = source.config.text.clone();
        let unit = if text.kv_heads > 1 { text.heads / text.kv_heads } else { 1 };
        let (units, wide) = (text.heads / unit, unit * text.head_dim);
        let ffn = text.ffn / 3;
        // Another one in each layer.
        let source =
            edited(&source, &folder.path().join("idle.gguf"), |name, dims, values| match place(name) {
                Some((layer, "attn_output.weight")) => {
                    let at = (layer + 1) % units * wide;
                    clear(dims, values, at..at + wide);
                }
                Some((layer, "ffn_down.weight")) => clear(dims, values, layer * ffn..(layer + 1) * ffn),
                _ => {}
            });
        let asked = asked(&source);
        let expected = answer_logits(&source, &asked);
        let channels = text.mixture.is_none().then_some(Amount::Count(ffn));
        let parts = Parts { heads: Some(Amount::Count(unit)), channels, ..Parts::default() };
        let out = folder.path().join("small.gguf");
        for method in [PruneMethod::Magnitude, PruneMethod::Taylor] {
            let report = pruned(&source, &out, method, &PruneTarget::Parts(parts), None, &asked).unwrap();
            let heads = report.kept.iter().filter(|k| k.what == "heads");
            for kept in heads {
                let gone = (kept.layer + 1) % units;
                assert!(!kept.parts.contains(&gone) && kept.parts.len() == units - 1, "{name} {kept:?}");
            }
            let back = ModelSource::open(&out, None).unwrap();
            assert_eq!(back.config.text.heads, text.heads - unit);
            assert_close(&expected, &answer_logits(&back, &asked), name);
        }
    }
}

#[test]
fn encoder_channels_that_add_nothing_go_and_the_logits_stay() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["llava", "siglip"] {
        let source = golden(name);
        let ffn = source.config.vision.as_ref().unwrap().tower.ffn().unwrap();
        let source = edited(&source, &folder.path().join("idle.gguf"), |name, dims, values| {
            let vision = name.strip_prefix("v.").and_then(place);
            if let Some((layer, "ffn_down.weight")) = vision {
                let at = layer % 2 * (ffn / 2);
                clear(dims, values, at..at + ffn / 2);
            }
        });
        let asked = asked(&source);
        let expected = answer_logits(&source, &asked);
        let parts = Parts { encoder_channels: Some(Amount::Count(ffn / 2)), ..Parts::default() };
        let out = folder.path().join("small.gguf");
        pruned(&source, &out, PruneMethod::Magnitude, &PruneTarget::Parts(parts), None, &[]).unwrap();
        let back = ModelSource::open(&out, None).unwrap();
        assert_eq!(back.config.vision.as_ref().unwrap().tower.ffn(), Some(ffn / 2));
        assert_close(&expected, &answer_logits(&back, &asked), name);
    }
}

#[test]
fn a_layer_that_adds_nothing_goes_and_the_logits_stay() {
    let folder = tempfile::tempdir().unwrap();
    for (name, idle) in [("llama", 1), ("llava-hf", 0), ("phi2", 1), ("qwen2", 0)] {
        // A block whose two sums add zeros is one that is skipped.
        let source = edited(&golden(name), &folder.path().join("idle.gguf"), |name, _, values| {
            if place(name).is_some_and(|(layer, part)| {
                layer == idle && (part.starts_with("attn_output.") || part.starts_with("ffn_down."))
            }) {
                values.fill(0.0);
            }
        });
        let asked = asked(&source);
        let expected = answer_logits(&source, &asked);
        let target = PruneTarget::Parts(Parts { layers: 1, ..Parts::default() });
        let out = folder.path().join("small.gguf");
        let report = pruned(&source, &out, PruneMethod::Magnitude, &target, None, &asked).unwrap();
        assert!(!report.layers.unwrap().contains(&idle), "{name}");
        let back = ModelSource::open(&out, None).unwrap();
        assert_close(&expected, &answer_logits(&back, &asked), name);
    }
}

#[test]
fn wanda_keeps_outputs_closer_than_magnitude_and_sparsegpt_closer_still() {
    let source = Model::nano_source().unwrap();
    let images = folder("crates/margay-cli/tests/data/nano-suite/images");
    let mut pictures: Vec<PathBuf> = std::fs::read_dir(images).unwrap().map(|e| e.unwrap().path()).collect();
    pictures.sort();
    let question = |picture: &PathBuf| {
        let images = vec![Image::open(picture).unwrap()];
        let question = Question { images, text: "How many objects are there?".to_owned(), answer: vec![] };
        question.answered(&source, "2").unwrap()
    };
    let all: Vec<Question> = pictures.iter().take(12).map(question).collect();
    let (shown, held_out) = all.split_at(all.len() / 2);
    let (shown, held_out) = (prompts(&source, shown).unwrap(), prompts(&source, held_out).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("sparse.gguf");
    let calibration = seen(&source, &shown);
    let expected = answer_logits(&source, &held_out);
    let mut found = vec![];
    for method in [PruneMethod::Magnitude, PruneMethod::Wanda, PruneMethod::SparseGpt] {
        let known = (method != PruneMethod::SparseGpt).then_some(&calibration);
        let target = weights("row:0.5", &[Stage::Text]);
        let report = pruned(&source, &out, method, &target, known, &shown).unwrap();
        let errors: Vec<f64> = report.tensors.iter().filter_map(|t| t.output_error).collect();
        assert_eq!(errors.len(), 7 * source.config.text.layers);
        let got = answer_logits(&ModelSource::open(&out, None).unwrap(), &held_out);
        let off: f64 = expected.iter().zip(&got).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        found.push((errors.iter().sum::<f64>() / errors.len() as f64, off));
    }
    let [magnitude, wanda, sparsegpt] = found[..] else { panic!("three methods") };
    assert!(wanda.0 < magnitude.0 && sparsegpt.0 < wanda.0, "{found:?}");
    assert!(sparsegpt.1 < magnitude.1, "logits of questions it was not shown: {found:?}");
}

#[test]
fn what_cannot_be_is_refused_and_no_file_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("x.gguf");
    let parts = |parts: Parts| PruneTarget::Parts(parts);
    let heads = |count| parts(Parts { heads: Some(Amount::Count(count)), ..Parts::default() });
    let channels = |count| parts(Parts { channels: Some(Amount::Count(count)), ..Parts::default() });
    let layers = |layers| parts(Parts { layers, ..Parts::default() });
    let encoder = parts(Parts { encoder_channels: Some(Amount::Share(0.5)), ..Parts::default() });
    let m = PruneMethod::Magnitude;
    for (name, method, target, ask, part) in [
        ("llama", m, heads(0), true, "is none"),
        ("llama", m, heads(4), true, "leaves none"),
        ("llama", m, heads(1), true, "whole groups of 2"),
        ("llama", m, heads(9), true, "leaves none"),
        ("olmoe", m, heads(2), true, "all heads together"),
        ("mixtral", m, channels(8), true, "experts"),
        ("qwen2moe", m, channels(8), true, "experts"),
        ("llama", m, channels(96), true, "leaves none"),
        ("llama", m, channels(3), true, "multiples of 32"),
        ("llama", m, layers(3), true, "leaves none"),
        ("llama", m, layers(1), false, "questions"),
        ("llama", m, encoder.clone(), true, "no vision side"),
        ("qwen2vl", m, encoder, true, "keep their width"),
        ("llama", m, parts(Parts::default()), true, "nothing is to go"),
        ("llama", m, weights("2:4", &[Stage::Encode]), true, "no vision side"),
        ("llama", m, weights("2:4", &[]), true, "no stage"),
        ("llava-hf", PruneMethod::Taylor, weights("2:4", &[Stage::Encode]), true, "gradients of the decoder"),
        ("llama", PruneMethod::Wanda, weights("2:4", &[Stage::Text]), false, "calibration"),
        ("llama", PruneMethod::Wanda, heads(2), false, "calibration"),
        ("llama", PruneMethod::Taylor, heads(2), false, "questions"),
        ("llama", PruneMethod::SparseGpt, weights("2:4", &[Stage::Text]), false, "questions"),
        ("llama", PruneMethod::SparseGpt, heads(2), true, "single weights"),
    ] {
        let source = golden(name);
        let asked = if ask { asked(&source) } else { vec![] };
        let error = pruned(&source, &out, method, &target, None, &asked).unwrap_err().to_string();
        assert!(error.contains(part), "{name} {target:?}: {error}");
    }
    let source = golden("llama");
    let target = weights("2:4", &[Stage::Text]);
    let recipe = Recipe::named("q4_1").unwrap();
    let mut options = PruneOptions {
        method: m,
        target: &target,
        recipe: Some(&recipe),
        single: true,
        calibration: None,
        prompts: &[],
        measure: false,
    };
    let error = prune(&source, &out, &options, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(error.contains("q4_1") && error.contains("zeros"), "{error}");
    options.recipe = None;
    let mut steps = 0;
    let stopped = prune(&source, &out, &options, &mut |_| {
        steps += 1;
        if steps > 9 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(PackError::Stopped)));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn another_type_is_written_in_the_same_pass() {
    let source = Model::nano_source().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("small.gguf");
    let recipe = Recipe::named("q4_0").unwrap();
    let parts = PruneTarget::Parts(Parts { channels: Some(Amount::Share(0.25)), ..Parts::default() });
    for target in [weights("2:4", &[Stage::Text]), parts] {
        let options = PruneOptions {
            method: PruneMethod::Magnitude,
            target: &target,
            recipe: Some(&recipe),
            single: true,
            calibration: None,
            prompts: &[],
            measure: false,
        };
        let report = prune(&source, &out, &options, &mut |_| ControlFlow::Continue(())).unwrap();
        let down = report.tensors.iter().find(|t| t.name == "blk.0.ffn_down.weight").unwrap();
        assert_eq!(down.dtype, "q4_0");
        assert!(down.zeros.is_none_or(|zeros| zeros * 2 >= down.elements));
        assert_eq!(down.bytes * 32, down.elements * 18);
        runs(&ModelSource::open(&out, None).unwrap());
    }
}
