//! How many tiles a picture becomes, and where they stand in the prompt.

use super::{Around, Fit, ImageError, ImageSpec, Stitch, Tiling, slices, stitch::tiles_that_cover};
use crate::layout::{PictureLayout, Piece};

/// No side of a picture grows beyond it. Source: transformers `image_processing_pil_smolvlm.py`, `MAX_IMAGE_SIZE`.
const MOST_SIDE: u32 = 4096;
/// A side is at most so many times as long as the other, where they become multiples. Source: `smart_resize`.
pub(super) const MOST_ASPECT: u32 = 200;
/// Most tiles of one picture: far above what any model was trained with.
const MOST_TILES: u32 = 1024;
/// Longest mark, in bytes: they are written once a tile, and a file may say anything.
const MOST_MARK_BYTES: usize = 256;

/// What a picture of some size is cut into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Grid {
    /// Sizes it is resized to, one after the other, before it is cut; none where it is not.
    pub(super) resized: Vec<(u32, u32)>,
    /// Size of the whole picture as a tile; `None` where `ImageSpec::fit` says it.
    pub(super) whole: Option<(u32, u32)>,
    /// Rows of tiles; 0 where the picture is a single one.
    pub(super) rows: u32,
    /// Tiles in a row.
    pub(super) columns: u32,
    /// Size of each tile that is cut.
    pub(super) tile: (u32, u32),
    /// From one tile to the next, right and down.
    pub(super) step: (u32, u32),
    /// The whole picture stands before its tiles, and is made from it as it came.
    pub(super) whole_first: bool,
}

impl Grid {
    /// All tiles: those cut and the whole picture.
    pub(super) fn tiles(&self) -> usize {
        self.rows as usize * self.columns as usize + 1
    }
}

impl ImageSpec {
    /// Tiles of a picture at most, whatever a file says.
    pub const MOST_TILES: usize = MOST_TILES as usize + 1;

    /// Where the visual tokens of a picture of that size stand, if a tile of some width and height becomes so many of
    /// them as `tokens` says, and so many in a row.
    ///
    /// # Errors
    /// [`ImageError::BadSpec`] for a spec that cuts it into too many tiles, or has endless marks;
    /// [`ImageError::TooNarrow`] of a picture that cannot be brought to multiples.
    pub fn layout(
        &self,
        width: u32,
        height: u32,
        tokens: impl Fn(u32, u32) -> (usize, usize),
    ) -> Result<PictureLayout, ImageError> {
        let grid = self.grid(width, height)?;
        let [whole, tile] = self.tile_sizes(width, height)?.map(|(width, height)| {
            let (tokens, columns) = tokens(width, height);
            move || Piece::Tile { tokens, columns }
        });
        let mut layout = PictureLayout::default();
        let marks = &self.marks;
        let of = |around: &Around| around.before.len().max(around.after.len());
        let longest = [&marks.single, &marks.tile, &marks.overview].map(of).into_iter().max().unwrap_or(0);
        if longest.max(marks.row_end.len()) > MOST_MARK_BYTES {
            let detail = format!("its marks are longer than {MOST_MARK_BYTES} bytes");
            return Err(ImageError::BadSpec { detail });
        }
        if let Some(Tiling::Overlap { margin, .. }) = self.tiling {
            let (rows, columns) = (grid.rows.max(1) as usize, grid.columns.max(1) as usize);
            let Around { before, after } = &marks.single;
            layout.push([Piece::Text(before.clone()), whole(), Piece::Text(after.clone())]);
            layout.stitch_with(Stitch { rows, columns, margin: margin as usize, tile: self.size.0 as usize });
            return Ok(layout);
        }
        let Around { before, after } = if grid.rows > 0 { &marks.overview } else { &marks.single };
        let overview = || [Piece::Text(before.clone()), whole(), Piece::Text(after.clone())];
        if grid.whole_first {
            layout.push(overview());
        }
        for row in 1..=grid.rows {
            for column in 1..=grid.columns {
                let place = |text: &str| {
                    text.replace("{row}", &row.to_string()).replace("{column}", &column.to_string())
                };
                let Around { before, after } = &marks.tile;
                layout.push([Piece::Text(place(before)), tile(), Piece::Text(place(after))]);
            }
            if row < grid.rows || !grid.whole_first {
                layout.push([Piece::Text(marks.row_end.clone())]);
            }
        }
        if !grid.whole_first {
            layout.push(overview());
        }
        Ok(layout)
    }

    /// Width and height of a picture of that size as one tile, and of each tile that is cut from it.
    ///
    /// # Errors
    /// [`ImageError::TooNarrow`]
    pub fn tile_sizes(&self, width: u32, height: u32) -> Result<[(u32, u32); 2], ImageError> {
        match (self.tiling, self.fit) {
            (Some(Tiling::Slices { .. }), _) => {
                let grid = self.grid(width, height)?;
                Ok([grid.whole.unwrap_or(grid.tile), grid.tile])
            }
            (_, Fit::Multiples { of, min_pixels, max_pixels }) => {
                Ok([multiples((width, height), of.max(1), (min_pixels, max_pixels))?; 2])
            }
            _ => Ok([self.size; 2]),
        }
    }

    /// Pixels of the largest tile, for rooms that are made before there is a picture.
    pub fn most_pixels(&self) -> u64 {
        match (self.tiling, self.fit) {
            (Some(Tiling::Slices { resolution, of, .. }), _) => slices::most(resolution, of).0,
            // A side that would be nothing is one multiple long, and the other up to its limit.
            (_, Fit::Multiples { of, max_pixels, .. }) => {
                let longest = (max_pixels as f64 * f64::from(MOST_ASPECT)).sqrt() as u64;
                max_pixels.max(longest.saturating_mul(of.into()))
            }
            _ => u64::from(self.size.0) * u64::from(self.size.1),
        }
    }

    /// Pixels of the longest side of a tile.
    pub fn longest_side(&self) -> u64 {
        match (self.tiling, self.fit) {
            (Some(Tiling::Slices { resolution, of, .. }), _) => slices::most(resolution, of).1,
            (_, Fit::Multiples { of, .. }) => self.most_pixels() / u64::from(of.max(1)),
            _ => self.size.0.max(self.size.1).into(),
        }
    }

    pub(super) fn grid(&self, width: u32, height: u32) -> Result<Grid, ImageError> {
        let single = |resized: Vec<(u32, u32)>| Grid {
            whole: (!resized.is_empty()).then_some(self.size),
            resized,
            rows: 0,
            columns: 0,
            tile: self.size,
            step: self.size,
            whole_first: false,
        };
        let (longest_edge, split) = match self.tiling {
            None => return Ok(single(vec![])),
            Some(Tiling::Grid { longest_edge, split }) => (longest_edge, split),
            Some(Tiling::Overlap { margin, most }) => {
                let (edges, window) = overlap(self.size, margin)?;
                let inner = (i64::from(width) - i64::from(edges), i64::from(height) - i64::from(edges));
                let (rows, columns) = tiles_that_cover(inner, window, most);
                bounded(rows, columns)?;
                if (rows, columns) == (1, 1) {
                    return Ok(single(vec![]));
                }
                let resized = vec![(columns * window + edges, rows * window + edges)];
                let step = (window, window);
                return Ok(Grid { rows, columns, step, whole_first: true, ..single(resized) });
            }
            Some(Tiling::Slices { resolution, of, most }) => {
                bounded(most, 1)?;
                return slices::slices((width, height), resolution, of.max(1), most);
            }
        };
        let first = below_most(to_longest_edge((width, height), longest_edge));
        if !split {
            return Ok(single(vec![first]));
        }
        let (tile_width, tile_height) = (self.size.0.max(1), self.size.1.max(1));
        let (w, h) = whole_tiles(first, (tile_width, tile_height));
        let (rows, columns) = (h / tile_height, w / tile_width);
        bounded(rows, columns)?;
        let (rows, columns) = if (rows, columns) == (1, 1) { (0, 0) } else { (rows, columns) };
        Ok(Grid { rows, columns, ..single(vec![first, (w, h)]) })
    }
}

/// Both sides as multiples; halves go to the even multiple, as Python rounds them. Source: `smart_resize`.
fn multiples(
    (width, height): (u32, u32),
    of: u32,
    (min_pixels, max_pixels): (u64, u64),
) -> Result<(u32, u32), ImageError> {
    if width.max(height) > width.min(height).saturating_mul(MOST_ASPECT) {
        return Err(ImageError::TooNarrow { width, height, most: MOST_ASPECT });
    }
    let (w, h, of) = (f64::from(width), f64::from(height), f64::from(of));
    let rounded = [w, h].map(|side| (side / of).round_ties_even() * of);
    let (area, pixels) = (w * h, rounded[0] * rounded[1]);
    let sides = if pixels > max_pixels as f64 {
        let beta = (area / max_pixels as f64).sqrt();
        [w, h].map(|side| (side / beta / of).floor() * of)
    } else if pixels < min_pixels as f64 {
        let beta = (min_pixels as f64 / area).sqrt();
        [w, h].map(|side| (side * beta / of).ceil() * of)
    } else {
        rounded
    };
    let [width, height] = sides.map(|side| side.max(of) as u32);
    Ok((width, height))
}

/// Both margins of a tile, and what is left of it between them.
fn overlap((width, height): (u32, u32), margin: u32) -> Result<(u32, u32), ImageError> {
    let edges = margin.saturating_mul(2);
    if width != height || edges >= width {
        let detail = format!("margins of {margin} pixels leave nothing of tiles of {width} x {height}");
        return Err(ImageError::BadSpec { detail });
    }
    Ok((edges, width - edges))
}

fn bounded(rows: u32, columns: u32) -> Result<(), ImageError> {
    if u64::from(rows) * u64::from(columns) > u64::from(MOST_TILES) {
        let detail = format!("it cuts {rows} x {columns} tiles, more than {MOST_TILES}");
        return Err(ImageError::BadSpec { detail });
    }
    Ok(())
}

/// `int(long / aspect)`: the quotients are the original's, so that they truncate alike.
fn shorter((width, height): (u32, u32), long: u32) -> u32 {
    let aspect = f64::from(width) / f64::from(height);
    if width >= height { (f64::from(long) / aspect) as u32 } else { (f64::from(long) * aspect) as u32 }
}

/// Width and height with the longer at `edge` and the shorter even.
/// Source: `_resize_output_size_rescale_to_max_len`.
fn to_longest_edge(size: (u32, u32), edge: u32) -> (u32, u32) {
    let short = shorter(size, edge);
    let short = (short + short % 2).max(1);
    if size.0 >= size.1 { (edge, short) } else { (short, edge) }
}

/// Source: `_resize_output_size_scale_below_upper_bound`.
fn below_most(size: (u32, u32)) -> (u32, u32) {
    if size.0.max(size.1) <= MOST_SIDE {
        return size;
    }
    let short = shorter(size, MOST_SIDE).max(1);
    if size.0 >= size.1 { (MOST_SIDE, short) } else { (short, MOST_SIDE) }
}

/// Both sides up to whole tiles, the longer first. Source: `resize_for_vision_encoder`.
fn whole_tiles(size: (u32, u32), tile: (u32, u32)) -> (u32, u32) {
    let up = |length: u32, tile: u32| length.max(1).div_ceil(tile) * tile;
    if size.0 >= size.1 {
        let width = up(size.0, tile.0);
        (width, up(shorter(size, width), tile.1))
    } else {
        let height = up(size.1, tile.1);
        (up(shorter(size, height), tile.0), height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Marks;

    fn spec(longest_edge: u32, tile: u32, split: bool) -> ImageSpec {
        let around = |before: &str, after: &str| Around { before: before.into(), after: after.into() };
        let marks = Marks {
            single: around("<whole>", "<end>"),
            tile: around("<{row},{column}>", ""),
            row_end: "\n".into(),
            overview: around("\n<whole>", "<end>"),
        };
        let tiling = Some(Tiling::Grid { longest_edge, split });
        ImageSpec { tiling, marks, ..ImageSpec::siglip_squash(tile) }
    }

    fn grid(spec: &ImageSpec, size: (u32, u32)) -> (u32, u32) {
        let grid = spec.grid(size.0, size.1).unwrap();
        (grid.rows, grid.columns)
    }

    /// Width and height, least and most pixels, width and height after.
    #[rustfmt::skip]
    const MULTIPLES: &[[u32; 6]] = &[
        [42, 70, 3136, 12845056, 56, 56],
        [42, 70, 3136, 1003520, 56, 56],
        [42, 70, 784, 100000, 56, 56],
        [42, 70, 100000, 200000, 252, 420],
        [70, 42, 3136, 12845056, 56, 56],
        [70, 42, 3136, 1003520, 56, 56],
        [70, 42, 784, 100000, 56, 56],
        [70, 42, 100000, 200000, 420, 252],
        [75, 118, 3136, 12845056, 84, 112],
        [75, 118, 3136, 1003520, 84, 112],
        [75, 118, 784, 100000, 84, 112],
        [75, 118, 100000, 200000, 280, 420],
        [640, 480, 3136, 12845056, 644, 476],
        [640, 480, 3136, 1003520, 644, 476],
        [640, 480, 784, 100000, 364, 252],
        [640, 480, 100000, 200000, 504, 364],
        [4000, 3000, 3136, 12845056, 4004, 2996],
        [4000, 3000, 3136, 1003520, 1148, 840],
        [4000, 3000, 784, 100000, 364, 252],
        [4000, 3000, 100000, 200000, 504, 364],
        [3000, 4000, 3136, 12845056, 2996, 4004],
        [3000, 4000, 3136, 1003520, 840, 1148],
        [3000, 4000, 784, 100000, 252, 364],
        [3000, 4000, 100000, 200000, 364, 504],
        [1, 1, 3136, 12845056, 56, 56],
        [1, 1, 3136, 1003520, 56, 56],
        [1, 1, 784, 100000, 28, 28],
        [1, 1, 100000, 200000, 336, 336],
        [13, 2600, 3136, 12845056, 28, 812],
        [13, 2600, 3136, 1003520, 28, 812],
        [13, 2600, 784, 100000, 28, 420],
        [13, 2600, 100000, 200000, 28, 4480],
        [2600, 13, 3136, 12845056, 812, 28],
        [2600, 13, 3136, 1003520, 812, 28],
        [2600, 13, 784, 100000, 420, 28],
        [2600, 13, 100000, 200000, 4480, 28],
        [14, 14, 3136, 12845056, 56, 56],
        [14, 14, 3136, 1003520, 56, 56],
        [14, 14, 784, 100000, 28, 28],
        [14, 14, 100000, 200000, 336, 336],
        [98, 98, 3136, 12845056, 112, 112],
        [98, 98, 3136, 1003520, 112, 112],
        [98, 98, 784, 100000, 112, 112],
        [98, 98, 100000, 200000, 336, 336],
        [5000, 40, 3136, 12845056, 5012, 28],
        [5000, 40, 3136, 1003520, 5012, 28],
        [5000, 40, 784, 100000, 3528, 28],
        [5000, 40, 100000, 200000, 5012, 28],
        [1000, 1000, 3136, 12845056, 1008, 1008],
        [1000, 1000, 3136, 1003520, 980, 980],
        [1000, 1000, 784, 100000, 308, 308],
        [1000, 1000, 100000, 200000, 420, 420],
        [10, 2000, 3136, 12845056, 28, 812],
        [10, 2000, 3136, 1003520, 28, 812],
        [10, 2000, 784, 100000, 28, 420],
        [10, 2000, 100000, 200000, 28, 4480],
        [812, 811, 3136, 12845056, 812, 812],
        [812, 811, 3136, 1003520, 812, 812],
        [812, 811, 784, 100000, 308, 308],
        [812, 811, 100000, 200000, 420, 420],
    ];

    fn one(_: u32, _: u32) -> (usize, usize) {
        (1, 1)
    }

    /// Sizes computed by transformers' `smart_resize` (with the sides of Python's `round`: 42 / 28 = 1.5 becomes 2, 70 /
    /// 28 = 2.5 becomes 2).
    #[test]
    fn sides_become_multiples_as_in_the_original() {
        for &[width, height, least, most, w, h] in MULTIPLES {
            let spec = ImageSpec::multiples(28, least.into(), most.into());
            let got = spec.tile_sizes(width, height).unwrap();
            assert_eq!(got, [(w, h); 2], "{width} x {height} within {least} to {most}");
            assert!(u64::from(w) * u64::from(h) <= spec.most_pixels());
        }
        let narrow = ImageSpec::multiples(28, 1, 100_000).layout(10, 2001, one).unwrap_err();
        assert!(narrow.to_string().contains("200 times"), "{narrow}");
    }

    #[test]
    fn a_picture_grows_to_the_longest_edge_and_to_whole_tiles() {
        let smolvlm = spec(2048, 512, true);
        for (size, cut) in [
            ((1, 1), (4, 4)),
            ((640, 480), (3, 4)),
            ((480, 640), (4, 3)),
            ((4000, 900), (1, 4)),
            ((9000, 1), (1, 4)),
            ((512, 513), (4, 4)),
        ] {
            assert_eq!(grid(&smolvlm, size), cut, "{size:?}");
        }
        assert_eq!(grid(&spec(512, 512, true), (300, 200)), (0, 0), "one tile is no grid");
        assert_eq!(grid(&spec(2048, 512, false), (300, 200)), (0, 0));
        // 4096 is the most, whatever is asked for.
        assert_eq!(spec(10_000, 512, true).grid(20_000, 10_000).unwrap().resized[0], (4096, 2048));
        assert!(matches!(spec(4096, 8, true).layout(9, 9, one), Err(ImageError::BadSpec { .. })));
        let mut endless = spec(64, 32, true);
        endless.marks.row_end = "\n".repeat(1000);
        assert!(matches!(endless.layout(9, 9, one), Err(ImageError::BadSpec { .. })));
    }

    #[test]
    fn texts_between_tiles_are_joined() {
        let text = |t: &str| Piece::Text(t.to_owned());
        let tile = Piece::Tile { tokens: 7, columns: 7 };
        let seven = |_, _| (7, 7);
        let wide = spec(64, 32, true).layout(60, 20, seven).unwrap();
        let expected = [
            text("<1,1>"),
            tile.clone(),
            text("<1,2>"),
            tile.clone(),
            text("\n\n<whole>"),
            tile.clone(),
            text("<end>"),
        ];
        assert_eq!(wide.pieces(), expected);
        assert_eq!((wide.tiles(), wide.visual_tokens()), (3, 21));
        let single = spec(64, 32, false).layout(60, 20, seven).unwrap();
        assert_eq!(single.pieces(), [text("<whole>"), tile.clone(), text("<end>")]);
        assert_eq!(ImageSpec::llava_pad(28).layout(60, 20, seven).unwrap().pieces(), [tile]);
    }
}
