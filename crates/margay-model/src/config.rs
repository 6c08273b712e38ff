//! The numbers that describe a model, whatever file they came from.

use crate::{Decoder, Extra, ModelError, Outliers, Projector, TowerConfig, projector::Sizes};
use margay_graph::{Bindings, Dim, Sym};
use margay_prompt::{
    image::{Fit, ImageError, ImageSpec, Stitch, Tiling},
    layout::PictureLayout,
    text::ImagePlace,
};
use std::{num::NonZeroUsize, sync::Arc};

/// Everything Margay needs to know of a model besides its weights and vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Id of the family, an entry of [`crate::FAMILIES`].
    pub family: &'static str,
    /// Name the model gives itself, for people.
    pub name: String,
    /// The decoder.
    pub text: TextConfig,
    /// The vision side; `None` for text models.
    pub vision: Option<VisionConfig>,
    /// How prompts are written where the model brings no chat template.
    pub prompt: PromptStyle,
    /// The chat template that the configuration of a checkpoint means, where that is not the family's.
    pub chat_template: Option<String>,
    /// Columns of its matrices that the file keeps in half precision beside them.
    pub outliers: Outliers,
}

impl ModelConfig {
    /// Tokens of a picture and the one before it, where they see one another and are therefore computed together; else 0.
    pub fn prefix_tokens(&self) -> usize {
        let whole = self.text.decoder.has_prefix();
        self.vision.as_ref().filter(|_| whole).map_or(0, |vision| 1 + vision.tile_tokens())
    }
}

/// A decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    /// Which one.
    pub decoder: &'static Decoder,
    /// Rows of the embedding table.
    pub vocabulary: usize,
    /// E
    pub width: usize,
    /// L
    pub layers: usize,
    /// F
    pub ffn: usize,
    /// H
    pub heads: usize,
    /// K
    pub kv_heads: usize,
    /// D
    pub head_dim: usize,
    /// Columns of a head that turn.
    pub rotary: usize,
    /// Base of the rotary frequencies.
    pub rope_base: f32,
    /// Pairs that follow time, row and column of a token, where its position has these axes.
    pub rope_sections: Option<[usize; 3]>,
    /// How the frequencies are stretched for long contexts.
    pub rope_scaling: RopeScaling,
    /// Epsilon of the norms.
    pub norm_eps: f32,
    /// Positions the model was trained for.
    pub context: usize,
    /// True where the output head is the embedding table.
    pub tied: bool,
    /// Experts in place of the feed-forward layers; `None` where each token passes all there is.
    pub mixture: Option<Mixture>,
}

/// Experts of which each token passes a few.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mixture {
    /// N
    pub experts: usize,
    /// How many a token passes.
    pub used: usize,
    /// F of each.
    pub ffn: usize,
    /// F of one more, which every token passes, as much as a gate of its own lets through.
    pub shared: Option<usize>,
}

/// How rotary frequencies are stretched. Source: transformers `modeling_rope_utils.py`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by one factor.
    Linear(f32),
    /// LLaMA 3.1's rule: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f32,
        /// Wavelengths above `original / low` are divided.
        low: f32,
        /// Wavelengths below `original / high` are kept.
        high: f32,
        /// Context of the first training.
        original: f32,
    },
    /// The file holds the divisors themselves (`rope_freqs.weight`).
    Factors,
}

/// A vision tower, a projector, and how a picture becomes the tower's input.
#[derive(Clone, Debug)]
pub struct VisionConfig {
    /// The tower.
    pub tower: Arc<dyn TowerConfig>,
    /// Patch features to visual tokens.
    pub projector: &'static Projector,
    /// Side of the square of patches that the projector folds into one token; 1 for projectors that do not ask.
    pub fold: usize,
    /// Width between the projector's layers where nothing else says it; else 0.
    pub hidden: usize,
    /// Learned queries of the projector, each of which becomes a visual token of every tile; 0 where it has none.
    pub queries: usize,
    /// Picture to pixels, and to its place in the prompt.
    pub image: ImageSpec,
}

impl PartialEq for VisionConfig {
    fn eq(&self, other: &Self) -> bool {
        *self.tower == *other.tower
            && (self.projector, self.fold) == (other.projector, other.fold)
            && (self.hidden, self.queries) == (other.hidden, other.queries)
            && self.image == other.image
    }
}

impl VisionConfig {
    /// Visual tokens one tile becomes; of a tower whose grid varies, the smallest one.
    pub fn tile_tokens(&self) -> usize {
        let (width, height) = self.image.size;
        self.tokens_of(width, height).0
    }

    /// Whether tiles have the size that their picture asks for.
    pub fn varies(&self) -> bool {
        matches!(self.image.fit, Fit::Multiples { .. })
            || matches!(self.image.tiling, Some(Tiling::Slices { .. }))
    }

    /// What the projector stands between, before a decoder of width `out`.
    pub(crate) fn project_sizes(&self, out: usize) -> Sizes {
        let (side, grid) = (self.tower.side() as u64, self.tower.grid() as u64);
        let longest = self.image.longest_side().div_ceil(side).saturating_mul(grid);
        Sizes {
            grid: self.tower.grid(),
            patches: Dim::from(self.tower.grid() * self.tower.grid()),
            fold: self.fold,
            hidden: self.hidden,
            width: self.tower.width(),
            queries: self.queries,
            longest: usize::try_from(longest).unwrap_or(usize::MAX),
            out,
        }
    }

    /// Lets no picture become more than so many visual tokens, but for those that are far longer than they are wide, and
    /// under 16 tokens for those that are smaller than the model's least; of models that cut pictures into tiles, one tile
    /// stays. The model's own bound stays. `None` where a picture's size does not decide.
    pub fn with_most_tokens(mut self, tokens: NonZeroUsize) -> Option<Self> {
        // The whole picture stands beside its tiles.
        let tiles = u32::try_from(tokens.get() / self.tile_tokens().max(1)).unwrap_or(u32::MAX);
        let cut = tiles.saturating_sub(1).max(1);
        match &mut self.image.tiling {
            Some(Tiling::Grid { longest_edge, split: true }) => {
                let side = self.image.size.0.max(self.image.size.1);
                *longest_edge = (*longest_edge).min(cut.isqrt().saturating_mul(side));
                return Some(self);
            }
            Some(Tiling::Slices { most, .. }) => {
                *most = (*most).min(cut);
                return Some(self);
            }
            _ => {}
        }
        let Fit::Multiples { of, min_pixels, max_pixels } = &mut self.image.fit else { return None };
        let of = u64::from(*of);
        *max_pixels = (*max_pixels).min((tokens.get() as u64).saturating_mul(of * of));
        *min_pixels = (*min_pixels).min(*max_pixels);
        Some(self)
    }

    /// What a picture of that many pixels becomes in a prompt.
    ///
    /// # Errors
    /// [`ImageError`] where the image spec cuts it into too many tiles, or cannot take such a picture.
    pub fn layout(&self, width: u32, height: u32) -> Result<PictureLayout, ImageError> {
        self.image.layout(width, height, |width, height| self.tokens_of(width, height))
    }

    /// Rows and columns of the patches of a picture of that many pixels as one tile, and of the tiles that are cut from it.
    ///
    /// # Errors
    /// As [`VisionConfig::layout`].
    pub fn tile_grids(&self, width: u32, height: u32) -> Result<[(usize, usize); 2], ImageError> {
        let sizes = self.image.tile_sizes(width, height)?;
        Ok(sizes.map(|(width, height)| self.tower.grid_of(width as usize, height as usize)))
    }

    /// Sizes of the vision programs for the largest tile, or the stitched tiles, of a picture of that many pixels.
    ///
    /// # Errors
    /// As [`VisionConfig::layout`].
    pub fn sizes(&self, width: u32, height: u32) -> Result<Bindings, ImageError> {
        if self.varies() {
            let patches = self.tile_grids(width, height)?.map(|(rows, columns)| rows * columns);
            return Ok(Bindings::new().with(Sym::Patches, patches[0].max(patches[1])));
        }
        let stitch = self.layout(width, height)?.stitch();
        Ok(stitch.map_or_else(Bindings::new, |stitch| self.stitched(stitch)))
    }

    /// Sizes of the project program for tiles that are stitched.
    pub fn stitched(&self, stitch: Stitch) -> Bindings {
        let grid = self.tower.grid();
        let [height, width] = stitch.size(grid);
        Bindings::new().with(Sym::Patches, stitch.tiles() * grid * grid).with(Sym::Outputs, height * width)
    }

    /// The greatest sizes of the vision programs: of the largest picture whose visual tokens fit the context, or of the
    /// most tiles that are stitched.
    pub fn limits(&self, context: usize) -> Bindings {
        if !self.varies() {
            let features = self.tower.grid().pow(2).saturating_mul(ImageSpec::MOST_TILES);
            return Bindings::new().with(Sym::Patches, features).with(Sym::Outputs, features);
        }
        let (side, grid) = (self.tower.side() as u64, self.tower.grid() as u64);
        let patches = (self.image.most_pixels() / (side * side)).saturating_mul(grid * grid);
        let patches = usize::try_from(patches).unwrap_or(usize::MAX);
        // Of as many tokens whatever the size, the context says nothing.
        let fits = if self.queries > 0 { usize::MAX } else { context.saturating_mul(self.fold * self.fold) };
        Bindings::new().with(Sym::Patches, patches.min(fits))
    }

    /// The same of programs that do more.
    pub fn limits_with(&self, context: usize, extra: Extra) -> Bindings {
        if extra.some_patches || extra.changed_patches {
            return Bindings::new().with(Sym::Patches, self.tower.grid().pow(2));
        }
        self.limits(context)
    }

    /// Side of the square of patches that a visual token comes from, where each comes from one; the projector may look at those
    /// around it too. `None` where tokens do not lie on the patches of one tile.
    pub fn square(&self) -> Option<usize> {
        let grid = self.tower.grid();
        let stitched = matches!(self.image.tiling, Some(Tiling::Overlap { .. }));
        if self.varies() || stitched || self.queries > 0 {
            return None;
        }
        let tokens = self.tile_tokens();
        let side = tokens.isqrt();
        (side > 0 && side * side == tokens && grid.is_multiple_of(side)).then(|| grid / side)
    }

    /// Visual tokens of a tile of that many pixels, and how many of them stand in a row.
    fn tokens_of(&self, width: u32, height: u32) -> (usize, usize) {
        let (rows, columns) = self.tower.grid_of(width as usize, height as usize);
        if self.queries > 0 {
            return (self.queries, self.queries);
        }
        let tokens = (self.projector.tokens)((rows, columns), self.fold);
        // A square of patches that each comes from, where there is one: those of other projectors do not lie on the picture.
        let squares = |side: &usize| rows.is_multiple_of(*side) && columns.is_multiple_of(*side);
        let square =
            (1..=rows.min(columns)).find(|side| squares(side) && rows * columns == tokens * side * side);
        (tokens, square.map_or(tokens, |side| columns / side))
    }

    /// Whether the visual tokens of a tile lie on it in rows and columns.
    pub fn lies_on_picture(&self) -> bool {
        let (width, height) = self.image.size;
        let (tokens, columns) = self.tokens_of(width, height);
        columns < tokens || tokens == 1
    }

    /// Checks that its parts fit together.
    pub(crate) fn checked(self, place: &str) -> Result<Self, ModelError> {
        let bad = |field: &str, what: String| {
            Err(ModelError::Field { place: place.into(), field: field.into(), what })
        };
        let (side, grid) = (self.tower.side(), self.tower.grid());
        if self.image.size != (side as u32, side as u32) {
            let (width, height) = self.image.size;
            return bad("image size", format!("{width} x {height} pixels do not fit a tower of {side}"));
        }
        if self.fold == 0 || !grid.is_multiple_of(self.fold) {
            return bad("scale factor", format!("{} does not divide {grid} patches a side", self.fold));
        }
        let inner = grid.saturating_mul(2).saturating_mul(margin_of(&self.image));
        let overlaps = matches!(self.image.tiling, Some(Tiling::Overlap { .. }));
        if overlaps && (!(inner / 2).is_multiple_of(side) || inner >= grid.saturating_mul(side)) {
            let what =
                format!("margins of {} of {side} pixels do not fit a grid of {grid}", margin_of(&self.image));
            return bad("overlap margin", what);
        }
        within(place, "projector width", self.hidden.max(1), bound::WIDTH)?;
        within(place, "queries", self.queries.max(1), bound::QUERIES)?;
        if let Some(Tiling::Slices { resolution, of, most }) = self.image.tiling {
            within(place, "slice resolution", resolution as usize, bound::IMAGE_SIDE)?;
            within(place, "slices", most as usize, ImageSpec::MOST_TILES - 1)?;
            if of as usize != side || resolution < of {
                let what = format!(
                    "slices of {resolution} pixels in multiples of {of} do not fit patches of {side}"
                );
                return bad("slice resolution", what);
            }
        }
        Ok(self)
    }
}

/// Pixels of a tile that its neighbours hold too, on each side.
fn margin_of(image: &ImageSpec) -> usize {
    match image.tiling {
        Some(Tiling::Overlap { margin, .. }) => margin as usize,
        _ => 0,
    }
}

/// How a family writes prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptStyle {
    /// Built-in template for a model that brings none.
    pub template: &'static str,
    /// How templates mark an image.
    pub image_mark: &'static str,
    /// Where a template that takes a message as one text finds its images.
    pub image_place: ImagePlace,
    /// Texts that end an answer, beside the vocabulary's own stop tokens.
    pub stops: &'static [&'static str],
}

/// Upper bounds that no real model exceeds; they keep a hostile file from asking for absurd sizes.
pub(crate) mod bound {
    pub(crate) const LAYERS: usize = 512;
    pub(crate) const EXPERTS: usize = 1 << 12;
    pub(crate) const WIDTH: usize = 1 << 17;
    pub(crate) const VOCABULARY: usize = 1 << 22;
    pub(crate) const CONTEXT: usize = 1 << 24;
    pub(crate) const IMAGE_SIDE: usize = 1 << 13;
    pub(crate) const QUERIES: usize = 1 << 12;
}

pub(crate) fn within(place: &str, field: &str, value: usize, most: usize) -> Result<(), ModelError> {
    if value == 0 || value > most {
        let what = format!("{value} is not within 1 to {most}");
        return Err(ModelError::Field { place: place.to_owned(), field: field.to_owned(), what });
    }
    Ok(())
}

impl PromptStyle {
    /// With images in front of the words, marked `<image>`.
    pub(crate) const fn new(template: &'static str, stops: &'static [&'static str]) -> Self {
        PromptStyle { template, image_mark: "<image>", image_place: ImagePlace::Front, stops }
    }
}

impl TextConfig {
    /// Checks bounds and divisibility, so that programs over it are well formed.
    pub(crate) fn checked(self, place: &str) -> Result<Self, ModelError> {
        let bad =
            |field: &str, what: String| ModelError::Field { place: place.into(), field: field.into(), what };
        within(place, "vocabulary", self.vocabulary, bound::VOCABULARY)?;
        within(place, "layers", self.layers, bound::LAYERS)?;
        within(place, "context", self.context, bound::CONTEXT)?;
        for (field, value) in [
            ("width", self.width),
            ("feed-forward width", self.ffn),
            ("heads", self.heads),
            ("kv heads", self.kv_heads),
            ("head width", self.head_dim),
        ] {
            within(place, field, value, bound::WIDTH)?;
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(bad("kv heads", format!("{} heads cannot share {}", self.heads, self.kv_heads)));
        }
        if self.heads * self.head_dim > bound::WIDTH {
            return Err(bad(
                "heads",
                format!("{} heads of {} columns are too many", self.heads, self.head_dim),
            ));
        }
        if self.rotary > self.head_dim || !self.rotary.is_multiple_of(2) {
            return Err(bad(
                "rotary width",
                format!("{} of {} columns cannot turn", self.rotary, self.head_dim),
            ));
        }
        if let Some(sections) = self.rope_sections {
            let pairs = sections.iter().copied().fold(0, usize::saturating_add);
            if pairs != self.rotary / 2 {
                let what = format!("{sections:?} are {pairs} pairs of a head that has {}", self.rotary / 2);
                return Err(bad("rope sections", what));
            }
        }
        if let Some(Mixture { experts, used, ffn, shared }) = self.mixture {
            within(place, "experts", experts, bound::EXPERTS)?;
            within(place, "experts a token passes", used, experts)?;
            within(place, "feed-forward width of experts", ffn, bound::WIDTH)?;
            within(place, "feed-forward width of the shared expert", shared.unwrap_or(1), bound::WIDTH)?;
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return Err(bad("norm epsilon", format!("{} is not within 0 to 1", self.norm_eps)));
        }
        if !(self.rope_base > 1.0 && self.rope_base.is_finite()) {
            return Err(bad("rope base", format!("{} is no base", self.rope_base)));
        }
        Ok(self)
    }
}
