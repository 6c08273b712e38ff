//! Calibration, and what methods make of it.

#![allow(clippy::unwrap_used, reason = "a test")]

use margay::{Image, Model, ModelSource, PromptInputs};
use margay_file::{Gguf, TensorSource};
use margay_pack::{
    CalibrateOptions, Calibration, Method, PackError, QuantizeOptions, QuantizeReport, Question, Recipe,
    calibrate, logits, prompts, quantize,
};
use margay_quant::decode_tensor;
use margay_tensor::DType;
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn questions(folder: &Path) -> Vec<Question> {
    let question = |picture: &str, text: &str, answer: &[u32]| Question {
        images: vec![Image::open(folder.join(picture)).unwrap()],
        text: text.to_owned(),
        answer: answer.to_vec(),
    };
    vec![question("wide.png", "What is this?", &[5, 6]), question("tall.png", "one two three", &[])]
}

fn tiny() -> (ModelSource, Vec<PromptInputs>) {
    let folder = golden("llava");
    let source = ModelSource::open(&folder, None).unwrap();
    let asked = prompts(&source, &questions(&folder)).unwrap();
    (source, asked)
}

fn seen(source: &ModelSource, asked: &[PromptInputs], gradients: bool) -> Calibration {
    let options = CalibrateOptions { sample_rows: 24, gradients };
    calibrate(source, asked, "two questions", &options, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn quantized(
    source: &ModelSource,
    out: &Path,
    recipe: &Recipe,
    method: &str,
    calibration: Option<&Calibration>,
    asked: &[PromptInputs],
) -> Result<QuantizeReport, PackError> {
    let method: Method = method.parse().unwrap();
    let options =
        QuantizeOptions { recipe, method, single: true, calibration, prompts: asked, measure: true };
    quantize(source, out, &options, &mut |_| ControlFlow::Continue(()))
}

#[test]
fn every_layer_is_seen_and_text_and_visual_tokens_are_told_apart() {
    let (source, asked) = tiny();
    let found = seen(&source, &asked, false);
    let programs = source.config.programs().unwrap();
    let visual: u64 = asked.iter().map(|prompt| prompt.visual_rows() as u64).sum();
    let all: u64 = asked.iter().map(|prompt| prompt.ids.len() as u64).sum();
    assert_eq!(found.tokens("blk.0.attn_q.weight"), Some((all - visual, visual)));
    assert_eq!(found.tokens("output.weight"), Some((all - visual, 0)), "nobody samples behind a picture");
    assert_eq!(found.tokens("mm.0.weight"), Some((0, visual)));
    assert!(
        found.tokens("v.blk.0.ffn_down.weight").is_some_and(|(text, seen)| text == 0 && seen > visual / 2)
    );
    let linear = |role: margay_graph::Role| role.is_matrix() && role != margay_graph::Role::TokenEmbedding;
    let all = programs.encode.iter().chain(&programs.project).chain([&programs.text]);
    for spec in all.flat_map(|p| p.weights()).filter(|spec| linear(spec.role)) {
        let stats = found.input(&spec.name).unwrap().unwrap_or_else(|| panic!("{} was not seen", spec.name));
        assert_eq!(stats.columns, spec.shape.row());
        assert_eq!(stats.sample.len(), 24.min(stats.tokens() as usize));
    }
    // The input of the first norm's layers, by hand.
    let stats = found.input("blk.0.attn_q.weight").unwrap().unwrap();
    let (q, k) = (&stats, found.input("blk.0.attn_k.weight").unwrap().unwrap());
    assert_eq!(q.text, k.text, "queries and keys read one input");
    let largest = stats.sample.rows.iter().fold(0f32, |m, x| m.max(x.abs()));
    let most = stats.all().max_abs.iter().fold(0f32, |m, x| m.max(*x));
    assert!(largest > 0.0 && largest <= most * 1.001);
}

#[test]
fn a_calibration_comes_back_from_its_file_and_is_refused_for_another_model() {
    let (source, asked) = tiny();
    let found = seen(&source, &asked, true);
    assert!(found.has_gradients());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stats.safetensors");
    found.write(&path).unwrap();
    let back = Calibration::open(&path, &source).unwrap();
    for name in found.weights() {
        assert_eq!(back.input(name).unwrap(), found.input(name).unwrap(), "{name}");
    }
    let stats = found.input("blk.1.ffn_up.weight").unwrap().unwrap();
    assert!(stats.visual_weight > 0.0 && stats.visual_weight != 1.0);
    let mean = stats.sample.importance.iter().sum::<f32>() / stats.sample.len() as f32;
    assert!(mean > 0.1 && mean < 10.0, "{mean}");
    let other = ModelSource::open(&golden("imp"), None).unwrap();
    let error = Calibration::open(&path, &other).unwrap_err().to_string();
    assert!(error.contains("another model"), "{error}");
    for damage in ["\"version\\\":1", "\"columns\\\":"] {
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(damage.len()).position(|w| w == damage.as_bytes()).unwrap();
        bytes[at + damage.len() - 1] = b'9';
        let broken = folder.path().join("broken.safetensors");
        std::fs::write(&broken, bytes).unwrap();
        let read = Calibration::open(&broken, &source);
        let fails = read.and_then(|c| c.weights().try_for_each(|n| c.input(n).map(|_| ())));
        assert!(fails.is_err(), "{damage}");
    }
}

#[test]
fn an_importance_matrix_is_written_as_llama_cpp_reads_it_and_read_as_it_writes_it() {
    let (source, asked) = tiny();
    let found = seen(&source, &asked, false);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("imatrix.gguf");
    found.write(&path).unwrap();
    let file = Gguf::open(&path).unwrap();
    assert_eq!(file.metadata().str("general.type").unwrap(), "imatrix");
    let stats = found.input("blk.0.ffn_down.weight").unwrap().unwrap();
    let sums = decode_tensor(&file.tensor("blk.0.ffn_down.weight.in_sum2").unwrap()).unwrap();
    let counts = decode_tensor(&file.tensor("blk.0.ffn_down.weight.counts").unwrap()).unwrap();
    assert_eq!(counts, [stats.tokens() as f32]);
    let back = Calibration::open(&path, &source).unwrap();
    let again = back.input("blk.0.ffn_down.weight").unwrap().unwrap();
    for ((sum, mean), read) in sums.iter().zip(stats.all().mean_square).zip(&again.text.mean_square) {
        assert!((sum / counts[0] - mean).abs() <= 1e-5 * mean.max(1e-20));
        assert!((read - mean).abs() <= 1e-5 * mean.max(1e-20));
    }
    assert!(!back.is_whole());
}

#[test]
fn what_a_method_lacks_is_said_before_any_work() {
    let (source, _) = tiny();
    let folder = tempfile::tempdir().unwrap();
    let recipe = Recipe::named("q4_0").unwrap();
    for (id, _) in Method::all().filter(|(id, _)| *id != "rtn") {
        let needs = id.parse::<Method>().unwrap().needs();
        let asks = needs.activations || needs.sample || needs.hessian || needs.gradients;
        let result = quantized(&source, &folder.path().join("x.gguf"), &recipe, id, None, &[]);
        assert_eq!(matches!(result, Err(PackError::Needs { .. })), asks, "{id}");
    }
}

#[test]
fn a_walk_ends_when_all_of_its_steps_are_done() {
    let (source, mut asked) = tiny();
    let options = CalibrateOptions { sample_rows: 24, gradients: false };
    for pictures in [true, false] {
        let mut steps = vec![];
        calibrate(&source, &asked, "two questions", &options, &mut |step| {
            steps.push((step.done, step.of));
            ControlFlow::Continue(())
        })
        .unwrap();
        let of = steps.len();
        assert_eq!(steps, (1..=of).map(|done| (done, of)).collect::<Vec<_>>(), "pictures: {pictures}");
        let words = Question { images: vec![], text: "one two".to_owned(), answer: vec![] };
        asked = prompts(&source, &[words]).unwrap();
    }
}

#[test]
fn the_backward_pass_before_vlmq_can_be_stopped_and_leaves_nothing() {
    let (source, asked) = tiny();
    let folder = tempfile::tempdir().unwrap();
    let recipe = Recipe::plain(DType::Q4_0, None);
    let method: Method = "vlmq".parse().unwrap();
    let options = QuantizeOptions {
        recipe: &recipe,
        method,
        single: true,
        calibration: None,
        prompts: &asked,
        measure: false,
    };
    let mut heard = vec![];
    let stopped = quantize(&source, &folder.path().join("m.gguf"), &options, &mut |step| {
        heard.push(step.tensor.to_owned());
        if step.tensor == "backward pass" { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(PackError::Stopped)), "{heard:?}");
    assert_eq!(heard.last().unwrap(), "backward pass");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn every_method_writes_a_model_that_still_answers() {
    let (source, asked) = tiny();
    let expected = logits(&source, &asked, &mut |_| ControlFlow::Continue(())).unwrap();
    let found = seen(&source, &asked, true);
    let folder = tempfile::tempdir().unwrap();
    let recipe = Recipe::plain(DType::Q4_0, Some(DType::Q8_0));
    for (id, _) in Method::all() {
        let out = folder.path().join(format!("{id}.gguf"));
        let report = quantized(&source, &out, &recipe, id, Some(&found), &asked).unwrap();
        let method: Method = id.parse().unwrap();
        assert_eq!(report.folded > 0, method.scaling.is_some(), "{id}");
        let text_blocks = report.tensors.iter().filter(|t| t.stage == "text" && t.dtype == "q4_0");
        assert!(
            text_blocks.clone().count() > 0 && text_blocks.clone().all(|t| t.error.unwrap() < 0.2),
            "{id}"
        );
        let written = ModelSource::open(&out, None).unwrap();
        let got = logits(&written, &asked, &mut |_| ControlFlow::Continue(())).unwrap();
        let (size, off) = expected[0].iter().zip(&got[0]).fold((0f64, 0f64), |(size, off), (a, b)| {
            (size + f64::from(a * a), off + f64::from((a - b) * (a - b)))
        });
        assert!(off < 0.2 * size, "{id}: {}", off / size);
    }
}

#[test]
fn numbers_that_are_none_are_refused_by_name_and_nothing_is_written() {
    let source = Model::nano_source().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let good = folder.path().join("good.gguf");
    let plain = Recipe::plain(DType::F32, None);
    quantized(&source, &good, &plain, "rtn", None, &[]).unwrap();
    let mut bytes = std::fs::read(&good).unwrap();
    let file = Gguf::open(&good).unwrap();
    let tensor = file.tensor("blk.1.ffn_up.weight").unwrap();
    let needle = &tensor.bytes()[..64];
    let at = bytes.windows(64).position(|w| w == needle).unwrap();
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let bad = folder.path().join("bad.gguf");
    std::fs::write(&bad, bytes).unwrap();
    let source = ModelSource::open(&bad, None).unwrap();
    let out = folder.path().join("out.gguf");
    let recipe = Recipe::named("mobile-int4").unwrap();
    let error = quantized(&source, &out, &recipe, "rtn", None, &[]).unwrap_err().to_string();
    assert!(error.contains("blk.1.ffn_up.weight") && error.contains("NaN"), "{error}");
    assert!(!out.exists());
}
