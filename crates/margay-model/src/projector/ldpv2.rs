//! MobileVLM V2's projector: an MLP, a 2 x 2 mean, and a depthwise convolution with a shortcut that gives positions.
//! Source: MobileVLM `vision_projector.py`, `LDPNetV2Projector`.

use super::{Projector, Sizes, Weights};
use crate::{ModelError, vision::vit::linear};
use margay_graph::{Activation, Builder, Conv2d, Dim, Pool2d, Program, Role, Stage};

pub(super) const LDPV2: Projector = Projector {
    id: "ldpv2",
    hf: Some("ldpnetv2"),
    tokens: |(rows, columns), _| (rows / 2) * (columns / 2),
    each: false,
    build,
    rename,
    weights: |_| Weights::default(),
};

fn build(&Sizes { grid, width, out, .. }: &Sizes) -> Result<Program, ModelError> {
    let mut b = Builder::new(Stage::Project);
    let x = b.input_f32("features", [grid * grid, width].map(Dim::from));
    let x = linear(&mut b, "mm.model.mlp.0", x, out, Role::Projector)?; // [P, E]
    let x = b.activation(x, Activation::GeluErf)?;
    let x = linear(&mut b, "mm.model.mlp.2", x, out, Role::Projector)?;
    let x = b.avg_pool2d(x, Pool2d { height: grid, width: grid, kernel: 2 })?; // [P/4, E]
    let weight = b.weight("mm.model.peg.0.weight", [out, 1, 3, 3], Role::Convolution);
    let bias = b.weight("mm.model.peg.0.bias", [out], Role::Bias);
    let side = grid / 2;
    let conv = Conv2d {
        weight,
        bias: Some(bias),
        height: side,
        width: side,
        kernel: 3,
        stride: 1,
        padding: 1,
        groups: out,
    };
    let z = b.conv2d(x, conv)?;
    let x = b.add(x, z)?;
    b.output("project", x);
    Ok(b.finish()?)
}

fn rename(inner: &str) -> Option<String> {
    let (stem, kind) = inner.rsplit_once('.')?;
    match stem {
        "mlp.mlp.0" => Some(format!("mm.model.mlp.0.{kind}")),
        "mlp.mlp.2" => Some(format!("mm.model.mlp.2.{kind}")),
        "peg.peg.0" => Some(format!("mm.model.peg.0.{kind}")),
        _ => None,
    }
}
