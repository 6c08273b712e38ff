//! LLaVA-1.5's projector: two linear layers with an exact GELU between.
//! Source: LLaVA `multimodal_projector/builder.py`, `mlp2x_gelu`.

use super::{Projector, Sizes, Weights};
use crate::{ModelError, vision::vit::linear};
use margay_graph::{Activation, Builder, Dim, Program, Role, Stage, ValueId};

pub(super) const MLP: Projector = Projector {
    id: "mlp",
    hf: Some("mlp2x_gelu"),
    tokens: |(rows, columns), _| rows * columns,
    each: true,
    build,
    rename,
    weights: |_| Weights::default(),
};

fn build(&Sizes { patches, width, out, .. }: &Sizes) -> Result<Program, ModelError> {
    let mut b = Builder::new(Stage::Project);
    let x = b.input_f32("features", [patches, Dim::from(width)]);
    layers(b, x, out)
}

/// The program that ends with these layers.
pub(super) fn layers(mut b: Builder, x: ValueId, out: usize) -> Result<Program, ModelError> {
    let x = linear(&mut b, "mm.0", x, out, Role::Projector)?; // [P, E]
    let x = b.activation(x, Activation::GeluErf)?;
    let x = linear(&mut b, "mm.2", x, out, Role::Projector)?;
    b.output("project", x);
    Ok(b.finish()?)
}

pub(super) fn rename(inner: &str) -> Option<String> {
    let (stem, kind) = inner.rsplit_once('.')?;
    match stem {
        "0" | "linear_1" => Some(format!("mm.0.{kind}")),
        "2" | "linear_2" => Some(format!("mm.2.{kind}")),
        _ => None,
    }
}
