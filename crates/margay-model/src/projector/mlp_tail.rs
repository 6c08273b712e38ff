//! LLaVA-1.5's projector behind a feature that is dropped: TinyLLaVA takes the first row for a class token even where the
//! tower has none. Other runtimes do not know this id, and so do not project a token too many.
//! Source: TinyLLaVA_Factory `model/vision_tower/base.py`, strategy `patch`.

use super::{Projector, Sizes, Weights, mlp};
use crate::ModelError;
use margay_graph::{Builder, Dim, Program, Stage};

pub(super) const MLP_TAIL: Projector = Projector {
    id: "mlp_tail",
    hf: None,
    tokens: |(rows, columns), _| rows * columns - 1,
    each: false,
    build,
    rename: mlp::rename,
    weights: |_| Weights::default(),
};

fn build(&Sizes { grid, width, out, .. }: &Sizes) -> Result<Program, ModelError> {
    let mut b = Builder::new(Stage::Project);
    let x = b.input_f32("features", [grid * grid, width].map(Dim::from));
    let x = b.slice_rows(x, 1, grid * grid - 1)?;
    mlp::layers(b, x, out)
}
