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
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

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

/// The cases that a folder's `prompt.json` lists.
fn cases(name: &str) -> Vec<Case> {
    let folder = golden(name);
    let json = std::fs::read_to_string(folder.join("prompt.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let open = |image: &serde_json::Value| Image::open(folder.join(image.as_str().unwrap())).unwrap();
    let case = |case: &serde_json::Value| {
        let of = case["name"].as_str().unwrap();
        Case {
            name: format!("{name}/{of}"),
            text: case["prompt"].as_str().unwrap().to_owned(),
            images: case["images"].as_array().unwrap().iter().map(open).collect(),
            golden: folder.join(format!("golden.{of}.safetensors")),
        }
    };
    let listed = json["cases"].as_array().unwrap();
    assert!(!listed.is_empty(), "{name}");
    listed.iter().map(case).collect()
}

/// Columns of the table.
const STAGES: [&str; 5] = ["pixels", "encode", "project", "hidden", "logits"];

/// How far a case was from the published implementation on one backend.
#[cfg_attr(
    not(feature = "reference"),
    allow(dead_code, reason = "the table has the reference beside the others")
)]
struct Run {
    /// Id of the family.
    family: &'static str,
    case: String,
    backend: String,
    /// The largest relative error of each of [`STAGES`]; `None` where the case holds no tensor of it.
    errors: [Option<f32>; STAGES.len()],
    /// Greedy tokens, all of them equal.
    greedy: usize,
}

/// Runs the traces and prints the error of each stage; panics at the first that drifts.
fn check(name: &str, load: &LoadOptions) -> Vec<Run> {
    let source = ModelSource::open(&golden(name), None).unwrap();
    cases(name).iter().map(|case| check_case(&source, case, load)).collect()
}

fn check_case(source: &ModelSource, Case { name, text, images, golden }: &Case, load: &LoadOptions) -> Run {
    let expected = SafeTensors::open(golden).unwrap();
    let greedy = expected.info("greedy").map_or(0, |i| i.shape.dims()[0]);
    let options = TraceOptions { load: load.clone(), raw_prompt: true, greedy, kv: None };
    let got = source.trace(images, text, &options).unwrap();
    let backend = load.isa.as_ref().map_or_else(|| load.backend.clone(), |isa| format!("cpu {isa}"));
    let family = source.family.id;
    let mut run = Run { family, case: name.clone(), backend, errors: [None; STAGES.len()], greedy };
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
        println!("{name:14} {:16} {stage:13} {error:.1e}", run.backend);
        assert!(error <= tolerance, "{name}: {stage} drifts first: {error:e} > {tolerance:e}");
        let column = match stage.as_str() {
            "pixel_values" => 0,
            hidden if hidden.starts_with("hidden.") => 3,
            other => STAGES.iter().position(|stage| *stage == other).unwrap(),
        };
        run.errors[column] = Some(run.errors[column].map_or(error, |worst| worst.max(error)));
    }
    assert_eq!(compared, expected.tensors().len(), "{name}: every golden tensor is compared");
    run
}

fn on(isa: Isa) -> LoadOptions {
    LoadOptions { isa: Some(isa.name().to_owned()), ..LoadOptions::default() }
}

#[cfg(feature = "reference")]
fn on_reference() -> LoadOptions {
    LoadOptions { backend: "reference".into(), ..LoadOptions::default() }
}

#[cfg(feature = "reference")]
#[test]
fn end_to_end_reference_matches_the_published_implementations() {
    for name in checkpoints() {
        check(&name, &on_reference());
    }
}

#[test]
fn end_to_end_cpu_matches_the_published_implementations_on_every_isa() {
    for isa in Isa::supported() {
        for name in checkpoints() {
            check(&name, &on(isa));
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
        "minicpmv",
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
            let options = TraceOptions { load: on(isa), raw_prompt: true, greedy: 8, kv: None };
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

#[cfg(feature = "reference")]
const TABLE_HEAD: &str = "\
# Parity

Made by `cargo xtask parity`, which runs the comparison of `crates/margay/tests/end_to_end_parity.rs`: tiny random
checkpoints of true structure against tensors that the published implementations computed (`tests/golden/README.md`), all
in float32. A figure is the largest difference over the largest value of a tensor; under `hidden` the worst layer. `greedy`
counts continuation tokens that are equal, of those compared. A dash stands where there is no such stage.

## Families

Each checkpoint of a family, the worst of its cases on any backend.

";

#[cfg(feature = "reference")]
const CASES_HEAD: &str = "
## Cases

Instruction sets whose figures are the same share a row. A case of several pictures holds no tensor of the stages that its
pictures have cases of their own for (-).

";

#[cfg(feature = "reference")]
fn figure(error: Option<f32>) -> String {
    error.map_or_else(|| "-".to_owned(), |error| format!("{error:.1e}"))
}

/// A row for each checkpoint, family by family, then for each case.
#[cfg(feature = "reference")]
fn tables(runs: &[Run]) -> String {
    let stages = STAGES.join(" | ");
    let rule = |columns: usize| format!("|{}\n", "---|".repeat(columns));
    let mut text = format!("{TABLE_HEAD}| family | checkpoint | cases | {stages} | greedy |\n");
    text += &rule(STAGES.len() + 4);
    for family in margay::rooms::model::FAMILIES {
        let of_family = || runs.iter().filter(|run| run.family == family.id);
        let mut folders: Vec<&str> = of_family().filter_map(|run| run.case.split('/').next()).collect();
        folders.dedup();
        for folder in folders {
            let of_folder = || of_family().filter(|run| run.case.split('/').next() == Some(folder));
            let mut cases: Vec<&str> = of_folder().filter_map(|run| run.case.split('/').nth(1)).collect();
            cases.dedup();
            let worst = |stage: usize| {
                figure(of_folder().filter_map(|run| run.errors[stage]).max_by(|a, b| a.total_cmp(b)))
            };
            let stages = (0..STAGES.len()).map(worst).collect::<Vec<_>>().join(" | ");
            let greedy = of_folder().map(|run| run.greedy).min().unwrap_or(0);
            text += &format!(
                "| {} | {folder} | {} | {stages} | {greedy} of {greedy} |\n",
                family.id,
                cases.join(", ")
            );
        }
    }

    text += &format!("{CASES_HEAD}| case | backend | {stages} | greedy |\n{}", rule(STAGES.len() + 3));
    let mut rows: Vec<(&str, Vec<&str>, String)> = vec![];
    for run in runs {
        let figures = run.errors.iter().map(|error| figure(*error)).collect::<Vec<_>>().join(" | ");
        let figures = format!("{figures} | {0} of {0}", run.greedy);
        match rows.iter_mut().find(|(case, _, same)| *case == run.case && *same == figures) {
            Some((_, backends, _)) => backends.push(&run.backend),
            None => rows.push((&run.case, vec![&run.backend], figures)),
        }
    }
    for (case, backends, figures) in rows {
        text += &format!("| {case} | {} | {figures} |\n", backends.join(", "));
    }
    text
}

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/parity.md")
}

#[cfg(feature = "reference")]
#[test]
#[ignore = "writes docs/parity.md; run by cargo xtask parity"]
fn write_the_parity_table() {
    let mut runs = vec![];
    for name in checkpoints() {
        let loads = std::iter::once(on_reference()).chain(Isa::supported().map(on));
        let mut of_name: Vec<_> = loads.flat_map(|load| check(&name, &load)).collect();
        of_name.sort_by(|a, b| a.case.cmp(&b.case));
        runs.extend(of_name);
    }
    std::fs::write(page(), tables(&runs)).unwrap();
}

/// Figures differ in their last digits between machines; the cases do not.
#[test]
fn the_parity_table_holds_every_case_and_every_family() {
    let page = std::fs::read_to_string(page()).unwrap();
    for family in margay::rooms::model::FAMILIES {
        // What is read from public files alone has no checkpoint to be compared.
        let listed = page.contains(&format!("\n| {} | ", family.id));
        assert_eq!(listed, !family.hf.is_empty(), "{}: cargo xtask parity", family.id);
    }
    let mut listed: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next())
        .filter(|case| case.contains('/'))
        .collect();
    listed.dedup();
    let cases: Vec<_> = checkpoints().iter().flat_map(|name| cases(name)).map(|case| case.name).collect();
    let mut cases: Vec<_> = cases.iter().map(String::as_str).collect();
    cases.sort_unstable();
    listed.sort_unstable();
    assert_eq!(listed, cases, "docs/parity.md is stale: cargo xtask parity");
}

#[test]
fn every_family_that_sees_is_asked_about_two_shapes_and_three_pictures() {
    let mut asked: BTreeMap<&str, Vec<(String, usize)>> = BTreeMap::new();
    let mut takes_one = BTreeSet::new();
    for name in checkpoints() {
        let source = ModelSource::open(&golden(&name), None).unwrap();
        if source.config.vision.is_none() {
            continue;
        }
        if source.config.text.decoder.has_prefix() {
            takes_one.insert(source.family.id);
        }
        let cases = cases(&name).into_iter().map(|case| (case.name, case.images.len()));
        asked.entry(source.family.id).or_default().extend(cases);
    }
    assert!(asked.len() > 5, "{asked:?}");
    for (family, cases) in asked {
        for shape in ["/wide", "/tall"] {
            assert!(cases.iter().any(|(name, _)| name.ends_with(shape)), "{family}: {cases:?}");
        }
        let three = cases.iter().any(|(_, images)| *images == 3);
        assert_eq!(three, !takes_one.contains(family), "{family}: {cases:?}");
    }
}
