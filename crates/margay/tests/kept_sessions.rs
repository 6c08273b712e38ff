//! Conversations that are kept in a file.

#![allow(clippy::unwrap_used, reason = "a test")]

use margay::{AskOptions, Error, Image, KvType, LoadOptions, Model, Session};
use std::{fs, path::Path};

fn model() -> Model {
    let options = LoadOptions { context: Some(512), ..LoadOptions::default() };
    Model::nano_with(&options).unwrap()
}

fn ask(session: &mut Session, image: Option<&Image>, text: &str) -> (Vec<u32>, usize) {
    let options = AskOptions { max_tokens: 12, ..AskOptions::default() };
    let images: Vec<Image> = image.cloned().into_iter().collect();
    let report = session.ask_with(&images, text, &options).unwrap().report().unwrap();
    (report.tokens, report.stages.reused_tokens)
}

fn picture() -> Image {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/images/street.png");
    Image::open(path).unwrap()
}

#[test]
fn a_conversation_goes_on_from_its_file_as_if_it_had_not_been_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("talk.margay");
    let mut session = model().session().unwrap();
    session.system("Answer shortly.");
    ask(&mut session, Some(&picture()), "What does the sign say?");
    session.save(&path).unwrap();
    let then =
        [ask(&mut session, None, "What colour is it?"), ask(&mut session, None, "And what else is there?")];

    // Another process, in which nothing was computed yet.
    let mut restored = model().load_session(&path).unwrap();
    let now =
        [ask(&mut restored, None, "What colour is it?"), ask(&mut restored, None, "And what else is there?")];
    assert_eq!(now, then);
    assert!(then[0].1 > 50, "{then:?}");
    // And so does one that is kept again, from where it is.
    restored.save(&path).unwrap();
    let mut again = model().load_session(&path).unwrap();
    let next = |session: &mut Session| ask(session, Some(&picture()), "Is it the same sign?");
    assert_eq!(next(&mut again), next(&mut session));
    // An empty one, too.
    model().session().unwrap().save(&path).unwrap();
    assert_eq!(model().load_session(&path).unwrap().used_tokens(), 0);
}

#[test]
fn a_file_that_does_not_fit_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("talk.margay");
    let mut session = model().session().unwrap();
    ask(&mut session, Some(&picture()), "What does the sign say?");
    session.save(&path).unwrap();
    let refused = |model: &Model, path: &Path| match model.load_session(path) {
        Err(Error::Session { what, .. }) => what,
        Err(Error::File(e)) => e.to_string(),
        Err(e) => panic!("{e}"),
        Ok(_) => panic!("it was taken"),
    };
    let load = |options: LoadOptions| Model::nano_with(&options).unwrap();
    let q8 = load(LoadOptions { kv: KvType::Q8, ..LoadOptions::default() });
    assert!(refused(&q8, &path).contains("--kv"));
    let int8 = load(LoadOptions { int8_encoder: true, ..LoadOptions::default() });
    assert!(refused(&int8, &path).contains("settings"));
    let short = load(LoadOptions { context: Some(32), ..LoadOptions::default() });
    assert!(refused(&short, &path).contains("context"));
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/mobilevlm-v2");
    assert!(refused(&Model::load(&golden).unwrap(), &path).contains("another model"));

    let model = model();
    let whole = fs::read(&path).unwrap();
    let damaged = folder.path().join("damaged");
    // Every byte matters: those of the head, of the numbers, and the last.
    let head = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for at in [0, 9, head / 2, head - 1, head + 1, head + (whole.len() - head) / 2, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&damaged, bytes).unwrap();
        refused(&model, &damaged);
    }
    for length in [0, 7, head, whole.len() - 1] {
        fs::write(&damaged, &whole[..length]).unwrap();
        refused(&model, &damaged);
    }
    fs::write(&damaged, [&whole[..], b"x"].concat()).unwrap();
    refused(&model, &damaged);
    assert!(refused(&model, &folder.path().join("absent")).contains("absent"));
    assert!(matches!(session.save(folder.path()), Err(Error::File(_))));
    assert!(model.load_session(&path).is_ok());
}
