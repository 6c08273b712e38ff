//! A picture to the floats a vision tower reads.

use super::resize::MAX_RESIZED_PIXELS;
use super::slices::MOST_RESOLUTION;
use super::tiles::Grid;
use super::{Alpha, Fit, ImageError, ImageSpec, Picture, Tiling, resize};

/// One tile, the input of a vision tower: `[channels, height, width]`, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Pixels {
    /// Number of channels, 3.
    pub channels: usize,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
    /// The values, `[channels, height, width]`.
    pub data: Vec<f32>,
}

impl Pixels {
    /// The squares of `side` pixels at those rows and columns of squares, [squares, channels * side * side]: each as a
    /// convolution kernel lies.
    ///
    /// # Panics
    /// Where a square is not inside.
    pub fn squares(&self, side: usize, places: impl Iterator<Item = (usize, usize)>) -> Vec<f32> {
        let mut squares = vec![];
        for (row, column) in places {
            for line in (0..self.channels).flat_map(|c| (0..side).map(move |y| (c, y))) {
                let start = (line.0 * self.height + row * side + line.1) * self.width + column * side;
                squares.extend_from_slice(&self.data[start..start + side]);
            }
        }
        squares
    }
}

/// The tiles one picture became, in the order in which their tokens appear in the prompt. Each is normalised when it is
/// asked for: of a large picture, one tile at a time is there as floats.
#[derive(Debug, Clone)]
pub struct ImageTiles {
    spec: ImageSpec,
    /// The picture that tiles are cut from, and how; `None` for a single tile.
    cut: Option<(Picture, Grid)>,
    /// The picture as one tile, before or behind the others.
    whole: Picture,
    next: usize,
    count: usize,
}

/// Fits or tiles, and resamples one picture; its tiles come as they are asked for.
///
/// # Errors
/// [`ImageError::BadSpec`] for a spec with a zero size, a zero or non-finite `std`, an unbounded number of tiles;
/// [`ImageError::ResultTooLarge`] for a picture so narrow that fitting it would blow it up.
///
/// # Examples
/// ```
/// use margay_prompt::image::{ImageSpec, Picture, preprocess};
/// let picture = Picture::filled(640, 480, [122, 116, 104]).unwrap();
/// let mut tiles = preprocess(&picture, &ImageSpec::llava_pad(336)).unwrap();
/// assert_eq!(tiles.len(), 1);
/// let tile = tiles.next().unwrap();
/// assert_eq!(tile.data.len(), 3 * 336 * 336);
/// assert!(tile.data.iter().all(|v| v.abs() < 0.02)); // the mean colour becomes about 0
/// ```
pub fn preprocess(picture: &Picture, spec: &ImageSpec) -> Result<ImageTiles, ImageError> {
    check(spec)?;
    let flat = flatten_alpha(picture, spec.alpha)?;
    let picture = flat.as_ref().unwrap_or(picture);
    let grid = spec.grid(picture.width(), picture.height())?;
    let mut scaled = None;
    for (width, height) in &grid.resized {
        scaled = Some(resize(scaled.as_ref().unwrap_or(picture), *width, *height, spec.filter)?);
    }
    let whole = match grid.whole {
        None => fit(picture, spec)?,
        Some((width, height)) => {
            let from = scaled.as_ref().filter(|_| !grid.whole_first).unwrap_or(picture);
            resize(from, width, height, spec.filter)?
        }
    };
    let (cut, count) = (scaled.filter(|_| grid.rows > 0), grid.tiles());
    Ok(ImageTiles { spec: spec.clone(), cut: cut.map(|scaled| (scaled, grid)), whole, next: 0, count })
}

impl Iterator for ImageTiles {
    type Item = Pixels;

    fn next(&mut self) -> Option<Pixels> {
        let at = self.next;
        self.next += 1;
        match &self.cut {
            _ if at >= self.count => None,
            Some((scaled, grid)) if at != if grid.whole_first { 0 } else { self.count - 1 } => {
                let at = (at - usize::from(grid.whole_first)) as u32;
                let (row, column) = (at / grid.columns, at % grid.columns);
                let corner = (-i64::from(column * grid.step.0), -i64::from(row * grid.step.1));
                let tile = place(scaled, grid.tile, corner, [0; 3]);
                Some(normalise(&tile.expect("invariant: a tile has pixels"), &self.spec))
            }
            _ => Some(normalise(&self.whole, &self.spec)),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.count.saturating_sub(self.next);
        (left, Some(left))
    }
}

impl ExactSizeIterator for ImageTiles {}

fn check(spec: &ImageSpec) -> Result<(), ImageError> {
    let bad = |detail: String| Err(ImageError::BadSpec { detail });
    let (width, height) = spec.size;
    if width == 0 || height == 0 || u64::from(width) * u64::from(height) > MAX_RESIZED_PIXELS {
        return bad(format!("size {width}x{height} is outside 1 to {MAX_RESIZED_PIXELS} pixels"));
    }
    if !spec.std.iter().all(|s| s.is_finite() && *s != 0.0) {
        return bad(format!("std {:?} must be finite and not 0", spec.std));
    }
    if !spec.mean.iter().all(|m| m.is_finite()) || !spec.rescale.is_finite() {
        return bad(format!("mean {:?} and rescale {} must be finite", spec.mean, spec.rescale));
    }
    if let Fit::ShortestEdgeCrop { edge: 0 } = spec.fit {
        return bad("edge is 0".to_owned());
    }
    if let Fit::Multiples { of, min_pixels, max_pixels } = spec.fit {
        let most = spec.most_pixels();
        if of == 0 || min_pixels > max_pixels || max_pixels == 0 || most > MAX_RESIZED_PIXELS {
            let what = format!("multiples of {of} with {min_pixels} to {max_pixels} pixels");
            return bad(format!("{what} are outside 1 to {MAX_RESIZED_PIXELS} pixels"));
        }
    }
    match spec.tiling {
        Some(Tiling::Grid { longest_edge: 0, .. }) => return bad("longest_edge is 0".to_owned()),
        Some(Tiling::Overlap { most: 0, .. }) => return bad("it allows no tiles".to_owned()),
        Some(Tiling::Slices { resolution, of, .. })
            if !(1..=resolution).contains(&of) || resolution > MOST_RESOLUTION =>
        {
            return bad(format!("slices of {resolution} pixels a side in multiples of {of}"));
        }
        _ => {}
    }
    Ok(())
}

/// The picture on a background colour; `None` if nothing changes.
fn flatten_alpha(picture: &Picture, rule: Alpha) -> Result<Option<Picture>, ImageError> {
    let (Some(alpha), Alpha::Over(background)) = (picture.alpha(), rule) else { return Ok(None) };
    let mut rgb = picture.rgb().to_vec();
    for (pixel, alpha) in rgb.chunks_exact_mut(3).zip(alpha) {
        for (value, under) in pixel.iter_mut().zip(background) {
            *value = over(*value, *alpha, under);
        }
    }
    Picture::new(picture.width(), picture.height(), rgb).map(Some)
}

/// Pillow's integer alpha compositing on an opaque background.
///
/// Source: Pillow `AlphaComposite.c` with a background alpha of 255 (`PRECISION_BITS` 7).
fn over(value: u8, alpha: u8, under: u8) -> u8 {
    let front = u32::from(alpha) << 7;
    let back = (255 << 7) - front;
    let sum = u32::from(value) * front + u32::from(under) * back + (0x80 << 7);
    ((((sum >> 8) + sum) >> 8) >> 7) as u8
}

fn fit(picture: &Picture, spec: &ImageSpec) -> Result<Picture, ImageError> {
    let (width, height) = spec.size;
    match spec.fit {
        Fit::PadToSquare { fill } => {
            let side = picture.width().max(picture.height());
            if u64::from(side) * u64::from(side) > MAX_RESIZED_PIXELS {
                return Err(too_large(picture, side.into(), side.into()));
            }
            let (left, top) = ((side - picture.width()) / 2, (side - picture.height()) / 2);
            let square = place(picture, (side, side), (left.into(), top.into()), fill)?;
            resize(&square, width, height, spec.filter)
        }
        Fit::ShortestEdgeCrop { edge } => {
            let (w, h) = shortest_edge(picture, edge);
            if w.saturating_mul(h) > MAX_RESIZED_PIXELS {
                return Err(too_large(picture, w, h));
            }
            let resized = resize(picture, w as u32, h as u32, spec.filter)?;
            let at = |have: u32, want: u32| crop_offset(have.into(), want.into());
            place(&resized, spec.size, (at(resized.width(), width), at(resized.height(), height)), [0; 3])
        }
        Fit::Multiples { .. } => {
            let [(width, height), _] = spec.tile_sizes(picture.width(), picture.height())?;
            resize(picture, width, height, spec.filter)
        }
        Fit::Squash => resize(picture, width, height, spec.filter),
        Fit::Letterbox { fill } => {
            let scale = (f64::from(width) / f64::from(picture.width()))
                .min(f64::from(height) / f64::from(picture.height()));
            let side = |length: u32, limit: u32| ((f64::from(length) * scale).round() as u32).clamp(1, limit);
            let (w, h) = (side(picture.width(), width), side(picture.height(), height));
            let resized = resize(picture, w, h, spec.filter)?;
            place(&resized, spec.size, (((width - w) / 2).into(), ((height - h) / 2).into()), fill)
        }
    }
}

fn too_large(picture: &Picture, to_width: u64, to_height: u64) -> ImageError {
    let (width, height) = (picture.width(), picture.height());
    ImageError::ResultTooLarge { width, height, to_width, to_height, limit: MAX_RESIZED_PIXELS }
}

/// Width and height with the shorter side at `edge`, the longer at `int(edge * long / short)`.
fn shortest_edge(picture: &Picture, edge: u32) -> (u64, u64) {
    let (w, h) = (picture.width(), picture.height());
    // Integer division equals Python's int() of the float quotient here: a quotient of integers below 2^53 that
    // is not whole never rounds up to the next whole number.
    let long = u64::from(edge) * u64::from(w.max(h)) / u64::from(w.min(h));
    if w <= h { (edge.into(), long) } else { (long, edge.into()) }
}

/// Where a picture of length `have` starts on a canvas of length `want` (negative: it is cropped).
///
/// transformers crops at `(have - want) // 2`, and pads with `ceil((want - have) / 2)` in front.
fn crop_offset(have: i64, want: i64) -> i64 {
    if have >= want { -((have - want) / 2) } else { (want - have + 1) / 2 }
}

/// A canvas of one colour with the picture on it at `offset`; what lies outside is cut off.
fn place(
    picture: &Picture,
    (width, height): (u32, u32),
    (left, top): (i64, i64),
    fill: [u8; 3],
) -> Result<Picture, ImageError> {
    let mut rgb = fill.repeat(width as usize * height as usize);
    // Columns of the canvas the picture covers, and the picture's column at the first of them.
    let first = left.clamp(0, width.into()) as usize;
    let last = (left + i64::from(picture.width())).clamp(0, width.into()) as usize;
    let skipped = (-left).max(0) as usize;
    let row_bytes = picture.width() as usize * 3;
    for y in 0..height {
        let source_y = i64::from(y) - top;
        if source_y < 0 || source_y >= i64::from(picture.height()) || first >= last {
            continue;
        }
        let row = &picture.rgb()[source_y as usize * row_bytes..][..row_bytes];
        let start = (y as usize * width as usize + first) * 3;
        let bytes = (last - first) * 3;
        rgb[start..start + bytes].copy_from_slice(&row[skipped * 3..skipped * 3 + bytes]);
    }
    Picture::new(width, height, rgb)
}

/// `[H, W, 3]` bytes -> `[3, H, W]` floats.
fn normalise(picture: &Picture, spec: &ImageSpec) -> Pixels {
    let (height, width) = (picture.height() as usize, picture.width() as usize);
    let mut data = Vec::with_capacity(3 * height * width);
    for c in 0..3 {
        // 256 values per channel: a table is exact and spares the divisions.
        let table: [f32; 256] = std::array::from_fn(|v| {
            let rescaled = (v as f64 * spec.rescale) as f32;
            (rescaled - spec.mean[c]) / spec.std[c]
        });
        data.extend(picture.rgb()[c..].iter().step_by(3).map(|&v| table[usize::from(v)]));
    }
    Pixels { channels: 3, height, width, data } // [3, H, W]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Filter;

    fn gradient(width: u32, height: u32) -> Picture {
        let rgb = (0..width * height).flat_map(|i| [(i % 251) as u8, (i / 251 % 256) as u8, 7]).collect();
        Picture::new(width, height, rgb).unwrap()
    }

    #[test]
    fn odd_padding_puts_the_extra_row_below() {
        let spec = ImageSpec { size: (4, 4), filter: Filter::Nearest, ..ImageSpec::llava_pad(4) };
        let picture = Picture::filled(4, 1, [255, 255, 255]).unwrap();
        let fitted = fit(&picture, &spec).unwrap();
        let rows: Vec<bool> = (0..4).map(|y| fitted.pixel(0, y) == [255; 3]).collect();
        assert_eq!(rows, [false, true, false, false]); // floor((4 - 1) / 2) = 1
    }

    #[test]
    fn shortest_edge_truncates_the_longer_side() {
        assert_eq!(shortest_edge(&gradient(53, 37), 28), (40, 28)); // 28 * 53 / 37 = 40.1
        assert_eq!(shortest_edge(&gradient(37, 53), 28), (28, 40));
        assert_eq!(shortest_edge(&gradient(5, 5), 28), (28, 28));
    }

    #[test]
    fn a_crop_larger_than_the_picture_is_padded_with_black() {
        let spec = ImageSpec { fit: Fit::ShortestEdgeCrop { edge: 2 }, ..ImageSpec::llava_pad(5) };
        let fitted = fit(&Picture::filled(2, 2, [9, 9, 9]).unwrap(), &spec).unwrap();
        let lit: Vec<u32> = (0..25).filter(|i| fitted.pixel(i % 5, i / 5) == [9; 3]).collect();
        assert_eq!(lit, [12, 13, 17, 18]); // ceil(3 / 2) = 2 rows and columns in front
    }

    #[test]
    fn letterbox_keeps_the_aspect_ratio_and_at_least_one_pixel() {
        let spec = ImageSpec { fit: Fit::Letterbox { fill: [1, 1, 1] }, ..ImageSpec::llava_pad(8) };
        let fitted = fit(&Picture::filled(400, 3, [200, 0, 0]).unwrap(), &spec).unwrap();
        let lit = (0..64).filter(|i| fitted.pixel(i % 8, i / 8) == [200, 0, 0]).count();
        assert_eq!(lit, 8);
    }

    #[test]
    fn a_sliver_that_would_be_blown_up_is_refused() {
        let sliver = Picture::filled(1, 1_000_000, [0; 3]).unwrap();
        for spec in [ImageSpec::llava_pad(336), ImageSpec::clip_crop(336)] {
            let error = preprocess(&sliver, &spec).unwrap_err();
            assert!(matches!(error, ImageError::ResultTooLarge { .. }), "{error}");
        }
        assert!(preprocess(&sliver, &ImageSpec::siglip_squash(384)).is_ok());
    }

    #[test]
    fn specs_that_would_divide_by_zero_are_refused() {
        let picture = gradient(3, 3);
        for spec in [
            ImageSpec { std: [1.0, 0.0, 1.0], ..ImageSpec::llava_pad(8) },
            ImageSpec { size: (0, 4), ..ImageSpec::llava_pad(8) },
            ImageSpec { rescale: f64::NAN, ..ImageSpec::llava_pad(8) },
            ImageSpec { fit: Fit::ShortestEdgeCrop { edge: 0 }, ..ImageSpec::llava_pad(8) },
        ] {
            assert!(matches!(preprocess(&picture, &spec), Err(ImageError::BadSpec { .. })), "{spec:?}");
        }
    }

    #[test]
    fn specs_survive_json() {
        for spec in [ImageSpec::llava_pad(336), ImageSpec::clip_crop(336), ImageSpec::siglip_squash(384)] {
            let json = serde_json::to_string(&spec).unwrap();
            assert_eq!(serde_json::from_str::<ImageSpec>(&json).unwrap(), spec, "{json}");
        }
        assert_eq!(ImageSpec::llava_pad(336).fit, Fit::PadToSquare { fill: [122, 116, 104] });
    }
}
