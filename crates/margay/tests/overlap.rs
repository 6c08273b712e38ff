//! Stages that run at the same time: the same answers to the bit, the same errors, and a schedule that says so.

#![allow(clippy::unwrap_used, reason = "a test")]

use margay::{
    AskOptions, Event, Image, KvType, Lane, LoadOptions, Model, Overlap, Report, Session, Stage, Stop,
    rooms::prompt::image::Picture,
};
use std::path::{Path, PathBuf};

/// Larger than what is read without another thread.
const SIZES: [(u32, u32); 3] = [(1200, 700), (800, 800), (640, 1000)];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

/// Pixels that differ from place to place and from picture to picture.
fn rgb(seed: u32, (width, height): (u32, u32)) -> Vec<u8> {
    let value = |at: u32| ((at.wrapping_mul(2_654_435_761).wrapping_add(seed * 77)) >> 24) as u8 / 4;
    let shade = |at: u32| (at % width * 255 / width / 2) as u8 + (seed as u8) * 30;
    (0..width * height).flat_map(|at| [value(at) + shade(at) / 2, shade(at), value(at / 7)]).collect()
}

fn pictures() -> Vec<Image> {
    let picture = |(seed, size): (usize, &(u32, u32))| {
        let picture = Picture::new(size.0, size.1, rgb(seed as u32, *size)).unwrap();
        Image::from_picture(picture, &format!("picture {seed}"))
    };
    SIZES.iter().enumerate().map(picture).collect()
}

/// The simplest of picture files: rows from the bottom up, blue first.
fn bmp(seed: u32, size: (u32, u32)) -> Vec<u8> {
    let (width, height) = size;
    assert_eq!(width % 4, 0, "rows are padded to four bytes");
    let pixels = rgb(seed, size);
    let mut file = b"BM".to_vec();
    let words = [
        54 + pixels.len() as u32,
        0,
        54,
        40,
        width,
        height,
        1 | 24 << 16,
        0,
        pixels.len() as u32,
        0,
        0,
        0,
        0,
    ];
    file.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    for row in pixels.chunks_exact(width as usize * 3).rev() {
        file.extend(row.chunks_exact(3).flat_map(|p| [p[2], p[1], p[0]]));
    }
    file
}

fn load(name: &str, options: &LoadOptions) -> Model {
    match name {
        "nano" => Model::nano_with(options).unwrap(),
        name => Model::load_with(folder(name), options).unwrap(),
    }
}

/// The answer, and of each of its tokens the bits of the likeliest ones' log probabilities.
fn ask(session: &mut Session, images: &[Image], text: &str) -> (Report, Vec<(u32, u32)>) {
    let ask = AskOptions { max_tokens: 6, logprobs: Some(8), ..AskOptions::default() };
    let (mut bits, mut report) = (vec![], None);
    for event in session.ask_with(images, text, &ask).unwrap() {
        match event.unwrap() {
            Event::Token(token) => bits.extend(token.top.iter().map(|(id, _, p)| (*id, p.to_bits()))),
            Event::Done(done) => report = Some(*done),
            _ => {}
        }
    }
    (report.unwrap(), bits)
}

fn options(overlap: Overlap, threads: usize, batch: usize, kv: KvType) -> LoadOptions {
    LoadOptions { overlap, threads: Some(threads), batch, kv, ..LoadOptions::default() }
}

#[test]
fn answers_are_those_of_one_stage_behind_the_other_to_the_bit() {
    let mut halved = 0;
    for name in ["nano", "smolvlm", "minicpmv", "llava", "qwen2vl"] {
        for (batch, kv) in [(512, KvType::F16), (16, KvType::F32), (512, KvType::Kivi2)] {
            let answers = |overlap, threads| {
                let model = load(name, &options(overlap, threads, batch, kv));
                let mut session = model.session().unwrap();
                let pictures = pictures();
                let first = ask(&mut session, &pictures[..2], "one two");
                let second = ask(&mut session, &pictures[2..], "three");
                let third = ask(&mut model.session().unwrap(), &pictures[1..], "one");
                [first, second, third]
            };
            let serial = answers(Overlap::Off, 2);
            for (overlap, threads) in
                [(Overlap::Auto, 1), (Overlap::Auto, 4), (Overlap::On, 2), (Overlap::On, 3)]
            {
                let beside = answers(overlap, threads);
                for ((a, bits), (b, other)) in serial.iter().zip(&beside) {
                    let what = format!("{name}, batch {batch}, {kv:?}, {overlap:?} on {threads}");
                    assert_eq!((&a.tokens, bits), (&b.tokens, other), "{what}");
                    assert_eq!(a.stages.prefill_tokens, b.stages.prefill_tokens, "{what}");
                    assert_eq!(a.stages.reused_tokens, b.stages.reused_tokens, "{what}");
                    assert!(!a.schedule.overlapped && !bits.is_empty());
                    halved += usize::from(overlap == Overlap::On && runs_beside(b));
                    assert!(kv != KvType::Kivi2 || !runs_beside(b), "{what}");
                }
            }
        }
    }
    assert!(halved >= 6, "{halved} answers encoded beside their prompt");
}

/// Whether a part of the prompt was computed while a tile was encoded.
fn runs_beside(report: &Report) -> bool {
    let of = |stage| report.schedule.runs.iter().filter(move |run| run.stage == stage);
    of(Stage::Prefill)
        .any(|text| of(Stage::Encode).any(|tile| text.begin_ms < tile.end_ms && tile.begin_ms < text.end_ms))
}

#[test]
fn a_schedule_tells_each_stage_once_in_its_lane() {
    let model = load("smolvlm", &options(Overlap::Off, 2, 512, KvType::F16));
    let (report, _) = ask(&mut model.session().unwrap(), &pictures()[..2], "one");
    let of = |stage| report.schedule.runs.iter().filter(move |run| run.stage == stage);
    assert!(!report.schedule.overlapped && report.schedule.why.contains("turned off"));
    assert_eq!(of(Stage::Preprocess).count(), 2);
    assert_eq!(of(Stage::Encode).count(), of(Stage::Project).count());
    assert_eq!(of(Stage::Prefill).map(|run| run.tokens).sum::<usize>(), report.stages.prefill_tokens);
    assert_eq!(of(Stage::Decode).map(|run| run.tokens).sum::<usize>(), report.stages.decode_tokens);
    assert_eq!(of(Stage::Encode).map(|run| run.picture.unwrap()).max(), Some(2));
    assert!(report.schedule.runs.windows(2).all(|pair| pair[0].end_ms <= pair[1].begin_ms + 0.01));

    let model = load("smolvlm", &options(Overlap::Auto, 2, 512, KvType::F16));
    let (report, _) = ask(&mut model.session().unwrap(), &pictures()[..2], "one");
    let read: Vec<_> = report.schedule.runs.iter().filter(|run| run.lane == Lane::Read).collect();
    assert_eq!(read.len(), 2, "{:?}", report.schedule);
    assert!(report.schedule.why.contains("2 threads"), "{}", report.schedule.why);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["schedule"]["runs"].as_array().unwrap().len(), report.schedule.runs.len());
}

#[test]
fn a_picture_that_is_decoded_later_is_the_same_and_a_damaged_one_the_same_error() {
    let files = tempfile::tempdir().unwrap();
    let path = |name: &str| files.path().join(name);
    std::fs::write(path("a.bmp"), bmp(1, SIZES[0])).unwrap();
    std::fs::write(path("b.bmp"), bmp(2, SIZES[1])).unwrap();
    let whole = bmp(3, SIZES[2]);
    std::fs::write(path("damaged.bmp"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(path("words.png"), "no picture").unwrap();
    let damaged = Image::open(path("damaged.bmp")).unwrap_err().to_string();
    let words = Image::open(path("words.png")).unwrap_err().to_string();
    assert_eq!(Image::open_later(path("words.png")).unwrap_err().to_string(), words);
    assert!(Image::open_later(path("none.png")).is_err());

    for name in ["nano", "smolvlm"] {
        for (overlap, threads) in [(Overlap::Off, 2), (Overlap::Auto, 2), (Overlap::On, 2)] {
            let model = load(name, &options(overlap, threads, 512, KvType::F16));
            let mut session = model.session().unwrap();
            let later = |names: &[&str]| -> Vec<Image> {
                names.iter().map(|name| Image::open_later(path(name)).unwrap()).collect()
            };
            let said: Vec<_> =
                session.ask(&later(&["a.bmp", "b.bmp", "damaged.bmp"]), "one").unwrap().collect();
            let (last, before) = said.split_last().unwrap();
            assert_eq!(last.as_ref().unwrap_err().to_string(), damaged, "{name} {overlap:?}");
            assert!(before.iter().all(|event| matches!(event, Ok(Event::Stage { .. }))));
            // As if it had not been asked.
            let opened: Vec<_> =
                ["a.bmp", "b.bmp"].iter().map(|name| Image::open(path(name)).unwrap()).collect();
            let after = ask(&mut session, &later(&["a.bmp", "b.bmp"]), "two");
            let fresh = ask(&mut model.session().unwrap(), &opened, "two");
            assert_eq!((&after.0.tokens, after.1), (&fresh.0.tokens, fresh.1), "{name} {overlap:?}");
            assert!(after.0.stages.preprocess_ms.unwrap() > 0.0);
        }
    }
}

#[test]
fn an_answer_that_is_cancelled_at_any_stage_leaves_a_sound_conversation() {
    let model = load("smolvlm", &options(Overlap::On, 2, 16, KvType::F32));
    let pictures = pictures();
    let fresh = ask(&mut model.session().unwrap(), &pictures[1..], "two");
    let mut session = model.session().unwrap();
    let cancel = session.cancel();
    for stop_at in 1..12 {
        let mut told = 0;
        let mut stop = None;
        for event in session.ask(&pictures[..2], "one and more").unwrap() {
            match event.unwrap() {
                Event::Stage { .. } => {
                    told += 1;
                    if told == stop_at {
                        cancel.cancel();
                    }
                }
                Event::Done(report) => stop = Some(report.stop),
                _ => {}
            }
        }
        assert_eq!(stop, Some(Stop::Cancelled), "{stop_at}");
    }
    let after = ask(&mut session, &pictures[1..], "two");
    assert_eq!((after.0.tokens, after.1), (fresh.0.tokens, fresh.1));
}
