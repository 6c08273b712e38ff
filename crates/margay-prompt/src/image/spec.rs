//! What a model family wants of its pictures, as data.

use serde::{Deserialize, Serialize};

use super::Filter;

/// How a picture's shape is brought to the tower's input shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[non_exhaustive]
pub enum Fit {
    /// Pad to a centred square (offset `floor((side - length) / 2)`), then resize to `ImageSpec::size`.
    ///
    /// Source: LLaVA `mm_utils.py`, `expand2square` (`image_aspect_ratio = pad`).
    PadToSquare {
        /// Colour of the border; LLaVA uses `int(mean * 255)`.
        fill: [u8; 3],
    },
    /// Resize the shorter side to `edge` (the other side `int(edge * long / short)`), then take the centred
    /// `ImageSpec::size`, with black where the picture is smaller.
    ///
    /// Source: transformers `image_transforms.py`, `get_resize_output_image_size` and `center_crop`.
    ShortestEdgeCrop {
        /// Length of the shorter side after resizing, in pixels.
        edge: u32,
    },
    /// Resize to `ImageSpec::size`, whatever the aspect ratio (SigLIP).
    Squash,
    /// Resize so that both sides are multiples of `of`, as near to their own length as the bounds on the area allow.
    /// Each picture keeps about its own shape and size; `ImageSpec::size` is the smallest.
    ///
    /// Source: transformers `image_processing_pil_qwen2_vl.py`, `smart_resize`.
    Multiples {
        /// What both sides are multiples of, in pixels.
        of: u32,
        /// Smaller pictures grow.
        min_pixels: u64,
        /// Larger pictures shrink.
        max_pixels: u64,
    },
    /// Resize to fit inside `ImageSpec::size` keeping the aspect ratio (at least 1 pixel a side), then pad
    /// centred with `fill`.
    Letterbox {
        /// Colour of the border.
        fill: [u8; 3],
    },
}

/// What becomes of transparency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Alpha {
    /// Forget it: the stored colours count, also where they are transparent (Pillow's `convert("RGB")`).
    #[default]
    Drop,
    /// Composite on this colour, as Pillow's `alpha_composite` on an opaque picture does.
    Over([u8; 3]),
}

/// How a picture is cut into tiles, each of which the tower sees on its own. Those that are cut are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[non_exhaustive]
pub enum Tiling {
    /// The longer side is brought to `longest_edge`, both sides are stretched up to whole tiles of `ImageSpec::size`, and
    /// the tiles are cut row by row; the stretched picture, squashed to one tile, stands behind them. A picture of a
    /// single tile stays alone. `ImageSpec::fit` plays no part.
    ///
    /// Source: transformers `image_processing_pil_smolvlm.py` (Idefics3, SmolVLM).
    Grid {
        /// Length of the longer side, in pixels; smaller pictures grow to it.
        longest_edge: u32,
        /// Whether tiles are cut; else the picture is only squashed to one (`do_image_splitting`).
        split: bool,
    },
    /// The whole picture, squashed to one tile, then tiles that overlap: the picture is stretched so that squares of a tile
    /// without its margins cover it but for a margin all around, and the tiles are cut row by row. The features of all
    /// become one piece of the prompt ([`super::Stitch`]). A picture that one tile covers stays alone.
    ///
    /// Source: vikhyat/moondream `image_crops.py`, without pyvips (Pillow's Lanczos).
    Overlap {
        /// Margin of a tile, on each side, in pixels.
        margin: u32,
        /// Tiles at most, the whole picture not counted.
        most: u32,
    },
    /// A picture of up to `resolution` squared pixels grows or shrinks to about that many and stays alone. A larger one
    /// comes whole, shrunk to about as many, then cut into slices of about as many each, row by row, in the grid whose
    /// shape is nearest to the picture's. Sides keep their ratio and are multiples of `of`. `ImageSpec::fit` plays no part,
    /// and `ImageSpec::size` is the smallest tile.
    ///
    /// Source: `image_processing_minicpmv.py` of `openbmb/MiniCPM-V-2_6` (`slice_image`).
    Slices {
        /// Side of a square of as many pixels as a tile has, about.
        resolution: u32,
        /// What both sides of a tile are multiples of, in pixels.
        of: u32,
        /// Slices at most, the whole picture not counted.
        most: u32,
    },
}

/// Trusted texts around the visual tokens of a tile: control tokens, line breaks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Around {
    /// In front; `{row}` and `{column}` stand for the tile's place, counted from 1; `{image}` for the picture's number in the
    /// prompt, counted from 0.
    #[serde(default)]
    pub before: String,
    /// Behind.
    #[serde(default)]
    pub after: String,
}

/// What stands around the visual tokens of one picture.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Marks {
    /// Around a picture that is a single tile.
    #[serde(default)]
    pub single: Around,
    /// Around each tile that was cut.
    #[serde(default)]
    pub tile: Around,
    /// Behind each row of tiles that something of the picture follows.
    #[serde(default)]
    pub row_end: String,
    /// Around the whole picture that stands beside its tiles.
    #[serde(default)]
    pub overview: Around,
}

/// A recipe from a picture to a tower's input, and to its place in the prompt.
///
/// `value = (pixel * rescale - mean) / std` per channel, after alpha, fit (or tiling) and resize.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageSpec {
    /// How the shape is fitted.
    pub fit: Fit,
    /// Width and height of a tile, in pixels.
    pub size: (u32, u32),
    /// Resampling filter.
    pub filter: Filter,
    /// Mean per channel (R, G, B), in units of the rescaled pixel.
    pub mean: [f32; 3],
    /// Standard deviation per channel, same unit.
    pub std: [f32; 3],
    /// Factor from a pixel (0..=255) to the unit of `mean`; nearly always 1/255.
    #[serde(default = "default_rescale")]
    pub rescale: f64,
    /// What becomes of transparency.
    #[serde(default)]
    pub alpha: Alpha,
    /// How it is cut; `None` makes one tile of it under `fit`. Files from before there were tiles lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tiling: Option<Tiling>,
    /// What stands around its visual tokens; nothing in files from before there were tiles.
    #[serde(default, skip_serializing_if = "Marks::is_empty")]
    pub marks: Marks,
}

impl Marks {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// CLIP's channel means. Source: openai/CLIP `clip.py`, `_transform`.
pub(crate) const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// CLIP's channel standard deviations. Source: openai/CLIP `clip.py`, `_transform`.
pub(crate) const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

impl ImageSpec {
    /// LLaVA-1.5 and MobileVLM as their authors run them: pad to square with CLIP's mean colour, bicubic, CLIP statistics.
    ///
    /// Source: LLaVA `mm_utils.py` `process_images`, `image_aspect_ratio = pad`.
    pub fn llava_pad(side: u32) -> Self {
        Self {
            fit: Fit::PadToSquare { fill: mean_colour(CLIP_MEAN) },
            size: (side, side),
            filter: Filter::Bicubic,
            mean: CLIP_MEAN,
            std: CLIP_STD,
            rescale: default_rescale(),
            alpha: Alpha::Drop,
            tiling: None,
            marks: Marks::default(),
        }
    }

    /// CLIP's own preprocessing, used by the `llava-hf` checkpoints: shortest edge, centre crop.
    pub fn clip_crop(side: u32) -> Self {
        Self { fit: Fit::ShortestEdgeCrop { edge: side }, ..Self::llava_pad(side) }
    }

    /// Qwen2-VL: sides that are multiples of `of`, CLIP statistics.
    pub fn multiples(of: u32, min_pixels: u64, max_pixels: u64) -> Self {
        Self { fit: Fit::Multiples { of, min_pixels, max_pixels }, ..Self::llava_pad(of) }
    }

    /// SigLIP: squash to a square, mean and standard deviation 0.5.
    pub fn siglip_squash(side: u32) -> Self {
        Self { fit: Fit::Squash, mean: [0.5; 3], std: [0.5; 3], ..Self::llava_pad(side) }
    }
}

/// `int(mean * 255)` per channel: the border colour LLaVA pads with.
pub(crate) fn mean_colour(mean: [f32; 3]) -> [u8; 3] {
    mean.map(|m| (f64::from(m) * 255.0) as u8)
}

fn default_rescale() -> f64 {
    1.0 / 255.0
}
