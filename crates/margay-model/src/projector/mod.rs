//! Projectors: patch features to visual tokens. One file each, one line in [`PROJECTORS`].

mod idefics3;
mod ldp;
mod ldpv2;
mod mlp;
mod mlp_gelu_tanh;
mod mlp_tail;
mod moondream;
mod qwen2vl;
mod resampler;

use crate::{ModelError, Transform};
use margay_graph::{Dim, Program};
use margay_tensor::Tensor;

/// A way from patch features [P, C] to visual tokens [V, E].
#[derive(Debug)]
pub struct Projector {
    /// `clip.projector_type` in a GGUF file.
    pub id: &'static str,
    /// `mm_projector_type` in a checkpoint's `config.json`; `None` where no such field names it.
    pub hf: Option<&'static str>,
    /// Visual tokens of a grid of so many rows and columns, of which `fold` x `fold` become one where it folds.
    pub tokens: fn(grid: (usize, usize), fold: usize) -> usize,
    /// Whether each patch becomes one token by itself, so that any of them can be projected.
    pub(crate) each: bool,
    /// The project program: first input `features` [P, width] (of all tiles, then `map` and `size`, where they are
    /// stitched), output `project` [V, out].
    pub(crate) build: fn(&Sizes) -> Result<Program, ModelError>,
    /// The name in a GGUF file of a projector weight, given what stands behind the projector's place in the checkpoint.
    pub(crate) rename: fn(inner: &str) -> Option<String>,
    /// What its weights are besides those that a file stores one by one.
    pub(crate) weights: fn(&Sizes) -> Weights,
}

/// Weights of a projector that a file does not store one by one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Weights {
    /// Those that a file may hold as one, and what its parts are called.
    pub(crate) parts: Vec<(String, Vec<(String, Transform)>)>,
    /// Tables that follow from the sizes, whatever a file says.
    pub(crate) tables: Vec<(String, Tensor)>,
}

/// What a projector stands between.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Patches a side.
    pub(crate) grid: usize,
    /// Those of a tile, all or, of a projector that takes each by itself, some.
    pub(crate) patches: Dim,
    /// Side of the square of patches that becomes one token, where the projector folds.
    pub(crate) fold: usize,
    /// Width between its layers, where the others do not say it.
    pub(crate) hidden: usize,
    /// C
    pub(crate) width: usize,
    /// Learned queries, of a projector that has them.
    pub(crate) queries: usize,
    /// Patches of the longest side of a tile.
    pub(crate) longest: usize,
    /// E
    pub(crate) out: usize,
}

impl PartialEq for Projector {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

/// All projectors.
pub const PROJECTORS: &[&Projector] = &[
    &idefics3::IDEFICS3,
    &ldp::LDP,
    &ldpv2::LDPV2,
    &mlp::MLP,
    &mlp_gelu_tanh::MLP_GELU_TANH,
    &mlp_tail::MLP_TAIL,
    &moondream::MOONDREAM,
    &qwen2vl::QWEN2VL_MERGER,
    &qwen2vl::QWEN25VL_MERGER,
    &resampler::RESAMPLER,
];

/// The projector of that id in a GGUF file.
pub(crate) fn by_id(id: &str) -> Option<&'static Projector> {
    PROJECTORS.iter().copied().find(|p| p.id == id)
}

/// The projector of that `mm_projector_type`.
pub(crate) fn by_hf(name: &str) -> Option<&'static Projector> {
    PROJECTORS.iter().copied().find(|p| p.hf == Some(name))
}

/// What stands behind the projector's place in a checkpoint's weight name.
pub(crate) fn inner_name(name: &str) -> Option<&str> {
    const PLACES: [&str; 7] = [
        "model.mm_projector.",
        "mm_projector.",
        "model.multi_modal_projector.",
        "multi_modal_projector.",
        "model.connector.",
        "model.visual.merger.",
        "visual.merger.",
    ];
    PLACES.iter().find_map(|place| name.strip_prefix(place))
}
