//! MobileVLM V1's projector: an MLP and two inverted-residual blocks with squeeze-and-excitation; the second halves
//! the grid. Source: MobileVLM `vision_projector.py`, `LDPBlock`, over torchvision's `InvertedResidual`.

use super::{Projector, Sizes, Weights};
use crate::{ModelError, vision::vit::linear};
use margay_graph::{Activation, Builder, Conv2d, Dim, NormKind, Program, Role, Stage, ValueId};

pub(super) const LDP: Projector = Projector {
    id: "ldp",
    hf: Some("ldpnet"),
    tokens: |(rows, columns), _| rows.div_ceil(2) * columns.div_ceil(2),
    each: false,
    build,
    rename,
    weights: |_| Weights::default(),
};

/// Epsilon of the per-pixel layer norms. Source: `LayerNorm2d` default in torchvision's `MNLayerNorm`.
const NORM_EPS: f32 = 1e-5;

fn build(&Sizes { grid, width, out, .. }: &Sizes) -> Result<Program, ModelError> {
    let mut b = Builder::new(Stage::Project);
    let x = b.input_f32("features", [grid * grid, width].map(Dim::from));
    let x = linear(&mut b, "mm.model.mlp.1", x, out, Role::Projector)?; // [P, E]
    let x = b.activation(x, Activation::GeluErf)?;
    let x = linear(&mut b, "mm.model.mlp.3", x, out, Role::Projector)?;
    let y = inverted_residual(&mut b, 1, x, grid, out, 1)?;
    let x = b.add(x, y)?;
    let x = inverted_residual(&mut b, 2, x, grid, out, 2)?; // [ceil(grid/2)^2, E]
    b.output("project", x);
    Ok(b.finish()?)
}

/// Depthwise convolution, norm, Hardswish; channel gates from the mean pixel; pointwise convolution, norm.
fn inverted_residual(
    b: &mut Builder,
    number: usize,
    x: ValueId,
    grid: usize,
    channels: usize,
    stride: usize,
) -> Result<ValueId, ModelError> {
    let at = format!("mm.model.mb_block.{number}.block");
    let weight = b.weight(&format!("{at}.0.0.weight"), [channels, 1, 3, 3], Role::Convolution);
    let conv = Conv2d {
        weight,
        bias: None,
        height: grid,
        width: grid,
        kernel: 3,
        stride,
        padding: 1,
        groups: channels,
    };
    let y = b.conv2d(x, conv)?;
    let y = norm(b, &format!("{at}.0.1"), y, channels)?;
    let y = b.activation(y, Activation::Hardswish)?;

    let gate = b.mean_rows(y)?; // [1, E]
    let gate = linear(b, &format!("{at}.1.fc1"), gate, channels / 4, Role::Projector)?;
    let gate = b.activation(gate, Activation::Relu)?;
    let gate = linear(b, &format!("{at}.1.fc2"), gate, channels, Role::Projector)?;
    let gate = b.activation(gate, Activation::Hardsigmoid)?;
    let y = b.mul(y, gate)?;

    let pointwise = b.weight(&format!("{at}.2.0.weight"), [channels, channels], Role::Projector);
    let y = b.linear(y, pointwise, None)?;
    norm(b, &format!("{at}.2.1"), y, channels)
}

fn norm(b: &mut Builder, name: &str, x: ValueId, channels: usize) -> Result<ValueId, ModelError> {
    let weight = b.weight(&format!("{name}.weight"), [channels], Role::Norm);
    let bias = b.weight(&format!("{name}.bias"), [channels], Role::Bias);
    Ok(b.norm(x, NormKind::Layer, weight, Some(bias), NORM_EPS)?)
}

fn rename(inner: &str) -> Option<String> {
    let stem = inner.strip_prefix("model.")?;
    let known = ["mlp.1.", "mlp.3.", "mb_block.1.block.", "mb_block.2.block."];
    known.iter().any(|k| stem.starts_with(k)).then(|| format!("mm.model.{stem}"))
}
