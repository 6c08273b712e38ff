//! Outlier columns kept apart: written, read back, and worth it where there are outliers.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use margay::{Image, ModelSource, PromptInputs, TraceOptions};
use margay_file::{
    Gguf, TensorSource,
    gguf::{Metadata, Value, write_gguf},
};
use margay_graph::{Op, Program, Role};
use margay_pack::{
    CalibrateOptions, Calibration, ConvertOptions, Folds, Method, PackError, QuantizeOptions, QuantizeReport,
    Question, Recipe, calibrate, convert, groups, prompts, quantize,
};
use margay_quant::decode_tensor;
use margay_tensor::{DType, Tensor};
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

/// How much larger some channels are made, and the weights that read them smaller.
const LARGER: f32 = 50.0;
/// Largest difference of two backends over the largest logit, both in float32, through every layer.
const CLOSE: f32 = 1e-4;
const QUESTION: &str = "What is this?";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

/// A model that computes what the checkpoint of that name does, through values some of whose channels are far larger than the
/// others: one in 32 of each value that can be scaled.
fn with_outliers(name: &str, folder: &Path) -> PathBuf {
    let plain = folder.join("plain.gguf");
    let source = ModelSource::open(&golden(name), None).unwrap();
    let options = ConvertOptions { dtype: DType::F32, vision_dtype: None, single: true };
    convert(&source, &plain, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    let programs = source.config.programs().unwrap();
    let text = programs.text.with_outputs(|name| name == "logits").unwrap();
    let all: Vec<&Program> = programs.encode.iter().chain(&programs.project).chain([&text]).collect();
    let mut folds = Folds::default();
    for (seed, group) in all.into_iter().flat_map(groups).enumerate() {
        let large = |c: usize| c % 32 == (7 + 5 * seed) % 32;
        let scale = |c: usize| if large(c) { 1.0 / LARGER } else { 1.0 };
        folds.add(&group, &(0..group.columns).map(scale).collect::<Vec<_>>());
    }
    let file = Gguf::open(&plain).unwrap();
    let scaled = |name: &str| {
        let tensor = file.tensor(name).unwrap();
        let Some(fold) = folds.get(name) else { return tensor };
        let mut values = decode_tensor(&tensor).unwrap();
        let width = if tensor.shape().rank() == 1 { 1 } else { tensor.shape().row() };
        fold.apply(&mut values, width, 0);
        Tensor::from_f32(tensor.shape().clone(), &values).unwrap()
    };
    let out = folder.join("outliers.gguf");
    let tensors: Vec<(&str, Tensor)> = file.tensors().map(|(name, _)| (name, scaled(name))).collect();
    let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    write_gguf(&out, file.metadata(), &named).unwrap();
    out
}

fn asked(source: &ModelSource, name: &str) -> Vec<PromptInputs> {
    let question = |picture: &str, text: &str| Question {
        images: vec![Image::open(golden(name).join(picture)).unwrap()],
        text: text.to_owned(),
        answer: vec![5, 6],
    };
    prompts(source, &[question("wide.png", QUESTION), question("tall.png", "one two three")]).unwrap()
}

fn seen(source: &ModelSource, asked: &[PromptInputs]) -> Calibration {
    let options = CalibrateOptions { sample_rows: 24, gradients: false };
    calibrate(source, asked, "two questions", &options, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn quantized(
    source: &ModelSource,
    out: &Path,
    method: &str,
    calibration: Option<&Calibration>,
    asked: &[PromptInputs],
) -> Result<QuantizeReport, PackError> {
    let method: Method = method.parse().unwrap();
    let recipe = &Recipe::plain(DType::Q4_0, Some(DType::Q4_0));
    let options =
        QuantizeOptions { recipe, method, single: true, calibration, prompts: asked, measure: true };
    quantize(source, out, &options, &mut |_| ControlFlow::Continue(()))
}

/// Logits of the text tokens of a question about a picture, [T, vocabulary], and the vocabulary.
type Logits = (Vec<f32>, usize);

/// By the CPU's kernels, which round the input of quantized layers to 8 bits.
fn cpu(path: &Path, name: &str) -> Logits {
    let source = ModelSource::open(path, None).unwrap();
    let image = Image::open(golden(name).join("wide.png")).unwrap();
    let stages = source.trace(&[image], QUESTION, &TraceOptions::default()).unwrap();
    let stage = |wanted: &str| stages.iter().find(|(name, _)| name == wanted).unwrap().1.clone();
    let (ids, logits) = (stage("input_ids"), stage("logits"));
    let is_text = |id: &[u8]| i32::from_le_bytes(id.try_into().unwrap()) >= 0;
    let vocabulary = logits.shape().row();
    let rows = decode_tensor(&logits).unwrap();
    let text = ids.bytes().chunks_exact(4).zip(rows.chunks_exact(vocabulary)).filter(|(id, _)| is_text(id));
    (text.flat_map(|(_, row)| row.to_vec()).collect(), vocabulary)
}

/// By the reference, in float32.
fn reference(path: &Path, name: &str) -> Logits {
    let source = ModelSource::open(path, None).unwrap();
    let images = vec![Image::open(golden(name).join("wide.png")).unwrap()];
    let question = Question { images, text: QUESTION.to_owned(), answer: vec![] };
    let asked = prompts(&source, &[question]).unwrap();
    let logits = margay_pack::logits(&source, &asked, &mut |_| ControlFlow::Continue(())).unwrap();
    (logits.into_iter().next().unwrap(), source.config.text.vocabulary)
}

/// Mean Kullback-Leibler divergence over the tokens, nats.
fn divergence((expected, vocabulary): &Logits, (got, _): &Logits) -> f64 {
    let log_softmax = |row: &[f32]| {
        let most = row.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
        let sum: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
        row.iter().map(|x| f64::from(x - most) - sum.ln()).collect::<Vec<_>>()
    };
    let rows = expected.chunks_exact(*vocabulary).zip(got.chunks_exact(*vocabulary));
    let each: Vec<f64> = rows
        .map(|(a, b)| log_softmax(a).iter().zip(log_softmax(b)).map(|(p, q)| p.exp() * (p - q)).sum())
        .collect();
    each.iter().sum::<f64>() / each.len() as f64
}

fn difference((a, _): &Logits, (b, _): &Logits) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = a.iter().fold(0f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

#[test]
fn where_channels_are_outliers_keeping_them_takes_most_of_the_error_away() {
    for name in ["llava", "imp"] {
        let folder = tempfile::tempdir().unwrap();
        let path = with_outliers(name, folder.path());
        let original = reference(&path, name);
        assert!(difference(&reference(&folder.path().join("plain.gguf"), name), &original) < 1e-3);
        let source = ModelSource::open(&path, None).unwrap();
        let asked = asked(&source, name);
        let found = seen(&source, &asked);
        for (plain, kept) in [("rtn", "outlier"), ("gptq", "outlier+gptq"), ("imatrix", "outlier+imatrix")] {
            let write = |method: &str| {
                let out = folder.path().join(format!("{method}.gguf"));
                let report = quantized(&source, &out, method, Some(&found), &asked).unwrap();
                (out, report)
            };
            let ((a, rounded), (b, split)) = (write(plain), write(kept));
            assert_eq!(rounded.split, 0);
            // Of a block whose branches share one norm, less can be made to stand out.
            assert!(split.split >= if name == "imp" { 2 } else { 6 }, "{name}: {}", split.split);
            assert!(split.notes.iter().any(|note| note.contains("only Margay")), "{:?}", split.notes);
            for (backend, run) in [("reference", reference as fn(&Path, &str) -> Logits), ("cpu", cpu)] {
                let [plain_kl, kept_kl] = [&a, &b].map(|path| divergence(&original, &run(path, name)));
                println!("{name} {backend}: {plain} {plain_kl:.4}, {kept} {kept_kl:.4} nats");
                let most = if name == "imp" { 1.0 } else { 0.5 };
                assert!(kept_kl < most * plain_kl, "{name} {backend} {kept}: {kept_kl} of {plain_kl}");
            }
            // What the report says of a weight counts its kept columns.
            let error = |report: &QuantizeReport| {
                let of = |t: &&margay_pack::TensorReport| t.name == "blk.0.ffn_up.weight";
                report.tensors.iter().find(of).unwrap().output_error.unwrap()
            };
            if name == "llava" {
                assert!(error(&split) < 0.5 * error(&rounded), "{} of {}", error(&split), error(&rounded));
            }
        }
    }
}

#[test]
fn backends_agree_on_a_written_file_and_it_comes_back_through_another_format() {
    let folder = tempfile::tempdir().unwrap();
    let path = with_outliers("llava", folder.path());
    let source = ModelSource::open(&path, None).unwrap();
    let asked = asked(&source, "llava");
    let out = folder.path().join("outlier.gguf");
    quantized(&source, &out, "outlier", Some(&seen(&source, &asked)), &asked).unwrap();
    let written = ModelSource::open(&out, None).unwrap();
    assert!(written.weights.unused().is_empty());
    let programs = written.config.programs().unwrap();
    let names: Vec<_> =
        programs.text.weights().iter().filter(|w| w.role == Role::OutlierColumns).map(|w| &w.name).collect();
    assert!(names.iter().any(|name| *name == "blk.0.attn_q.outlier.weight"), "{names:?}");
    let selects = programs.text.nodes().iter().filter(|n| matches!(n.op, Op::SelectColumns { .. })).count();
    assert!(selects < names.len(), "queries, keys and values share their columns");
    // The rest has zeros, the kept columns are those of the original in half precision.
    let columns = written.config.outliers.get("blk.0.attn_q.weight").unwrap();
    let [rest, kept] =
        ["blk.0.attn_q.weight", "blk.0.attn_q.outlier.weight"].map(|n| written.weights.tensor(n).unwrap());
    assert_eq!((rest.dtype(), kept.dtype()), (DType::Q4_0, DType::F16));
    let (rest, kept) = (decode_tensor(&rest).unwrap(), decode_tensor(&kept).unwrap());
    let original = decode_tensor(&source.weights.tensor("blk.0.attn_q.weight").unwrap()).unwrap();
    for (row, values) in original.chunks_exact(32).enumerate() {
        for (at, &column) in columns.iter().enumerate() {
            assert_eq!(rest[row * 32 + column], 0.0);
            let (wanted, got) = (values[column], kept[row * columns.len() + at]);
            assert!((wanted - got).abs() <= wanted.abs() / 1024.0, "{wanted} {got}");
        }
    }
    // In float32 there is no rounding of inputs that could tell two backends apart.
    let float = folder.path().join("float.gguf");
    let options = ConvertOptions { dtype: DType::F32, vision_dtype: None, single: true };
    convert(&written, &float, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(ModelSource::open(&float, None).unwrap().config.outliers, written.config.outliers);
    let expected = reference(&out, "llava");
    for (backend, got) in [("reference", reference(&float, "llava")), ("cpu", cpu(&float, "llava"))] {
        let off = difference(&expected, &got);
        assert!(off <= CLOSE, "{backend}: {off:e}");
    }
    // Calibrated and quantized again, kept columns stay the same.
    let again = folder.path().join("again.gguf");
    let read = ModelSource::open(&float, None).unwrap();
    let report = quantized(&read, &again, "outlier", Some(&seen(&read, &asked)), &asked).unwrap();
    let again = ModelSource::open(&again, None).unwrap();
    assert!(report.split >= names.len() && again.weights.unused().is_empty());
    assert_eq!(again.config.outliers.get("blk.0.attn_q.weight"), Some(columns));
}

#[test]
fn a_method_that_walks_goes_on_with_what_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = with_outliers("llava", folder.path());
    let source = ModelSource::open(&path, None).unwrap();
    let asked = asked(&source, "llava");
    let out = folder.path().join("m.gguf");
    let error = quantized(&source, &out, "outlier", None, &asked).unwrap_err().to_string();
    assert!(error.starts_with("outlier needs a calibration"), "{error}");
    let error = quantized(&source, &out, "outlier+gptq", None, &asked).unwrap_err().to_string();
    assert!(error.starts_with("outlier+gptq needs a calibration"), "{error}");
    let found = seen(&source, &asked);
    let error = quantized(&source, &out, "outlier+gptq", Some(&found), &[]).unwrap_err().to_string();
    assert!(error.contains("questions to walk over"), "{error}");
    let report = quantized(&source, &out, "outlier+gptq", Some(&found), &asked).unwrap();
    // A table is looked up, not multiplied.
    assert!(report.plain.values().flatten().all(|name| name == "token_embd.weight"), "{:?}", report.plain);
    let written = ModelSource::open(&out, None).unwrap();
    for name in ["blk.0.attn_q.weight", "blk.1.ffn_down.weight"] {
        let columns = written.config.outliers.get(name).unwrap();
        let rest = written.weights.tensor(name).unwrap();
        let row = rest.shape().row();
        let values = decode_tensor(&rest).unwrap();
        let zero = |row: &[f32]| columns.iter().all(|&column| row[column] == 0.0);
        assert!(
            values.chunks_exact(row).all(zero),
            "{name}: no error was pushed into what is kept elsewhere"
        );
    }
}

/// Writes the file anew with other metadata, and some of its tensors.
fn rewritten(file: &Gguf, to: &Path, change: &dyn Fn(&mut Metadata), keep: &dyn Fn(&str) -> bool) -> String {
    let mut meta = file.metadata().clone();
    change(&mut meta);
    let tensors: Vec<_> = file
        .tensors()
        .filter(|(name, _)| keep(name))
        .map(|(name, _)| (name, file.tensor(name).unwrap()))
        .collect();
    let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    write_gguf(to, &meta, &named).unwrap();
    let opened = ModelSource::open(to, None);
    let loaded = opened.and_then(|source| {
        let image = Image::open(golden("llava").join("wide.png")).unwrap();
        source.trace(&[image], QUESTION, &TraceOptions::default())
    });
    loaded.unwrap_err().to_string()
}

#[test]
fn hostile_columns_are_errors_that_name_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = with_outliers("llava", folder.path());
    let source = ModelSource::open(&path, None).unwrap();
    let asked = asked(&source, "llava");
    let out = folder.path().join("outlier.gguf");
    quantized(&source, &out, "outlier", Some(&seen(&source, &asked)), &asked).unwrap();
    let file = Gguf::open(&out).unwrap();
    let (bad, all) = (folder.path().join("bad.gguf"), |_: &str| true);
    let key = "margay.outlier.blk.0.attn_q.weight";
    let kept = "blk.0.attn_q.outlier.weight";
    for (columns, expected) in [
        (vec![], "no columns"),
        (vec![32], "column 32 of 32"),
        (vec![i32::MAX], "column 2147483647 of 32"),
        (vec![-1], "-1 is no column"),
        (vec![3, 3], "column 3 follows 3"),
        (vec![4, 1], "column 1 follows 4"),
        // The tensor has fewer.
        (vec![1, 2, 3, 4], kept),
    ] {
        let change = |meta: &mut Metadata| drop(meta.insert(key, columns.clone()));
        let error = rewritten(&file, &bad, &change, &all);
        assert!(error.contains(expected), "{columns:?}: {error}");
    }
    let set = |key: &'static str| move |meta: &mut Metadata| drop(meta.insert(key, vec![1i32]));
    type Change<'c> = &'c dyn Fn(&mut Metadata);
    let changes: [(Change<'_>, &str); 5] = [
        (&|meta| drop(meta.insert(key, "3")), key),
        (&set("margay.outlier.blk.9.attn_q.weight"), "no weight of that name"),
        (&set("margay.outlier.token_embd.weight"), "not read by one linear layer"),
        (&set("margay.outlier.blk.0.attn_norm.weight"), "not read by one linear layer"),
        // Without it nobody knows whose columns the tensor holds.
        (&|meta| drop(meta.remove(key)), kept),
    ];
    for (change, expected) in changes {
        let error = rewritten(&file, &bad, change, &all);
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let error = rewritten(&file, &bad, &|_| (), &|name| name != kept);
    assert!(error.contains(kept) && error.contains("does not hold it"), "{error}");
    assert!(matches!(file.metadata().get(key), Some(Value::Array(_))));
}
