//! Frames of which only the patches that changed are encoded.
//!
//! Keys and values that the tower made of the others are kept: each patch that changed is computed through all blocks, and
//! looks at what there is of the others, as it was when they were computed. So what did not change does not see what did until
//! it is computed again, which a whole frame does from time to time. Of a single block the result would be exact. Source of
//! computing only tokens that changed: Dutson et al., Eventful Transformers, arXiv 2308.13494; there, tokens are compared anew
//! in each block, here the pixels decide.

use crate::{Error, engine::Engine};
use margay_graph::Cancel;
use margay_model::{Feed, KeptRows, VisionConfig};
use margay_prompt::image::Pixels;

/// Mean difference of a patch's values, levels of 255, from which on it is encoded again: that of
/// [`margay_prompt::image::changed_blocks`].
const LEVELS: f32 = 6.0;

/// What is kept of a tile between frames.
#[derive(Debug)]
pub(super) struct KeptTile {
    /// Pixels of each patch as it was encoded. [P, 3*patch*patch]
    patches: Vec<f32>,
    /// [P, C]
    pub(super) features: Vec<f32>,
    /// Empty where the tile is not the frame's only one: it then is encoded whole, or not at all.
    kept: Option<KeptRows>,
}

impl KeptTile {
    /// Of which nothing is known yet; `alone`: the frame's only one.
    pub(super) fn new(vision: &VisionConfig, alone: bool) -> Self {
        let kept = vision.tower.kept_rows().filter(|_| alone);
        KeptTile { patches: vec![], features: vec![], kept }
    }

    /// The features of `tile`, of which only patches that changed go through the tower; says how many did. `whole` is how all
    /// of them are given to it.
    pub(super) fn encode(
        &mut self,
        vision: &VisionConfig,
        tile: &Pixels,
        whole: &Feed<'_>,
        engine: &mut Engine,
        cancel: &Cancel,
    ) -> Result<usize, Error> {
        let (rows, columns) = vision.tower.grid_of(tile.width, tile.height);
        let count = rows * columns;
        let changed = self.changed(vision, tile);
        if changed.is_empty() {
            return Ok(0);
        }
        let some = self.kept.as_ref().and_then(|kept| vision.tower.feed_changed(tile, &changed, kept));
        engine.encode(some.as_ref().unwrap_or(whole), 0, &mut || false, cancel)?;
        put_rows(&changed, 0, engine.encoded(), &mut self.features, count);
        let class = usize::from(vision.tower.class_token());
        for (name, rows) in self.kept.iter_mut().flat_map(|kept| &mut kept.rows) {
            let new = engine.new_rows(name).expect("invariant: the tower gives what it takes");
            put_rows(&changed, class, new, rows, class + count);
        }
        Ok(changed.len())
    }

    /// The patches of `tile` to encode, ascending. They count as encoded from now on.
    fn changed(&mut self, vision: &VisionConfig, tile: &Pixels) -> Vec<usize> {
        let (rows, columns) = vision.tower.grid_of(tile.width, tile.height);
        let count = rows * columns;
        let side = tile.width / columns.max(1);
        let places = (0..count).map(|at| (at / columns, at % columns));
        let patches = tile.squares(side, places);
        let width = patches.len() / count.max(1);
        if self.patches.len() != patches.len() {
            self.patches = patches;
            return (0..count).collect();
        }
        let mean_std = vision.image.std.iter().sum::<f32>() / vision.image.std.len().max(1) as f32;
        let least = LEVELS * vision.image.rescale as f32 / mean_std * width as f32;
        let mut changed = vec![];
        for (at, (old, new)) in self.patches.chunks_exact(width).zip(patches.chunks_exact(width)).enumerate()
        {
            let differs: f32 = old.iter().zip(new).map(|(a, b)| (a - b).abs()).sum();
            if differs > least {
                changed.push(at);
            }
        }
        let changed = match &self.kept {
            None if !changed.is_empty() => (0..count).collect(),
            _ => with_neighbours(&changed, rows, columns),
        };
        for at in &changed {
            let range = at * width..(at + 1) * width;
            self.patches[range.clone()].copy_from_slice(&patches[range]);
        }
        changed
    }
}

/// Those patches of a grid and all that touch them, ascending: what a thing covers now, and what it is seen against.
fn with_neighbours(patches: &[usize], rows: usize, columns: usize) -> Vec<usize> {
    let mut marked = vec![false; rows * columns];
    for at in patches {
        let (row, column) = (at / columns, at % columns);
        for row in row.saturating_sub(1)..rows.min(row + 2) {
            marked[row * columns..][column.saturating_sub(1)..columns.min(column + 2)].fill(true);
        }
    }
    (0..rows * columns).filter(|at| marked[*at]).collect()
}

/// Puts rows that are new, [class + N, C], in their places among `count`: first those before the patches, then `changed`.
fn put_rows(changed: &[usize], class: usize, new: &[f32], rows: &mut Vec<f32>, count: usize) {
    let width = new.len() / (class + changed.len());
    rows.resize(count * width, 0.0);
    let places = (0..class).chain(changed.iter().map(|at| class + at));
    for (at, row) in places.zip(new.chunks_exact(width)) {
        rows[at * width..][..width].copy_from_slice(row);
    }
}
