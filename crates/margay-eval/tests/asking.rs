//! Questions put to the built-in model, in one run, in several, and one by one.
#![allow(clippy::unwrap_used, reason = "a test")]

use margay::{LoadOptions, Model};
use margay_eval::{PictureAt, Record, Suite, ask, choose, open_picture, score, suite_entry};
use std::{ops::ControlFlow, path::Path};

fn suite() -> Box<dyn Suite> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../margay-cli/tests/data/nano-suite");
    (suite_entry("nano").unwrap().open)(&folder).unwrap()
}

#[test]
fn a_stopped_run_goes_on_and_shared_pictures_change_no_answer() {
    let (suite, model) = (suite(), Model::nano().unwrap());
    let chosen = choose(suite.items(), Some(20));
    let mut session = model.session().unwrap();
    let mut record = Record::in_memory();
    let mut count = 0;
    let whole = ask(&mut session, suite.as_ref(), &chosen, 64, &mut record, &mut |step| {
        count += 1;
        assert_eq!((step.done, step.of, step.before), (count, chosen.len(), 0));
        if count == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(!whole.unwrap());
    let whole = ask(&mut session, suite.as_ref(), &chosen, 64, &mut record, &mut |step| {
        count += 1;
        assert_eq!((step.done, step.before), (count, 5));
        ControlFlow::Continue(())
    });
    assert!(whole.unwrap());
    assert_eq!(count, chosen.len());

    let mut alone = Record::in_memory();
    for at in &chosen {
        let mut session = model.session().unwrap();
        let go_on = &mut |_: &margay_eval::Asked<'_>| ControlFlow::Continue(());
        ask(&mut session, suite.as_ref(), &[*at], 64, &mut alone, go_on).unwrap();
        let id = &suite.items()[*at].id;
        assert_eq!(record.get(id), alone.get(id));
    }
}

#[test]
fn what_does_not_fit_the_context_is_wrong_and_counted() {
    let suite = suite();
    let model = Model::nano_with(&LoadOptions { context: Some(40), ..LoadOptions::default() }).unwrap();
    let chosen = choose(suite.items(), Some(10));
    let mut record = Record::in_memory();
    let mut session = model.session().unwrap();
    let go_on = &mut |_: &margay_eval::Asked<'_>| ControlFlow::Continue(());
    assert!(ask(&mut session, suite.as_ref(), &chosen, 64, &mut record, go_on).unwrap());
    let entry = record.get(&suite.items()[chosen[0]].id).unwrap();
    assert!(entry.answer.is_none() && entry.why.as_ref().unwrap().contains("the context holds 40"));
    let score = score(suite.as_ref(), &chosen, &record);
    assert_eq!(score.headline.value, Some(0.0));
    assert!(score.notes[0].contains(&format!("{} questions could not be asked", chosen.len())));
}

#[test]
fn a_picture_that_is_none_is_named_by_its_question() {
    let why = |text: &str| open_picture(&PictureAt::Base64(text.into()), "7").unwrap_err().to_string();
    assert!(why("?").contains("the picture of question 7 is no base64"));
    assert!(why("QUJD").contains("the picture of question 7"));
}
