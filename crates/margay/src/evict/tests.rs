//! What is chosen, and what a session does with it.

use super::*;
use crate::{AskOptions, KvType, LoadOptions, Model};

#[test]
fn the_first_blocks_and_the_newest_tokens_stay_in_whole_blocks() {
    let kept = sliding(&[2, 1], 512, (100, 4)).unwrap();
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
    let narrow = Eviction::Window { window: 200, sinks: 4 };
    assert!(narrow.check(context).is_err());
}
