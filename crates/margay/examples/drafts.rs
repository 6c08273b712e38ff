//! Whether drafts pay: the same answers with and without, in turn.
//!
//!     cargo run --release -p margay --example drafts [MODEL [PICTURE]]

#![allow(clippy::print_stdout, reason = "an example prints")]

use margay::{AskOptions, Image, LoadOptions, Model};
use std::error::Error;

const QUESTIONS: [&str; 4] = [
    "Describe the picture.",
    "What does the sign say?",
    "How many things are there?",
    "Say red red green red red green red red green again and again.",
];
const ROUNDS: usize = 15;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next();
    let picture = arguments.next().map(Image::open).transpose()?;
    let load = LoadOptions { outputs: 8, image_cache: 64 << 20, ..LoadOptions::default() };
    let model = match path.as_deref() {
        Some(path) if path != "nano" => Model::load_with(path, &load)?,
        _ => Model::nano_with(&load)?,
    };
    let images: Vec<Image> = picture.into_iter().collect();
    // No answer ends early, so that there is something to measure.
    let forbid: Vec<_> = model.tokenizer().stop_ids().iter().map(|id| (*id, f32::NEG_INFINITY)).collect();
    for question in QUESTIONS {
        let mut ratios = vec![];
        let (mut drafted, mut accepted, mut tokens) = (0, 0, 0);
        for _ in 0..ROUNDS {
            let mut rates = [0.0; 2];
            let mut answers = vec![];
            for (rate, draft) in rates.iter_mut().zip([0, 7]) {
                let options =
                    AskOptions { max_tokens: 96, draft, logit_bias: forbid.clone(), ..AskOptions::default() };
                let report = model.session()?.ask_with(&images, question, &options)?.report()?;
                *rate = report.stages.decode_rate().unwrap_or(f64::NAN);
                drafted += report.stages.drafted_tokens;
                accepted += report.stages.accepted_tokens;
                tokens = report.tokens.len();
                answers.push(report.tokens);
            }
            if answers[0] != answers[1] {
                return Err("a draft changed the answer".into());
            }
            ratios.push(rates[1] / rates[0]);
        }
        ratios.sort_by(f64::total_cmp);
        let [low, median, high] = [0, ROUNDS / 2, ROUNDS - 1].map(|at| ratios[at]);
        println!(
            "{median:.2} times as fast ({low:.2} to {high:.2}), {accepted} of {drafted} drafts accepted, {tokens} tokens: {question}"
        );
    }
    Ok(())
}
