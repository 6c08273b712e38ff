//! Small programs that between them use every op, and weights for them.
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its part; a panic is a failed test")]

use margay_graph::{
    Activation, Attention, BackendError, Builder, Conv2d, Mask, NormKind, Pool2d, Program, Role, Rope,
    RopeStyle, Stage, Sym, WeightSource,
};
use margay_tensor::{Shape, Tensor};
use std::collections::BTreeMap;

/// Numbers in -1..1 that look random and depend on the seed alone (the fraction of a growing product).
pub(crate) fn noise(seed: usize, len: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed as u64 + 1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Float32 weights by name.
#[derive(Clone)]
pub(crate) struct Weights(pub(crate) BTreeMap<String, (Shape, Vec<f32>)>);

impl Weights {
    /// Matrices of spread 1/sqrt(columns), norms around 1, divisors of frequencies from 1 to 3.
    pub(crate) fn random(program: &Program, seed: usize) -> Self {
        let weight = |(at, spec): (usize, &margay_graph::WeightSpec)| {
            let values = noise(seed * 1000 + at, spec.shape.elements().unwrap());
            let fan_in: usize = spec.shape.dims().iter().skip(1).product();
            let values = values.into_iter().map(|x| match spec.role {
                Role::Norm => 1.0 + 0.3 * x,
                Role::RopeFactors => 2.0 + x,
                Role::Bias | Role::PositionEmbedding | Role::ClassEmbedding | Role::TokenEmbedding => x,
                _ => x * (3.0 / fan_in as f32).sqrt(),
            });
            (spec.name.clone(), (spec.shape.clone(), values.collect()))
        };
        Weights(program.weights().iter().enumerate().map(weight).collect())
    }
}

impl WeightSource for Weights {
    fn weight(&self, name: &str) -> Result<Tensor, BackendError> {
        let missing = || BackendError::Weight { name: name.to_owned(), what: "not there".to_owned() };
        let (shape, values) = self.0.get(name).ok_or_else(missing)?;
        Ok(Tensor::from_f32(shape.clone(), values).unwrap())
    }
}

/// Embedding with visual rows, both norms, rotary attention with grouped heads, a gated block, rows and columns picked.
/// Inputs: ids [T], visual [V, 12], positions [T], rows [R]; output `logits` [R, 8] and `hidden` [T, 12].
pub(crate) fn text_program(cached: bool, style: RopeStyle) -> Program {
    let mut b = Builder::new(Stage::Text);
    let ids = b.input_i32("ids", Sym::Tokens);
    let visual = b.input_f32("visual", [Sym::Visual.into(), 12.into()]);
    let positions = b.input_i32("positions", Sym::Tokens);
    let rows = b.input_i32("rows", Sym::Outputs);
    let table = b.weight("table", [10, 12], Role::TokenEmbedding);
    let x = b.embed(table, ids, Some(visual)).unwrap();
    let norm = b.weight("norm", [12], Role::Norm);
    let h = b.norm(x, NormKind::Rms, norm, None, 1e-5).unwrap();
    let project = |b: &mut Builder, name: &str, out: usize, role| {
        let w = b.weight(name, [out, 12], role);
        let bias = b.weight(&format!("{name}.bias"), [out], Role::Bias);
        b.linear(h, w, Some(bias)).unwrap()
    };
    let q = project(&mut b, "q", 24, Role::AttentionQ);
    let k = project(&mut b, "k", 12, Role::AttentionK);
    let v = project(&mut b, "v", 12, Role::AttentionV);
    let factors = b.weight("factors", [2], Role::RopeFactors);
    let rope = Rope { head_dim: 6, rotary: 4, base: 100.0, style, factors: Some(factors), axes: None };
    let q = b.rope(q, positions, rope.clone()).unwrap();
    let k = b.rope(k, positions, rope).unwrap();
    let attention =
        Attention { heads: 4, kv_heads: 2, head_dim: 6, scale: 0.4, mask: Mask::Causal, cache: None };
    let h = b.attention([q, k, v], attention, cached).unwrap();
    let out = b.weight("out", [12, 24], Role::AttentionOut);
    let h = b.linear(h, out, None).unwrap();
    let x = b.add(x, h).unwrap();
    let [norm_w, norm_b] =
        [("norm2", Role::Norm), ("norm2.bias", Role::Bias)].map(|(n, r)| b.weight(n, [12], r));
    let h = b.norm(x, NormKind::Layer, norm_w, Some(norm_b), 1e-5).unwrap();
    let [gate, up] = [("gate", Role::FfnGate), ("up", Role::FfnUp)].map(|(n, r)| b.weight(n, [20, 12], r));
    let gate = b.linear(h, gate, None).unwrap();
    let gate = b.activation(gate, Activation::Silu).unwrap();
    let up = b.linear(h, up, None).unwrap();
    let h = b.mul(gate, up).unwrap();
    let down = b.weight("down", [12, 20], Role::FfnDown);
    let h = b.linear(h, down, None).unwrap();
    let x = b.add(h, x).unwrap();
    b.output("hidden", x);
    let x = b.gather_rows(x, rows).unwrap();
    let x = b.slice_columns(x, 1, 8).unwrap();
    let head = b.weight("head", [8, 8], Role::Output);
    let x = b.linear(x, head, None).unwrap();
    b.output("logits", x);
    b.finish().unwrap()
}

/// A picture of 3 x 9 x 11 (the last row and column do not fit a patch) through patches, a class row, attention, the
/// smooth activations, convolutions over a map that is not square, pooling and squeeze-excitation; output `y` [2, 6].
pub(crate) fn vision_program() -> Program {
    let mut b = Builder::new(Stage::Encode);
    let pixels = b.input_f32("pixels", [3.into(), 9.into(), 11.into()]);
    let x = b.patchify(pixels, 2).unwrap(); // [20, 12]
    let embed = b.weight("patch", [6, 12], Role::PatchEmbedding);
    let x = b.linear(x, embed, None).unwrap();
    let class = b.weight("class", [6], Role::ClassEmbedding);
    let class = b.param(class).unwrap();
    let x = b.concat_rows(class, x).unwrap(); // [21, 6]
    let position = b.weight("position", [21, 6], Role::PositionEmbedding);
    let position = b.param(position).unwrap();
    let x = b.add(x, position).unwrap();
    let attention =
        Attention { heads: 2, kv_heads: 2, head_dim: 3, scale: 0.6, mask: Mask::Full, cache: None };
    let h = b.attention([x, x, x], attention, false).unwrap();
    let mut x = b.add(x, h).unwrap();
    for (at, act) in
        [Activation::GeluErf, Activation::GeluTanh, Activation::QuickGelu].into_iter().enumerate()
    {
        let w = b.weight(&format!("mlp.{at}"), [6, 6], Role::FfnUp);
        let bias = b.weight(&format!("mlp.{at}.bias"), [6], Role::Bias);
        let h = b.linear(x, w, Some(bias)).unwrap();
        let h = b.activation(h, act).unwrap();
        x = b.add(x, h).unwrap();
    }
    let x = b.slice_rows(x, 1, 20).unwrap();
    let depthwise = b.weight("depthwise", [6, 1, 3, 3], Role::Convolution);
    let bias = b.weight("depthwise.bias", [6], Role::Bias);
    let (height, width) = (4, 5);
    let conv = Conv2d {
        weight: depthwise,
        bias: Some(bias),
        height,
        width,
        kernel: 3,
        stride: 1,
        padding: 1,
        groups: 6,
    };
    let x = b.conv2d(x, conv).unwrap();
    let mean = b.mean_rows(x).unwrap();
    let squeeze = b.weight("squeeze", [6, 6], Role::Projector);
    let gate = b.linear(mean, squeeze, None).unwrap();
    let gate = b.activation(gate, Activation::Hardsigmoid).unwrap();
    let x = b.mul(x, gate).unwrap();
    let dense = b.weight("dense", [6, 6, 2, 2], Role::Convolution);
    let conv =
        Conv2d { weight: dense, bias: None, height, width, kernel: 2, stride: 1, padding: 0, groups: 1 };
    let x = b.conv2d(x, conv).unwrap(); // 3 x 4
    let strided = b.weight("strided", [6, 3, 3, 3], Role::Convolution);
    let conv = Conv2d {
        weight: strided,
        bias: None,
        height: 3,
        width: 4,
        kernel: 3,
        stride: 2,
        padding: 2,
        groups: 2,
    };
    let x = b.conv2d(x, conv).unwrap(); // 3 x 3
    let x = b.slice_rows(x, 1, 8).unwrap();
    let folded = b.space_to_depth(x, Pool2d { height: 2, width: 4, kernel: 2 }).unwrap(); // [2, 24]
    let folded = b.slice_columns(folded, 9, 6).unwrap();
    let x = b.avg_pool2d(x, Pool2d { height: 2, width: 4, kernel: 2 }).unwrap(); // [2, 6]
    let x = b.add(x, folded).unwrap();
    b.output("y", x);
    b.finish().unwrap()
}
