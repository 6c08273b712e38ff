//! How sure a model is of a text that is much longer than its context: its own description of a picture again and again, each
//! token of which it is given whatever it would have said. Told for each 256 tokens: the mean of what a token costs, in nats, and
//! how many were the likeliest.
//!
//!     cargo run --release -p margay --example beyond_context -- PICTURE [CONTEXT [WINDOW [TOKENS]]]

#![allow(clippy::print_stdout, reason = "an example prints")]

use margay::{AskOptions, Event, Eviction, Form, Image, LoadOptions, Model};

const EACH: usize = 256;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let picture =
        Image::open(words.next().ok_or("usage: beyond_context PICTURE [CONTEXT [WINDOW [TOKENS]]]")?)?;
    let mut number = |unless: usize| words.next().map_or(Ok(unless), |word| word.parse());
    let (context, window, tokens) = (number(256)?, number(64)?, number(2048)?);
    let eviction = Some(Eviction::Window { window, sinks: 4 });
    let model =
        Model::nano_with(&LoadOptions { context: Some(context), eviction, ..LoadOptions::default() })?;
    let mut session = model.session()?;
    let said = session.ask(std::slice::from_ref(&picture), "Describe the picture.")?.report()?.text;
    println!("{said}");

    let line = serde_json::to_string(&format!("{} ", said.trim()))?;
    let stops = model.tokenizer().stop_ids().iter().map(|id| (*id, f32::NEG_INFINITY)).collect();
    let options = AskOptions {
        max_tokens: tokens,
        form: Some(Form::Lark(format!("start: line+\nline: {line}\n"))),
        logit_bias: stops,
        logprobs: Some(1),
        ..AskOptions::default()
    };
    let mut told = vec![];
    for event in session.ask_instead("Describe the picture.", &options)? {
        if let Event::Token(token) = event? {
            let likeliest = token.top.first().is_some_and(|(id, ..)| *id == token.id);
            told.push((f64::from(token.logprob), likeliest));
        }
    }
    println!("tokens        nats  likeliest");
    for (at, part) in told.chunks(EACH).enumerate() {
        let nats = -part.iter().map(|(logprob, _)| logprob).sum::<f64>() / part.len() as f64;
        let same = part.iter().filter(|(_, likeliest)| *likeliest).count();
        let percent = 100.0 * same as f64 / part.len() as f64;
        println!("{:5} to {:5}  {nats:.3}  {percent:.1}%", at * EACH, at * EACH + part.len());
    }
    Ok(())
}
