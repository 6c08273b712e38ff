//! Scales that are folded into weights leave the model's numbers as they are.

#![allow(clippy::unwrap_used, reason = "a test")]

use margay::{Image, ModelSource, PromptInputs};
use margay_graph::{BackendError, Bindings, InputData, Program, Stage, WeightSource};
use margay_pack::{Folds, PackError, groups};
use margay_quant::decode_tensor;
use margay_reference::{Visit, WalkInput, Walker, walk};
use margay_tensor::Tensor;
use std::path::Path;

/// Families with norms of both kinds, gates and none, shared keys and none, biases, experts and convolutions.
const FOLDERS: &[&str] = &[
    "fastvlm",
    "gemma",
    "imp",
    "llava",
    "minicpmv",
    "mobilevlm-v1",
    "olmoe",
    "phi2",
    "qwen25vl",
    "qwen3",
    "smolvlm",
];

/// Two roundings of float32 for each scaled number, over a few layers, relative to the largest number.
const CLOSE: f32 = 3e-4;

struct Folded<'a> {
    source: &'a ModelSource,
    program: &'a Program,
    folds: &'a Folds,
}

impl WeightSource for Folded<'_> {
    fn weight(&self, name: &str) -> Result<Tensor, BackendError> {
        let spec = self.program.weights().iter().find(|spec| spec.name == name).unwrap();
        let tensor = self.source.weights.declared(spec).unwrap();
        let Some(fold) = self.folds.get(name) else { return Ok(tensor) };
        let mut values = decode_tensor(&tensor).unwrap();
        let width = if tensor.shape().rank() == 1 { 1 } else { tensor.shape().row() };
        fold.apply(&mut values, width, 0);
        Ok(Tensor::from_f32(tensor.shape().clone(), &values).unwrap())
    }
}

impl Walker for Folded<'_> {
    type Error = PackError;

    fn node(&mut self, _: &Visit<'_>) -> Result<(), PackError> {
        Ok(())
    }
}

/// Positive factors from 1/8 to 8, different for each column and seed.
fn scales(columns: usize, seed: usize) -> Vec<f32> {
    (0..columns).map(|c| (((c * 37 + seed * 101) % 61) as f32 / 10.0 - 3.0).exp2()).collect()
}

fn outputs(
    source: &ModelSource,
    program: &Program,
    folds: &Folds,
    input: &WalkInput<'_>,
    name: &str,
) -> Vec<f32> {
    let mut walker = Folded { source, program, folds };
    let mut outputs = walk(program, std::slice::from_ref(input), &[name], &mut walker).unwrap();
    outputs.remove(0).remove(name).unwrap()
}

/// How many groups there were.
fn compare(source: &ModelSource, program: &Program, input: &WalkInput<'_>, name: &str, place: &str) -> usize {
    let groups = groups(program);
    let mut folds = Folds::default();
    for (seed, group) in groups.iter().enumerate() {
        folds.add(group, &scales(group.columns, seed));
    }
    let expected = outputs(source, program, &Folds::default(), input, name);
    let got = outputs(source, program, &folds, input, name);
    let largest = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
    let off = expected.iter().zip(&got).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(off <= CLOSE * largest, "{place}: {off:e} of {largest}");
    groups.len()
}

fn prompt(source: &ModelSource, folder: &Path) -> PromptInputs {
    let mut pictures = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let picture = pictures.find(|path| path.extension().is_some_and(|ending| ending == "png"));
    let images: Vec<Image> = match source.config.vision {
        Some(_) => picture.map(|path| Image::open(path).unwrap()).into_iter().collect(),
        None => vec![],
    };
    source.prompt_inputs(&images, "What is this?", &[5, 6, 7]).unwrap()
}

#[test]
fn any_positive_scales_leave_every_stage_as_it_was() {
    for name in FOLDERS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
        let source = ModelSource::open(&folder, None).unwrap();
        let programs = source.config.programs().unwrap();
        let prompt = prompt(&source, &folder);
        let mut found = 0;
        if let (Some(vision), Some(encode)) = (&source.config.vision, &programs.encode) {
            let feed = vision.tower.feed(&prompt.tiles[0]);
            let input = WalkInput { bindings: feed.bindings, inputs: feed.inputs(encode, &feed.pixels) };
            found += compare(&source, encode, &input, "encode", name);
        }
        let rows: Vec<i32> = (0..prompt.ids.len() as i32).collect();
        let width = source.config.text.width;
        let visual: Vec<f32> = (0..prompt.visual_rows() * width).map(|i| (i as f32 * 0.37).sin()).collect();
        let all = [
            InputData::I32(&prompt.ids),
            InputData::I32(&prompt.positions),
            InputData::I32(&rows),
            InputData::F32(&visual),
        ];
        let text = programs.text.with_outputs(|name| name == "logits").unwrap();
        assert_eq!(text.stage(), Stage::Text);
        let bindings: Bindings = prompt.text_bindings(rows.len());
        let input = WalkInput { bindings, inputs: all[..text.inputs().len()].to_vec() };
        found += compare(&source, &text, &input, "logits", name);
        assert!(found > 0, "{name} has a group");
    }
}
