//! What steps hand on quantized and never write changes no bit of a result: programs are compared with the same programs
//! whose inner values are outputs too, which have to be written.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a panic is a failed test; what is skipped says so"
)]

use margay_cpu::{CpuBackend, CpuOptions, Isa};
use margay_graph::{
    Activation, Backend, BackendError, Bindings, Builder, Cancel, InputData, NormKind, Program, Role, Stage,
    Sym, ValueId, WeightSource,
};
use margay_tensor::{DType, Shape, Tensor};
use std::collections::HashMap;

const WIDTH: usize = 256;
const FFN: usize = 544;
const MOST_ROWS: usize = 70;

struct Weights(HashMap<String, Tensor>);

impl WeightSource for Weights {
    fn weight(&self, name: &str) -> Result<Tensor, BackendError> {
        let missing = || BackendError::Weight { name: name.to_owned(), what: "is missing".to_owned() };
        self.0.get(name).cloned().ok_or_else(missing)
    }
}

fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Random weights; a name ends with the type it is stored in, `.f32` or none for float32.
fn weights(program: &Program) -> Weights {
    let encode = |spec: &margay_graph::WeightSpec| {
        let dtype = spec.name.rsplit_once('.').and_then(|(_, t)| DType::from_name(t)).unwrap_or(DType::F32);
        let values = numbers(spec.shape.elements().unwrap(), spec.name.len() as u32);
        let shape = Shape::from(spec.shape.dims());
        (spec.name.clone(), margay_quant::encode_tensor(&values, shape, dtype).unwrap())
    };
    Weights(program.weights().iter().map(encode).collect())
}

/// A program of `stage` whose last value is the output, and all others too where `tapped`.
fn program(stage: Stage, tapped: bool, body: impl Fn(&mut Builder, ValueId) -> Vec<ValueId>) -> Program {
    let mut b = Builder::new(stage);
    let x = b.input_f32("x", [Sym::Tokens.into(), WIDTH.into()]);
    let values = body(&mut b, x);
    let (last, inner) = values.split_last().unwrap();
    for (i, value) in inner.iter().enumerate().filter(|_| tapped) {
        b.output(&format!("inner {i}"), *value);
    }
    b.output("y", *last);
    b.finish().unwrap()
}

fn norm(b: &mut Builder, x: ValueId, kind: NormKind) -> ValueId {
    let weight = b.weight("norm", [WIDTH], Role::Norm);
    let bias = (kind == NormKind::Layer).then(|| b.weight("norm bias", [WIDTH], Role::Norm));
    b.norm(x, kind, weight, bias, 1e-5).unwrap()
}

fn linear(b: &mut Builder, x: ValueId, name: &str, [n, k]: [usize; 2], role: Role) -> ValueId {
    let (weight, bias) = (b.weight(name, [n, k], role), b.weight(&format!("{name} bias"), [n], role));
    b.linear(x, weight, Some(bias)).unwrap()
}

/// The bits of `y` of `rows` rows, and the bytes of the arena.
fn run(options: CpuOptions, program: &Program, rows: usize) -> (Vec<u32>, usize) {
    let sizes = |rows| Bindings::new().with(Sym::Tokens, rows);
    let cpu = CpuBackend::new(options).unwrap();
    let mut executable = cpu.compile(program, &weights(program), &sizes(MOST_ROWS)).unwrap();
    let x = numbers(rows * WIDTH, 7);
    executable.run(&sizes(rows), &[InputData::F32(&x)], None, &Cancel::new()).unwrap();
    let y = executable.output("y").unwrap();
    assert!(y.iter().any(|y| *y != 0.0) && y.iter().all(|y| y.is_finite()));
    (y.iter().map(|y| y.to_bits()).collect(), executable.memory().arena_bytes)
}

/// Compares with the program whose values are all written. Gives the bytes of the arena.
fn compare(stage: Stage, options: CpuOptions, body: impl Fn(&mut Builder, ValueId) -> Vec<ValueId>) -> usize {
    let (plain, tapped) = (program(stage, false, &body), program(stage, true, &body));
    let mut most = 0;
    for isa in Isa::supported() {
        for (threads, rows) in [(1, 1), (2, 2), (3, 5), (2, MOST_ROWS)] {
            let options = CpuOptions { threads: Some(threads), isa: Some(isa), ..options };
            if options.bf16_encoder && CpuBackend::new(options).is_err() {
                println!("skipped: {isa} on this processor has no products of bfloat16");
                continue;
            }
            let ((got, bytes), (expected, _)) = (run(options, &plain, rows), run(options, &tapped, rows));
            assert_eq!(got, expected, "{isa}, {threads} threads, {rows} rows");
            most = most.max(bytes);
        }
    }
    most
}

#[test]
fn gated_blocks_of_every_kind_of_codes_give_the_bits_of_their_parts() {
    for (gate, up, down) in [("q4_0", "q4_0", "q4_0"), ("q8_0", "q4_1", "q8_0"), ("q5_0", "q5_0", "f16")] {
        let bytes = compare(Stage::Text, CpuOptions::default(), |b, x| {
            let h = norm(b, x, NormKind::Rms);
            let g = linear(b, h, &format!("gate.{gate}"), [FFN, WIDTH], Role::FfnGate);
            let u = linear(b, h, &format!("up.{up}"), [FFN, WIDTH], Role::FfnUp);
            let a = b.activation(g, Activation::Silu).unwrap();
            let m = b.mul(a, u).unwrap();
            let d = linear(b, m, &format!("down.{down}"), [WIDTH, FFN], Role::FfnDown);
            vec![h, g, u, m, b.add(x, d).unwrap()]
        });
        // The result, and before a layer of floats the gated rows; neither gate, up nor norm.
        let gated = if down == "f16" { FFN } else { 0 };
        assert!(bytes <= MOST_ROWS * (WIDTH + gated) * 4, "{gate}, {up}, {down}: {bytes}");
    }
}

#[test]
fn a_norm_that_others_read_as_it_is_is_written() {
    for second in ["q4_0", "f16", "f32"] {
        compare(Stage::Text, CpuOptions::default(), |b, x| {
            let h = norm(b, x, NormKind::Layer);
            let a = linear(b, h, "a.q4_0", [WIDTH, WIDTH], Role::AttentionQ);
            let c = linear(b, h, &format!("c.{second}"), [WIDTH, WIDTH], Role::AttentionK);
            let s = b.add(a, c).unwrap();
            // The norm as the residual of a layer that reads something else.
            let d = linear(b, s, "d.q4_0", [WIDTH, WIDTH], Role::AttentionOut);
            vec![h, a, c, s, b.add(h, d).unwrap()]
        });
    }
}

#[test]
fn rows_in_use_are_not_overwritten_by_a_norm_between() {
    compare(Stage::Text, CpuOptions::default(), |b, x| {
        let h = norm(b, x, NormKind::Rms);
        let a = linear(b, h, "a.q4_0", [WIDTH, WIDTH], Role::AttentionQ);
        let between = norm(b, a, NormKind::Layer);
        let c = linear(b, h, "c.q8_0", [WIDTH, WIDTH], Role::AttentionK);
        let d = linear(b, between, "d.q4_0", [WIDTH, WIDTH], Role::AttentionV);
        let e = linear(b, h, "e.q4_0", [WIDTH, WIDTH], Role::AttentionV);
        let s = b.add(c, d).unwrap();
        vec![h, a, between, c, d, e, s, b.add(s, e).unwrap()]
    });
}

#[test]
fn a_gated_block_whose_rows_another_layer_replaces_gives_the_same_bits() {
    compare(Stage::Text, CpuOptions::default(), |b, x| {
        let h = norm(b, x, NormKind::Rms);
        let g = linear(b, h, "gate.q4_0", [FFN, WIDTH], Role::FfnGate);
        let u = linear(b, h, "up.q4_0", [FFN, WIDTH], Role::FfnUp);
        let other = linear(b, x, "other.q4_0", [WIDTH, WIDTH], Role::FfnUp);
        let again = linear(b, other, "again.q8_0", [WIDTH, WIDTH], Role::FfnUp);
        let a = b.activation(g, Activation::GeluTanh).unwrap();
        let m = b.mul(a, u).unwrap();
        let d = linear(b, m, "down.q4_0", [WIDTH, FFN], Role::FfnDown);
        // Two layers read the gated rows.
        let e = linear(b, m, "second.q4_0", [WIDTH, FFN], Role::FfnDown);
        let s = b.add(again, d).unwrap();
        vec![h, g, u, other, again, m, d, e, s, b.add(s, e).unwrap()]
    });
}

#[test]
fn an_encoder_of_another_precision_takes_its_rows_from_the_norm() {
    for bf16_encoder in [false, true] {
        let options = CpuOptions { int8_encoder: !bf16_encoder, bf16_encoder, ..Default::default() };
        let bytes = compare(Stage::Encode, options, |b, x| {
            let h = norm(b, x, NormKind::Layer);
            let [q, k, v] =
                [("q", Role::AttentionQ), ("k.f16", Role::AttentionK), ("v.bf16", Role::AttentionV)]
                    .map(|(name, role)| linear(b, h, name, [WIDTH, WIDTH], role));
            let s = b.add(q, k).unwrap();
            vec![h, q, k, v, s, b.add(s, v).unwrap()]
        });
        // q, k and v, and not the norm.
        assert!(bytes <= MOST_ROWS * 3 * WIDTH * 4, "{bytes}");
    }
}
