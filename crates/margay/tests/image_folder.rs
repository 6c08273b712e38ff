//! Pictures that another process looked at.

#![allow(clippy::unwrap_used, reason = "a test")]

use margay::{AskOptions, Image, ImageFolder, Keep, LoadOptions, Model, Reduction, Report};
use std::path::Path;

fn picture(name: &str) -> Image {
    Image::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/images").join(name)).unwrap()
}

/// A model of its own, as another process has it.
fn ask(options: &LoadOptions, pictures: &[Image]) -> Report {
    let model = Model::nano_with(options).unwrap();
    let mut session = model.session().unwrap();
    let ask = AskOptions { max_tokens: 8, ..AskOptions::default() };
    session.ask_with(pictures, "What does the sign say?", &ask).unwrap().report().unwrap()
}

#[test]
fn a_picture_is_encoded_by_one_process_alone_and_every_answer_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let at = |most_bytes| Some(ImageFolder { path: folder.path().join("rows"), most_bytes });
    for image_cache in [0, 1 << 20] {
        let plain = LoadOptions { image_cache, ..LoadOptions::default() };
        let kept = LoadOptions { image_folder: at(1 << 20), ..plain.clone() };
        let expected = ask(&plain, &[picture("street.png")]);
        let first = ask(&kept, &[picture("street.png")]);
        let second = ask(&kept, &[picture("street.png")]);
        assert_eq!((&first.tokens, &second.tokens), (&expected.tokens, &expected.tokens));
        assert_eq!(first.stages.reused_pictures, usize::from(image_cache > 0), "kept by the round before");
        assert_eq!((second.stages.reused_pictures, second.stages.encode_ms), (1, None));
        assert_eq!(second.stages.visual_tokens, expected.stages.visual_tokens);
        // Another picture, and the same under other settings, are encoded.
        assert_eq!(ask(&kept, &[picture("shapes.png"), picture("street.png")]).stages.reused_pictures, {
            1 + usize::from(image_cache > 0)
        });
        if image_cache == 0 {
            let half = Reduction { method: "merge".to_owned(), keep: Keep::Share(0.5) };
            let other = LoadOptions { reduction: Some(half), ..kept.clone() };
            assert_eq!(ask(&other, &[picture("street.png")]).stages.reused_pictures, 0);
        }
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_an_error_at_load() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let options = LoadOptions {
        image_folder: Some(ImageFolder { path: file.join("rows"), most_bytes: 1 << 20 }),
        ..LoadOptions::default()
    };
    let error = Model::nano_with(&options).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("rows"), "{error}");
}

/// A folder that is gone, as a disk that is full, ends no answer.
#[test]
fn a_folder_that_can_no_longer_be_written_is_noted_and_answers_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows");
    let options = LoadOptions {
        image_folder: Some(ImageFolder { path: path.clone(), most_bytes: 1 << 20 }),
        ..LoadOptions::default()
    };
    let model = Model::nano_with(&options).unwrap();
    std::fs::remove_dir(&path).unwrap();
    std::fs::write(&path, "a file where the folder was").unwrap();
    assert!(model.notes().unwrap().is_empty());
    for _ in 0..2 {
        let mut session = model.session().unwrap();
        let report =
            session.ask(&[picture("street.png")], "What does the sign say?").unwrap().report().unwrap();
        assert!(report.text.contains("BAR"), "{}", report.text);
    }
    let notes = model.notes().unwrap();
    assert!(notes.len() == 1 && notes[0].contains("no longer kept"), "{notes:?}");
}
