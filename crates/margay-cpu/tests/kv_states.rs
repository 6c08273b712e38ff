//! States of every type of keys and values: cut, kept, shared, thinned, and several at a time.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod decoder;

use decoder::{LAYERS, PROMPT, decoder, prompt};
use margay_cpu::{CpuBackend, CpuOptions, KvType};
use margay_graph::{
    Backend, Bindings, Cancel, Executable, InputData, Kept, Observe, Segment, State, StateOptions, Sym,
};

const CAPACITY: usize = 256;

struct Cpu {
    decoder: Box<dyn Executable>,
}

impl Cpu {
    fn new(kv: KvType, kv_image: Option<KvType>) -> Cpu {
        Self::of(LAYERS, kv, kv_image)
    }

    fn of(layers: usize, kv: KvType, kv_image: Option<KvType>) -> Cpu {
        let options = CpuOptions { threads: Some(2), kv, kv_image, ..Default::default() };
        let (program, weights) = decoder(layers);
        let limits = Bindings::new().with(Sym::Tokens, PROMPT).with(Sym::Outputs, 2);
        let decoder = CpuBackend::new(options).unwrap().compile(&program, &weights, &limits).unwrap();
        Cpu { decoder }
    }

    fn state(&self) -> Box<dyn State> {
        self.decoder.new_state(StateOptions::new(CAPACITY)).unwrap()
    }

    /// Appends tokens, so many a call, and gives the last logits.
    fn feed(&mut self, state: &mut dyn State, ids: &[i32], cut: usize) -> Vec<u32> {
        let past = state.len() as i32;
        let positions: Vec<i32> = (past..past + ids.len() as i32).collect();
        self.feed_at(state, ids, &positions, cut)
    }

    fn feed_at(&mut self, state: &mut dyn State, ids: &[i32], positions: &[i32], cut: usize) -> Vec<u32> {
        for (ids, positions) in ids.chunks(cut).zip(positions.chunks(cut)) {
            let last = [ids.len() as i32 - 1];
            let inputs = [InputData::I32(ids), InputData::I32(positions), InputData::I32(&last)];
            let sizes = Bindings::new().with(Sym::Tokens, ids.len()).with(Sym::Outputs, 1);
            self.decoder.run(&sizes, &inputs, Some(&mut *state), &Cancel::new()).unwrap();
        }
        self.bits()
    }

    fn bits(&self) -> Vec<u32> {
        self.decoder.output("logits").unwrap().iter().map(|x| x.to_bits()).collect()
    }
}

/// Two blocks and a bit.
fn ids() -> Vec<i32> {
    prompt().into_iter().cycle().take(2 * 64 + 20).collect()
}

fn far(a: &[u32], b: &[u32]) -> f32 {
    let values = |x: &[u32]| x.iter().map(|bits| f32::from_bits(*bits)).collect::<Vec<f32>>();
    let (a, b) = (values(a), values(b));
    let off: f32 = a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum();
    (off / b.iter().map(|b| b * b).sum::<f32>()).sqrt()
}

#[test]
fn a_fork_goes_on_as_a_state_that_shares_nothing_and_neither_sees_the_other() {
    for kv in KvType::ALL {
        let mut cpu = Cpu::new(kv, None);
        let ids = ids();
        // Within a block, at the end of one, and behind the last token.
        for len in [30, 64, 100, 128, ids.len()] {
            let mut alone = cpu.state();
            cpu.feed(&mut *alone, &ids[..len], 60);
            let expected = cpu.feed(&mut *alone, &[7, 8, 9], 1);
            let mut first = cpu.state();
            cpu.feed(&mut *first, &ids[..len], 60);
            let mut second = first.fork(len).unwrap();
            assert_eq!((second.len(), second.capacity(), second.form()), (len, CAPACITY, first.form()));
            let other = cpu.feed(&mut *first, &[50, 60, 70], 1);
            assert_eq!(cpu.feed(&mut *second, &[7, 8, 9], 1), expected, "{kv:?} {len}");
            assert_ne!(other, expected);
            // The first goes, the second stays whole.
            drop(first);
            second.truncate(len);
            let mut third = second.fork(len).unwrap();
            assert_eq!(cpu.feed(&mut *third, &[7, 8, 9], 1), expected, "{kv:?} {len}");
        }
    }
}

#[test]
fn a_truncated_state_goes_on_as_before_and_one_of_two_bits_from_what_it_keeps() {
    for kv in KvType::ALL {
        let mut cpu = Cpu::new(kv, None);
        let ids = ids();
        let mut straight = cpu.state();
        cpu.feed(&mut *straight, &ids[..50], 50);
        let expected = cpu.feed(&mut *straight, &[7, 8], 1);
        let mut detour = cpu.state();
        cpu.feed(&mut *detour, &ids, 50);
        detour.truncate(50);
        assert_eq!(detour.len(), 50);
        let got = cpu.feed(&mut *detour, &[7, 8], 1);
        if kv == KvType::Kivi2 {
            // The block was rewritten in two bits, and is opened again as it is then.
            let off = far(&got, &expected);
            assert!(off > 0.0 && off < 0.5, "{off}");
        } else {
            assert_eq!(got, expected, "{kv:?}");
        }
    }
}

#[test]
fn what_was_full_is_only_rewritten_once_a_later_call_begins() {
    let mut cpu = Cpu::new(KvType::Kivi2, None);
    let ids = ids();
    let mut straight = cpu.state();
    cpu.feed(&mut *straight, &ids[..62], 62);
    let expected = cpu.feed(&mut *straight, &[7], 1);
    // Guesses that fill a block and are taken back leave no trace.
    let mut guessed = cpu.state();
    cpu.feed(&mut *guessed, &ids[..62], 62);
    cpu.feed(&mut *guessed, &[1, 2, 3, 4], 4);
    guessed.truncate(62);
    assert_eq!(cpu.feed(&mut *guessed, &[7], 1), expected);
}

#[test]
fn a_kept_state_goes_on_as_if_it_had_never_been_interrupted_and_others_are_refused() {
    for (kv, image) in KvType::ALL.map(|kv| (kv, None)).into_iter().chain([(KvType::Q8, Some(KvType::Kivi2))])
    {
        let mut cpu = Cpu::new(kv, image);
        let ids = ids();
        let mut state = cpu.state();
        cpu.feed(&mut *state, &ids, 60);
        let bytes = state.snapshot(state.len());
        let part = state.snapshot(100);
        let expected = cpu.feed(&mut *state, &[7, 8, 9], 1);
        let mut again = cpu.state();
        again.restore(ids.len(), &bytes).unwrap();
        assert_eq!((again.len(), again.snapshot(ids.len())), (ids.len(), bytes.clone()));
        assert_eq!(cpu.feed(&mut *again, &[7, 8, 9], 1), expected, "{kv:?}");
        again.restore(100, &part).unwrap();
        assert_eq!(again.snapshot(100), part);
        // Too few, too many, and types that it does not keep.
        for bad in [&bytes[1..], &bytes[..7], &[&bytes[..], &[0]].concat(), &[&[9], &bytes[1..]].concat()] {
            assert!(again.restore(ids.len(), bad).is_err(), "{kv:?}");
        }
        assert!(again.restore(CAPACITY + 1, &bytes).is_err());
        assert_eq!(again.len(), 100, "what is refused changes nothing");
    }
}

#[test]
fn several_states_in_one_run_go_on_as_each_alone() {
    for kv in KvType::ALL {
        let mut cpu = Cpu::new(kv, None);
        let ids = ids();
        let mut states: Vec<_> = [40, 64]
            .map(|len| {
                let mut state = cpu.state();
                cpu.feed(&mut *state, &ids[..len], 60);
                state
            })
            .into();
        let expected: Vec<u32> = states
            .iter_mut()
            .flat_map(|state| {
                let len = state.len();
                let logits = cpu.feed(&mut **state, &[11], 1);
                state.truncate(len);
                logits
            })
            .collect();
        let positions: Vec<i32> = states.iter().map(|state| state.len() as i32).collect();
        let inputs = [InputData::I32(&[11, 11]), InputData::I32(&positions), InputData::I32(&[0, 1])];
        let sizes = Bindings::new().with(Sym::Tokens, 2).with(Sym::Outputs, 2);
        let mut segments: Vec<_> =
            states.iter_mut().map(|state| Segment { state: &mut **state, rows: 1 }).collect();
        cpu.decoder.run_several(&sizes, &inputs, &mut segments, &Cancel::new()).unwrap();
        assert_eq!(cpu.bits(), expected, "{kv:?}");
    }
}

/// All but some tokens, the same in every head.
fn kept(tokens: impl Iterator<Item = u32>) -> Kept {
    let tokens: Vec<u32> = tokens.collect();
    Kept::new(vec![vec![tokens; 2]; 2]).unwrap()
}

#[test]
fn what_is_retained_is_what_attention_sees_then() {
    // In one layer, keys and values depend on nothing but a token and its position: dropping tokens is never to have had
    // them. What a token becomes in two bits depends on those beside it.
    for kv in KvType::ALL.into_iter().filter(|kv| *kv != KvType::Kivi2) {
        let mut cpu = Cpu::of(1, kv, None);
        let ids = ids();
        let kept: Vec<u32> = (0..ids.len() as u32).filter(|at| at % 3 != 1 || *at > 130).collect();
        let mut thinned = cpu.state();
        cpu.feed(&mut *thinned, &ids, 60);
        thinned.retain(&Kept::new(vec![vec![kept.clone(); 2]]).unwrap()).unwrap();
        assert_eq!(thinned.len(), kept.len());
        let mut never = cpu.state();
        let positions: Vec<i32> = kept.iter().map(|at| *at as i32).collect();
        let few: Vec<i32> = kept.iter().map(|at| ids[*at as usize]).collect();
        cpu.feed_at(&mut *never, &few, &positions, 60);
        let next = [ids.len() as i32];
        let expected = cpu.feed_at(&mut *never, &[7], &next, 1);
        let got = cpu.feed_at(&mut *thinned, &[7], &next, 1);
        // Scales are computed again from what they gave.
        let off = far(&got, &expected);
        assert!(off < 1e-5, "{kv:?}: {off}");
        let exact = matches!(kv, KvType::F16 | KvType::F32);
        assert!(!exact || got == expected, "{kv:?}");
    }
}

#[test]
fn whole_blocks_that_stay_are_the_same_bytes_and_what_fits_nothing_is_refused() {
    for kv in KvType::ALL {
        let mut cpu = Cpu::new(kv, None);
        let ids = ids();
        let mut state = cpu.state();
        cpu.feed(&mut *state, &ids, 60);
        let mut all = state.fork(ids.len()).unwrap();
        all.retain(&kept(0..ids.len() as u32)).unwrap();
        let expected = cpu.feed(&mut *state, &[7], 1);
        assert_eq!(cpu.feed(&mut *all, &[7], 1), expected, "{kv:?}");
        let mut second = all.fork(128).unwrap();
        second.retain(&kept(64..128)).unwrap();
        // Behind types and masks of one block, and of two.
        let (one, both) = (second.snapshot(64), all.snapshot(128));
        assert_eq!(one[16..], both[both.len() - (one.len() - 16)..], "{kv:?}");
        let mut few = all.fork(128).unwrap();
        few.retain(&kept((0..128).filter(|at| at % 3 == 0))).unwrap();
        assert_eq!(few.len(), 43);
        let error = |kept: Kept| few.fork(43).unwrap().retain(&kept).unwrap_err().to_string();
        assert!(error(kept(40..44)).contains("token 43 of 43"));
        assert!(error(Kept::new(vec![vec![vec![1]]]).unwrap()).contains("another program"));
        assert!(
            Kept::new(vec![vec![vec![1, 0]]]).is_err() && Kept::new(vec![vec![vec![1], vec![]]]).is_err()
        );
    }
}

#[test]
fn attention_is_noted_of_the_newest_queries_and_of_all() {
    let mut cpu = Cpu::new(KvType::F32, None);
    let ids = ids();
    let note = |cpu: &mut Cpu, what: Observe, cut: usize| {
        let mut state = cpu.state();
        state.observe(what).unwrap();
        cpu.feed(&mut *state, &ids, cut);
        state.attention().unwrap()
    };
    let sum = |scores: &[f32]| scores.iter().sum::<f32>();
    let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4 * b.abs().max(1.0));
    let (newest, all) = (note(&mut cpu, Observe::Newest(32), 60), note(&mut cpu, Observe::All, 60));
    let (cut, cut_all) = (note(&mut cpu, Observe::Newest(32), 7), note(&mut cpu, Observe::All, 7));
    for (layer, heads) in newest.iter().enumerate() {
        assert_eq!((heads.len(), heads[0].len()), (2, ids.len()));
        for head in 0..2 {
            // Each query of each of the two heads that share a KV head pays 1.
            assert!((sum(&newest[layer][head]) - 64.0).abs() < 0.01);
            assert!((sum(&all[layer][head]) - 2.0 * ids.len() as f32).abs() < 0.05);
            assert!(
                near(&cut[layer][head], &newest[layer][head])
                    && near(&cut_all[layer][head], &all[layer][head])
            );
            // The first query sees but itself.
            assert!(all[layer][head][0] > 2.0 && newest[layer][head][ids.len() - 1] < 2.0);
        }
    }
    assert!(cpu.state().attention().unwrap()[0][0].is_empty());
}
