//! Pictures against Pillow, numpy and transformers: see `golden/make_images.py`, `golden/make_tiles.py`.
#![allow(clippy::unwrap_used, reason = "a test stops where its data is not as expected")]

use std::path::PathBuf;

use margay_prompt::image::{
    Alpha, Filter, Fit, ImageError, ImageLimits, ImageSpec, Picture, Tiling, decode, preprocess, resize, size,
};
use margay_prompt::layout::Piece;
use safetensors::SafeTensors;

/// The normalised value differs from numpy's only in the last place of f32; values are below 3.
const PIXEL_TOLERANCE: f32 = 1e-6;
/// JPEG decoders differ in the rounding of their inverse DCT and colour conversion.
const LOSSY_LEVELS: u8 = 2;
/// Chroma upsampling of subsampled pictures is smoothed differently; edges of saturated colour show it.
const SUBSAMPLED_LEVELS: u8 = 9;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn read(name: &str) -> Vec<u8> {
    std::fs::read(golden(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn picture(tensors: &SafeTensors<'_>, name: &str) -> Picture {
    let tensor = tensors.tensor(name).unwrap();
    let shape = tensor.shape();
    Picture::new(shape[1] as u32, shape[0] as u32, tensor.data().to_vec()).unwrap()
}

fn floats(tensors: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let data = tensors.tensor(name).unwrap().data().to_vec();
    data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn largest_difference(a: &Picture, b: &Picture) -> u8 {
    assert_eq!((a.width(), a.height()), (b.width(), b.height()));
    a.rgb().iter().zip(b.rgb()).map(|(x, y)| x.abs_diff(*y)).max().unwrap()
}

#[test]
fn the_header_tells_the_size_that_decoding_gives() {
    let (limits, mut turned) = (ImageLimits::default(), 0);
    for entry in std::fs::read_dir(golden("pictures")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        match (decode(&bytes, &limits), size(&bytes, &limits)) {
            (Ok(picture), told) => {
                assert_eq!(told, Ok((picture.width(), picture.height())), "{}", path.display());
                turned += usize::from(path.to_string_lossy().contains("exif"));
            }
            // What is damaged may be so behind its header.
            (Err(e), Err(told)) => assert_eq!(told, e, "{}", path.display()),
            (Err(_), Ok(_)) => {}
        }
    }
    assert!(turned > 0, "no picture is turned by its EXIF");
}

#[test]
fn resize_equals_pillow_bit_for_bit() {
    let bytes = read("resize.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut compared = 0;
    for name in tensors.names() {
        let parts: Vec<&str> = name.split('.').collect();
        let [source, filter, size] = parts[..] else { continue };
        let filter = match filter {
            "nearest" => Filter::Nearest,
            "box" => Filter::Box,
            "bilinear" => Filter::Bilinear,
            "bicubic" => Filter::Bicubic,
            "lanczos" => Filter::Lanczos3,
            other => panic!("{other}"),
        };
        let (w, h) = size.split_once('x').unwrap();
        let source = picture(&tensors, &format!("src.{source}"));
        let resized = resize(&source, w.parse().unwrap(), h.parse().unwrap(), filter).unwrap();
        assert_eq!(largest_difference(&resized, &picture(&tensors, name)), 0, "{name}");
        compared += 1;
    }
    assert_eq!(compared, 120);
}

#[test]
fn preprocessing_equals_numpy_at_every_aspect_ratio() {
    let bytes = read("preprocess.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let recipes = [
        ("pad28", ImageSpec::llava_pad(28)),
        ("crop28", ImageSpec::clip_crop(28)),
        ("edge20crop27", ImageSpec { fit: Fit::ShortestEdgeCrop { edge: 20 }, ..ImageSpec::clip_crop(27) }),
        ("squash27", ImageSpec::siglip_squash(27)),
    ];
    let mut compared = 0;
    for name in tensors.names() {
        let Some(size) = name.strip_prefix("src.") else { continue };
        let source = picture(&tensors, name);
        for (recipe, spec) in &recipes {
            assert_pixels(
                &source,
                spec,
                &floats(&tensors, &format!("{size}.{recipe}")),
                &format!("{size} {recipe}"),
            );
            compared += 1;
        }
    }
    assert_eq!(compared, 32);
}

#[test]
fn preprocessing_equals_the_published_clip_processor() {
    let bytes = read("clip_processor.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let source = picture(&tensors, "src_u8");
    assert_pixels(&source, &ImageSpec::llava_pad(28), &floats(&tensors, "llava_pad_28"), "pad");
    assert_pixels(&source, &ImageSpec::clip_crop(28), &floats(&tensors, "llava_crop_28"), "crop");
}

#[test]
fn tiles_equal_the_published_smolvlm_processor() {
    let bytes = read("tiles.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut compared = 0;
    for name in tensors.names() {
        let Some((size, edge)) = name.split_once('.').filter(|(size, _)| *size != "src") else { continue };
        let source = picture(&tensors, &format!("src.{size}"));
        let split = edge != "whole";
        let longest_edge = if split { edge.parse().unwrap() } else { 24 };
        // Pixels as they are.
        let spec = ImageSpec {
            filter: Filter::Lanczos3,
            mean: [0.0; 3],
            std: [1.0; 3],
            rescale: 1.0,
            tiling: Some(Tiling::Grid { longest_edge, split }),
            ..ImageSpec::siglip_squash(8)
        };
        let expected = tensors.tensor(name).unwrap();
        let tiles = preprocess(&source, &spec).unwrap();
        assert_eq!(tiles.len(), expected.shape()[0], "{name}");
        let layout = spec.layout(source.width(), source.height(), |_, _| (1, 1)).unwrap();
        assert_eq!(layout.tiles(), tiles.len(), "{name}");
        let got: Vec<u8> = tiles.flat_map(|tile| tile.data).map(|v| v as u8).collect();
        assert_eq!(got, expected.data(), "{name}");
        compared += 1;
    }
    assert_eq!(compared, 50);
}

#[test]
fn a_spec_from_before_there_were_tiles_makes_one_tile_without_marks() {
    let old = r#"{"fit":{"kind":"squash"},"size":[384,384],"filter":"bicubic","mean":[0.5,0.5,0.5],
        "std":[0.5,0.5,0.5],"rescale":0.00392156862745098,"alpha":"drop"}"#;
    let spec: ImageSpec = serde_json::from_str(old).unwrap();
    assert_eq!(spec, ImageSpec::siglip_squash(384));
    let tile = [Piece::Tile { tokens: 729, columns: 27 }];
    assert_eq!(spec.layout(10, 900, |_, _| (729, 27)).unwrap().pieces(), tile);
    let json = serde_json::to_string(&spec).unwrap();
    assert!(!json.contains("tiling") && !json.contains("marks"), "it is written as it was: {json}");
}

fn assert_pixels(source: &Picture, spec: &ImageSpec, expected: &[f32], what: &str) {
    let mut tiles = preprocess(source, spec).unwrap();
    assert_eq!(tiles.len(), 1, "{what}");
    let pixels = tiles.next().unwrap();
    assert_eq!(
        (pixels.channels, pixels.width, pixels.height),
        (3, spec.size.0 as usize, spec.size.1 as usize)
    );
    assert_eq!(pixels.data.len(), expected.len(), "{what}");
    let worst = pixels.data.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= PIXEL_TOLERANCE, "{what}: {worst}");
}

#[test]
fn decoded_colours_equal_pillows() {
    let bytes = read("decode.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let (mut compared, mut composited) = (0, 0);
    for name in tensors.names() {
        if let Some(file) = name.strip_suffix(".white") {
            let shown = decode(&read(&format!("pictures/{file}")), &ImageLimits::default()).unwrap();
            assert!(shown.alpha().is_some(), "{file}");
            assert_eq!(on_white(&shown), floats_of_white(&picture(&tensors, name)), "{name}");
            composited += 1;
            continue;
        }
        let levels = match name {
            "subsampled.jpg" => SUBSAMPLED_LEVELS,
            jpeg if jpeg.ends_with(".jpg") => LOSSY_LEVELS,
            _ => 0,
        };
        let decoded = decode(&read(&format!("pictures/{name}")), &ImageLimits::default()).unwrap();
        let worst = largest_difference(&decoded, &picture(&tensors, name));
        assert!(worst <= levels, "{name}: differs by {worst} levels");
        compared += 1;
    }
    assert_eq!((compared, composited), (35, 6));
}

/// A spec under which the floats are the pixels themselves.
fn identity(picture: &Picture, alpha: Alpha) -> ImageSpec {
    let size = (picture.width(), picture.height());
    ImageSpec {
        fit: Fit::Squash,
        size,
        alpha,
        mean: [0.0; 3],
        std: [1.0; 3],
        rescale: 1.0,
        ..ImageSpec::siglip_squash(1)
    }
}

fn on_white(picture: &Picture) -> Vec<f32> {
    preprocess(picture, &identity(picture, Alpha::Over([255; 3]))).unwrap().next().unwrap().data
}

fn floats_of_white(picture: &Picture) -> Vec<f32> {
    preprocess(picture, &identity(picture, Alpha::Drop)).unwrap().next().unwrap().data
}

#[test]
fn all_eight_exif_orientations_end_upright() {
    let first = decode(&read("pictures/exif1.jpg"), &ImageLimits::default()).unwrap();
    let sizes: Vec<bool> = (1..=8)
        .map(|o| decode(&read(&format!("pictures/exif{o}.jpg")), &ImageLimits::default()).unwrap())
        .map(|p| (p.width(), p.height()) == (first.width(), first.height()))
        .collect();
    assert_eq!(sizes, [true, true, true, true, false, false, false, false]);
}

#[test]
fn every_truncated_picture_is_an_error_and_never_a_panic() {
    let folder = std::fs::read_dir(golden("pictures")).unwrap();
    for entry in folder {
        let path = entry.unwrap().path();
        let whole = std::fs::read(&path).unwrap();
        // The second frame of an animation may be missing: only the first is read.
        let needed = if path.ends_with("first_of_two.gif") { 4 } else { 8 };
        for eighths in 0..needed {
            let cut = &whole[..whole.len() * eighths / 8];
            let result = decode(cut, &ImageLimits::default());
            assert!(result.is_err(), "{} cut to {eighths}/8 was accepted", path.display());
        }
    }
}

#[test]
fn damaged_pictures_never_panic() {
    let mut seed = 1u32;
    for entry in std::fs::read_dir(golden("pictures")).unwrap() {
        let path = entry.unwrap().path();
        let whole = std::fs::read(&path).unwrap();
        for _ in 0..40 {
            let mut damaged = whole.clone();
            for _ in 0..3 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = seed as usize % damaged.len();
                damaged[at] = (seed >> 24) as u8;
            }
            let limits =
                ImageLimits { max_pixels: 1 << 20, max_alloc_bytes: 32 << 20, ..ImageLimits::default() };
            let _ = decode(&damaged, &limits);
        }
    }
}

#[test]
fn a_png_bomb_is_refused_from_its_header() {
    let error = decode(&read("bomb_30000x30000.png"), &ImageLimits::default()).unwrap_err();
    assert_eq!(
        error,
        ImageError::TooManyPixels { width: 30_000, height: 30_000, pixels: 900_000_000, limit: 64_000_000 }
    );
    let message = error.to_string();
    for evidence in ["30000x30000", "64000000", "scale it down"] {
        assert!(message.contains(evidence), "{message}");
    }
}

#[test]
fn an_empty_file_and_a_text_file_say_what_they_are() {
    let empty = decode(b"", &ImageLimits::default()).unwrap_err().to_string();
    assert!(empty.contains("empty") && empty.contains("PNG, JPEG, WebP, GIF (first frame), BMP"), "{empty}");
    let text = decode(b"What does the sign say?\n", &ImageLimits::default()).unwrap_err().to_string();
    assert!(text.contains("looks like text") && text.contains("PNG, JPEG"), "{text}");
}
