//! Projectors: patch features to visual tokens. One file each, one line in [`PROJECTORS`].

mod ldp;
mod ldpv2;
mod mlp;
mod mlp_tail;

use crate::ModelError;
use margay_graph::Program;

/// A way from patch features [P, C] to visual tokens [V, E].
#[derive(Debug)]
pub struct Projector {
    /// `clip.projector_type` in a GGUF file.
    pub id: &'static str,
    /// `mm_projector_type` in a checkpoint's `config.json`.
    pub hf: &'static str,
    /// Visual tokens of a grid of that many patches a side.
    pub tokens: fn(grid: usize) -> usize,
    /// The project program: input `features` [grid*grid, width], output `project` [V, out].
    pub(crate) build: fn(grid: usize, width: usize, out: usize) -> Result<Program, ModelError>,
    /// The name in a GGUF file of a projector weight, given what stands behind `mm_projector.` in the checkpoint.
    pub(crate) rename: fn(inner: &str) -> Option<String>,
}

impl PartialEq for Projector {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

/// All projectors.
pub const PROJECTORS: &[&Projector] = &[&ldp::LDP, &ldpv2::LDPV2, &mlp::MLP, &mlp_tail::MLP_TAIL];

/// The projector of that id in a GGUF file.
pub(crate) fn by_id(id: &str) -> Option<&'static Projector> {
    PROJECTORS.iter().copied().find(|p| p.id == id)
}

/// The projector of that `mm_projector_type`.
pub(crate) fn by_hf(name: &str) -> Option<&'static Projector> {
    PROJECTORS.iter().copied().find(|p| p.hf == name)
}

/// What stands behind the projector's place in a checkpoint's weight name.
pub(crate) fn inner_name(name: &str) -> Option<&str> {
    const PLACES: [&str; 4] =
        ["model.mm_projector.", "mm_projector.", "model.multi_modal_projector.", "multi_modal_projector."];
    PLACES.iter().find_map(|place| name.strip_prefix(place))
}
