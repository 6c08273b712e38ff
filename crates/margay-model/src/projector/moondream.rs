//! Moondream's projector: each place of the whole picture beside the same place of the map that its overlapping tiles make
//! (pooled to the size of the whole's), and two linear layers.
//! Source: vikhyat/moondream, `moondream/torch/vision.py`, `vision_projection`.

use super::{Projector, Sizes, Weights};
use crate::{ModelError, vision::vit::linear};
use margay_graph::{Activation, AdaptivePool, Builder, Dim, Program, Role, Stage, Sym};

pub(super) const MOONDREAM: Projector = Projector {
    id: "moondream",
    hf: None,
    tokens: |(rows, columns), _| rows * columns,
    each: false,
    build,
    rename: |inner| {
        let (stem, kind) = inner.rsplit_once('.')?;
        let layer = ["fc1", "fc2"].iter().position(|fc| *fc == stem)?;
        Some(format!("mm.{}.{kind}", 2 * layer))
    },
    weights: |_| Weights::default(),
};

/// Inputs: `features` [P, C] of all tiles, the whole picture's first; `map` and `size` of the stitched map.
fn build(&Sizes { grid, hidden, width, out, .. }: &Sizes) -> Result<Program, ModelError> {
    let mut b = Builder::new(Stage::Project);
    let features = b.input_f32("features", [Sym::Patches.into(), Dim::from(width)]);
    let map = b.input_i32("map", Sym::Outputs);
    let size = b.input_i32("size", 2);
    let whole = b.slice_rows(features, 0, grid * grid)?;
    let pooled = b.adaptive_pool(features, map, size, AdaptivePool { height: grid, width: grid })?;
    let x = b.concat_columns(whole, pooled)?; // [V, 2*C]
    let x = linear(&mut b, "mm.0", x, hidden, Role::Projector)?;
    let x = b.activation(x, Activation::GeluTanh)?;
    let x = linear(&mut b, "mm.2", x, out, Role::Projector)?; // [V, E]
    b.output("project", x);
    Ok(b.finish()?)
}
