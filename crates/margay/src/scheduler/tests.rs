//! Many callers at once.

use super::*;
use crate::{Budget, Content, Eviction, Image, KvType, LoadOptions, Report, Stop};
use std::{
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, channel},
};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/mobilevlm-v2")
}

fn model(outputs: usize) -> Model {
    let options =
        LoadOptions { kv: KvType::F32, outputs, batch: 64, image_cache: 1 << 20, ..LoadOptions::default() };
    Model::load_with(golden(), &options).unwrap()
}

fn user(image: Option<&Image>, text: &str) -> Turn {
    let image = image.cloned().map(Content::Image);
    let content = image.into_iter().chain([Content::Text(text.to_owned())]).collect();
    Turn { role: "user".to_owned(), content }
}

fn says(text: &str) -> Turn {
    Turn { role: "assistant".to_owned(), content: vec![Content::Text(text.to_owned())] }
}

fn ask(
    scheduler: &Scheduler,
    turns: Vec<Turn>,
    max_tokens: usize,
) -> (Cancel, Receiver<Result<Event, Error>>) {
    let (told, events) = channel();
    let options = AskOptions { max_tokens, ..AskOptions::default() };
    let cancel =
        scheduler.submit(Job { turns, options }, Box::new(move |event| told.send(event).is_ok())).unwrap();
    (cancel, events)
}

fn report(events: &Receiver<Result<Event, Error>>) -> Report {
    let mut text = String::new();
    loop {
        match events.recv().unwrap().unwrap() {
            Event::Text(piece) => text.push_str(&piece),
            Event::Done(report) => {
                assert_eq!(text, report.text);
                return *report;
            }
            _ => {}
        }
    }
}

#[test]
fn answers_made_together_are_those_made_alone() {
    let picture = Image::open(golden().join("wide.png")).unwrap();
    let other = Image::filled(40, 30, [10, 200, 30]).unwrap();
    let conversations = [
        vec![user(Some(&picture), "one")],
        vec![user(None, "two and some more words")],
        vec![user(Some(&other), "three"), says("x y"), user(Some(&picture), "four")],
        vec![user(None, "five")],
        vec![user(Some(&picture), "six")],
    ];
    let lengths = [12, 30, 7, 1, 20];
    let alone: Vec<Report> = conversations
        .iter()
        .zip(lengths)
        .map(|(turns, max_tokens)| {
            let options = AskOptions { max_tokens, ..AskOptions::default() };
            model(1).session().unwrap().ask_turns(turns, &options).unwrap().report().unwrap()
        })
        .collect();
    // Together, in turns, and with more answers than are decoded together.
    let all = Duration::from_secs(60);
    for (outputs, slots, slice) in [(4, 5, all), (1, 5, all), (2, 3, all), (4, 5, Duration::ZERO)] {
        // Without a slice, an encode pauses behind each op, and prompts go piece by piece.
        let options = SchedulerOptions { slots, slice, ..SchedulerOptions::default() };
        let scheduler = Scheduler::new(model(outputs), options).unwrap();
        let asked: Vec<_> = conversations
            .iter()
            .zip(lengths)
            .map(|(turns, length)| ask(&scheduler, turns.clone(), length).1)
            .collect();
        for (events, alone) in asked.iter().zip(&alone) {
            let report = report(events);
            assert_eq!(
                (&report.tokens, report.stop),
                (&alone.tokens, alone.stop),
                "{outputs} {slots} {slice:?}"
            );
        }
        // The picture that three of them show was encoded once or, where they began together, at most as often.
        assert!(scheduler.model().image_cache_bytes().unwrap() > 0);
    }
}

/// Quantized weights, and keys and values of 8 bits, whose kernels differ between one row and several.
#[test]
fn quantized_models_give_the_same_answers_together_and_alone() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/images/street.png");
    let picture = Image::open(path).unwrap();
    for kv in [KvType::F16, KvType::Q8] {
        let load = |outputs| {
            let options = LoadOptions { kv, outputs, context: Some(512), ..LoadOptions::default() };
            Model::nano_with(&options).unwrap()
        };
        let questions =
            ["What does the sign say?", "How many circles are there?", "What is left of the square?"];
        let conversations: Vec<_> = questions.iter().map(|text| vec![user(Some(&picture), text)]).collect();
        let alone = load(1);
        let scheduler = Scheduler::new(load(3), SchedulerOptions::default()).unwrap();
        let asked: Vec<_> = conversations.iter().map(|turns| ask(&scheduler, turns.clone(), 12).1).collect();
        for (events, turns) in asked.iter().zip(&conversations) {
            let options = AskOptions { max_tokens: 12, ..AskOptions::default() };
            let expected = alone.session().unwrap().ask_turns(turns, &options).unwrap().report().unwrap();
            assert_eq!(report(events).tokens, expected.tokens, "{kv:?}");
        }
    }
}

#[test]
fn a_conversation_that_goes_on_finds_what_was_computed() {
    let picture = Image::open(golden().join("wide.png")).unwrap();
    let scheduler = Scheduler::new(model(2), SchedulerOptions::default()).unwrap();
    let mut turns = vec![user(Some(&picture), "one")];
    let first = report(&ask(&scheduler, turns.clone(), 8).1);
    assert_eq!((first.stages.reused_tokens, first.stages.reused_pictures), (0, 0));
    // The same question again: only its last token is computed.
    let again = report(&ask(&scheduler, turns.clone(), 8).1);
    assert_eq!(again.tokens, first.tokens);
    assert_eq!((again.stages.prefill_tokens, again.stages.reused_pictures), (1, 1));
    assert_eq!(again.stages.encode_ms, None);
    turns.extend([says(&first.text), user(None, "two")]);
    let second = report(&ask(&scheduler, turns.clone(), 8).1);
    assert!(second.stages.reused_tokens >= first.stages.prefill_tokens, "{:?}", second.stages);
    let options = AskOptions { max_tokens: 8, ..AskOptions::default() };
    let alone = model(1).session().unwrap().ask_turns(&turns, &options).unwrap().report().unwrap();
    assert_eq!(second.tokens, alone.tokens);
    // Another picture, of which nothing may be reused but what stands before it.
    let other = Image::filled(40, 30, [10, 200, 30]).unwrap();
    let third = report(&ask(&scheduler, vec![user(Some(&other), "one")], 8).1);
    let mut alone = model(1).session().unwrap();
    let alone = alone.ask_turns(&[user(Some(&other), "one")], &options).unwrap().report().unwrap();
    assert_eq!(third.tokens, alone.tokens);
    let before = first.stages.prefill_tokens - first.stages.visual_tokens;
    assert!(third.stages.reused_tokens < before, "{:?}", third.stages);
    assert!(third.stages.encode_ms.is_some());
    let load = scheduler.load();
    assert!(load.cached_tokens > 0 && load.cache_bytes > 0, "{load:?}");
}

#[test]
fn what_others_begin_with_is_computed_once_and_shared() {
    let picture = Image::open(golden().join("wide.png")).unwrap();
    let other = Image::filled(40, 30, [10, 200, 30]).unwrap();
    let turns = vec![user(Some(&picture), "one and some more words")];
    let alone: Vec<Report> = (0..3)
        .map(|seed| {
            let sampling = crate::Sampling { temperature: 0.8, seed, ..crate::Sampling::default() };
            let options = AskOptions { max_tokens: 20, sampling, ..AskOptions::default() };
            let mut session = model(1).session().unwrap();
            session.ask_turns(&turns, &options).unwrap().report().unwrap()
        })
        .collect();
    assert!(alone[0].tokens != alone[1].tokens);
    let scheduler = Scheduler::new(model(4), SchedulerOptions { slots: 5, ..Default::default() }).unwrap();
    let submit = |turns: &[Turn], seed, mut gate: Option<Receiver<()>>| {
        let (told, events) = channel();
        let sampling = crate::Sampling { temperature: 0.8, seed, ..crate::Sampling::default() };
        let options = AskOptions { max_tokens: 20, sampling, ..AskOptions::default() };
        let job = Job { turns: turns.to_vec(), options };
        let tell = move |event| {
            if let Some(gate) = gate.take() {
                gate.recv().unwrap();
            }
            told.send(event).is_ok()
        };
        scheduler.submit(job, Box::new(tell)).unwrap();
        events
    };
    // One question three times, and between them one that shares only what stands in front of its picture. The first goes
    // on only when all wait: it would be over before, and its session be taken by the one that shares less.
    let (open, gate) = channel();
    let first = submit(&turns, 0, Some(gate));
    let apart = submit(&[user(Some(&other), "one and some more words")], 0, None);
    let others = [submit(&turns, 1, None), submit(&turns, 2, None)];
    open.send(()).unwrap();
    let first = report(&first);
    assert_eq!((&first.tokens, first.stages.reused_tokens), (&alone[0].tokens, 0));
    for (events, alone) in others.iter().zip(&alone[1..]) {
        let told = report(events);
        assert_eq!(told.tokens, alone.tokens);
        assert_eq!((told.stages.prefill_tokens, told.stages.reused_pictures), (1, 1));
        assert_eq!((told.stages.encode_ms, told.stages.visual_tokens), (None, alone.stages.visual_tokens));
    }
    let apart = report(&apart);
    assert!(apart.stages.encode_ms.is_some() && apart.stages.prefill_tokens > apart.stages.visual_tokens);
}

#[test]
fn who_finds_no_room_is_told_and_who_leaves_makes_room() {
    let options = SchedulerOptions { slots: 1, queue: 1, ..SchedulerOptions::default() };
    let scheduler = Scheduler::new(model(1), options).unwrap();
    let long = |text: &str| ask(&scheduler, vec![user(None, text)], 100_000);
    let (first, events) = long("one");
    // It runs before the next comes.
    while !matches!(events.recv().unwrap().unwrap(), Event::Text(_)) {}
    let (second, waiting) = long("two");
    let third = Job { turns: vec![user(None, "three")], options: AskOptions::default() };
    let refused = scheduler.submit(third.clone(), Box::new(|_| true));
    assert!(matches!(refused, Err(Error::Busy { waiting: 1 })), "{refused:?}");
    assert_eq!((scheduler.load().running, scheduler.load().waiting), (1, 1));
    // One that waits and is cancelled makes room while the other still runs.
    second.cancel();
    let left = waiting.recv().unwrap();
    assert!(matches!(left, Err(Error::Backend(BackendError::Cancelled))), "{left:?}");
    assert_eq!(scheduler.load().waiting, 0);
    first.cancel();
    let stopped = events.iter().find_map(|event| match event.unwrap() {
        Event::Done(report) => Some(report.stop),
        _ => None,
    });
    assert_eq!(stopped, Some(Stop::Cancelled));
    // A caller that no longer listens ends its answer, too.
    drop(long("four").1);
    while scheduler.load().waiting + scheduler.load().running > 0 {
        std::thread::yield_now();
    }
    assert!(!report(&ask(&scheduler, vec![user(None, "five")], 3).1).tokens.is_empty());
    let bad = Job { turns: vec![], options: AskOptions::default() };
    assert!(matches!(scheduler.submit(bad, Box::new(|_| true)), Err(Error::Turns { .. })));
    scheduler.close();
    assert!(matches!(scheduler.submit(third, Box::new(|_| true)), Err(Error::Busy { .. })));
}

#[test]
fn nobody_waits_for_an_answer_of_a_scheduler_that_is_gone() {
    let scheduler = Scheduler::new(model(1), SchedulerOptions { slots: 1, ..Default::default() }).unwrap();
    let (_, running) = ask(&scheduler, vec![user(None, "one")], 100_000);
    let (_, waiting) = ask(&scheduler, vec![user(None, "two")], 100_000);
    running.recv().unwrap().unwrap();
    drop(scheduler);
    // Both ends hang up.
    assert!(running.iter().all(|event| event.is_ok()));
    assert_eq!(waiting.iter().count(), 0);
}

#[test]
fn answers_with_pruned_pictures_made_together_are_those_made_alone() {
    let picture = Image::open(golden().join("wide.png")).unwrap();
    let other = Image::filled(40, 30, [10, 200, 30]).unwrap();
    let conversations = [
        vec![user(Some(&picture), "one")],
        vec![user(None, "two and some more words")],
        vec![user(Some(&other), "three"), says("x y"), user(Some(&picture), "four")],
        vec![user(Some(&picture), "five")],
    ];
    for method in ["attention", "diverse"] {
        let model = |outputs| {
            let pruning = Some(crate::Pruning { method: method.to_owned(), keep: 0.5, layer: 1 });
            let options =
                LoadOptions { kv: KvType::F32, outputs, batch: 64, pruning, ..LoadOptions::default() };
            Model::load_with(golden(), &options).unwrap()
        };
        let alone = conversations.iter().map(|turns| {
            let options = AskOptions { max_tokens: 15, ..AskOptions::default() };
            model(1).session().unwrap().ask_turns(turns, &options).unwrap().report().unwrap()
        });
        let alone: Vec<Report> = alone.collect();
        for (outputs, slice) in [(4, Duration::from_secs(60)), (2, Duration::ZERO)] {
            let options = SchedulerOptions { slots: 4, slice, ..SchedulerOptions::default() };
            let scheduler = Scheduler::new(model(outputs), options).unwrap();
            // Twice, so that what the first time left is gone on with.
            for _ in 0..2 {
                let asked: Vec<_> =
                    conversations.iter().map(|turns| ask(&scheduler, turns.clone(), 15).1).collect();
                for (events, alone) in asked.iter().zip(&alone) {
                    let report = report(events);
                    assert_eq!(report.tokens, alone.tokens, "{method}, {outputs} together");
                    assert_eq!(report.stages.pruned_tokens, alone.stages.pruned_tokens);
                }
            }
        }
    }
}

#[test]
fn callers_whose_tokens_are_dropped_get_what_each_would_get_alone() {
    let picture = Image::open(golden().join("wide.png")).unwrap();
    for eviction in [
        Eviction::Window { window: 60, sinks: 4 },
        Eviction::SnapKv(Budget::Tokens(40)),
        Eviction::H2o(Budget::Tokens(40)),
    ] {
        let options = LoadOptions {
            kv: KvType::F32,
            outputs: 4,
            eviction: Some(eviction),
            context: Some(256),
            ..LoadOptions::default()
        };
        let model = Model::load_with(golden(), &options).unwrap();
        let stops: Vec<_> = model.tokenizer().stop_ids().iter().map(|id| (*id, f32::NEG_INFINITY)).collect();
        // Beyond the context, so that each of them drops tokens several times.
        let of_tokens =
            |max_tokens| AskOptions { max_tokens, logit_bias: stops.clone(), ..AskOptions::default() };
        let asked = [
            (user(Some(&picture), "one"), 330),
            (user(None, "two and three"), 300),
            (user(None, "four"), 270),
        ];
        let most = if eviction.makes_room() { 400 } else { 100 };
        let alone = asked.clone().map(|(turn, tokens)| {
            let mut session = model.session().unwrap();
            session.ask_turns(&[turn], &of_tokens(tokens.min(most))).unwrap().report().unwrap().tokens
        });
        // Whole prompts: in pieces, sums of attention are rounded in another order, and a tie is chosen otherwise.
        let whole = SchedulerOptions { slice: Duration::from_secs(60), ..SchedulerOptions::default() };
        let scheduler = Scheduler::new(model, whole).unwrap();
        let events = asked.map(|(turn, tokens)| {
            let (told, events) = channel();
            let job = Job { turns: vec![turn], options: of_tokens(tokens.min(most)) };
            scheduler.submit(job, Box::new(move |event| told.send(event).is_ok())).unwrap();
            events
        });
        let together = events.each_ref().map(|events| report(events).tokens);
        assert_eq!(together, alone, "{eviction:?}");
        assert!(!eviction.makes_room() || together.iter().all(|tokens| tokens.len() > 256));
    }
}
