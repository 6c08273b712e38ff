use super::*;
use crate::{
    AskOptions, Budget, Content, Event, Eviction, Image, Keep, KvType, Model, ModelSource, Reduction, Report,
    Session, Stage, Turn, backends,
    draft::Payoff,
    engine::{compile, positions},
    greatest::greatest,
    packed::PackedFiles,
    prompt::Prompt,
    sample::{greedy, logprobs},
};
use margay_graph::{
    Bindings, Cancel, Executable, InputData, MemoryUse, Observe, Program, StateOptions, Sym, passes,
};
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn picture(name: &str) -> Image {
    Image::open(golden(name).join("wide.png")).unwrap()
}

fn pruning(method: &str, keep: f64, layer: usize) -> Option<Pruning> {
    Some(Pruning { method: method.to_owned(), keep, layer })
}

/// Keys and values in float32, so that what was computed in another way may differ by rounding only.
fn load(name: &str, pruning: Option<Pruning>, options: LoadOptions) -> Model {
    Model::load_with(golden(name), &LoadOptions { kv: KvType::F32, pruning, ..options }).unwrap()
}

fn short() -> AskOptions {
    AskOptions { max_tokens: 8, logprobs: Some(0), ..AskOptions::default() }
}

/// The report, and the tokens with the logarithms of their probabilities, to the bit.
fn asked(session: &mut Session, images: &[Image], text: &str, ask: &AskOptions) -> (Report, Vec<(u32, u32)>) {
    let (mut told, mut report, mut steps) = (vec![], None, vec![]);
    for event in session.ask_with(images, text, ask).unwrap() {
        match event.unwrap() {
            Event::Token(token) => told.push((token.id, token.logprob.to_bits())),
            Event::Stage { stage: Stage::Prefill, done, of, .. } => steps.push((done, of)),
            Event::Done(done) => report = Some(*done),
            _ => {}
        }
    }
    assert!(steps.last().is_none_or(|(done, of)| done == of), "{steps:?}");
    (report.unwrap(), told)
}

#[test]
fn where_all_stay_every_family_answers_to_the_bit_as_without() {
    for name in [
        "mobilevlm-v2",
        "llava",
        "qwen2vl",
        "qwen25vl",
        "smolvlm",
        "moondream",
        "tinyllava-gemma",
        "minicpmv",
    ] {
        let [image, other] = [picture(name), Image::filled(40, 30, [10, 200, 30]).unwrap()];
        // An emulated processor takes one of them.
        let batches: &[usize] = if cfg!(target_arch = "x86_64") { &[512, 7] } else { &[7] };
        for batch in batches.iter().copied() {
            let options = || LoadOptions { batch, ..LoadOptions::default() };
            let answers = |pruning| {
                let model = load(name, pruning, options());
                let mut session = model.session().unwrap();
                let first = asked(&mut session, std::slice::from_ref(&image), "one", &short());
                // Decoders in which the picture sees itself whole take one picture.
                let more =
                    if model.config().text.decoder.has_prefix() { vec![] } else { vec![other.clone()] };
                let second = asked(&mut session, &more, "two", &short());
                (first.1, second.1, second.0.stages.reused_tokens, second.0.stages.visual_tokens)
            };
            assert_eq!(answers(pruning("attention", 1.0, 1)), answers(None), "{name}, batch {batch}");
        }
    }
}

/// The whole text program and its second part, compiled for prompts that are computed at once.
struct Slow<'m> {
    model: &'m Model,
    whole: Box<dyn Executable>,
    tail: Box<dyn Executable>,
    hidden: String,
}

const ROOM: usize = 200;

impl<'m> Slow<'m> {
    fn new(model: &'m Model, layer: usize) -> Self {
        let source = model.source();
        let hidden = format!("hidden.{layer}");
        let text = source.config.programs().unwrap().text;
        let text = text.with_outputs(|name| name == "logits" || name == hidden).unwrap();
        let (_, tail) = text.cut(&hidden).unwrap();
        let limits = [Sym::Tokens, Sym::Outputs, Sym::Visual];
        let limits = limits.into_iter().fold(Bindings::new(), |limits, sym| limits.with(sym, ROOM));
        let compiled = |program: &Program| {
            let packed = PackedFiles::default();
            let program = passes::optimize(program);
            compile(source, model.backend(), &program, &limits, &packed, &Cancel::new()).unwrap()
        };
        Slow { model, whole: compiled(&text), tail: compiled(&tail), hidden }
    }

    /// The hidden rows of all tokens behind the layer, and what the last of them looks at in it: from the taps of the whole
    /// program, which drops nothing.
    fn rows(&mut self, ids: &[i32], visual: &[f32], layer: usize) -> (Vec<f32>, Vec<f32>) {
        let mut state = self.whole.new_state(StateOptions::new(ROOM)).unwrap();
        state.observe(Observe::Newest(1)).unwrap();
        let (mut at, width) = (vec![], self.model.config().text.width);
        positions(self.whole.program(), 0, ids.len(), &[], &mut at);
        let sizes = Bindings::new()
            .with(Sym::Tokens, ids.len())
            .with(Sym::Outputs, 1)
            .with(Sym::Visual, visual.len() / width)
            .with(Sym::Prefix, 0);
        let last = [ids.len() as i32 - 1];
        let inputs =
            [InputData::I32(ids), InputData::I32(&at), InputData::I32(&last), InputData::F32(visual)];
        self.whole.run(&sizes, &inputs, Some(state.as_mut()), &Cancel::new()).unwrap();
        let mut looks = vec![0.0; ids.len()];
        for head in &state.attention().unwrap()[layer - 1] {
            looks.iter_mut().zip(head).for_each(|(sum, one)| *sum += one);
        }
        (self.whole.output(&self.hidden).unwrap().to_vec(), looks)
    }

    /// The logits behind the last of the tokens at those places, which the deeper layers see alone.
    fn logits(&mut self, places: &[usize], rows: &[f32]) -> Vec<f32> {
        let mut state = self.tail.new_state(StateOptions::new(ROOM)).unwrap();
        let width = self.model.config().text.width;
        let rows: Vec<f32> = places.iter().flat_map(|at| &rows[at * width..][..width]).copied().collect();
        let at: Vec<i32> = places.iter().map(|at| *at as i32).collect();
        let sizes =
            Bindings::new().with(Sym::Tokens, places.len()).with(Sym::Outputs, 1).with(Sym::Prefix, 0);
        let last = [places.len() as i32 - 1];
        let given = |name: &str| match name {
            "positions" => InputData::I32(&at),
            "rows" => InputData::I32(&last),
            _ => InputData::F32(&rows),
        };
        let inputs: Vec<_> = self.tail.program().inputs().iter().map(|(name, _)| given(name)).collect();
        self.tail.run(&sizes, &inputs, Some(state.as_mut()), &Cancel::new()).unwrap();
        self.tail.output("logits").unwrap().to_vec()
    }
}

/// The same answer without a cache, without batches and without any of this module but its table: each token from the taps of
/// the whole program over everything so far, of which rows are dropped by hand.
#[test]
fn answers_are_those_of_rows_dropped_by_hand() {
    for name in ["mobilevlm-v2", "llava", "smolvlm"] {
        for (method, keep) in [("attention", 0.5), ("attention", 0.2), ("even", 0.5), ("random", 0.4)] {
            let model =
                load(name, pruning(method, keep, 1), LoadOptions { batch: 16, ..LoadOptions::default() });
            let mut session = model.session().unwrap();
            let (report, told) = asked(&mut session, &[picture(name)], "one two three", &short());
            let prompt = report.stages.prefill_tokens;
            let (mut ids, visual) = (session.held[..prompt].to_vec(), session.visual.clone());
            let mut slow = Slow::new(&model, 1);
            let (_, looks) = slow.rows(&ids, &visual, 1);
            let seen: Vec<usize> = (0..prompt).filter(|at| ids[*at] < 0).collect();
            let chosen: Vec<usize> = match method {
                "attention" => {
                    let of: Vec<f32> = seen.iter().map(|at| looks[*at]).collect();
                    let count = (seen.len() as f64 * keep).round() as usize;
                    greatest(&of, count).into_iter().map(|at| seen[at]).collect()
                }
                _ => seen
                    .chunk_by(|a, b| a + 1 == *b)
                    .flat_map(|tile| {
                        let count = ((tile.len() as f64 * keep).round() as usize).max(1);
                        let of = match method {
                            "even" => crate::reduce::even::spread(tile.len(), count),
                            _ => crate::reduce::random::any(tile.len(), count),
                        };
                        of.into_iter().map(|at| tile[at]).collect::<Vec<_>>()
                    })
                    .collect(),
            };
            assert_eq!(report.stages.pruned_tokens, seen.len() - chosen.len(), "{name} {method}");
            assert!(report.stages.pruned_tokens > 0);
            let mut places: Vec<usize> =
                (0..prompt).filter(|at| ids[*at] >= 0 || chosen.contains(at)).collect();
            for (id, logprob) in &told {
                let (rows, _) = slow.rows(&ids, &visual, 1);
                let logits = slow.logits(&places, &rows);
                assert_eq!(greedy(&logits).unwrap(), *id, "{name} {method} {keep}");
                assert_eq!(logprobs(&logits, *id, 0).0.to_bits(), *logprob, "{name} {method} {keep}");
                places.push(ids.len());
                ids.push(*id as i32);
            }
        }
    }
}

#[test]
fn batches_and_drafts_change_no_bit_of_an_answer() {
    let mut accepted = 0;
    for (name, method) in [("mobilevlm-v2", "attention"), ("smolvlm", "diverse"), ("moondream", "attention")]
    {
        let answer = |batch, draft: usize| {
            let options = LoadOptions { batch, outputs: draft + 1, ..LoadOptions::default() };
            let model = load(name, pruning(method, 0.5, 1), options);
            *model.payoff().unwrap() = Payoff::always(draft);
            let ask = AskOptions { draft, max_tokens: 40, ..short() };
            let (report, told) =
                asked(&mut model.session().unwrap(), &[picture(name)], "one two one two", &ask);
            assert!(report.stages.pruned_tokens > 0, "{name}");
            (told, report.stages.accepted_tokens)
        };
        let (whole, _) = answer(512, 0);
        for batch in [1, 5, 16] {
            assert_eq!(answer(batch, 0).0, whole, "{name}, batch {batch}");
        }
        let (drafted, right) = answer(512, 4);
        assert_eq!(drafted, whole, "{name}");
        accepted += right;
    }
    assert!(accepted > 0, "these models repeat themselves");
}

#[test]
fn later_questions_get_the_answers_that_they_get_when_nothing_is_reused() {
    let (name, image) = ("mobilevlm-v2", picture("mobilevlm-v2"));
    let other = Image::filled(40, 30, [10, 200, 30]).unwrap();
    for method in PRUNINGS.iter().map(|entry| entry.id) {
        let model = load(name, pruning(method, 0.5, 1), LoadOptions::default());
        let talk = |forget: bool| {
            let mut session = model.session().unwrap();
            let questions: [(&[Image], &str); 3] = [
                (std::slice::from_ref(&image), "one"),
                (&[], "two"),
                (std::slice::from_ref(&other), "three"),
            ];
            let mut told = vec![];
            for (images, text) in questions {
                if forget {
                    session.held.clear();
                    session.whole = None;
                    session.state.truncate(0);
                }
                told.push(asked(&mut session, images, text, &short()));
            }
            told
        };
        let (again, anew) = (talk(false), talk(true));
        for ((again, again_told), (anew, anew_told)) in again.iter().zip(&anew) {
            assert_eq!(again_told, anew_told, "{method}");
            assert_eq!(again.stages.pruned_tokens, anew.stages.pruned_tokens, "{method}");
        }
        // What does not depend on the question is not computed again; else nothing from the picture on is reused.
        let (reused, whole) = (again[1].0.stages.reused_tokens, again[0].0.stages.prefill_tokens);
        let by_question = PRUNINGS.iter().any(|entry| entry.id == method && entry.by_question);
        assert_eq!(reused + 1 >= whole, !by_question, "{method}: {reused} of {whole}");
        assert!(reused > 0, "{method}: the words in front of the picture are the same");
    }
}

#[test]
fn forks_files_and_questions_taken_back_answer_as_if_computed_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("talk.margay");
    let (name, image) = ("mobilevlm-v2", picture("mobilevlm-v2"));
    let user = |text: &str, image: Option<&Image>| Turn {
        role: "user".to_owned(),
        content: image
            .cloned()
            .map(Content::Image)
            .into_iter()
            .chain([Content::Text(text.to_owned())])
            .collect(),
    };
    for method in ["attention", "diverse"] {
        let model = load(name, pruning(method, 0.5, 1), LoadOptions { batch: 4, ..LoadOptions::default() });
        let mut first = model.session().unwrap();
        let one = asked(&mut first, std::slice::from_ref(&image), "one", &short()).0;
        let turns = [user("other", Some(&image))];
        let anew = model.session().unwrap().ask_turns(&turns, &short()).unwrap().report().unwrap();
        let prompt = Prompt::of_turns(&model, &turns).unwrap();
        let shared = first.shared_tokens(&prompt);
        assert!(shared > 0, "{method}");
        let mut fork = first.fork(&prompt).unwrap();
        assert_eq!(fork.used_tokens(), shared, "{method}");
        let forked = fork.ask_turns(&turns, &short()).unwrap().report().unwrap();
        assert_eq!((&forked.tokens, forked.stages.pruned_tokens), (&anew.tokens, anew.stages.pruned_tokens));

        first.save(&path).unwrap();
        let then = asked(&mut first, &[], "two", &short()).1;
        let mut restored = model.load_session(&path).unwrap();
        let (report, now) = asked(&mut restored, &[], "two", &short());
        assert_eq!(now, then, "{method}");
        assert_eq!(report.stages.pruned_tokens, one.stages.pruned_tokens);
        // Which tokens the file holds depends on the setting.
        let other = load(name, pruning(method, 0.75, 1), LoadOptions::default());
        for other in [other, load(name, None, LoadOptions::default())] {
            let told = other.load_session(&path).err().unwrap().to_string();
            assert!(told.contains("--prune-") || told.contains("settings"), "{told}");
        }

        // Stopped in the first layers, between the parts, and in the deeper ones.
        for step in 1..=6 {
            let mut session = model.session().unwrap();
            let (cancel, mut steps) = (session.cancel(), 0);
            for event in session.ask_with(std::slice::from_ref(&image), "one", &short()).unwrap() {
                if let Event::Stage { stage: Stage::Prefill, .. } = event.unwrap() {
                    steps += 1;
                    if steps == step {
                        cancel.cancel();
                    }
                }
            }
            assert_eq!(steps, step);
            let after = asked(&mut session, std::slice::from_ref(&image), "one", &short()).0;
            assert_eq!(after.tokens, one.tokens, "{method}, stopped behind step {step}");
        }
    }
}

#[test]
fn fewer_tokens_in_front_of_the_decoder_are_pruned_further() {
    let reduction = Reduction { method: "merge".to_owned(), keep: Keep::Share(0.66) };
    let options = LoadOptions { reduction: Some(reduction), ..LoadOptions::default() };
    let model = load("mobilevlm-v2", pruning("attention", 0.5, 1), options);
    let report = asked(&mut model.session().unwrap(), &[picture("mobilevlm-v2")], "one", &short()).0;
    assert_eq!((report.stages.visual_tokens, report.stages.pruned_tokens), (6, 3));
}

#[test]
fn the_memory_is_what_was_predicted_and_weights_are_packed_once() {
    for name in ["mobilevlm-v2", "tinyllava-gemma"] {
        let options = |pruning| LoadOptions { context: Some(300), pruning, ..LoadOptions::default() };
        let held = |options: &LoadOptions| {
            let source = ModelSource::open(&golden(name), None).unwrap();
            let predicted = source.predict_memory(options, None).unwrap();
            let model = Model::load_with(golden(name), options).unwrap();
            let mut session = model.session().unwrap();
            assert_eq!(session.cache_bytes(), predicted.cache_bytes, "{name}");
            let before = session.used_cache_bytes();
            asked(&mut session, &[picture(name)], "one", &short());
            let used = session.used_cache_bytes();
            assert!(used > before && used <= predicted.cache_bytes, "{name}: {used}");
            let parts = [Some(predicted.text), predicted.encode, predicted.project];
            let sum = |of: fn(&MemoryUse) -> usize| parts.iter().flatten().map(of).sum::<usize>();
            let memory = model.memory().unwrap();
            assert_eq!(sum(|m| m.arena_bytes), memory.arena_bytes, "{name}");
            assert_eq!(sum(|m| m.scratch_bytes), memory.scratch_bytes, "{name}");
            let weights = memory.packed_weight_bytes + memory.mapped_weight_bytes;
            assert_eq!(sum(|m| m.packed_weight_bytes + m.mapped_weight_bytes), weights, "{name}");
            weights
        };
        assert_eq!(held(&options(pruning("attention", 0.5, 1))), held(&options(None)), "{name}");
    }
}

#[test]
fn what_does_not_fit_is_refused_with_the_reason() {
    let refused = |name: &str, pruning: Option<Pruning>, options: LoadOptions| match Model::load_with(
        golden(name),
        &LoadOptions { pruning, ..options },
    ) {
        Err(e) => e.to_string(),
        Ok(_) => panic!("{name} is taken"),
    };
    let plain = LoadOptions::default;
    for (keep, layer, why) in
        [(0.0, 1, "above 0"), (1.5, 1, "at most 1"), (f64::NAN, 1, "above 0"), (0.5, 0, "2 layers")]
    {
        let what = refused("mobilevlm-v2", pruning("attention", keep, layer), plain());
        assert!(what.contains(why), "{what}");
    }
    assert!(refused("mobilevlm-v2", pruning("attention", 0.5, 2), plain()).contains("1 to 1"));
    assert!(refused("mobilevlm-v2", pruning("fastest", 0.5, 1), plain()).contains("attention, diverse"));
    assert!(refused("llama", pruning("attention", 0.5, 1), plain()).contains("no pictures"));
    let eviction = Some(Eviction::SnapKv(Budget::Share(0.5)));
    let what = refused("mobilevlm-v2", pruning("even", 0.5, 1), LoadOptions { eviction, ..plain() });
    assert!(what.contains("--evict"), "{what}");
    let kv_image = Some(KvType::Q8);
    let what = refused("mobilevlm-v2", pruning("even", 0.5, 1), LoadOptions { kv_image, ..plain() });
    assert!(what.contains("--kv-image"), "{what}");
    if backends::backend(&LoadOptions { backend: "reference".to_owned(), ..plain() }).is_ok() {
        let options = || LoadOptions { backend: "reference".to_owned(), kv: KvType::F32, ..plain() };
        let what = refused("mobilevlm-v2", pruning("attention", 0.5, 1), options());
        assert!(what.contains("use the cpu backend, or diverse, even, random"), "{what}");
        // What looks at nothing fits any backend, and is the same there.
        let answer = |options| {
            let model = load("mobilevlm-v2", pruning("even", 0.5, 1), options);
            asked(&mut model.session().unwrap(), &[picture("mobilevlm-v2")], "one", &short()).0.tokens
        };
        assert_eq!(answer(options()), answer(plain()));
    }
}

#[test]
fn a_share_of_each_tile_stays_or_the_best_of_all_and_the_last_token_always() {
    let ids = [5, -1, -2, -3, -4, 6, -5, -6, 7, -7];
    let rows: Vec<f32> = (0..10).flat_map(|at| [at as f32, 1.0]).collect();
    let looks = [9.0, 0.1, 0.2, 0.3, 0.9, 9.0, 0.8, 0.7, 9.0, 0.0];
    let kept = |method: &str, keep| pruning(method, keep, 1).unwrap().kept(&ids, &rows, &looks).unwrap();
    // 4 of 7; the last is no word, and stays all the same.
    assert_eq!(kept("attention", 0.5), [0, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(kept("even", 0.5), [0, 2, 4, 5, 7, 8, 9]);
    assert_eq!(kept("even", 0.01), [0, 3, 5, 7, 8, 9], "one of each tile");
    assert_eq!(kept("random", 1.0), (0..10).collect::<Vec<_>>());
    let by = |method: &str, shared| pruning(method, 0.5, 1).unwrap().reused(&ids, shared).unwrap();
    assert_eq!([by("attention", 1), by("attention", 9), by("even", 8)], [1, 1, 8]);
    assert_eq!([by("even", 3), by("even", 5), by("even", 7), by("even", 6)], [1, 5, 6, 6]);
    assert_eq!(pruning("attention", 1.0, 1).unwrap().reused(&ids, 7).unwrap(), 7);
}

#[test]
fn a_state_forgets_what_is_ahead_and_takes_no_bytes_that_are_none() {
    let model = load(
        "mobilevlm-v2",
        pruning("even", 0.5, 1),
        LoadOptions { context: Some(256), ..LoadOptions::default() },
    );
    let mut session = model.session().unwrap();
    asked(&mut session, &[picture("mobilevlm-v2")], "one", &short());
    let (len, dropped) = (session.state.len(), session.pruned_tokens());
    assert_eq!((len, dropped > 0), (session.held.len(), true));
    let bytes = session.state.snapshot(len);
    let mut state = model.engine().unwrap().new_state(256, None).unwrap();
    state.restore(len, &bytes).unwrap();
    assert_eq!((state.len(), state.snapshot(len)), (len, bytes.clone()));
    for cut in [0, 7, 8, 8 + 4 * dropped, 16 + 4 * dropped, bytes.len() - 1] {
        assert!(state.restore(len, &bytes[..cut]).is_err(), "{cut} bytes");
    }
    // Too many dropped, one that is none, two that are one.
    let with = |at: usize, new: &[u8]| [&bytes[..at], new, &bytes[at + new.len()..]].concat();
    for bad in
        [with(0, &[255; 8]), with(8, &[255; 4]), with(12, &bytes[8..12]), with(8 + 4 * dropped, &[255; 8])]
    {
        assert!(state.restore(len, &bad).is_err());
        assert!(state.is_empty() || state.len() == len);
    }
    assert!(state.restore(1 << 20, &bytes).is_err());
    // Each length has its own part of both caches.
    let mut whole = model.engine().unwrap().new_state(256, None).unwrap();
    whole.restore(len, &bytes).unwrap();
    for shorter in (0..len).rev() {
        whole.truncate(shorter);
        assert_eq!(whole.len(), shorter);
        assert_eq!(whole.fork(len).unwrap().len(), shorter);
    }
}
