//! Whether drafts pay: the same answers without, with what is looked up, with what a draft model guesses, and with both, in turn.
//!
//!     cargo run --release -p margay --example drafts [MODEL|nano [PICTURE [DRAFT-MODEL]]]
//!     cargo run --release -p margay --example drafts MODEL|nano SUITE-FOLDER [DRAFT-MODEL]
//!
//! A suite is what `training/nano/suite.py` writes. Speed is that of decoding, a draft model's work in it.

#![allow(clippy::print_stdout, reason = "an example prints")]

use margay::{AskOptions, Image, LoadOptions, Model};
use std::{error::Error, fs, path::Path};

const QUESTIONS: [&str; 4] = [
    "Describe the picture.",
    "What does the sign say?",
    "How many things are there?",
    "Say red red green red red green red red green again and again.",
];
const ROUNDS: usize = 5;
/// Questions of the suite, so that a set takes about a minute.
const SHORT: usize = 80;
const DESCRIBED: usize = 20;
const LONG: usize = 5;
/// Tokens of an answer that may not end early.
const TOKENS: usize = 96;

type Asked = (Vec<Image>, String);

/// A way of answering.
struct Way {
    name: &'static str,
    model: Model,
    ask: AskOptions,
}

#[derive(Default)]
struct Sum {
    decode_ms: f64,
    tokens: usize,
    drafted: usize,
    accepted: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().filter(|path| path != "nano");
    let seen = arguments.next();
    let draft = arguments.next();
    let load = |draft: Option<&String>| {
        let load = LoadOptions {
            outputs: 8,
            // Two that wait for one another measure other work on the machine.
            threads: Some(1),
            image_cache: 64 << 20,
            draft_model: draft.map(Into::into),
            ..LoadOptions::default()
        };
        path.as_ref().map_or_else(|| Model::nano_with(&load), |path| Model::load_with(path, &load))
    };
    let ask = |draft, lookup| AskOptions { draft, lookup, ..AskOptions::default() };
    let mut ways = vec![
        Way { name: "plain", model: load(None)?, ask: ask(0, true) },
        Way { name: "lookup", model: load(None)?, ask: ask(7, true) },
    ];
    if draft.is_some() {
        ways.push(Way { name: "draft model", model: load(draft.as_ref())?, ask: ask(7, false) });
        ways.push(Way { name: "both", model: load(draft.as_ref())?, ask: ask(7, true) });
    }
    ways.push(Way { name: "plain again", model: load(None)?, ask: ask(0, true) });
    let stops = ways[0].model.tokenizer().stop_ids();
    let forbid: Vec<_> = stops.iter().map(|id| (*id, f32::NEG_INFINITY)).collect();
    let long = AskOptions { max_tokens: TOKENS, logit_bias: forbid, ..AskOptions::default() };
    match seen.as_deref().map(Path::new).filter(|path| path.is_dir()) {
        Some(folder) => {
            let short = suite(folder, SHORT, |kind| kind != "describe")?;
            let described = suite(folder, DESCRIBED, |kind| kind == "describe")?;
            compare("short answers", &ways, &short, &AskOptions::default())?;
            compare("descriptions", &ways, &described, &AskOptions::default())?;
            compare("descriptions that may not end", &ways, &described[..LONG.min(described.len())], &long)?;
        }
        None => {
            let images: Vec<Image> = seen.map(Image::open).transpose()?.into_iter().collect();
            for question in QUESTIONS {
                compare(question, &ways, &[(images.clone(), question.to_owned())], &long)?;
            }
        }
    }
    Ok(())
}

/// The first so many questions of those kinds.
fn suite(folder: &Path, most: usize, kind: impl Fn(&str) -> bool) -> Result<Vec<Asked>, Box<dyn Error>> {
    let mut asked = vec![];
    for line in fs::read_to_string(folder.join("questions.jsonl"))?.lines() {
        let question: serde_json::Value = serde_json::from_str(line)?;
        let word = |key: &str| question[key].as_str().ok_or_else(|| format!("a question without {key}"));
        if asked.len() < most && kind(word("kind")?) {
            let image = Image::open(folder.join("images").join(word("image")?))?;
            asked.push((vec![image], word("question")?.to_owned()));
        }
    }
    Ok(asked)
}

/// Each question's time is the median of its rounds, so that other work on the machine counts little.
fn compare(what: &str, ways: &[Way], asked: &[Asked], long: &AskOptions) -> Result<(), Box<dyn Error>> {
    let mut all: Vec<Sum> = ways.iter().map(|_| Sum::default()).collect();
    for (images, question) in asked {
        let mut took = vec![vec![]; ways.len()];
        for round in 0..ROUNDS {
            let mut answers = vec![vec![]; ways.len()];
            for turn in 0..ways.len() {
                // Each goes first as often as the others.
                let at = (turn + round) % ways.len();
                let Way { model, ask, .. } = &ways[at];
                let options = AskOptions { draft: ask.draft, lookup: ask.lookup, ..long.clone() };
                let report = model.session()?.ask_with(images, question, &options)?.report()?;
                let stages = &report.stages;
                took[at].push(stages.decode_ms.unwrap_or(0.0));
                all[at].tokens += stages.decode_tokens;
                all[at].drafted += stages.drafted_tokens;
                all[at].accepted += stages.accepted_tokens;
                answers[at] = report.tokens;
            }
            if answers.iter().any(|answer| *answer != answers[0]) {
                return Err("a draft changed the answer".into());
            }
        }
        for (sum, mut took) in all.iter_mut().zip(took) {
            took.sort_by(f64::total_cmp);
            sum.decode_ms += took[ROUNDS / 2];
        }
    }
    println!("{what}: {} questions, {ROUNDS} rounds", asked.len());
    let plain = all[0].decode_ms;
    for (way, Sum { decode_ms, tokens, drafted, accepted }) in ways.iter().zip(&all) {
        println!(
            "  {:<12} {:.2} times as fast, {accepted} of {drafted} drafts accepted, {} tokens in {decode_ms:.1} ms",
            way.name,
            plain / decode_ms,
            tokens / ROUNDS
        );
    }
    Ok(())
}
