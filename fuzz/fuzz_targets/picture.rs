//! Any bytes: refused, or a picture within the limits that every way of fitting it to a tower takes, or refuses by its size.
#![no_main]

use libfuzzer_sys::fuzz_target;
use margay_prompt::image::{ImageError, ImageLimits, ImageSpec, Tiling, decode, preprocess};

fuzz_target!(|data: &[u8]| {
    let limits = ImageLimits { max_pixels: 1 << 16, max_alloc_bytes: 1 << 22, ..ImageLimits::default() };
    let Ok(picture) = decode(data, &limits) else { return };
    assert!(u64::from(picture.width()) * u64::from(picture.height()) <= limits.max_pixels);
    let tiling = Some(Tiling::Grid { longest_edge: 84, split: true });
    let tiled = ImageSpec { tiling, ..ImageSpec::siglip_squash(28) };
    for spec in [ImageSpec::llava_pad(28), ImageSpec::clip_crop(28), ImageSpec::siglip_squash(28), tiled] {
        match preprocess(&picture, &spec) {
            Ok(mut tiles) => {
                let layout = spec.layout(picture.width(), picture.height(), |_, _| (1, 1)).expect("it was preprocessed");
                assert_eq!(layout.tiles(), tiles.len());
                assert!(tiles.all(|tile| tile.data.len() == 3 * 28 * 28));
            }
            // A thin line grows a thousandfold.
            Err(ImageError::ResultTooLarge { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
});
