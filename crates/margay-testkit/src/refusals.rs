//! What every backend refuses, checked in one way.

#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use crate::weights::MapWeights;
use margay_graph::{
    AdaptivePool, Attention, Backend, Bindings, Builder, Cancel, InputData, Mask, Program, Stage,
    StateOptions, Sym,
};

/// A cached attention whose first tokens see one another.
fn prefixed() -> Program {
    let mut b = Builder::new(Stage::Text);
    let [q, k, v] = ["q", "k", "v"].map(|name| b.input_f32(name, [Sym::Tokens.into(), 8.into()]));
    let attention =
        Attention { heads: 2, kv_heads: 2, head_dim: 4, scale: 0.5, mask: Mask::Prefix, cache: None };
    let y = b.attention([q, k, v], attention, true).unwrap();
    b.output("y", y);
    b.finish().unwrap()
}

/// A call that holds a part of the tokens that see one another is refused, and changes nothing.
///
/// # Panics
/// Where it is not.
pub fn of_a_part_of_a_prefix(backend: &dyn Backend) {
    let cancel = Cancel::new();
    let limits = Bindings::new().with(Sym::Tokens, 9);
    let mut program = backend.compile(&prefixed(), &MapWeights::new(), &limits).unwrap();
    let mut state = program.new_state(StateOptions::new(20)).unwrap();
    let rows = vec![0.5f32; 9 * 8];
    let mut run = |tokens: usize, prefix: Option<usize>| {
        let sizes = Bindings::new().with(Sym::Tokens, tokens);
        let sizes = prefix.map_or(sizes, |prefix| sizes.with(Sym::Prefix, prefix));
        let row = InputData::F32(&rows[..tokens * 8]);
        let done = program.run(&sizes, &[row; 3], Some(&mut *state), &cancel);
        (done.map_err(|e| e.to_string()), state.len())
    };
    let refused = |(done, held): (Result<(), String>, usize), why: &str, then: usize| {
        let error = done.unwrap_err();
        assert!(error.contains(why) && held == then, "{error}, {held} held");
    };
    refused(run(4, Some(5)), "computed together, not 4 behind 0", 0);
    refused(run(4, None), "prefix", 0);
    assert_eq!(run(3, Some(0)), (Ok(()), 3));
    refused(run(4, Some(5)), "computed together, not 4 behind 3", 3);
    assert_eq!(run(1, Some(3)), (Ok(()), 4));
}

/// Maps that do not fit what they are maps of are refused.
///
/// # Panics
/// Where they are not.
pub fn of_maps_that_do_not_fit(backend: &dyn Backend) {
    let mut b = Builder::new(Stage::Project);
    let x = b.input_f32("x", [Sym::Patches.into(), 3.into()]);
    let (map, size) = (b.input_i32("map", Sym::Outputs), b.input_i32("size", 2));
    let y = b.adaptive_pool(x, map, size, AdaptivePool { height: 2, width: 2 }).unwrap();
    b.output("y", y);
    let wrong = b.adaptive_pool(x, map, map, AdaptivePool { height: 2, width: 2 });
    assert!(wrong.unwrap_err().to_string().contains("two sizes"));
    assert!(b.adaptive_pool(x, map, size, AdaptivePool { height: 0, width: 2 }).is_err());
    let narrow = b.input_f32("narrow", [3.into(), 3.into()]);
    assert!(b.concat_columns(x, narrow).is_err());
    let program = b.finish().unwrap();
    let limits = Bindings::new().with(Sym::Patches, 4).with(Sym::Outputs, 9);
    let mut program = backend.compile(&program, &MapWeights::new(), &limits).unwrap();
    let (x, narrow) = ([1.0f32; 12], [0.0f32; 9]);
    let mut run = |map: &[i32], size: [i32; 2]| {
        let sizes = Bindings::new().with(Sym::Patches, 4).with(Sym::Outputs, map.len());
        let inputs =
            [InputData::F32(&x), InputData::I32(map), InputData::I32(&size), InputData::F32(&narrow)];
        program.run(&sizes, &inputs, None, &Cancel::new()).map_err(|e| e.to_string())
    };
    assert_eq!(run(&[0, 3, 3, 0, 1, 2], [2, 3]), Ok(()));
    for (map, size, why) in [
        (&[0, 1, 2, 3][..], [2, 3], "no map of 2 x 3"),
        (&[0, 1, 2, 3], [-2, -2], "[-2, -2]"),
        (&[], [0, 7], "map"),
        (&[0, 1, 2, 4], [2, 2], "row 4"),
        (&[0, 1, 2, -1], [2, 2], "row -1"),
    ] {
        let error = run(map, size).unwrap_err();
        assert!(error.contains(why), "{map:?} {size:?}: {error}");
    }
}
