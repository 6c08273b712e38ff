//! Whole blocks: what single ops cannot show, such as values that share memory.

use super::case::{Case, Draft, Sizes};
use crate::tolerance::Class;
use margay_graph::{
    Activation, Attention, Bindings, Builder, Conv2d, GraphError, Mask, NormKind, Pool2d, Role, Rope,
    RopeStyle, Sym, ValueId,
};
use margay_tensor::DType;

pub(super) fn cases(cases: &mut Vec<Case>) {
    for dtype in [DType::F32, DType::F16, DType::Q8_0, DType::Q4_0, DType::Q4_K] {
        for fused in [false, true] {
            cases.push(decoder(dtype, fused, "", &[]));
            for (name, outliers) in OUTLIERS {
                cases.push(decoder(dtype, fused, name, outliers));
            }
            cases.push(encoder(dtype, fused));
        }
    }
    for fused in [false, true] {
        cases.push(ldp(fused));
    }
}

/// Weights of a layer and their columns that are kept apart.
type Kept = &'static [(&'static str, &'static [usize])];

/// Columns of a decoder's layer that are kept apart: of all that are fused with others, and of one in each fusion.
const OUTLIERS: [(&str, Kept); 2] = [
    (
        " with outliers",
        &[
            ("q", &[0, 200, 255]),
            ("k", &[0, 200, 255]),
            ("v", &[0, 200, 255]),
            ("out", &[17]),
            ("gate", &[31, 32]),
            ("up", &[31, 32]),
            ("down", &[500]),
        ],
    ),
    (" with some outliers", &[("k", &[77]), ("up", &[3, 4, 5]), ("head", &[0, 255])]),
];

fn draft(dtype: DType, name: &str, fused: bool, float: Class) -> Draft {
    let class = if dtype.is_block() { Class::Int8Chain } else { float };
    let name = format!("{name} {dtype}{}", if fused { " fused" } else { "" });
    Draft { dtype, fused, ..Draft::new("block", name).class(class) }
}

/// A layer of a LLaMA decoder with its embedding and head: E 256, 4 of 2 heads of 64, F 512; prompt with visual rows,
/// then token by token.
fn decoder(
    dtype: DType,
    fused: bool,
    kind: &str,
    outliers: &'static [(&'static str, &'static [usize])],
) -> Case {
    let calls = [(9, 3, 2), (1, 0, 1), (1, 0, 1), (6, 2, 6), (1, 0, 0)];
    let size = |(t, v, r): &(usize, usize, usize)| {
        Sizes::of(&[(Sym::Tokens, *t), (Sym::Visual, *v), (Sym::Outputs, *r)])
    };
    let draft = Draft {
        sizes: calls.iter().map(size).collect(),
        capacity: Some(32),
        integers: |name, rng, at, sizes: &Bindings| {
            let (tokens, visual) = (sizes.get(Sym::Tokens).unwrap_or(0), sizes.get(Sym::Visual).unwrap_or(0));
            match name {
                "ids" if at < visual => -1 - at as i32,
                "ids" => rng.below(40) as i32,
                "rows" => (tokens - 1).saturating_sub(at) as i32,
                _ => at as i32,
            }
        },
        outliers,
        ..draft(dtype, &format!("llama decoder{kind}"), fused, Class::HalfCache)
    };
    let mut case = draft.finish(|b| {
        let ids = b.input_i32("ids", Sym::Tokens);
        let visual = b.input_f32("visual", [Sym::Visual.into(), 256.into()]);
        let positions = b.input_i32("positions", Sym::Tokens);
        let rows = b.input_i32("rows", Sym::Outputs);
        let table = b.weight("table", [40, 256], Role::TokenEmbedding);
        let x = b.embed(table, ids, Some(visual))?;
        let h = norm(b, x, "norm1", NormKind::Rms, 256)?;
        let q = linear(b, h, "q", [256, 256], Role::AttentionQ, false)?;
        let k = linear(b, h, "k", [128, 256], Role::AttentionK, false)?;
        let v = linear(b, h, "v", [128, 256], Role::AttentionV, false)?;
        let rope = Rope {
            head_dim: 64,
            rotary: 64,
            base: 10_000.0,
            style: RopeStyle::Half,
            factors: None,
            axes: None,
        };
        let q = b.rope(q, positions, rope.clone())?;
        let k = b.rope(k, positions, rope)?;
        let attention =
            Attention { heads: 4, kv_heads: 2, head_dim: 64, scale: 0.125, mask: Mask::Causal, cache: None };
        let h = b.attention([q, k, v], attention, true)?;
        let h = linear(b, h, "out", [256, 256], Role::AttentionOut, false)?;
        let x = b.add(x, h)?;
        let h = norm(b, x, "norm2", NormKind::Rms, 256)?;
        let gate = linear(b, h, "gate", [512, 256], Role::FfnGate, false)?;
        let gate = b.activation(gate, Activation::Silu)?;
        let up = linear(b, h, "up", [512, 256], Role::FfnUp, false)?;
        let h = b.mul(gate, up)?;
        let h = linear(b, h, "down", [256, 512], Role::FfnDown, false)?;
        let x = b.add(x, h)?;
        b.output("hidden", x);
        let x = b.gather_rows(x, rows)?;
        let x = norm(b, x, "norm3", NormKind::Rms, 256)?;
        linear(b, x, "head", [40, 256], Role::Output, false)
    });
    count_positions(&mut case);
    case
}

/// Positions go on where the last call ended.
fn count_positions(case: &mut Case) {
    let mut past = 0;
    for call in &mut case.calls {
        if let super::Input::I32(positions) = &mut call.inputs[2] {
            for position in positions.iter_mut() {
                *position += past;
            }
            past += positions.len() as i32;
        }
    }
}

/// Patches, class row, positions and two layers of a CLIP encoder: E 128, 2 heads of 64, F 256.
fn encoder(dtype: DType, fused: bool) -> Case {
    draft(dtype, "clip encoder", fused, Class::Float).finish(|b| {
        let pixels = b.input_f32("pixels", [3.into(), 30.into(), 28.into()]);
        let x = b.patchify(pixels, 7)?; // [16, 147]
        let x = linear(b, x, "patch", [128, 147], Role::PatchEmbedding, false)?;
        let class = b.weight("class", [128], Role::ClassEmbedding);
        let class = b.param(class)?;
        let x = b.concat_rows(class, x)?; // [17, 128]
        let position = b.weight("position", [17, 128], Role::PositionEmbedding);
        let position = b.param(position)?;
        let x = b.add(x, position)?;
        let mut x = norm(b, x, "pre", NormKind::Layer, 128)?;
        for layer in 0..2 {
            let name = |what: &str| format!("{layer}.{what}");
            let h = norm(b, x, &name("norm1"), NormKind::Layer, 128)?;
            let q = linear(b, h, &name("q"), [128, 128], Role::AttentionQ, true)?;
            let k = linear(b, h, &name("k"), [128, 128], Role::AttentionK, true)?;
            let v = linear(b, h, &name("v"), [128, 128], Role::AttentionV, true)?;
            let attention = Attention {
                heads: 2,
                kv_heads: 2,
                head_dim: 64,
                scale: 0.125,
                mask: Mask::Full,
                cache: None,
            };
            let h = b.attention([q, k, v], attention, false)?;
            let h = linear(b, h, &name("out"), [128, 128], Role::AttentionOut, true)?;
            x = b.add(x, h)?;
            let h = norm(b, x, &name("norm2"), NormKind::Layer, 128)?;
            let h = linear(b, h, &name("up"), [256, 128], Role::FfnUp, true)?;
            let h = b.activation(h, Activation::QuickGelu)?;
            let h = linear(b, h, &name("down"), [128, 256], Role::FfnDown, true)?;
            x = b.add(x, h)?;
            b.output(&name("hidden"), x);
        }
        b.slice_rows(x, 1, 16)
    })
}

/// The projectors of MobileVLM: LDPv2 (two layers, pooling, a depthwise convolution added to its input), then an LDPv1
/// block (depthwise, squeeze-excitation, pointwise, stride 2).
fn ldp(fused: bool) -> Case {
    draft(DType::F32, "mobilevlm projectors", fused, Class::Float).finish(|b| {
        let x = b.input_f32("x", [64.into(), 48.into()]);
        let h = linear(b, x, "mlp.0", [64, 48], Role::Projector, true)?;
        let h = b.activation(h, Activation::GeluErf)?;
        let h = linear(b, h, "mlp.2", [64, 64], Role::Projector, true)?;
        let x = b.avg_pool2d(h, Pool2d { height: 8, width: 8, kernel: 2 })?; // 4 x 4
        let h = conv(b, x, "peg", 4, 1)?;
        let x = b.add(h, x)?;
        b.output("ldpv2", x);
        let h = conv(b, x, "depthwise", 4, 1)?;
        let h = norm(b, h, "norm", NormKind::Layer, 64)?;
        let h = b.activation(h, Activation::Hardswish)?;
        let mean = b.mean_rows(h)?;
        let gate = linear(b, mean, "squeeze", [16, 64], Role::Projector, true)?;
        let gate = b.activation(gate, Activation::Relu)?;
        let gate = linear(b, gate, "excite", [64, 16], Role::Projector, true)?;
        let gate = b.activation(gate, Activation::Hardsigmoid)?;
        let h = b.mul(h, gate)?;
        let h = linear(b, h, "pointwise", [64, 64], Role::Projector, false)?;
        let x = b.add(x, h)?;
        conv(b, x, "strided", 4, 2)
    })
}

fn norm(
    b: &mut Builder,
    x: ValueId,
    name: &str,
    kind: NormKind,
    columns: usize,
) -> Result<ValueId, GraphError> {
    let weight = b.weight(name, [columns], Role::Norm);
    let bias = (kind == NormKind::Layer).then(|| b.weight(&format!("{name}.bias"), [columns], Role::Bias));
    b.norm(x, kind, weight, bias, 1e-5)
}

fn linear(
    b: &mut Builder,
    x: ValueId,
    name: &str,
    shape: [usize; 2],
    role: Role,
    bias: bool,
) -> Result<ValueId, GraphError> {
    let weight = b.weight(name, shape, role);
    let bias = bias.then(|| b.weight(&format!("{name}.bias"), [shape[0]], Role::Bias));
    b.linear(x, weight, bias)
}

/// Depthwise, 3 x 3, 64 channels, over a square map.
fn conv(b: &mut Builder, x: ValueId, name: &str, side: usize, stride: usize) -> Result<ValueId, GraphError> {
    let weight = b.weight(name, [64, 1, 3, 3], Role::Convolution);
    let bias = b.weight(&format!("{name}.bias"), [64], Role::Bias);
    let (height, width) = (side, side);
    b.conv2d(x, Conv2d { weight, bias: Some(bias), height, width, kernel: 3, stride, padding: 1, groups: 64 })
}
