//! The sizes of a picture that is cut into slices which keep its shape.
//! Source: `image_processing_minicpmv.py` of `openbmb/MiniCPM-V-2_6`; the arithmetic is Python's, step by step.

use super::{
    ImageError,
    tiles::{Grid, MOST_ASPECT},
};

/// Longest `resolution`: far above what any model was trained with.
pub(super) const MOST_RESOLUTION: u32 = 1 << 13;

/// How a picture of that size is cut; see [`super::Tiling::Slices`].
pub(super) fn slices(
    (width, height): (u32, u32),
    resolution: u32,
    of: u32,
    most: u32,
) -> Result<Grid, ImageError> {
    if width.max(height) > width.min(height).saturating_mul(MOST_ASPECT) {
        return Err(ImageError::TooNarrow { width, height, most: MOST_ASPECT });
    }
    let (w, h) = (f64::from(width), f64::from(height));
    let alone = || {
        let tile = about((w, h), resolution, of);
        Grid { resized: vec![], whole: Some(tile), rows: 0, columns: 0, tile, step: tile, whole_first: true }
    };
    let Some((columns, rows)) = grid((w, h), resolution, most) else { return Ok(alone()) };
    let each = |side: f64, count: u32| nearest(side, count) / f64::from(count);
    let tile = about((each(w, columns), each(h, rows)), resolution, of);
    let resized = vec![(tile.0.saturating_mul(columns), tile.1.saturating_mul(rows))];
    Ok(Grid { resized, rows, columns, tile, step: tile, ..alone() })
}

/// Columns and rows of slices; `None` where the picture stays alone. Of the factors of the count of slices that its area
/// asks for, and of one fewer and one more, those whose ratio is nearest to the picture's. Source: `get_sliced_grid`.
fn grid((width, height): (f64, f64), resolution: u32, most: u32) -> Option<(u32, u32)> {
    let area = f64::from(resolution) * f64::from(resolution);
    let asked = (width * height / area).ceil().min(f64::from(most)) as u32;
    if asked <= 1 {
        return None;
    }
    let ratio = (width / height).ln();
    let counts = [asked - 1, asked, asked.saturating_add(1)].into_iter().filter(|n| *n > 1 && *n <= most);
    let pairs = counts.flat_map(|n| (1..=n).filter(move |m| n.is_multiple_of(*m)).map(move |m| (m, n / m)));
    let error = |&(columns, rows): &(u32, u32)| (ratio - (f64::from(columns) / f64::from(rows)).ln()).abs();
    // Of equals the first.
    pairs.min_by(|a, b| error(a).total_cmp(&error(b)))
}

/// Sides of the same ratio with about the pixels of the square, as multiples. Source: `find_best_resize`. A picture larger
/// than the square always shrinks, and one that stays alone may grow.
fn about((width, height): (f64, f64), resolution: u32, of: u32) -> (u32, u32) {
    let ratio = width / height;
    let height = (f64::from(resolution) / ratio.sqrt()).floor();
    let width = (height * ratio).floor();
    (nearest(width, of) as u32, nearest(height, of) as u32)
}

/// The nearest multiple, at least one; halves go to the even one, as Python rounds them. Source: `ensure_divide`.
fn nearest(length: f64, of: u32) -> f64 {
    let of = f64::from(of);
    ((length / of).round_ties_even() * of).max(of)
}

/// Pixels, and pixels of the longer side, of a tile at most: over all heights that [`about`] may give, with the widest
/// width to each, and the other way round.
pub(super) fn most(resolution: u32, of: u32) -> (u64, u64) {
    let (area, of) = (f64::from(resolution).powi(2), of.max(1));
    let longest = f64::from(resolution) * f64::from(MOST_ASPECT).sqrt();
    let mut most = (0, 0);
    for side in 1..=resolution.min(MOST_RESOLUTION) {
        let other = nearest((area / f64::from(side)).min(longest), of) as u64;
        let side = nearest(side.into(), of) as u64;
        most = (most.0.max(side.saturating_mul(other)), most.1.max(other));
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Filter, ImageSpec, Picture, Tiling, preprocess};

    /// Width and height, those of the whole picture as a tile, columns and rows of slices, and the size they are cut from.
    /// Computed by `slice_image` of OpenBMB/MiniCPM-V `finetune/dataset.py`.
    #[rustfmt::skip]
    const SLICED: &[[u32; 8]] = &[
        [100, 100, 448, 448, 0, 0, 0, 0],
        [378, 100, 868, 224, 0, 0, 0, 0],
        [400, 100, 896, 224, 0, 0, 0, 0],
        [640, 100, 1134, 182, 0, 0, 0, 0],
        [1024, 100, 1428, 140, 0, 0, 0, 0],
        [1920, 100, 1960, 98, 0, 0, 0, 0],
        [4000, 100, 2800, 70, 3, 1, 4872, 126],
        [100, 378, 224, 868, 0, 0, 0, 0],
        [378, 378, 448, 448, 0, 0, 0, 0],
        [400, 378, 462, 434, 0, 0, 0, 0],
        [640, 378, 588, 350, 2, 1, 812, 490],
        [1024, 378, 742, 266, 3, 1, 1260, 476],
        [1920, 378, 1008, 196, 5, 1, 2240, 448],
        [4000, 378, 1456, 140, 9, 1, 4410, 420],
        [100, 379, 224, 868, 0, 0, 0, 0],
        [378, 379, 448, 448, 0, 0, 0, 0],
        [400, 379, 462, 434, 0, 0, 0, 0],
        [640, 379, 574, 350, 2, 1, 812, 490],
        [1024, 379, 728, 266, 3, 1, 1260, 476],
        [1920, 379, 1008, 196, 5, 1, 2240, 448],
        [4000, 379, 1442, 140, 9, 1, 4284, 420],
        [100, 480, 210, 980, 0, 0, 0, 0],
        [378, 480, 392, 504, 0, 0, 0, 0],
        [400, 480, 406, 490, 0, 0, 0, 0],
        [640, 480, 518, 392, 2, 1, 728, 546],
        [1024, 480, 658, 308, 2, 1, 924, 434],
        [1920, 480, 896, 224, 4, 1, 1792, 448],
        [4000, 480, 1288, 154, 8, 1, 3696, 434],
        [100, 500, 196, 1008, 0, 0, 0, 0],
        [378, 500, 392, 518, 0, 0, 0, 0],
        [400, 500, 406, 504, 0, 0, 0, 0],
        [640, 500, 504, 392, 2, 1, 728, 560],
        [1024, 500, 644, 308, 2, 1, 896, 448],
        [1920, 500, 868, 224, 4, 1, 1736, 462],
        [4000, 500, 1260, 154, 8, 1, 3584, 448],
        [100, 768, 168, 1246, 0, 0, 0, 0],
        [378, 768, 308, 644, 1, 2, 448, 896],
        [400, 768, 322, 616, 1, 2, 462, 868],
        [640, 768, 406, 490, 2, 2, 812, 980],
        [1024, 768, 518, 392, 2, 2, 1036, 784],
        [1920, 768, 700, 280, 4, 2, 2016, 812],
        [4000, 768, 1022, 196, 8, 1, 2912, 560],
        [100, 1080, 140, 1470, 0, 0, 0, 0],
        [378, 1080, 266, 756, 1, 3, 462, 1302],
        [400, 1080, 266, 742, 1, 3, 476, 1260],
        [640, 1080, 350, 588, 2, 2, 700, 1176],
        [1024, 1080, 434, 462, 2, 3, 1064, 1134],
        [1920, 1080, 602, 336, 4, 2, 1680, 952],
        [4000, 1080, 854, 238, 4, 2, 2464, 672],
        [100, 2000, 98, 2002, 0, 0, 0, 0],
        [378, 2000, 196, 1036, 1, 5, 434, 2310],
        [400, 2000, 196, 1008, 1, 5, 448, 2240],
        [640, 2000, 252, 784, 2, 4, 728, 2240],
        [1024, 2000, 322, 630, 2, 4, 896, 1792],
        [1920, 2000, 434, 462, 3, 3, 1302, 1386],
        [4000, 2000, 630, 322, 4, 2, 1792, 896],
    ];

    #[test]
    fn pictures_are_cut_as_in_the_original() {
        for &[width, height, w, h, columns, rows, cut_width, cut_height] in SLICED {
            let grid = slices((width, height), 448, 14, 9).unwrap();
            assert_eq!(grid.whole, Some((w, h)), "{width} x {height}");
            assert_eq!((grid.columns, grid.rows), (columns, rows), "{width} x {height}");
            let cut = (rows > 0).then_some((cut_width, cut_height));
            assert_eq!(grid.resized, Vec::from_iter(cut), "{width} x {height}");
        }
    }

    #[test]
    fn no_tile_is_larger_than_what_room_is_made_for() {
        for (resolution, of) in [(448, 14), (41, 4), (30, 7)] {
            let (pixels, side) = most(resolution, of);
            for width in (1..2200u32).step_by(13) {
                for height in (1..2200u32).step_by(17).filter(|h| (*h).max(width) <= 200 * width.min(*h)) {
                    let grid = slices((width, height), resolution, of, 9).unwrap();
                    for (w, h) in [grid.whole.unwrap(), grid.tile].map(|(w, h)| (u64::from(w), u64::from(h)))
                    {
                        assert!(w * h <= pixels && w.max(h) <= side, "{width} x {height}: {w} x {h}");
                    }
                }
            }
        }
        assert!(slices((201, 1), 448, 14, 9).is_err());
    }

    #[test]
    fn the_whole_picture_comes_first_and_slices_have_a_size_of_their_own() {
        let tiling = Some(Tiling::Slices { resolution: 41, of: 4, most: 9 });
        let spec = ImageSpec { tiling, filter: Filter::Bicubic, ..ImageSpec::siglip_squash(4) };
        let picture = Picture::filled(118, 75, [1, 2, 3]).unwrap();
        let tiles: Vec<_> = preprocess(&picture, &spec).unwrap().map(|t| (t.width, t.height)).collect();
        let grid = slices((118, 75), 41, 4, 9).unwrap();
        let size = |(w, h): (u32, u32)| (w as usize, h as usize);
        let cut = (grid.rows * grid.columns) as usize;
        assert_eq!(tiles, [vec![size(grid.whole.unwrap())], vec![size(grid.tile); cut]].concat());
        assert_ne!(grid.whole.unwrap(), grid.tile);
    }
}
