//! Vision towers: the pixels of one tile to patch features. One file each, one line in [`TOWERS`].
//!
//! Most towers see equal square tiles: `side` pixels become a grid of `grid` x `grid` features. One whose grid follows
//! the picture gives the grid of each tile by its size; its program is bound to that size when it runs, as the text
//! program is to its tokens, and takes what depends on places (positions, windows, orders) as whole numbers in a [`Feed`].

mod fastvithd;
mod navit;
pub(crate) mod qwen2vl;
pub(crate) mod vit;

use crate::{GgufPart, HfConfig, ModelError, Rename, Transform};
use margay_file::{TensorInfo, gguf::Metadata};
use margay_graph::{Bindings, Element, InputData, Program, ValueId};
use margay_prompt::image::{ImageSpec, Pixels};
use std::{any::Any, borrow::Cow, fmt::Debug, sync::Arc};

/// A kind of vision tower.
#[derive(Debug)]
pub struct Tower {
    /// Short lower-case id.
    pub id: &'static str,
    /// `model_type`s of its own configuration in a checkpoint.
    pub hf: &'static [&'static str],
    /// `clip.projector_type`s of GGUF files that hold this tower without saying so.
    pub(crate) gguf: &'static [&'static str],
    pub(crate) read_hf: fn(&HfConfig<'_>, Features) -> ReadTower,
    pub(crate) read_gguf: fn(&GgufPart<'_>, Features) -> ReadTower,
}

pub(crate) type ReadTower = Result<Arc<dyn TowerConfig>, ModelError>;

/// All towers. GGUF files that do not say which one they hold hold the first.
pub const TOWERS: &[&Tower] = &[&vit::VIT, &qwen2vl::QWEN2VL, &fastvithd::FASTVITHD, &navit::NAVIT];

/// What an encode program does beyond giving all features of a tile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extra {
    /// Outputs `queries` and `keys` [N, C] of the block whose output is the features; the class token's row stands first where
    /// there is one.
    pub attention: bool,
    /// Takes any of a tile's patches instead of all: inputs `pixels` [P, 3*patch*patch] and `positions` \[N\], their rows of the
    /// position table, that of the class token first where there is one.
    pub some_patches: bool,
    /// Takes the patches of a tile that changed, and of all others what the tower kept: `pixels` and `positions` as above,
    /// `sources` \[T\], of which each of all T rows is one of those kept or, numbered behind them, of those new, and of each
    /// block `keys.L` and `values.L` [T, C] as they were kept. Outputs of the same names, [N, C], are the new rows.
    pub changed_patches: bool,
}

/// Keys and values of all rows of a tile, [T, C] of each block, as [`Extra::changed_patches`] takes them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeptRows {
    /// By the names of inputs and outputs.
    pub rows: Vec<(String, Vec<f32>)>,
}

/// Which of a tower's values are its features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Features {
    /// The hidden state of that number as it is: 0 before the first block; negative: counted from the end.
    Hidden(i64),
    /// What the last block gives, behind the final norm.
    Final,
    /// The same in files that hold one block more, written for a runtime that leaves out the last.
    FinalBeforeSpare,
}

impl Features {
    /// Whether they lie behind the final norm.
    pub(crate) fn are_final(self) -> bool {
        !matches!(self, Features::Hidden(_))
    }
}

/// A tower's numbers.
pub trait TowerConfig: Any + Debug + Send + Sync {
    /// Which one.
    fn tower(&self) -> &'static Tower;
    /// Side of a tile, pixels.
    fn side(&self) -> usize;
    /// Features a side of the tile.
    fn grid(&self) -> usize;
    /// Rows and columns of the features of a tile of that many pixels.
    fn grid_of(&self, width: usize, height: usize) -> (usize, usize) {
        let _ = (width, height);
        (self.grid(), self.grid())
    }
    /// Side of the square of features that stand together, where they do not go row by row.
    fn fold(&self) -> usize {
        1
    }
    /// Columns of the features.
    fn width(&self) -> usize;
    /// Whether the tower keeps a class token before its features, which is dropped.
    fn class_token(&self) -> bool {
        false
    }
    /// Its numbers for people, one line.
    fn describe(&self) -> String;
    /// Picture to pixels as the tower's authors do it.
    fn image(&self) -> ImageSpec;
    /// A tile as the encode and project programs take it.
    fn feed<'p>(&self, tile: &'p Pixels) -> Feed<'p> {
        Feed { pixels: Cow::Borrowed(&tile.data), bindings: Bindings::new(), integers: vec![], kept: None }
    }
    /// The encode program: first input `pixels` [3, side, side], or [P, 3*patch*patch] of a tower whose grid varies; output
    /// `encode` [P, width].
    ///
    /// # Errors
    /// [`ModelError::Graph`] where its sizes do not fit together.
    fn encode(&self) -> Result<Program, ModelError>;
    /// The heads of the block whose output is the features, where [`TowerConfig::encode_with`] can tell its queries and keys.
    fn heads(&self) -> Option<usize> {
        None
    }
    /// The encode program with what fewer visual tokens ask for; `None` where the tower cannot give it. See [`Extra`].
    ///
    /// # Errors
    /// As [`TowerConfig::encode`].
    fn encode_with(&self, extra: Extra) -> Result<Option<Program>, ModelError> {
        if extra == Extra::default() { self.encode().map(Some) } else { Ok(None) }
    }
    /// Some patches of a tile, by their places row by row, as the program of [`Extra::some_patches`] takes them; `None` where
    /// there is none.
    fn feed_some<'p>(&self, tile: &'p Pixels, patches: &[usize]) -> Option<Feed<'p>> {
        let _ = (tile, patches);
        None
    }
    /// Some patches of a tile, as the program of [`Extra::changed_patches`] takes them, with what was kept of the others.
    fn feed_changed<'p>(&self, tile: &'p Pixels, patches: &[usize], kept: &'p KeptRows) -> Option<Feed<'p>> {
        let _ = (tile, patches, kept);
        None
    }
    /// What [`TowerConfig::feed_changed`] takes of a tile of which nothing was kept yet.
    fn kept_rows(&self) -> Option<KeptRows> {
        None
    }
    /// The name in a GGUF file of a tower's weight in a checkpoint, given what stands behind the tower's place in it.
    fn rename(&self, inner: &str) -> Option<Rename>;
    /// Whether a weight of that name (in a checkpoint, or a GGUF file) belongs to a part of the tower that does not run.
    fn idles(&self, name: &str) -> bool {
        let _ = name;
        false
    }
    /// Weights that a file may hold as one, and what its parts are called.
    fn parts(&self) -> Vec<(String, Vec<(String, Transform)>)> {
        vec![]
    }
    /// Pairs of weights that stand under each other's name in this GGUF file.
    fn exchanged(&self, info: &dyn Fn(&str) -> Option<TensorInfo>) -> Vec<(String, String)> {
        let _ = info;
        vec![]
    }
    /// Width of its feed-forward layers, where all have one and [`TowerConfig::with_ffn`] can change it.
    fn ffn(&self) -> Option<usize> {
        None
    }
    /// The same tower with feed-forward layers of another width, of which there is at least 1; `None` where it cannot be.
    fn with_ffn(&self, ffn: usize) -> Option<Arc<dyn TowerConfig>> {
        let _ = ffn;
        None
    }
    /// Writes its numbers as GGUF metadata.
    fn put(&self, meta: &mut Metadata);
    /// Whether both are one.
    fn same(&self, other: &dyn TowerConfig) -> bool;
}

/// The weights of `layers` blocks that may hold queries, keys and values as one, and its parts; see [`TowerConfig::parts`].
fn fused_qkv(layers: usize, width: usize) -> Vec<(String, Vec<(String, Transform)>)> {
    let fused = (0..layers).flat_map(|layer| ["weight", "bias"].map(|kind| (layer, kind)));
    let part = |(layer, kind)| {
        let rows = |(at, part)| {
            (format!("v.blk.{layer}.{part}.{kind}"), Transform::Rows { start: at * width, rows: width })
        };
        let parts = ["attn_q", "attn_k", "attn_v"].into_iter().enumerate().map(rows).collect();
        (format!("v.blk.{layer}.attn_qkv.{kind}"), parts)
    };
    fused.map(part).collect()
}

/// One tile as the encode and project programs take it.
#[derive(Debug)]
pub struct Feed<'p> {
    /// The first input of the encode program.
    pub pixels: Cow<'p, [f32]>,
    /// Sizes that follow the tile.
    pub bindings: Bindings,
    /// Whole numbers that follow its grid, by the names of inputs.
    pub(crate) integers: Vec<(&'static str, Vec<i32>)>,
    /// What was kept of the tile.
    pub(crate) kept: Option<&'p KeptRows>,
}

impl Feed<'_> {
    /// The inputs of `program` in order, of which the one of numbers that is no kept one is `numbers`.
    ///
    /// # Panics
    /// Where the program takes whole numbers that the tower does not give.
    pub fn inputs<'s>(&'s self, program: &Program, numbers: &'s [f32]) -> Vec<InputData<'s>> {
        let input = |(name, id): &(String, ValueId)| match program.value(*id).element {
            Element::F32 => {
                let kept = self.kept.and_then(|kept| kept.rows.iter().find(|(known, _)| known == name));
                InputData::F32(kept.map_or(numbers, |(_, rows)| rows))
            }
            Element::I32 => {
                let known = self.integers.iter().find(|(known, _)| known == name);
                InputData::I32(&known.expect("invariant: a tower feeds the inputs of its programs").1)
            }
        };
        program.inputs().iter().map(input).collect()
    }
}

impl PartialEq for dyn TowerConfig {
    fn eq(&self, other: &Self) -> bool {
        self.same(other)
    }
}

/// The tower of that id.
pub(crate) fn by_id(id: &str) -> Option<&'static Tower> {
    TOWERS.iter().copied().find(|tower| tower.id == id)
}

/// Reads a tower's own configuration, by its `model_type`.
pub(crate) fn read_hf(config: &HfConfig<'_>, features: Features) -> ReadTower {
    // The first LLaVA folders name only CLIP's numbers.
    read_hf_as(config, config.str("model_type").unwrap_or("clip_vision_model"), features)
}

/// The same where the `model_type` of the tower stands elsewhere.
pub(crate) fn read_hf_as(config: &HfConfig<'_>, kind: &str, features: Features) -> ReadTower {
    let tower = TOWERS.iter().find(|tower| tower.hf.contains(&kind)).ok_or_else(|| {
        let known: Vec<_> = TOWERS.iter().flat_map(|tower| tower.hf).copied().collect();
        config.bad(
            "model_type",
            &format!("the tower {kind:?} is not supported; known are {}", known.join(", ")),
        )
    })?;
    (tower.read_hf)(config, features)
}

/// What stands behind the tower's place in a checkpoint's weight name.
pub(crate) fn inner_name(name: &str) -> Option<&str> {
    // The last two are how transformers 5 writes a tower: without its inner `vision_model`.
    const PLACES: [&str; 10] = [
        "model.vision_tower.vision_tower.vision_model.",
        "model.vision_tower.vision_model.",
        "vision_tower.vision_tower.vision_model.",
        "vision_tower.vision_model.",
        "model.vision_model.",
        "vision_model.",
        "model.vision_tower.",
        "vision_tower.",
        "model.visual.",
        "visual.",
    ];
    PLACES.iter().find_map(|place| name.strip_prefix(place))
}
