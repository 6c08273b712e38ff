//! Two linear layers of a width of their own with a tanh GELU between.
//! Source: vikhyat/moondream of 2024-03, `vision_encoder.py`, `VisionProjection`.

use super::{Projector, Sizes, Weights};
use crate::{ModelError, vision::vit::linear};
use margay_graph::{Activation, Builder, Dim, Program, Role, Stage};

pub(super) const MLP_GELU_TANH: Projector = Projector {
    id: "mlp_gelu_tanh",
    hf: None,
    tokens: |(rows, columns), _| rows * columns,
    each: true,
    build,
    weights: |_| Weights::default(),
    rename: |_| None,
};

fn build(&Sizes { patches, hidden, width, out, .. }: &Sizes) -> Result<Program, ModelError> {
    let mut b = Builder::new(Stage::Project);
    let x = b.input_f32("features", [patches, Dim::from(width)]);
    let x = linear(&mut b, "mm.0", x, hidden, Role::Projector)?;
    let x = b.activation(x, Activation::GeluTanh)?;
    let x = linear(&mut b, "mm.2", x, out, Role::Projector)?; // [P, E]
    b.output("project", x);
    Ok(b.finish()?)
}
