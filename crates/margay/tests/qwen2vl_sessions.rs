//! Conversations with a model whose tokens have places in time, row and column.

#![allow(clippy::unwrap_used, reason = "a test")]

use margay::{
    AskOptions, Content, Error, Image, KvType, LoadOptions, Model, ModelSource, Turn,
    rooms::prompt::image::ImageSpec,
};
use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn turn(role: &str, pictures: &[Image], text: &str) -> Turn {
    let content = pictures.iter().cloned().map(Content::Image);
    let content = content.chain([Content::Text(text.to_owned())]).collect();
    Turn { role: role.to_owned(), content }
}

#[test]
fn what_is_reused_has_the_places_it_would_have_if_computed_again() {
    for name in ["qwen2vl", "qwen25vl"] {
        let folder = golden(name);
        // Small batches, so that pictures lie across them.
        let options = LoadOptions { kv: KvType::F32, batch: 16, ..LoadOptions::default() };
        let model = Model::load_with(&folder, &options).unwrap();
        let [wide, tall] = ["wide.png", "tall.png"].map(|name| Image::open(folder.join(name)).unwrap());
        let ask = AskOptions { max_tokens: 8, ..AskOptions::default() };
        let mut session = model.session().unwrap();
        let first = session.ask_with(std::slice::from_ref(&wide), "one", &ask).unwrap().report().unwrap();
        let pictures = [tall.clone(), wide.clone()];
        let second = session.ask_with(&pictures, "two", &ask).unwrap().report().unwrap();
        let third = session.ask_with(&[], "three", &ask).unwrap().report().unwrap();
        assert_eq!((first.stages.visual_tokens, third.stages.visual_tokens), (32, 32 + 21 + 32));
        assert!(third.stages.reused_tokens > second.stages.prefill_tokens, "{:?}", third.stages);

        let turns = [
            turn("user", &[wide], "one"),
            turn("assistant", &[], &first.text),
            turn("user", &pictures, "two"),
            turn("assistant", &[], &second.text),
            turn("user", &[], "three"),
        ];
        let mut fresh = model.session().unwrap();
        let again = fresh.ask_turns(&turns, &ask).unwrap().report().unwrap();
        assert_eq!(again.stages.reused_tokens, 0);
        assert_eq!(again.tokens, third.tokens, "{name}");
    }
}

#[test]
fn a_picture_that_no_grid_fits_is_refused_before_anything_runs() {
    let model = Model::load(golden("qwen2vl")).unwrap();
    let sliver = Image::filled(4100, 20, [1, 2, 3]).unwrap();
    let mut session = model.session().unwrap();
    let error = session.ask(&[sliver], "what?").err().unwrap().to_string();
    assert!(error.contains("200 times"), "{error}");
}

#[test]
fn a_picture_becomes_no_more_tokens_than_are_allowed() {
    let folder = golden("qwen2vl");
    let [wide, tall] = ["wide.png", "tall.png"].map(|name| Image::open(folder.join(name)).unwrap());
    let source = |most: usize| {
        let source = ModelSource::open(&folder, None).unwrap();
        source.with_max_image_tokens(NonZeroUsize::new(most).unwrap()).unwrap()
    };
    let tokens = |source: &ModelSource, image| source.picture_layout(image).unwrap().visual_tokens();
    for most in [1000, 41, 32, 21, 8, 4] {
        let capped = source(most);
        let got = [&wide, &tall].map(|image| tokens(&capped, image));
        assert!(got.iter().all(|tokens| (1..=most).contains(tokens)), "{most}: {got:?}");
        // The processor's own bound is 2600 pixels, 64 a token.
        assert_eq!(got == [32, 21], most >= 41, "{most}: {got:?}");
    }
    let options = |max_image_tokens, context| LoadOptions {
        max_image_tokens: NonZeroUsize::new(max_image_tokens),
        context: Some(context),
        ..LoadOptions::default()
    };
    let ask = AskOptions { max_tokens: 2, ..AskOptions::default() };
    // Without a limit the picture alone fills the context; the error says what helps.
    let model = Model::load_with(&folder, &options(0, 90)).unwrap();
    let pictures = [wide.clone(), wide.clone(), wide];
    let mut session = model.session().unwrap();
    let error = session.ask_with(&pictures, "one", &ask).err().unwrap().to_string();
    assert!(error.contains("--max-image-tokens"), "{error}");
    let model = Model::load_with(&folder, &options(8, 90)).unwrap();
    let mut session = model.session().unwrap();
    let report = session.ask_with(&pictures, "one", &ask).unwrap().report().unwrap();
    assert!((3..=24).contains(&report.stages.visual_tokens), "{:?}", report.stages);
    // Where a picture's size does not decide, there is nothing to limit.
    let error = Model::load_with(golden("llava"), &options(8, 90)).err().unwrap().to_string();
    assert!(error.contains("whatever its size"), "{error}");
    let error = Model::load_with(golden("llama"), &options(8, 90)).err().unwrap();
    assert!(matches!(error, Error::NoVision { .. }), "{error}");
}

/// The published configuration allows 12845056 pixels; with a limit of 1280 tokens sizes are those of the processor's own
/// default. Source: transformers `smart_resize` with `max_pixels` 1003520.
#[test]
fn limited_sizes_are_those_of_the_original_with_as_many_pixels() {
    let mut vision = ModelSource::open(&golden("qwen2vl"), None).unwrap().config.vision.unwrap();
    vision.image = ImageSpec::multiples(28, 56 * 56, 12_845_056);
    let free = vision.image.clone();
    let vision = vision.with_most_tokens(NonZeroUsize::new(1280).unwrap()).unwrap();
    for (height, width, to_height, to_width) in [
        (100, 378, 112, 392),
        (378, 4000, 280, 3248),
        (480, 4000, 336, 2884),
        (768, 1920, 616, 1568),
        (1080, 1024, 1008, 952),
        (1080, 1920, 728, 1316),
        (2000, 640, 1764, 560),
        (2000, 1920, 1008, 980),
        (3000, 3000, 980, 980),
    ] {
        let [size, _] = vision.image.tile_sizes(width, height).unwrap();
        assert_eq!(size, (to_width, to_height), "{width} x {height}");
        assert!(size == free.tile_sizes(width, height).unwrap()[0] || width * height > 1_003_520);
    }
}
