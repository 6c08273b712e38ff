//! How small a picture may be seen: the size at which little of it is lost, and what a spec makes of that.

use super::{Filter, Fit, ImageSpec, Picture, Tiling, changed_blocks, resize};

/// Share of blocks that may differ between a picture and itself shrunk and grown again.
const LOSS: f32 = 0.02;
/// Halvings at most: a sixteenth of each side.
const MOST: u32 = 4;
/// Pixels of a side that are left at least.
const LEAST_SIDE: u32 = 32;

/// How often the sides of a picture can be halved with little lost: what is then enlarged again differs in few blocks. A flat
/// or soft picture many times, one of fine detail or hard edges not at all.
pub fn halvings(picture: &Picture) -> u32 {
    let (width, height) = (picture.width(), picture.height());
    let suffices = |times: &u32| {
        let (w, h) = (width >> times, height >> times);
        if w.min(h) < LEAST_SIDE {
            return false;
        }
        let small = resize(picture, w, h, Filter::Box);
        let again = small.and_then(|small| resize(&small, width, height, Filter::Bilinear));
        again.is_ok_and(|again| changed_blocks(picture, &again) <= LOSS)
    };
    (1..=MOST).take_while(suffices).count() as u32
}

impl ImageSpec {
    /// The spec for a picture of that many pixels whose sides can be halved so often: no larger than what it shows asks for.
    /// The same where pictures have one size anyway.
    #[must_use]
    pub fn with_detail(&self, width: u32, height: u32, halvings: u32) -> Self {
        let (width, height) = ((width >> halvings).max(1), (height >> halvings).max(1));
        let area = u64::from(width) * u64::from(height);
        let mut spec = self.clone();
        if let Fit::Multiples { min_pixels, max_pixels, .. } = &mut spec.fit {
            *max_pixels = area.clamp((*min_pixels).min(*max_pixels), *max_pixels);
        }
        match &mut spec.tiling {
            Some(Tiling::Grid { longest_edge, .. }) => {
                let tile = self.size.0.max(self.size.1).max(1);
                let whole = width.max(height).div_ceil(tile).saturating_mul(tile);
                *longest_edge = (*longest_edge).min(whole);
            }
            Some(Tiling::Overlap { most, .. }) if width <= self.size.0 && height <= self.size.1 => *most = 1,
            Some(Tiling::Slices { resolution, most, .. }) => {
                let asked = area.div_ceil(u64::from(*resolution).pow(2).max(1));
                *most = u32::try_from(asked).unwrap_or(u32::MAX).clamp(1, (*most).max(1));
            }
            _ => {}
        }
        spec
    }

    /// Whether a large picture is seen at a larger size than a small one.
    pub fn has_sizes(&self) -> bool {
        self.tiling.is_some() || matches!(self.fit, Fit::Multiples { .. })
    }

    /// The spec that sees pictures at that share of the width and height at which this one does at most, or as near as it
    /// has a size for. The same where pictures have one size anyway.
    #[must_use]
    pub fn with_share(&self, share: f64) -> Self {
        let share = share.clamp(0.0, 1.0);
        let area = share * share;
        // All of these are far below what a float counts exactly.
        let fewer = |most: u32| ((f64::from(most) * area) as u32).max(1);
        let mut spec = self.clone();
        if let Fit::Multiples { min_pixels, max_pixels, .. } = &mut spec.fit {
            *max_pixels = ((*max_pixels as f64 * area) as u64).max(*min_pixels).min(*max_pixels);
        }
        match &mut spec.tiling {
            Some(Tiling::Grid { longest_edge, .. }) => {
                let tile = self.size.0.max(self.size.1).max(1);
                let tiles = (f64::from(*longest_edge / tile) * share) as u32;
                *longest_edge = tiles.max(1).saturating_mul(tile).min(*longest_edge);
            }
            Some(Tiling::Overlap { most, .. } | Tiling::Slices { most, .. }) => *most = fewer(*most),
            _ => {}
        }
        spec
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: u32, height: u32, level: impl Fn(u32, u32) -> u8) -> Picture {
        let pixels = (0..width * height).flat_map(|at| [level(at % width, at / width); 3]);
        Picture::new(width, height, pixels.collect()).unwrap()
    }

    #[test]
    fn a_share_of_the_sides_is_its_square_of_the_pixels_and_nothing_where_there_is_one_size() {
        let grid = Tiling::Grid { longest_edge: 2048, split: true };
        let spec = ImageSpec { tiling: Some(grid), ..ImageSpec::siglip_squash(512) };
        let edge = |share| match spec.with_share(share).tiling {
            Some(Tiling::Grid { longest_edge, .. }) => longest_edge,
            other => panic!("{other:?}"),
        };
        assert_eq!([1.0, 0.75, 0.5, 0.1].map(edge), [2048, 1536, 1024, 512]);
        let spec = ImageSpec::multiples(28, 3136, 1_000_000);
        assert!(spec.has_sizes());
        let most = |share| match spec.with_share(share).fit {
            Fit::Multiples { max_pixels, .. } => max_pixels,
            other => panic!("{other:?}"),
        };
        assert_eq!([1.0, 0.5, 0.01].map(most), [1_000_000, 250_000, 3136]);
        let spec = ImageSpec::siglip_squash(384);
        assert!(!spec.has_sizes() && spec.with_share(0.5) == spec);
    }

    #[test]
    fn soft_pictures_can_be_small_and_fine_ones_cannot() {
        assert_eq!(halvings(&picture(640, 512, |_, _| 90)), 4);
        assert_eq!(halvings(&picture(640, 512, |x, y| ((x + y) / 8) as u8)), 4);
        assert_eq!(halvings(&picture(640, 512, |x, y| if (x ^ y) & 1 == 0 { 0 } else { 255 })), 0);
        // Waves of 64 pixels: seen at half the size, not at an eighth.
        let wave = |x: u32, _: u32| (128.0 + 100.0 * (x as f32 / 64.0 * std::f32::consts::TAU).sin()) as u8;
        assert!((1..4).contains(&halvings(&picture(640, 512, wave))));
        assert_eq!(halvings(&picture(40, 40, |_, _| 90)), 0, "it is small already");
    }

    #[test]
    fn a_spec_asks_for_no_more_than_a_picture_shows() {
        let tokens = |spec: &ImageSpec, halvings: u32| {
            let spec = spec.with_detail(2000, 1400, halvings);
            spec.layout(2000, 1400, |w, h| ((w * h / 784) as usize, (w / 28) as usize))
                .unwrap()
                .visual_tokens()
        };
        let tiled = |tiling| ImageSpec { tiling: Some(tiling), ..ImageSpec::siglip_squash(448) };
        for spec in [
            ImageSpec::multiples(28, 56 * 56, 2_000_000),
            tiled(Tiling::Grid { longest_edge: 2048, split: true }),
            tiled(Tiling::Overlap { margin: 28, most: 12 }),
            tiled(Tiling::Slices { resolution: 448, of: 14, most: 9 }),
        ] {
            let all: Vec<usize> = (0..=4).map(|halvings| tokens(&spec, halvings)).collect();
            assert_eq!(
                all[0],
                spec.layout(2000, 1400, |w, h| ((w * h / 784) as usize, (w / 28) as usize))
                    .unwrap()
                    .visual_tokens()
            );
            assert!(all.is_sorted_by(|a, b| a >= b), "{all:?}");
            if !matches!(spec.tiling, Some(Tiling::Overlap { .. })) {
                assert!(all[4] * 3 < all[0], "{all:?}");
            }
        }
        let overlap = tiled(Tiling::Overlap { margin: 28, most: 12 });
        assert_eq!(overlap.with_detail(2000, 1400, 3).tiling, Some(Tiling::Overlap { margin: 28, most: 1 }));
        let plain = ImageSpec::llava_pad(336);
        assert_eq!(plain.with_detail(2000, 1400, 4), plain);
    }
}
