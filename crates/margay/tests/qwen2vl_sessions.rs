//! Conversations with a model whose tokens have places in time, row and column.

#![allow(clippy::unwrap_used, reason = "a test")]

use margay::{AskOptions, Content, Image, KvType, LoadOptions, Model, Turn};
use std::path::{Path, PathBuf};

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
