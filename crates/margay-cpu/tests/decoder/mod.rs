//! A small decoder of random weights.
#![allow(dead_code, reason = "each test file uses a part of it")]

use margay_graph::{
    Activation, Attention, BackendError, Builder, Mask, NormKind, Program, Role, Rope, RopeStyle, Stage, Sym,
    WeightSource,
};
use margay_tensor::{DType, Shape, Tensor};
use std::collections::HashMap;

pub(crate) const WIDTH: usize = 256;
pub(crate) const FFN: usize = 512;
pub(crate) const HEADS: usize = 4;
pub(crate) const KV_HEADS: usize = 2;
pub(crate) const HEAD_DIM: usize = 64;
pub(crate) const VOCABULARY: usize = 300;
pub(crate) const LAYERS: usize = 2;
pub(crate) const PROMPT: usize = 70;

pub(crate) struct Weights(pub(crate) HashMap<String, Tensor>);

impl WeightSource for Weights {
    fn weight(&self, name: &str) -> Result<Tensor, BackendError> {
        let missing = || BackendError::Weight { name: name.to_owned(), what: "is missing".to_owned() };
        self.0.get(name).cloned().ok_or_else(missing)
    }
}

/// How a decoder turns its keys, unless said.
pub(crate) fn rope() -> Rope {
    Rope {
        head_dim: HEAD_DIM,
        rotary: HEAD_DIM,
        base: 10000.0,
        style: RopeStyle::Half,
        factors: None,
        axes: None,
    }
}

/// A small decoder with grouped heads, a gated block and two kinds of quantized matrices.
pub(crate) fn decoder(layers: usize) -> (Program, Weights) {
    decoder_of(layers, Some(rope()), false)
}

/// The same with keys turned in another way, or not at all, and with frequencies that are divided.
pub(crate) fn decoder_of(layers: usize, rope: Option<Rope>, divided: bool) -> (Program, Weights) {
    let mut b = Builder::new(Stage::Text);
    let ids = b.input_i32("ids", Sym::Tokens);
    let axes = rope.as_ref().and_then(|rope| rope.axes.as_ref()).map(|axes| axes.count);
    let positions = match axes {
        None => b.input_i32("positions", Sym::Tokens),
        Some(count) => b.input_i32_matrix("positions", Sym::Tokens, count),
    };
    let rows = b.input_i32("rows", Sym::Outputs);
    let table = b.weight("table", [VOCABULARY, WIDTH], Role::TokenEmbedding);
    let norm = b.weight("norm", [WIDTH], Role::Norm);
    let mut x = b.embed(table, ids, None).unwrap();
    for layer in 0..layers {
        let weight =
            |b: &mut Builder, name: &str, n, k| b.weight(&format!("{layer}.{name}"), [n, k], Role::FfnUp);
        let q = weight(&mut b, "q", HEADS * HEAD_DIM, WIDTH);
        let [k, v] = ["k", "v"].map(|n| weight(&mut b, n, KV_HEADS * HEAD_DIM, WIDTH));
        let o = weight(&mut b, "o", WIDTH, HEADS * HEAD_DIM);
        let [gate, up] = ["gate", "up"].map(|n| weight(&mut b, n, FFN, WIDTH));
        let down = weight(&mut b, "down", WIDTH, FFN);
        let h = b.norm(x, NormKind::Rms, norm, None, 1e-5).unwrap();
        let [q, k, v] = [q, k, v].map(|w| b.linear(h, w, None).unwrap());
        let [q, k] = match &rope {
            Some(rope) => [q, k].map(|x| {
                let factors = divided.then(|| b.weight("factors", [rope.rotary / 2], Role::RopeFactors));
                b.rope(x, positions, Rope { factors, ..rope.clone() }).unwrap()
            }),
            None => [q, k],
        };
        let attention = Attention {
            heads: HEADS,
            kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            scale: 0.125,
            mask: Mask::Causal,
            cache: None,
        };
        let h = b.attention([q, k, v], attention, true).unwrap();
        let h = b.linear(h, o, None).unwrap();
        x = b.add(x, h).unwrap();
        let h = b.norm(x, NormKind::Rms, norm, None, 1e-5).unwrap();
        let g = b.linear(h, gate, None).unwrap();
        let g = b.activation(g, Activation::Silu).unwrap();
        let u = b.linear(h, up, None).unwrap();
        let h = b.mul(g, u).unwrap();
        let h = b.linear(h, down, None).unwrap();
        x = b.add(x, h).unwrap();
    }
    let x = b.gather_rows(x, rows).unwrap();
    let logits = b.linear(x, table, None).unwrap();
    b.output("logits", logits);
    let program = b.finish().unwrap();
    let mut seed = 7u32;
    let mut tensors = HashMap::new();
    for spec in program.weights() {
        let values: Vec<f32> = (0..spec.shape.elements().unwrap())
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((seed >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.2
            })
            .collect();
        let values = match spec.name.as_str() {
            "factors" => (0..values.len()).map(|at| 1.0 + at as f32 / 4.0).collect(),
            _ => values,
        };
        let dtype = match spec.name.as_str() {
            "norm" | "factors" => DType::F32,
            name if name.ends_with("down") => DType::Q6_K,
            name if name.ends_with('o') => DType::F16,
            _ => DType::Q4_0,
        };
        let shape = Shape::from(spec.shape.dims());
        tensors.insert(spec.name.clone(), margay_quant::encode_tensor(&values, shape, dtype).unwrap());
    }
    (program, Weights(tensors))
}

/// Ids of a prompt.
pub(crate) fn prompt() -> Vec<i32> {
    (0..PROMPT as i32).map(|i| i * 17 % VOCABULARY as i32).collect()
}
