//! The connector of Idefics3 and SmolVLM: each square of patches side by side in one row, and a linear layer without bias.
//! Source: transformers `modeling_idefics3.py`, `Idefics3Connector`.

use super::{Projector, Sizes, Weights};
use crate::ModelError;
use margay_graph::{Builder, Dim, Pool2d, Program, Role, Stage};

pub(super) const IDEFICS3: Projector = Projector {
    id: "idefics3",
    hf: None,
    tokens: |(rows, columns), fold| (rows / fold) * (columns / fold),
    each: false,
    build,
    rename,
    weights: |_| Weights::default(),
};

fn build(&Sizes { grid, fold, width, out, .. }: &Sizes) -> Result<Program, ModelError> {
    let mut b = Builder::new(Stage::Project);
    let x = b.input_f32("features", [grid * grid, width].map(Dim::from));
    let x = b.space_to_depth(x, Pool2d { height: grid, width: grid, kernel: fold })?; // [V, fold*fold*C]
    let weight = b.weight("mm.model.fc.weight", [out, fold * fold * width], Role::Projector);
    let x = b.linear(x, weight, None)?; // [V, E]
    b.output("project", x);
    Ok(b.finish()?)
}

fn rename(inner: &str) -> Option<String> {
    (inner == "modality_projection.proj.weight").then(|| "mm.model.fc.weight".to_owned())
}
