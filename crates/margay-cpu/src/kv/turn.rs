//! Keys as if they had been computed at later positions.
//!
//! Rotary positions turn a pair of channels by the position times the pair's frequency, so that a stored key moves by turning it
//! further, and what a query and a key come to depends on the distance of their positions alone. Moving the first tokens of a
//! conversation up to a window is therefore the same as moving the window down to them, for less: they are few, and each time are
//! turned from what was computed, of which they never lose a bit. Source: Su et al., RoFormer, arXiv 2104.09864; Xiao et al.,
//! StreamingLLM, arXiv 2309.17453, section 3.2 (positions within the cache).

use super::{
    KvTable, codec,
    table::{Layouts, Place},
};
use crate::kernels::{Kernels, attention::KEYS};
use margay_graph::RopeStyle;

/// How a layer turns its keys.
#[derive(Clone, Debug)]
pub(crate) struct KeyRope {
    pub(crate) style: RopeStyle,
    /// By how much one position turns each pair of the first `2 * pairs` channels.
    pub(crate) frequencies: Vec<f64>,
}

/// Blocks whose turned copies are in the table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turned {
    /// As they were computed.
    pub(crate) blocks: Vec<Place>,
}

impl Turned {
    /// Tokens that are turned.
    pub(crate) fn tokens(&self) -> usize {
        self.blocks.len() * KEYS
    }
}

/// A copy of a block with its keys `by` positions later. `None` where memory is at its end.
pub(crate) fn turned(
    table: &mut KvTable,
    kernels: &Kernels,
    ropes: &[KeyRope],
    block: &Place,
    by: i32,
) -> Option<Place> {
    // A type that is written as a whole would be rounded once more: such a copy stays in the type of blocks that are filled.
    let kind = if block.kind() == block.kind().while_open() { block.kind() } else { table.plan.open() };
    let to = [table.take(kind)?];
    let from = std::slice::from_ref(block);
    let Layouts { shapes, .. } = &*table.layouts;
    let (mut panels, mut row, mut scratch) = (vec![], vec![], vec![]);
    for (layer, ((heads, d), rope)) in shapes.iter().zip(ropes).enumerate() {
        let angles = rope.frequencies.iter().map(|frequency| (f64::from(by) * frequency).sin_cos());
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles.map(|(sin, cos)| (sin as f32, cos as f32)).unzip();
        let turn = match rope.style {
            RopeStyle::Half => kernels.rows.rope_half,
            RopeStyle::Interleaved => kernels.rows.rope_interleaved,
        };
        panels.resize(KEYS * (d + super::wide(*d)), 0.0);
        row.resize(2 * d, 0.0);
        scratch.resize(*d, 0.0);
        let (from, to) = (table.layer_of(from, layer), table.layer_of(&to, layer));
        for head in 0..*heads {
            (kernels.attention.unpack)(block.kind(), *d, from.part(head, 0), &mut panels);
            for token in 0..KEYS {
                codec::row_of(*d, &panels, token, &mut row);
                let (key, value) = row.split_at_mut(*d);
                turn(&mut key[..2 * cos.len()], &cos, &sin);
                // SAFETY: the place was just taken, and this is its only thread.
                unsafe { to.put(kernels, (head, token), key, value, &mut scratch) };
            }
        }
    }
    let [place] = to;
    Some(place)
}
