//! How many tiles a picture becomes, and where they stand in the prompt.

use super::{Around, ImageError, ImageSpec, Stitch, Tiling, stitch::tiles_that_cover};
use crate::layout::{PictureLayout, Piece};

/// No side of a picture grows beyond it. Source: transformers `image_processing_pil_smolvlm.py`, `MAX_IMAGE_SIZE`.
const MOST_SIDE: u32 = 4096;
/// Most tiles of one picture: far above what any model was trained with.
const MOST_TILES: u32 = 1024;
/// Longest mark, in bytes: they are written once a tile, and a file may say anything.
const MOST_MARK_BYTES: usize = 256;

/// What a picture of some size is cut into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Grid {
    /// Sizes it is resized to, one after the other, before it is cut; none where `ImageSpec::fit` says it all.
    pub(super) resized: Vec<(u32, u32)>,
    /// Rows of tiles; 0 where the picture is a single one.
    pub(super) rows: u32,
    /// Tiles in a row.
    pub(super) columns: u32,
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

    /// Where the visual tokens of a picture of that size stand, if each tile becomes `tokens` of them.
    ///
    /// # Errors
    /// [`ImageError::BadSpec`] for a spec that cuts it into too many tiles, or has endless marks.
    pub fn layout(&self, width: u32, height: u32, tokens: usize) -> Result<PictureLayout, ImageError> {
        let grid = self.grid(width, height)?;
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
            layout.push([Piece::Text(before.clone()), Piece::Tile { tokens }, Piece::Text(after.clone())]);
            layout.stitch_with(Stitch { rows, columns, margin: margin as usize, tile: self.size.0 as usize });
            return Ok(layout);
        }
        for row in 1..=grid.rows {
            for column in 1..=grid.columns {
                let place = |text: &str| {
                    text.replace("{row}", &row.to_string()).replace("{column}", &column.to_string())
                };
                let Around { before, after } = &marks.tile;
                layout.push([Piece::Text(place(before)), Piece::Tile { tokens }, Piece::Text(place(after))]);
            }
            layout.push([Piece::Text(marks.row_end.clone())]);
        }
        let Around { before, after } = if grid.rows > 0 { &marks.overview } else { &marks.single };
        layout.push([Piece::Text(before.clone()), Piece::Tile { tokens }, Piece::Text(after.clone())]);
        Ok(layout)
    }

    pub(super) fn grid(&self, width: u32, height: u32) -> Result<Grid, ImageError> {
        let single = |resized: Vec<(u32, u32)>| Grid {
            resized,
            rows: 0,
            columns: 0,
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
                return Ok(Grid { resized, rows, columns, step: (window, window), whole_first: true });
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
        assert!(matches!(spec(4096, 8, true).layout(9, 9, 1), Err(ImageError::BadSpec { .. })));
        let mut endless = spec(64, 32, true);
        endless.marks.row_end = "\n".repeat(1000);
        assert!(matches!(endless.layout(9, 9, 1), Err(ImageError::BadSpec { .. })));
    }

    #[test]
    fn texts_between_tiles_are_joined() {
        let text = |t: &str| Piece::Text(t.to_owned());
        let tile = Piece::Tile { tokens: 7 };
        let wide = spec(64, 32, true).layout(60, 20, 7).unwrap();
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
        let single = spec(64, 32, false).layout(60, 20, 7).unwrap();
        assert_eq!(single.pieces(), [text("<whole>"), tile.clone(), text("<end>")]);
        assert_eq!(ImageSpec::llava_pad(28).layout(60, 20, 7).unwrap().pieces(), [tile]);
    }
}
