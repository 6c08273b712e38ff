//! Pictures cut into tiles that overlap, whose features are stitched into one map again.
//! Source: vikhyat/moondream, `moondream/torch/image_crops.py`.

use serde::{Deserialize, Serialize};

/// How the features of a picture's tiles become one map. Tile 0 is the whole picture; the others are cut from it, row by
/// row, and overlap: of each, a margin counts only where no neighbour lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stitch {
    /// Rows of tiles.
    pub rows: usize,
    /// Tiles in a row.
    pub columns: usize,
    /// What a tile gives up to a neighbour, pixels.
    pub margin: usize,
    /// Side of a tile, pixels.
    pub tile: usize,
}

impl Stitch {
    /// Tiles that the tower sees. A picture that is cut into a single tile is that tile, which is computed once.
    pub fn tiles(&self) -> usize {
        match self.rows * self.columns {
            1 => 1,
            cut => cut + 1,
        }
    }

    /// Of what a tile's `grid` x `grid` features give up to a neighbour, rows or columns.
    fn kept(&self, grid: usize) -> usize {
        (self.margin * grid).checked_div(self.tile).unwrap_or(0)
    }

    /// Rows and columns of the map, where each tile gives `grid` x `grid` features.
    pub fn size(&self, grid: usize) -> [usize; 2] {
        let margin = self.kept(grid);
        let inner = grid.saturating_sub(2 * margin);
        [self.rows, self.columns].map(|tiles| tiles * inner + 2 * margin)
    }

    /// For each place of the map, row by row, which feature it is, of those of all tiles one behind the other.
    pub fn map(&self, grid: usize) -> impl Iterator<Item = usize> {
        let Stitch { rows, columns, .. } = *self;
        let (margin, [height, width]) = (self.kept(grid), self.size(grid));
        let inner = grid.saturating_sub(2 * margin).max(1);
        let first = usize::from(rows * columns > 1);
        // Which tile holds a row or column of the map, and where in it: the first and the last keep their outer margins.
        let place = move |at: usize, tiles: usize| {
            let tile = (at.saturating_sub(margin) / inner).min(tiles - 1);
            (tile, at - tile * inner)
        };
        (0..height * width).map(move |at| {
            let ((row, y), (column, x)) = (place(at / width, rows), place(at % width, columns));
            ((first + row * columns + column) * grid + y) * grid + x
        })
    }
}

/// Rows and columns of tiles whose inner squares of `window` pixels cover a picture of that size without its margins, about
/// `most` of them at most. A picture that is far longer than wide becomes more, as in the original.
pub(super) fn tiles_that_cover((width, height): (i64, i64), window: u32, most: u32) -> (u32, u32) {
    let window = i64::from(window.max(1));
    if height <= window || width <= window {
        return (1, 1);
    }
    let (rows, columns) = ((height + window - 1) / window, (width + window - 1) / window);
    let most = f64::from(most);
    let floor = |x: f64| (x as u32).max(1);
    if (rows * columns) as f64 > most {
        let ratio = (most / (rows * columns) as f64).sqrt();
        return (floor(rows as f64 * ratio), floor(columns as f64 * ratio));
    }
    let (rows, columns) = (rows as u32, columns as u32);
    let mut high = rows.max((most * height as f64 / width as f64).sqrt() as u32);
    let mut wide = columns.max((most * width as f64 / height as f64).sqrt() as u32);
    if u64::from(high) * u64::from(wide) > most as u64 {
        if wide > high {
            wide = floor(most / f64::from(high));
        } else {
            high = floor(most / f64::from(wide));
        }
    }
    (high.max(1), wide.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_tiles_cover_a_picture_and_long_ones_get_more() {
        let cover = |width: i64, height: i64| tiles_that_cover((width - 112, height - 112), 266, 12);
        // Width, height, rows and columns as the original gives them.
        for (width, height, rows, columns) in [
            (100, 100, 1, 1),
            (4000, 378, 1, 1),
            (378, 4000, 1, 1),
            (378, 378, 1, 1),
            (60_000, 400, 1, 36),
            (400, 379, 3, 3),
            (640, 379, 2, 4),
            (1024, 379, 2, 6),
            (1920, 379, 1, 6),
            (4000, 379, 1, 9),
            (400, 480, 3, 3),
            (640, 480, 2, 4),
            (1024, 480, 2, 5),
            (1920, 480, 1, 6),
            (4000, 480, 1, 9),
            (400, 500, 4, 2),
            (640, 500, 2, 4),
            (1024, 500, 2, 5),
            (1920, 500, 1, 6),
            (4000, 500, 1, 9),
            (400, 768, 5, 2),
            (640, 768, 3, 3),
            (1024, 768, 3, 4),
            (1920, 768, 2, 5),
            (4000, 768, 1, 7),
            (400, 1080, 6, 2),
            (640, 1080, 4, 2),
            (1024, 1080, 3, 3),
            (1920, 1080, 2, 4),
            (4000, 1080, 1, 6),
            (400, 2000, 6, 1),
            (640, 2000, 6, 1),
            (1024, 2000, 4, 2),
            (1920, 2000, 3, 3),
            (4000, 2000, 2, 4),
        ] {
            assert_eq!(cover(width, height), (rows, columns), "{width} x {height}");
        }
    }

    #[test]
    fn margins_count_only_at_the_edge_of_the_picture() {
        let stitch = Stitch { rows: 1, columns: 2, margin: 4, tile: 20 };
        assert_eq!((stitch.tiles(), stitch.size(5)), (3, [5, 8]));
        let map: Vec<_> = stitch.map(5).collect();
        // The first row: four features of the first tile, four of the second behind its margin.
        assert_eq!(map[..8], [25, 26, 27, 28, 51, 52, 53, 54]);
        assert_eq!(map[32..], [45, 46, 47, 48, 71, 72, 73, 74]);
        let whole = Stitch { rows: 1, columns: 1, ..stitch };
        assert_eq!((whole.tiles(), whole.size(5)), (1, [5, 5]));
        assert!(whole.map(5).eq(0..25));
    }
}
