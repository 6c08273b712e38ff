//! What is chosen, and what a session does with it.

use super::*;
use crate::{AskOptions, Image, KvType, LoadOptions, Model, Report};
use std::path::Path;

#[test]
fn the_first_blocks_and_the_newest_tokens_stay_in_whole_blocks() {
    let kept = sliding(&[2, 1], 512, (100, blocks_of(4))).unwrap();
    let expected: Vec<u32> = (0..64).chain(384..512).collect();
    assert_eq!((kept.of(0, 1), kept.of(1, 0), kept.first_dropped()), (&expected[..], &expected[..], 64));
    assert_eq!((kept.whole_block(0, 64), kept.whole_block(64, 64)), (Some(0), Some(6)));
    assert_eq!(sliding(&[1], 500, (100, 0)).unwrap().of(0, 0), (384..500).collect::<Vec<u32>>());
}

#[test]
fn snapkv_keeps_the_window_and_the_neighbourhoods_that_it_looks_at() {
    // A peak at 20 in one head and one at 3 and one at 50 in the other, of 100 tokens.
    let mut scores = vec![vec![vec![0.0f32; 100]; 2]];
    (scores[0][0][20], scores[0][1][3], scores[0][1][50]) = (1.0, 2.0, 1.0);
    // What the window pays itself counts for nothing.
    scores[0][0][80] = 9.0;
    let kept = snap_kv(&scores, 100, OBSERVED + POOLED).unwrap();
    let window = 68..100;
    assert_eq!(kept.of(0, 0), (17..24).chain(window.clone()).collect::<Vec<u32>>());
    // At the edge the mean is over 7 places, too.
    assert_eq!(kept.of(0, 1), (0..7).chain(window).collect::<Vec<u32>>());
}

#[test]
fn h2o_keeps_as_many_heavy_as_new_tokens() {
    let mut scores = vec![vec![vec![0.0f32; 100]]];
    [(5, 3.0), (77, 2.0), (40, 1.0), (99, 9.0)].iter().for_each(|(at, x)| scores[0][0][*at] = *x);
    let kept = heavy_hitters(&scores, 100, 6).unwrap();
    assert_eq!(kept.of(0, 0), [5, 40, 77, 97, 98, 99]);
}

fn model(eviction: Option<Eviction>, context: usize) -> Model {
    let options = LoadOptions { kv: KvType::F32, eviction, context: Some(context), ..LoadOptions::default() };
    Model::nano_with(&options).unwrap()
}

#[test]
fn budgets_that_keep_all_change_nothing_and_smaller_ones_keep_so_many() {
    let question =
        "What is in this picture? Say it in a few words, and then say it again in other words. ".repeat(2);
    let ask = |eviction| {
        let model = model(eviction, 512);
        let mut session = model.session().unwrap();
        let options = AskOptions { max_tokens: 4, ..AskOptions::default() };
        let report = session.ask_with(&[], &question, &options).unwrap().report().unwrap();
        let prompt = session.held.len() - report.stages.decode_tokens;
        (report.tokens, prompt, session)
    };
    let (all, prompt, _) = ask(None);
    assert!(prompt > 64, "{prompt}");
    for of in [Eviction::SnapKv, Eviction::H2o] {
        let (same, ..) = ask(Some(of(Budget::Share(1.0))));
        assert_eq!(same, all);
        let (_, prompt, mut session) = ask(Some(of(Budget::Tokens(40))));
        let decoded = session.held.len() - prompt;
        assert_eq!(session.used_tokens(), 40 + decoded, "what was dropped is held no more");
        // What lies behind the first dropped token is not taken for what it was.
        let intact = session.intact();
        assert!(intact < prompt);
        let options = AskOptions { max_tokens: 4, ..AskOptions::default() };
        let report = session.ask_instead(&question, &options).unwrap().report().unwrap();
        assert!(report.stages.reused_tokens <= intact);
        assert_eq!(report.stages.reused_tokens + report.stages.prefill_tokens, prompt);
    }
}

#[test]
fn with_a_window_an_answer_goes_on_beyond_the_context() {
    let context = 256;
    let options = AskOptions {
        max_tokens: 400,
        // Nothing ends it but the number of tokens.
        logit_bias: vec![],
        ..AskOptions::default()
    };
    let ask = |eviction| {
        let model = model(eviction, context);
        let stops: Vec<_> = model.tokenizer().stop_ids().iter().map(|id| (*id, f32::NEG_INFINITY)).collect();
        let mut session = model.session().unwrap();
        let options = AskOptions { logit_bias: stops, ..options.clone() };
        let report = session.ask_raw(&[], "One two three", &options).unwrap().report().unwrap();
        (report, session)
    };
    let (cut, _) = ask(None);
    assert_eq!(cut.stop, crate::Stop::Context);
    let (long, session) = ask(Some(Eviction::Window { window: 60, sinks: 4 }));
    assert_eq!((long.stop, long.tokens.len()), (crate::Stop::Length, 400));
    assert_eq!(
        long.tokens[..cut.tokens.len()],
        cut.tokens,
        "until the context is full, it is the same answer"
    );
    assert!(session.used_tokens() <= context && session.intact() == 64);
    assert!(Eviction::Window { window: 64, sinks: 4 }.check(context).is_ok());
    assert!(Eviction::Window { window: 65, sinks: 4 }.check(context).is_err());
}

#[test]
fn the_first_tokens_stand_where_the_gap_behind_them_ends() {
    // Words alone: as many positions as tokens were dropped, so that the next token of a cache of `len` tokens is `len` from the
    // first, whatever was dropped.
    for dropped in [0, 64, 640, 64_000] {
        assert_eq!(gap(64, 64 + dropped, &|token| [token as i32; 3]), dropped as i32);
    }
    // A picture of 100 tokens takes 10 positions, from 30 on; what follows it begins at 40.
    let place = |token: usize| match token {
        0..30 => [token as i32; 3],
        30..130 => [30, 30 + (token - 30) as i32 / 10, 30 + (token - 30) as i32 % 10],
        _ => [token as i32 - 90; 3],
    };
    assert_eq!(gap(30, 130, &place), 10);
    assert_eq!(gap(130, 200, &place), 70);
    // Within the picture, and where its last row was seen already.
    assert_eq!((gap(20, 50, &place), gap(64, 128, &place)), (10, 0));
    assert_eq!(gap(0, 64, &place), 30);
}

/// Answers of so many tokens, of which the model ends none.
fn endless(model: &Model, pictures: &[Image], max_tokens: usize) -> (Report, Session) {
    let stops = model.tokenizer().stop_ids().iter().map(|id| (*id, f32::NEG_INFINITY)).collect();
    let options = AskOptions { max_tokens, logit_bias: stops, ..AskOptions::default() };
    let mut session = model.session().unwrap();
    let report = session.ask_with(pictures, "What is there? Say it.", &options).unwrap().report().unwrap();
    (report, session)
}

/// Positions of Qwen2-VL have three axes, on which a picture is shorter than its tokens are many.
#[test]
fn a_model_with_positions_on_three_axes_drops_tokens_as_others_do() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/qwen2vl");
    let picture = [Image::open(folder.join("wide.png")).unwrap()];
    let load = |eviction, context| {
        let options = LoadOptions { kv: KvType::F32, eviction, context, ..LoadOptions::default() };
        Model::load_with(&folder, &options).unwrap()
    };
    let (all, session) = endless(&load(None, Some(1024)), &picture, 300);
    assert!(all.stages.visual_tokens > 8, "{:?}", all.stages);
    let prompt = session.held.len() - all.stages.decode_tokens;

    let window = Eviction::Window { window: 60, sinks: 4 };
    let (long, session) = endless(&load(Some(window), Some(256)), &picture, 300);
    assert_eq!((long.stop, long.tokens.len()), (crate::Stop::Length, 300));
    let before = 256 - prompt;
    assert_eq!(
        long.tokens[..before],
        all.tokens[..before],
        "until the context is full, it is the same answer"
    );
    assert!(session.dropped_tokens() >= 64 && session.used_tokens() <= 256);

    for of in [Eviction::SnapKv, Eviction::H2o] {
        let (same, _) = endless(&load(Some(of(Budget::Share(1.0))), Some(1024)), &picture, 20);
        assert_eq!(same.tokens, all.tokens[..20]);
        let (few, session) = endless(&load(Some(of(Budget::Tokens(40))), Some(1024)), &picture, 20);
        assert_eq!((session.used_tokens(), few.tokens.len()), (40 + few.stages.decode_tokens, 20));
        assert!(prompt > 40 && session.intact() < prompt);
    }
}

#[test]
fn a_conversation_goes_on_behind_a_window_as_if_its_first_tokens_had_never_been_turned() {
    let load = |eviction| {
        let options = LoadOptions { kv: KvType::F32, eviction, context: Some(256), ..LoadOptions::default() };
        Model::nano_with(&options).unwrap()
    };
    let (_, mut session) = endless(&load(Some(Eviction::Window { window: 60, sinks: 4 })), &[], 400);
    assert!(session.dropped_tokens() > 0);
    let ask = AskOptions { max_tokens: 8, ..AskOptions::default() };
    let instead = session.ask_instead("What is there? Say it.", &ask).unwrap().report().unwrap();
    let fresh = load(None);
    let mut fresh = fresh.session().unwrap();
    let expected = fresh.ask_with(&[], "What is there? Say it.", &ask).unwrap().report().unwrap();
    assert_eq!(instead.tokens, expected.tokens);
}
