//! Gradients equal finite differences, op by op and in whole programs.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod common;

use common::{Weights, noise, text_program, vision_program};
use margay_graph::{
    Activation, Bindings, Builder, Element, InputData, Op, Program, RopeStyle, Stage, Sym, passes,
};
use margay_reference::{Gradients, gradients, weight_gradients};
use std::collections::BTreeSet;

/// Step of the central difference. Its error is of order STEP^2 (truncation), and that of float32 results over STEP.
const STEP: f32 = 4e-3;
/// Both errors, for losses of order 10 of smooth functions: relative to the largest gradient, or to FLOOR where that is
/// smaller.
const DIFFERENCE: f64 = 4e-3;
/// 1e-7 (a rounding of the loss) over STEP, a few times over, is DIFFERENCE of this.
const FLOOR: f64 = 0.1;
/// Coordinates probed per weight.
const PROBES: usize = 6;

enum Input {
    F32(Vec<f32>),
    I32(Vec<i32>),
}

fn views(inputs: &[Input]) -> Vec<InputData<'_>> {
    fn view(input: &Input) -> InputData<'_> {
        match input {
            Input::F32(values) => InputData::F32(values),
            Input::I32(values) => InputData::I32(values),
        }
    }
    inputs.iter().map(view).collect()
}

struct Setup {
    program: Program,
    weights: Weights,
    bindings: Bindings,
    inputs: Vec<Input>,
    output: &'static str,
    upstream: Vec<f32>,
}

impl Setup {
    fn gradients(&self) -> Gradients {
        let inputs = views(&self.inputs);
        gradients(&self.program, &self.weights, &self.bindings, &inputs, self.output, &self.upstream).unwrap()
    }

    fn loss(&self) -> f64 {
        let pairs = self.gradients().output.into_iter().zip(&self.upstream).collect::<Vec<_>>();
        pairs.into_iter().map(|(y, u)| f64::from(y) * f64::from(*u)).sum()
    }

    /// Moves one number by STEP both ways.
    fn slope(&mut self, number: impl Fn(&mut Self) -> &mut f32) -> f64 {
        let before = *number(self);
        *number(self) = before + STEP;
        let up = self.loss();
        *number(self) = before - STEP;
        let down = self.loss();
        *number(self) = before;
        (up - down) / (2.0 * f64::from(STEP))
    }

    fn check(&mut self) {
        let found = self.gradients();
        for (name, gradient) in &found.weights {
            for at in probes(gradient.len()) {
                let slope = self.slope(|s| &mut s.weights.0.get_mut(name).unwrap().1[at]);
                compare(name, gradient, at, slope);
            }
        }
        let names: Vec<_> = self.program.inputs().iter().map(|(n, _)| n.clone()).collect();
        for (index, name) in names.iter().enumerate() {
            let Some(gradient) = found.inputs.get(name) else { continue };
            for at in probes(gradient.len()) {
                let slope = self.slope(|s| match &mut s.inputs[index] {
                    Input::F32(values) => &mut values[at],
                    Input::I32(_) => unreachable!("integers have no gradient"),
                });
                compare(name, gradient, at, slope);
            }
        }
    }
}

fn probes(len: usize) -> impl Iterator<Item = usize> {
    (0..PROBES.min(len)).map(move |i| (i * 7919 + i * i) % len)
}

fn compare(name: &str, gradient: &[f32], at: usize, slope: f64) {
    let scale = gradient.iter().fold(FLOOR, |m, g| m.max(f64::from(g.abs())));
    let got = f64::from(gradient[at]);
    assert!(
        (got - slope).abs() <= DIFFERENCE * scale,
        "{name}[{at}]: gradient {got}, finite difference {slope}"
    );
}

fn text(style: RopeStyle, cached: bool, seed: usize) -> Setup {
    let program = text_program(cached, style);
    Setup {
        weights: Weights::random(&program, seed),
        bindings: Bindings::new().with(Sym::Tokens, 5).with(Sym::Visual, 2).with(Sym::Outputs, 3),
        inputs: vec![
            Input::I32(vec![3, -1, -2, 9, 3]),
            Input::F32(noise(seed + 50, 24)),
            Input::I32(vec![0, 1, 2, 3, 7]),
            Input::I32(vec![4, 1, 4]),
        ],
        output: "logits",
        upstream: noise(seed + 60, 24),
        program,
    }
}

fn vision(seed: usize) -> Setup {
    let program = vision_program();
    Setup {
        weights: Weights::random(&program, seed),
        bindings: Bindings::new(),
        inputs: vec![Input::F32(noise(seed + 50, 3 * 9 * 11))],
        output: "y",
        upstream: noise(seed + 60, 12),
        program,
    }
}

#[test]
fn text_gradients_equal_finite_differences() {
    for (seed, style) in [(1, RopeStyle::Half), (2, RopeStyle::Interleaved)] {
        for cached in [false, true] {
            text(style, cached, seed).check();
        }
    }
}

#[test]
fn gradients_survive_fusion() {
    let plain = text(RopeStyle::Half, true, 3);
    let mut fused = text(RopeStyle::Half, true, 3);
    fused.program = passes::optimize(&fused.program);
    assert!(fused.program.nodes().len() < plain.program.nodes().len());
    fused.check();
    // The same float32 operations in the same order.
    assert_eq!(fused.gradients(), plain.gradients());
}

#[test]
fn vision_gradients_equal_finite_differences() {
    for seed in [1, 2] {
        vision(seed).check();
    }
}

#[test]
fn activation_gradients_equal_finite_differences_away_from_their_kinks() {
    // Kinks are at -3, 0 and 3.
    let x = vec![-8.0, -3.5, -2.6, -1.4, -0.3, 0.2, 0.9, 2.1, 2.8, 3.3, 5.0, 30.0];
    for act in Activation::ALL {
        for gated in [false, true] {
            let mut b = Builder::new(Stage::Project);
            let input = b.input_f32("x", [2.into(), 6.into()]);
            let up = b.input_f32("up", [2.into(), 6.into()]);
            let y = b.activation(input, act).unwrap();
            let y = b.mul(y, up).unwrap();
            b.output("y", y);
            let mut program = b.finish().unwrap();
            if gated {
                program = passes::optimize(&program);
                assert!(program.nodes().iter().any(|n| matches!(n.op, Op::Glu(_))));
            }
            let mut setup = Setup {
                weights: Weights::random(&program, 0),
                bindings: Bindings::new(),
                inputs: vec![Input::F32(x.clone()), Input::F32(noise(8, 12))],
                output: "y",
                upstream: noise(9, 12),
                program,
            };
            let found = setup.gradients();
            for at in 0..12 {
                let slope = setup.slope(|s| match &mut s.inputs[0] {
                    Input::F32(values) => &mut values[at],
                    Input::I32(_) => unreachable!("integers have no gradient"),
                });
                compare(&format!("{act:?}"), &found.inputs["x"], at, slope);
            }
        }
    }
}

#[test]
fn gradients_far_from_zero_stay_finite() {
    for act in Activation::ALL {
        let mut b = Builder::new(Stage::Project);
        let x = b.input_f32("x", [1.into(), 4.into()]);
        let y = b.activation(x, act).unwrap();
        b.output("y", y);
        let program = b.finish().unwrap();
        let x = [-1000.0, -90.0, 90.0, 1000.0];
        let weights = Weights::random(&program, 0);
        let bindings = Bindings::new();
        let found = gradients(&program, &weights, &bindings, &[InputData::F32(&x)], "y", &[1.0; 4]).unwrap();
        for gradient in &found.inputs["x"] {
            assert!(gradient.is_finite(), "{act:?} {gradient}");
        }
    }
}

#[test]
fn the_checked_programs_use_every_differentiable_op() {
    let programs = [text(RopeStyle::Half, true, 1).program, vision(1).program];
    let fused = programs.each_ref().map(passes::optimize);
    let used: BTreeSet<_> =
        programs.iter().chain(&fused).flat_map(|p| p.nodes()).map(|n| n.op.name()).collect();
    let all = [
        "activation",
        "add",
        "attention",
        "avg_pool2d",
        "concat_rows",
        "conv2d",
        "embed",
        "gather_rows",
        "glu",
        "input",
        "linear",
        "mean_rows",
        "mul",
        "norm",
        "param",
        "patchify",
        "rope",
        "slice_columns",
        "slice_rows",
        "space_to_depth",
    ];
    assert_eq!(used, BTreeSet::from(all));
}

#[test]
fn rope_factors_have_no_gradient_and_unused_weights_have_zeros() {
    let mut setup = text(RopeStyle::Half, true, 4);
    setup.output = "hidden";
    setup.upstream = noise(5, 60);
    let found = setup.gradients();
    assert!(!found.weights.contains_key("factors"));
    assert!(found.weights["head"].iter().all(|g| *g == 0.0), "hidden comes before the head");
    assert!(found.weights["table"].iter().any(|g| *g != 0.0));
    let integers =
        setup.program.inputs().iter().filter(|(_, id)| setup.program.value(*id).element == Element::I32);
    assert_eq!(found.inputs.len() + integers.count(), 4);
}

#[test]
fn an_upstream_gradient_of_another_size_is_refused() {
    let setup = vision(1);
    let inputs = views(&setup.inputs);
    let err =
        gradients(&setup.program, &setup.weights, &setup.bindings, &inputs, "y", &[0.0; 11]).unwrap_err();
    assert!(err.to_string().contains("11"), "{err}");
    let err =
        gradients(&setup.program, &setup.weights, &setup.bindings, &inputs, "z", &[0.0; 12]).unwrap_err();
    assert!(err.to_string().contains("no output z"), "{err}");
}

#[test]
fn gradients_of_some_weights_are_those_of_all() {
    let mut setup = text(RopeStyle::Half, true, 4);
    setup.output = "hidden";
    setup.upstream = noise(5, 60);
    let all = setup.gradients().weights;
    let names: Vec<&str> = all.keys().rev().map(String::as_str).step_by(2).collect();
    let inputs = views(&setup.inputs);
    let upstream = |_: &[f32]| setup.upstream.clone();
    let some = |names: &[&str]| {
        weight_gradients(&setup.program, &setup.weights, &setup.bindings, &inputs, "hidden", &upstream, names)
    };
    let found = some(&names).unwrap();
    assert!(names.len() > 2 && found.iter().flatten().any(|g| *g != 0.0));
    for (name, gradient) in names.iter().zip(&found) {
        assert_eq!(gradient, &all[*name], "{name}");
    }
    assert!(some(&["nobody"]).unwrap_err().to_string().contains("nobody"));
}
