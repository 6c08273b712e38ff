//! What is looked up, and answers for which another model guesses.

use super::*;
use crate::{
    AskOptions, Content, Error, Event, Eviction, Form, Image, Job, KvType, LoadOptions, Model, ModelSource,
    Report, Sampling, Scheduler, SchedulerOptions, Session, Turn,
};
use std::{collections::BTreeMap, path::PathBuf, sync::mpsc::channel};

#[test]
fn what_followed_the_last_tokens_is_what_is_guessed() {
    let mut lookup = Lookup::default();
    lookup.push(&[1, 2, 3, 4, 5, -1, -2, 9, 1, 2]);
    assert_eq!(lookup.guess(8), [3, 4, 5]);
    assert_eq!(lookup.guess(2), [3, 4]);
    // Three tokens say more than two.
    lookup.push(&[6, 7, 9, 1, 2]);
    assert_eq!(lookup.guess(3), [6, 7, 9]);
    lookup.push(&[8, 1, 2]);
    assert_eq!(lookup.guess(2), [8, 1]);
    // Visual tokens match nothing, and nothing comes before the first.
    lookup.push(&[-1, -2]);
    assert_eq!(lookup.guess(4), [] as [i32; 0]);
    assert_eq!(Lookup::default().guess(4), [] as [i32; 0]);
}

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn options() -> LoadOptions {
    LoadOptions { kv: KvType::F32, outputs: 6, ..LoadOptions::default() }
}

fn plain(name: &str) -> Model {
    Model::load_with(golden(name), &options()).unwrap()
}

/// A model for which another one always guesses.
fn drafted(name: &str, draft: &str) -> Model {
    drafted_with(name, LoadOptions { draft_model: Some(golden(draft)), ..options() })
}

fn drafted_with(name: &str, options: LoadOptions) -> Model {
    let model = Model::load_with(golden(name), &options).unwrap();
    *model.payoff().unwrap() = Payoff::always(5);
    model
}

fn pictures(model: &Model, name: &str) -> Vec<Image> {
    let sees = model.config().vision.is_some();
    sees.then(|| Image::open(golden(name).join("wide.png")).unwrap()).into_iter().collect()
}

/// As long as it may be.
fn ask(model: &Model, temperature: f32, seed: u64, max_tokens: usize) -> AskOptions {
    let stops = model.tokenizer().stop_ids();
    AskOptions {
        max_tokens,
        draft: 5,
        sampling: Sampling { temperature, seed, ..Sampling::default() },
        logit_bias: stops.iter().map(|id| (*id, f32::NEG_INFINITY)).collect(),
        ..AskOptions::default()
    }
}

/// Two questions, and one in place of the second.
fn talk(model: &Model, images: &[Image], options: &AskOptions) -> Vec<Report> {
    let mut session = model.session().unwrap();
    let mut told = vec![session.ask_with(images, "a red square", options).unwrap().report().unwrap()];
    told.push(session.ask_with(&[], "and now?", options).unwrap().report().unwrap());
    told.push(session.ask_instead("what else", options).unwrap().report().unwrap());
    told
}

fn all_accepted(reports: &[Report]) {
    for StageCounts { drafted, accepted } in reports.iter().map(StageCounts::of) {
        assert!(drafted > 0 && accepted == drafted, "{accepted} of {drafted}");
    }
}

struct StageCounts {
    drafted: usize,
    accepted: usize,
}

impl StageCounts {
    fn of(report: &Report) -> Self {
        let s = &report.stages;
        StageCounts { drafted: s.model_drafted_tokens, accepted: s.model_accepted_tokens }
    }
}

#[test]
fn a_model_that_guesses_for_itself_is_always_right() {
    // Of one place each, of three, of a picture that sees itself whole, of words alone.
    for name in ["mobilevlm-v2", "qwen2vl", "moondream", "smolvlm", "llama"] {
        let (plain, model) = (plain(name), drafted(name, name));
        let images = pictures(&plain, name);
        assert_eq!(model.draft_model().unwrap().sees_pictures, !images.is_empty(), "{name}");
        for (temperature, seed) in [(0.0, 0), (0.9, 1), (0.9, 2)] {
            let options = ask(&plain, temperature, seed, 24);
            let (expected, told) = (talk(&plain, &images, &options), talk(&model, &images, &options));
            for (expected, told) in expected.iter().zip(&told) {
                assert_eq!(expected.tokens, told.tokens, "{name}");
                assert_eq!(expected.stages.model_drafted_tokens, 0);
            }
            all_accepted(&told);
            assert!(told[0].stages.draft_ms.unwrap() > 0.0);
        }
    }
}

#[test]
fn guesses_of_any_model_change_no_token_whatever_the_temperature() {
    // One that is blind, one of the same family and width, one that is narrower and of another family.
    let pairs = [
        ("mobilevlm-v2", "llama", false),
        ("mobilevlm-v2", "mobilevlm-v1", true),
        ("mobilevlm-v2", "gemma", false),
        ("fastvlm", "qwen2", false),
    ];
    // An emulated processor takes a third.
    let seeds = if cfg!(target_arch = "x86_64") { 3 } else { 1 };
    for (name, draft, sees) in pairs {
        let (plain, model) = (plain(name), drafted(name, draft));
        assert_eq!(model.draft_model().unwrap().sees_pictures, sees, "{draft}");
        let images = pictures(&plain, name);
        for temperature in [0.0, 0.7] {
            for seed in 0..seeds {
                let options = ask(&plain, temperature, seed, 24);
                let (expected, told) = (talk(&plain, &images, &options), talk(&model, &images, &options));
                for (expected, told) in expected.iter().zip(&told) {
                    assert_eq!(expected.tokens, told.tokens, "{draft}");
                    assert_eq!((expected.stop, &expected.text), (told.stop, &told.text));
                    assert!(told.stages.model_drafted_tokens > 0, "{draft}");
                }
            }
        }
    }
}

/// Of answers of three tokens, each among three: how often each is given, against how likely the model finds it.
#[test]
#[cfg_attr(
    not(target_arch = "x86_64"),
    ignore = "minutes on an emulated processor, and nothing in it depends on one"
)]
fn answers_come_as_often_as_the_model_finds_them_likely() {
    const SEEDS: u64 = 2000;
    // So many answers tell how likely each token is behind each beginning.
    const TOLD: u64 = 200;
    const TOKENS: [u32; 3] = [300, 301, 302];
    // High, so that each of them comes up.
    const TEMPERATURE: f32 = 8.0;
    let model = drafted("llama", "llama-odd");
    let vocabulary = model.config().text.vocabulary;
    let sampling =
        Sampling { temperature: TEMPERATURE, top_k: 3, top_p: 1.0, min_p: 0.0, ..Sampling::default() };
    let logit_bias = TOKENS.map(|id| (id, 1000.0)).to_vec();
    let mut counts: BTreeMap<Vec<u32>, u32> = BTreeMap::new();
    let mut likely: BTreeMap<Vec<u32>, Vec<f64>> = BTreeMap::new();
    let mut session = model.session().unwrap();
    let (mut guesses, mut right) = (0, 0);
    for seed in 0..SEEDS {
        let options = AskOptions {
            sampling: Sampling { seed, ..sampling },
            logprobs: (seed < TOLD).then_some(vocabulary),
            logit_bias: logit_bias.clone(),
            ..ask(&model, TEMPERATURE, seed, 3)
        };
        let mut path = vec![];
        for event in session.ask_raw(&[], "a red square", &options).unwrap() {
            match event.unwrap() {
                Event::Token(token) => {
                    let weight = |id: u32| {
                        token
                            .top
                            .iter()
                            .find(|top| top.0 == id)
                            .map_or(0.0, |top| f64::from(top.2 / TEMPERATURE).exp())
                    };
                    let weights = TOKENS.map(weight);
                    let sum: f64 = weights.iter().sum();
                    likely.entry(path.clone()).or_insert(weights.map(|weight| weight / sum).to_vec());
                    path.push(token.id);
                }
                Event::Done(report) => {
                    guesses += report.stages.drafted_tokens;
                    right += report.stages.accepted_tokens;
                    *counts.entry(report.tokens).or_default() += 1;
                }
                _ => {}
            }
        }
    }
    assert!(right > 0 && right < guesses, "{right} of {guesses}");
    let mut statistic = 0.0;
    for (a, first) in TOKENS.iter().enumerate() {
        for (b, second) in TOKENS.iter().enumerate() {
            for (c, third) in TOKENS.iter().enumerate() {
                let share = likely[&vec![]][a] * likely[&vec![*first]][b] * likely[&vec![*first, *second]][c];
                let expected = share * SEEDS as f64;
                let count = counts.get(&vec![*first, *second, *third]).copied().unwrap_or(0);
                statistic += (f64::from(count) - expected).powi(2) / expected;
            }
        }
    }
    // Nothing else is answered, and the statistic is below the 99.9th percentile of chi-squared with 26 degrees of freedom.
    assert_eq!(counts.values().sum::<u32>(), SEEDS as u32);
    assert!(statistic < 54.05, "{statistic}");
}

#[test]
fn what_a_draft_model_computed_follows_the_conversation() {
    let model = drafted("mobilevlm-v2", "mobilevlm-v2");
    let images = pictures(&model, "mobilevlm-v2");
    let options = ask(&model, 0.0, 0, 16);
    let mut session = model.session().unwrap();
    assert_eq!(session.drafted_tokens(), Some(0));
    let empty = session.used_cache_bytes();
    // Nothing is computed where nothing is guessed.
    let none = AskOptions { draft: 0, ..options.clone() };
    session.ask_with(&images, "one", &none).unwrap().report().unwrap();
    assert_eq!(session.drafted_tokens(), Some(0));
    let alone = session.used_cache_bytes();
    let report = session.ask_with(&[], "two", &options).unwrap().report().unwrap();
    all_accepted(&[report]);
    let both = session.drafted_tokens().unwrap();
    assert!(both > 30 && both <= session.used_tokens() + 1, "{both}");
    assert!(session.used_cache_bytes() >= alone + (alone - empty));
    // What is taken back goes from both, the rest stays.
    let picture = session.held.iter().position(|id| *id < 0).unwrap();
    session.keep(picture + 4);
    assert_eq!((session.held.len(), session.drafted_tokens()), (picture + 4, Some(picture + 4)));
    let other = Image::filled(40, 90, [20, 200, 90]).unwrap();
    session.keep_pictures(0);
    assert_eq!(session.drafted_tokens(), Some(picture));
    session.clear();
    assert_eq!(session.drafted_tokens(), Some(0));
    // Rows of another picture under the same ids are not those of the first.
    let report = session.ask_with(&[other], "three", &options).unwrap().report().unwrap();
    all_accepted(&[report]);
}

#[test]
fn conversations_that_begin_alike_share_what_a_draft_model_computed() {
    let model = drafted("mobilevlm-v2", "mobilevlm-v2");
    let image = pictures(&model, "mobilevlm-v2").remove(0);
    let turn = |text: &str| Turn {
        role: "user".to_owned(),
        content: vec![Content::Image(image.clone()), Content::Text(text.to_owned())],
    };
    let options = ask(&model, 0.0, 0, 12);
    let mut first = model.session().unwrap();
    let report = first.ask_turns(&[turn("one two three")], &options).unwrap().report().unwrap();
    all_accepted(&[report]);
    let prompt = crate::prompt::Prompt::of_turns(&model, &[turn("one two four")]).unwrap();
    let mut second = first.fork(&prompt).unwrap();
    let shared = second.drafted_tokens().unwrap();
    assert!(shared > 9 && shared == second.held.len(), "{shared}");
    let report = second.ask_turns(&[turn("one two four")], &options).unwrap().report().unwrap();
    all_accepted(std::slice::from_ref(&report));
    let mut fresh = plain("mobilevlm-v2").session().unwrap();
    let expected = fresh.ask_turns(&[turn("one two four")], &options).unwrap().report().unwrap();
    assert_eq!(report.tokens, expected.tokens);
}

#[test]
fn callers_get_the_answers_that_they_would_get_without_a_draft_model() {
    let (plain, model) = (plain("mobilevlm-v2"), drafted("mobilevlm-v2", "mobilevlm-v2"));
    let options = ask(&plain, 0.0, 0, 40);
    let turns =
        |text: &str| vec![Turn { role: "user".to_owned(), content: vec![Content::Text(text.to_owned())] }];
    let scheduler = Scheduler::new(model, SchedulerOptions::default()).unwrap();
    let texts = ["one", "two", "three and more", "four"];
    let answers = texts.map(|text| {
        let (told, events) = channel();
        let job = Job { turns: turns(text), options: options.clone() };
        scheduler.submit(job, Box::new(move |event| told.send(event).is_ok())).unwrap();
        events
    });
    let mut drafted = 0;
    for (text, events) in texts.iter().zip(answers) {
        let done = events.iter().find_map(|event| match event.unwrap() {
            Event::Done(report) => Some(report),
            _ => None,
        });
        let report = done.unwrap();
        let mut session = plain.session().unwrap();
        let expected = session.ask_turns(&turns(text), &options).unwrap().report().unwrap();
        assert_eq!(report.tokens, expected.tokens, "{text}");
        assert_eq!(report.stages.model_drafted_tokens, report.stages.model_accepted_tokens);
        drafted += report.stages.model_drafted_tokens;
    }
    // Whoever decodes alone, at the end at least, drafts.
    let (told, events) = channel();
    let job = Job { turns: turns("five"), options };
    scheduler.submit(job, Box::new(move |event| told.send(event).is_ok())).unwrap();
    for event in events {
        if let Event::Done(report) = event.unwrap() {
            drafted += report.stages.model_drafted_tokens;
        }
    }
    assert!(drafted > 0);
}

#[test]
fn guesses_have_the_form_of_the_answer() {
    let model = drafted("mobilevlm-v2", "mobilevlm-v2");
    let form = Some(Form::Regex("[ab]{12}".to_owned()));
    for temperature in [0.0, 1.0] {
        let options =
            AskOptions { form: form.clone(), logit_bias: vec![], ..ask(&model, temperature, 3, 40) };
        let mut session = model.session().unwrap();
        let report = session.ask_with(&[], "one", &options).unwrap().report().unwrap();
        assert!(
            report.text.len() == 12 && report.text.bytes().all(|b| b"ab".contains(&b)),
            "{}",
            report.text
        );
        let StageCounts { drafted, accepted } = StageCounts::of(&report);
        // A guess that ends the answer saves no run.
        assert!(accepted > 0 && accepted + 1 >= drafted, "{accepted} of {drafted}");
    }
}

#[test]
fn answers_that_leave_the_context_are_those_without_a_draft_model() {
    let window = LoadOptions {
        context: Some(320),
        eviction: Some(Eviction::Window { window: 64, sinks: 4 }),
        ..options()
    };
    let plain = Model::load_with(golden("mobilevlm-v2"), &window).unwrap();
    let model =
        drafted_with("mobilevlm-v2", LoadOptions { draft_model: Some(golden("mobilevlm-v2")), ..window });
    let options = ask(&plain, 0.9, 7, 500);
    let answer = |model: &Model| {
        let mut session = model.session().unwrap();
        let report = session.ask_with(&[], "one", &options).unwrap().report().unwrap();
        (report, session.dropped_tokens())
    };
    let ((expected, dropped), (told, _)) = (answer(&plain), answer(&model));
    assert!(dropped > 0 && expected.tokens.len() == 500);
    assert_eq!(expected.tokens, told.tokens);
    // Its own cache is full there, and it guesses no more.
    let drafted = told.stages.model_drafted_tokens;
    assert!((100..320).contains(&drafted), "{drafted}");
}

#[test]
fn an_answer_that_is_stopped_leaves_a_draft_model_as_it_should_be() {
    let model = drafted("mobilevlm-v2", "mobilevlm-v2");
    let images = pictures(&model, "mobilevlm-v2");
    let options = ask(&model, 0.0, 0, 40);
    let mut session = model.session().unwrap();
    let cancel = session.cancel();
    let mut pieces = 0;
    for event in session.ask_with(&images, "one", &options).unwrap() {
        pieces += usize::from(matches!(event.unwrap(), Event::Text(_)));
        if pieces == 3 {
            cancel.cancel();
        }
    }
    let report = session.ask_with(&[], "two", &options).unwrap().report().unwrap();
    all_accepted(&[report]);
}

#[test]
fn a_model_of_another_vocabulary_is_refused_with_the_reason() {
    let refused = |name: &str, draft: PathBuf| {
        let options = LoadOptions { draft_model: Some(draft), ..options() };
        let error = Model::load_with(golden(name), &options).err().unwrap();
        let predicted = ModelSource::open(&golden(name), None).unwrap().predict_memory(&options, None);
        assert_eq!(predicted.err().unwrap().to_string(), error.to_string());
        error
    };
    let error = refused("mobilevlm-v2", golden("qwen2"));
    assert!(matches!(error, Error::Option { option: "draft-model", .. }), "{error}");
    let what = error.to_string();
    assert!(what.contains("vocabulary") && what.contains("cannot guess for"), "{what}");
    assert!(matches!(refused("mobilevlm-v2", golden("none")), Error::File(_)));
}

#[test]
fn the_memory_of_a_draft_model_is_what_was_predicted() {
    for draft in ["mobilevlm-v2", "llama"] {
        let options =
            LoadOptions { draft_model: Some(golden(draft)), context: Some(400), ..LoadOptions::default() };
        let source = ModelSource::open(&golden("mobilevlm-v2"), None).unwrap();
        let predicted = source.predict_memory(&options, None).unwrap();
        let alone =
            source.predict_memory(&LoadOptions { draft_model: None, ..options.clone() }, None).unwrap();
        let model = Model::load_with(golden("mobilevlm-v2"), &options).unwrap();
        let session: Session = model.session().unwrap();
        assert_eq!(session.cache_bytes(), predicted.cache_bytes);
        assert!(predicted.cache_bytes > alone.cache_bytes && alone.draft.is_none());
        let (text, draft) = (predicted.text, predicted.draft.unwrap());
        let held = model.memory().unwrap();
        assert_eq!(held.arena_bytes, text.arena_bytes + draft.arena_bytes);
        assert_eq!(held.scratch_bytes, text.scratch_bytes + draft.scratch_bytes);
        let weights = |m: &margay_graph::MemoryUse| m.packed_weight_bytes + m.mapped_weight_bytes;
        assert_eq!(weights(&held), weights(&text) + weights(&draft));
    }
}
