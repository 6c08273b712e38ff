//! Asks several questions about one picture. The picture is encoded once, and what the prompts share is computed once.
//!
//!     cargo run --release -p margay --example follow_up -- examples/images/street.png

#![allow(clippy::print_stdout, reason = "an example prints")]

use margay::{Image, Model};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: follow_up PICTURE")?;
    let model = Model::nano()?;
    let mut session = model.session()?;
    let mut pictures = vec![Image::open(path)?];
    let mut first = None;
    for question in ["How many shapes are there?", "What does the sign say?"] {
        let report = session.ask(&pictures, question)?.report()?;
        let stages = report.stages;
        println!("{question} {}", report.text);
        println!("  {} tokens computed, {} reused", stages.prefill_tokens, stages.reused_tokens);
        if let Some(waited) = stages.ttft_ms {
            let first = *first.get_or_insert(waited);
            println!("  first token after {waited:.1} ms, {:.1} times as soon as at first", first / waited);
        }
        pictures.clear();
    }
    Ok(())
}
