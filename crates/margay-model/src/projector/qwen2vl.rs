//! The patch merger of Qwen2-VL and Qwen2.5-VL: a norm, the patches of each square side by side in one row, two linear
//! layers. The second generation's features come window by window; its tokens are put back in their order.
//! Source: transformers `modeling_qwen2_vl.py`, `modeling_qwen2_5_vl.py`.

use super::{Projector, Sizes, Weights};
use crate::{
    ModelError,
    vision::{qwen2vl::norm, vit::linear},
};
use margay_graph::{Activation, Builder, Dim, Program, Role, Stage, Sym};

pub(super) const QWEN2VL_MERGER: Projector = Projector {
    id: "qwen2vl_merger",
    hf: None,
    tokens: |(rows, columns), fold| rows * columns / (fold * fold),
    each: false,
    build: |sizes| build(sizes, false),
    rename,
    weights: |_| Weights::default(),
};

pub(super) const QWEN25VL_MERGER: Projector =
    Projector { id: "qwen2.5vl_merger", build: |sizes| build(sizes, true), ..QWEN2VL_MERGER };

fn build(&Sizes { fold, width, out, .. }: &Sizes, windows: bool) -> Result<Program, ModelError> {
    let mut b = Builder::new(Stage::Project);
    let x = b.input_f32("features", [Sym::Patches.into(), Dim::from(width)]);
    let x = norm(&mut b, windows, "v.post_ln", x)?; // [P, C]
    let x = b.join_rows(x, fold * fold)?; // [V, fold*fold*C]
    let x = linear(&mut b, "mm.0", x, fold * fold * width, Role::Projector)?;
    let x = b.activation(x, Activation::GeluErf)?;
    let mut x = linear(&mut b, "mm.2", x, out, Role::Projector)?; // [V, E]
    if windows {
        let back = b.input_i32("back", Dim::from(Sym::Patches).divided(fold * fold)?);
        x = b.gather_rows(x, back)?;
    }
    b.output("project", x);
    Ok(b.finish()?)
}

fn rename(inner: &str) -> Option<String> {
    let (stem, kind) = inner.rsplit_once('.')?;
    let to = match stem {
        "ln_q" => "v.post_ln",
        "mlp.0" => "mm.0",
        "mlp.2" => "mm.2",
        _ => return None,
    };
    Some(format!("{to}.{kind}"))
}
