//! The reference keeps the promises of `Backend`, `Executable` and `State`.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod common;

use common::{Weights, noise, text_program, vision_program};
use margay_graph::{
    Backend, BackendError, Bindings, Cancel, Executable, InputData, Program, RopeStyle, State, StateOptions,
    Sym, passes,
};
use margay_reference::ReferenceBackend;

/// One call computes the rows of another in another order of sums, in float32.
const SAME_IN_F32: f32 = 1e-5;

const LIMITS: (usize, usize) = (16, 4);

fn compile(program: &Program) -> Box<dyn Executable> {
    let limits =
        Bindings::new().with(Sym::Tokens, LIMITS.0).with(Sym::Visual, LIMITS.1).with(Sym::Outputs, LIMITS.0);
    ReferenceBackend::new().compile(program, &Weights::random(program, 7), &limits).unwrap()
}

fn state(text: &dyn Executable, capacity: usize) -> Box<dyn State> {
    text.new_state(StateOptions::new(capacity)).unwrap()
}

/// Feeds ids at the state's end and gives the hidden rows.
fn feed(text: &mut dyn Executable, state: &mut dyn State, ids: &[i32]) -> Result<Vec<f32>, BackendError> {
    let past = state.len() as i32;
    let positions: Vec<i32> = (past..past + ids.len() as i32).collect();
    let visual = noise(3, 24);
    let bindings = Bindings::new().with(Sym::Tokens, ids.len()).with(Sym::Visual, 2).with(Sym::Outputs, 0);
    let inputs =
        [InputData::I32(ids), InputData::F32(&visual), InputData::I32(&positions), InputData::I32(&[])];
    text.run(&bindings, &inputs, Some(state), &Cancel::new())?;
    assert_eq!(text.output("logits").unwrap().len(), 0, "no rows asked for");
    Ok(text.output("hidden").unwrap().to_vec())
}

fn assert_close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    let worst = a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(worst <= SAME_IN_F32, "{worst}");
}

const IDS: [i32; 7] = [1, -1, -2, 4, 9, 0, 4];

#[test]
fn a_prompt_in_pieces_gives_what_it_gives_whole() {
    for style in [RopeStyle::Half, RopeStyle::Interleaved] {
        let mut text = compile(&text_program(true, style));
        let mut whole = state(&*text, 16);
        let expected = feed(&mut *text, &mut *whole, &IDS).unwrap();
        let mut pieces = state(&*text, 16);
        let mut got = Vec::new();
        for piece in [&IDS[..3], &IDS[3..3], &IDS[3..4], &IDS[4..]] {
            got.extend(feed(&mut *text, &mut *pieces, piece).unwrap());
        }
        assert_eq!((whole.len(), pieces.len()), (7, 7));
        assert_close(&got, &expected);
    }
}

#[test]
fn truncating_forgets_and_nothing_else() {
    let mut text = compile(&text_program(true, RopeStyle::Half));
    let mut kept = state(&*text, 16);
    let expected = feed(&mut *text, &mut *kept, &IDS).unwrap();
    kept.truncate(99);
    assert_eq!(kept.len(), 7, "a longer length changes nothing");
    kept.truncate(4);
    assert_eq!(kept.len(), 4);
    feed(&mut *text, &mut *kept, &[8, 8]).unwrap();
    kept.truncate(4);
    assert_close(&feed(&mut *text, &mut *kept, &IDS[4..]).unwrap(), &expected[4 * 12..]);
    kept.truncate(0);
    assert!(kept.is_empty() && kept.size_bytes() == 0);
    assert_close(&feed(&mut *text, &mut *kept, &IDS).unwrap(), &expected);
}

#[test]
fn a_failed_call_leaves_the_state_as_it_was() {
    let mut text = compile(&text_program(true, RopeStyle::Half));
    let mut kept = state(&*text, 5);
    feed(&mut *text, &mut *kept, &IDS[..4]).unwrap();
    let err = feed(&mut *text, &mut *kept, &[1, 2]).unwrap_err();
    assert!(matches!(err, BackendError::ContextFull { capacity: 5, used: 4, wanted: 2 }), "{err}");
    assert_eq!(kept.len(), 4);
    for (ids, said) in
        [([10], "id 10 is outside the 10 tokens"), ([-3], "id -3 is outside the 2 visual rows")]
    {
        let err = feed(&mut *text, &mut *kept, &ids).unwrap_err().to_string();
        assert_eq!(err, format!("embed of table: {said}"));
    }
    // Past the attention, which has appended by then.
    let bindings = Bindings::new().with(Sym::Tokens, 1).with(Sym::Visual, 0).with(Sym::Outputs, 1);
    let inputs = [InputData::I32(&[1]), InputData::F32(&[]), InputData::I32(&[4]), InputData::I32(&[1])];
    let err = text.run(&bindings, &inputs, Some(&mut *kept), &Cancel::new()).unwrap_err();
    assert_eq!(err.to_string(), "gather_rows: row 1 is outside the 1 rows");
    assert_eq!(kept.len(), 4);
    feed(&mut *text, &mut *kept, &[1]).unwrap();
    assert_eq!(kept.len(), 5);
}

#[test]
fn a_cancelled_run_stops_and_appends_nothing() {
    let mut text = compile(&text_program(true, RopeStyle::Half));
    let mut kept = state(&*text, 5);
    let cancel = Cancel::new();
    cancel.cancel();
    let bindings = Bindings::new().with(Sym::Tokens, 1).with(Sym::Visual, 0).with(Sym::Outputs, 1);
    let inputs = [InputData::I32(&[1]), InputData::F32(&[]), InputData::I32(&[0]), InputData::I32(&[0])];
    let err = text.run(&bindings, &inputs, Some(&mut *kept), &cancel).unwrap_err();
    assert!(matches!(err, BackendError::Cancelled));
    assert!(kept.is_empty());
    cancel.reset();
    text.run(&bindings, &inputs, Some(&mut *kept), &cancel).unwrap();
    assert_eq!(kept.len(), 1);
}

#[test]
fn calls_that_do_not_fit_are_refused_by_name() {
    let mut text = compile(&text_program(true, RopeStyle::Half));
    let mut kept = state(&*text, 32);
    let cancel = Cancel::new();
    let sizes = |t, v, r| Bindings::new().with(Sym::Tokens, t).with(Sym::Visual, v).with(Sym::Outputs, r);
    let good = [InputData::I32(&[1]), InputData::F32(&[]), InputData::I32(&[0]), InputData::I32(&[0])];
    let err = text.run(&sizes(17, 0, 1), &good, Some(&mut *kept), &cancel).unwrap_err();
    assert_eq!(err.to_string(), "T = 17, but the program was compiled for at most 16");
    let err = text.run(&sizes(1, 0, 1), &good[..3], Some(&mut *kept), &cancel).unwrap_err();
    assert_eq!(err.to_string(), "3 inputs handed in, the program takes ids, visual, positions, rows");
    let err = text.run(&sizes(2, 0, 1), &good, Some(&mut *kept), &cancel).unwrap_err();
    assert_eq!(err.to_string(), "input ids holds 1 values, expected [2]");
    let mixed = [good[1], good[1], good[2], good[3]];
    let err = text.run(&sizes(0, 0, 1), &mixed, Some(&mut *kept), &cancel).unwrap_err();
    assert_eq!(err.to_string(), "input ids takes int32");
    let err = text.run(&sizes(1, 0, 1), &good, None, &cancel).unwrap_err();
    assert!(err.to_string().contains("KV cache"), "{err}");
    let mut foreign = compile(&vision_program()).new_state(StateOptions::new(4)).unwrap();
    let err = text.run(&sizes(1, 0, 1), &good, Some(&mut *foreign), &cancel).unwrap_err();
    assert!(err.to_string().contains("another program"), "{err}");
    assert!(text.new_state(StateOptions::new(usize::MAX)).is_err());
}

#[test]
fn weights_of_another_shape_or_missing_are_named() {
    let program = vision_program();
    let mut weights = Weights::random(&program, 7);
    let compile =
        |weights: &Weights| ReferenceBackend::new().compile(&program, weights, &Bindings::new()).err();
    weights.0.get_mut("dense").unwrap().0 = [6, 6, 4, 1].into();
    let err = compile(&weights).unwrap().to_string();
    assert_eq!(err, "weight dense: the model file has [6, 6, 4, 1], the program wants [6, 6, 2, 2]");
    weights.0.remove("dense");
    assert_eq!(compile(&weights).unwrap().to_string(), "weight dense: not there");
}

#[test]
fn a_fused_program_means_what_its_parts_meant() {
    let plain = text_program(true, RopeStyle::Interleaved);
    let fused = passes::optimize(&plain);
    assert!(fused.nodes().len() < plain.nodes().len());
    // The two list their weights in the same order, so they draw the same random numbers.
    let [a, b] = [plain, fused].map(|program| {
        let mut text = compile(&program);
        let mut kept = state(&*text, 16);
        feed(&mut *text, &mut *kept, &IDS).unwrap()
    });
    assert_eq!(a, b);
}
