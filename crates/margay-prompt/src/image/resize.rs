//! Resampling equal to Pillow's, bit for bit.
//!
//! Two separable passes, each with 22-bit fixed-point coefficients made in f64, and 8-bit pixels after each pass. An
//! axis whose length does not change is skipped. Source: Pillow 13.0 `Resample.c` (`precompute_coeffs`,
//! `normalize_coeffs_8bpc`, `ImagingResample{Horizontal,Vertical}_8bpc`, and the order of the passes in
//! `ImagingResampleInner`), `Geometry.c` (`ImagingScaleAffine`, for nearest).
//!
//! Older Pillow versions always ran the horizontal pass first. Where the order differs (height shrinks by more than
//! twice as many pixels as width) so do a few pixels, by the rounding between the passes.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{ImageError, Picture};

/// A resampling filter, as Pillow names and defines them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Filter {
    /// The nearest pixel.
    Nearest,
    /// The mean over the covered pixels, support 0.5.
    Box,
    /// Triangle, support 1.
    Bilinear,
    /// Cubic convolution with a = -0.5, support 2.
    Bicubic,
    /// Lanczos, support 3.
    Lanczos3,
}

/// Fraction bits of the coefficients: 32 - 8 (pixel) - 2 (headroom for negative lobes).
const PRECISION_BITS: u32 = 22;
/// Half a unit of the result, added before the shift.
const HALF: i32 = 1 << (PRECISION_BITS - 1);
/// Most pixels a resized picture (or the one between the passes) may have.
pub(crate) const MAX_RESIZED_PIXELS: u64 = 128_000_000;
/// Most coefficients of one pass.
const MAX_COEFFICIENTS: u64 = 64_000_000;

/// Resizes the colours to `width` x `height`; the alpha plane is dropped.
///
/// Equal to Pillow's `Image.resize((width, height), filter)` on an RGB picture.
///
/// # Errors
/// [`ImageError::NoPixels`] if a side is 0, [`ImageError::ResultTooLarge`] if the result, or the picture between
/// the two passes, would have more than 128 million pixels.
///
/// # Examples
/// ```
/// use margay_prompt::image::{Filter, Picture, resize};
/// let picture = Picture::new(2, 1, vec![0, 0, 0, 255, 255, 255]).unwrap();
/// let wide = resize(&picture, 4, 1, Filter::Bilinear).unwrap();
/// assert_eq!([0, 1, 2, 3].map(|x| wide.pixel(x, 0)[0]), [0, 64, 191, 255]);
/// ```
pub fn resize(picture: &Picture, width: u32, height: u32, filter: Filter) -> Result<Picture, ImageError> {
    if width == 0 || height == 0 {
        return Err(ImageError::NoPixels { width, height });
    }
    let (from_width, from_height) = (picture.width(), picture.height());
    let vertical_first = vertical_first(picture, width, height);
    let between = if vertical_first { (from_width, height) } else { (width, from_height) };
    let too_large = |(w, h): (u32, u32)| ImageError::ResultTooLarge {
        width: from_width,
        height: from_height,
        to_width: w.into(),
        to_height: h.into(),
        limit: MAX_RESIZED_PIXELS,
    };
    for size in [(width, height), between] {
        if u64::from(size.0) * u64::from(size.1) > MAX_RESIZED_PIXELS {
            return Err(too_large(size));
        }
    }
    let Some((support, kernel)) = filter.kernel() else {
        return Picture::new(width, height, nearest(picture, width, height));
    };
    let taps = |from: u32, to: u32| match from == to {
        true => Ok(None),
        false => Taps::new(from, to, support, kernel).map(Some).ok_or_else(|| too_large((width, height))),
    };
    let (across, down) = (taps(from_width, width)?, taps(from_height, height)?);
    let mut pixels = Cow::Borrowed(picture.rgb()); // [from_height, from_width, 3]
    if let Some(down) = down.as_ref().filter(|_| vertical_first) {
        pixels = vertical(&pixels, from_width as usize * 3, down).into(); // [height, from_width, 3]
    }
    if let Some(across) = &across {
        pixels = horizontal(&pixels, from_width as usize, across).into(); // [.., width, 3]
    }
    if let Some(down) = down.as_ref().filter(|_| !vertical_first) {
        pixels = vertical(&pixels, width as usize * 3, down).into(); // [height, width, 3]
    }
    Picture::new(width, height, pixels.into_owned())
}

/// Pillow's choice: "if height is being scaled down more than twice the amount the width is".
fn vertical_first(picture: &Picture, width: u32, height: u32) -> bool {
    let lost_height = i64::from(picture.height()) - i64::from(height);
    let lost_width = i64::from(picture.width()) - i64::from(width);
    lost_height > 0 && lost_height > lost_width * 2
}

type Kernel = fn(f64) -> f64;

impl Filter {
    /// Support in source pixels (at scale 1) and the kernel; `None` for nearest, which has none.
    fn kernel(self) -> Option<(f64, Kernel)> {
        match self {
            Self::Nearest => None,
            Self::Box => Some((0.5, |x| f64::from(u8::from(x > -0.5 && x <= 0.5)))),
            Self::Bilinear => Some((1.0, |x| (1.0 - x.abs()).max(0.0))),
            Self::Bicubic => Some((2.0, bicubic)),
            Self::Lanczos3 => Some((3.0, lanczos3)),
        }
    }
}

fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn lanczos3(x: f64) -> f64 {
    if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

/// The coefficients of one pass: for every output position, where it starts to read and its weights.
struct Taps {
    /// First source position and number of weights, per output position.
    spans: Vec<(usize, usize)>,
    /// The weights, `PRECISION_BITS` fraction bits, spans one after the other.
    weights: Vec<i32>,
}

impl Taps {
    /// `None` if there would be too many weights.
    fn new(from: u32, to: u32, support: f64, kernel: Kernel) -> Option<Self> {
        let scale = f64::from(from) / f64::from(to);
        let filter_scale = scale.max(1.0);
        let support = support * filter_scale;
        // As many as a span can hold, but never more than the source has.
        let longest = (support.ceil() as u64 * 2 + 1).min(from.into());
        if longest * u64::from(to) > MAX_COEFFICIENTS {
            return None;
        }
        let mut spans = Vec::with_capacity(to as usize);
        let mut weights = Vec::with_capacity((longest * u64::from(to)) as usize);
        let mut exact = Vec::with_capacity(longest as usize);
        for i in 0..to {
            let centre = (f64::from(i) + 0.5) * scale;
            // `as` truncates towards zero, as C does, and clamps at 0 below.
            let low = (centre - support + 0.5) as usize;
            let high = ((centre + support + 0.5) as usize).min(from as usize);
            let inverse = 1.0 / filter_scale;
            exact.clear();
            exact.extend((low..high).map(|x| kernel((x as f64 - centre + 0.5) * inverse)));
            let sum: f64 = exact.iter().sum();
            for weight in &exact {
                let normalised = if sum == 0.0 { *weight } else { weight / sum };
                let fixed = normalised * f64::from(1 << PRECISION_BITS);
                weights.push((fixed + 0.5f64.copysign(fixed)) as i32);
            }
            spans.push((low, high - low));
        }
        Some(Self { spans, weights })
    }

    /// Output positions in order: first source position, weights.
    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let mut rest = self.weights.as_slice();
        self.spans.iter().map(move |&(low, count)| {
            let (weights, tail) = rest.split_at(count);
            rest = tail;
            (low, weights)
        })
    }
}

/// A weighted sum back to a pixel.
fn to_pixel(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// `[rows, from_width, 3]` -> `[rows, taps, 3]`.
fn horizontal(source: &[u8], from_width: usize, taps: &Taps) -> Vec<u8> {
    let mut out = Vec::with_capacity(source.len() / from_width * taps.spans.len());
    for row in source.chunks_exact(from_width * 3) {
        for (low, weights) in taps.iter() {
            let mut sum = [HALF; 3];
            for (pixel, weight) in row[low * 3..].chunks_exact(3).zip(weights) {
                for c in 0..3 {
                    sum[c] += i32::from(pixel[c]) * weight;
                }
            }
            out.extend(sum.map(to_pixel));
        }
    }
    out
}

/// `[from_height, row]` -> `[taps, row]`; whole rows at a time, so that the inner loop runs along memory.
fn vertical(source: &[u8], row_bytes: usize, taps: &Taps) -> Vec<u8> {
    let mut out = Vec::with_capacity(row_bytes * taps.spans.len());
    let mut sums = vec![HALF; row_bytes];
    for (low, weights) in taps.iter() {
        sums.fill(HALF);
        for (row, weight) in source[low * row_bytes..].chunks_exact(row_bytes).zip(weights) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * weight;
            }
        }
        out.extend(sums.iter().map(|&sum| to_pixel(sum)));
    }
    out
}

/// Nearest neighbour as Pillow does it: the source coordinate is accumulated step by step in f64.
fn nearest(picture: &Picture, width: u32, height: u32) -> Vec<u8> {
    let positions = |from: u32, to: u32| {
        let step = f64::from(from) / f64::from(to);
        let mut at = step * 0.5;
        let mut positions = Vec::with_capacity(to as usize);
        for _ in 0..to {
            positions.push((at as usize).min(from as usize - 1));
            at += step;
        }
        positions
    };
    let columns = positions(picture.width(), width);
    let row_bytes = picture.width() as usize * 3;
    let mut out = Vec::with_capacity(width as usize * height as usize * 3);
    for y in positions(picture.height(), height) {
        let row = &picture.rgb()[y * row_bytes..][..row_bytes];
        out.extend(columns.iter().flat_map(|x| &row[x * 3..][..3]));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_picture_stays_flat_at_every_size() {
        let picture = Picture::filled(7, 5, [3, 128, 252]).unwrap();
        for filter in [Filter::Nearest, Filter::Box, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos3] {
            for (w, h) in [(1, 1), (2, 9), (64, 3), (7, 5)] {
                let resized = resize(&picture, w, h, filter).unwrap();
                assert!(resized.rgb().chunks(3).all(|p| p == [3, 128, 252]), "{filter:?} {w}x{h}");
            }
        }
    }

    #[test]
    fn results_beyond_the_pixel_limit_are_refused() {
        let sliver = Picture::filled(40_000, 1, [1, 2, 3]).unwrap();
        let error = resize(&sliver, 40_000, 40_000, Filter::Bicubic).unwrap_err();
        assert!(
            matches!(error, ImageError::ResultTooLarge { to_width: 40_000, to_height: 40_000, .. }),
            "{error}"
        );
        assert!(matches!(resize(&sliver, 0, 4, Filter::Box), Err(ImageError::NoPixels { .. })));
    }
}
