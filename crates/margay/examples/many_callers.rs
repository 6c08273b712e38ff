//! How much faster many callers are answered together than one after the other.
//!
//!     cargo run --release --example many_callers [MODEL [TOKENS [PICTURE]]]

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example prints")]

use margay::{
    AskOptions, Content, Event, Image, Job, LoadOptions, Model, Report, Scheduler, SchedulerOptions, Turn,
};
use std::{error::Error, sync::mpsc, time::Instant};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next();
    let max_tokens = arguments.next().map_or(Ok(64), |tokens| tokens.parse())?;
    let picture = arguments.next().map(Image::open).transpose()?;
    let load = LoadOptions { outputs: 8, image_cache: 64 << 20, ..LoadOptions::default() };
    let model = match path.as_deref() {
        Some(path) if path != "nano" => Model::load_with(path, &load)?,
        _ => Model::nano_with(&load)?,
    };
    // No text ends an answer early: all are as long.
    let forbid = model.tokenizer().stop_ids().iter().map(|id| (*id, f32::NEG_INFINITY)).collect();
    let options = AskOptions { max_tokens, logit_bias: forbid, ..AskOptions::default() };
    let scheduler = Scheduler::new(model, SchedulerOptions { slots: 8, kept: 0, ..Default::default() })?;
    let mut alone = None;
    for callers in [1, 1, 2, 4, 8, 1, 8] {
        let begin = Instant::now();
        let (told, reports) = mpsc::channel();
        for caller in 0..callers {
            let text = Content::Text(format!("What can you say about number {caller}?"));
            let content = picture.clone().map(Content::Image).into_iter().chain([text]).collect();
            let turns = vec![Turn { role: "user".to_owned(), content }];
            let told = told.clone();
            let tell = move |event: Result<Event, margay::Error>| match event {
                Ok(Event::Done(report)) => told.send(report).is_ok(),
                Ok(_) => true,
                Err(e) => {
                    eprintln!("error: {e}");
                    false
                }
            };
            scheduler.submit(Job { turns, options: options.clone() }, Box::new(tell))?;
        }
        drop(told);
        let reports: Vec<Box<Report>> = reports.iter().collect();
        let seconds = begin.elapsed().as_secs_f64();
        let tokens: usize = reports.iter().map(|report| report.tokens.len()).sum();
        let first = reports.iter().filter_map(|report| report.stages.ttft_ms).fold(0.0, f64::max);
        let rate = tokens as f64 / seconds;
        let ratio = rate / *alone.get_or_insert(rate);
        println!("{callers} callers: {rate:.1} tokens/s, {ratio:.2} of one; last first token {first:.0} ms");
    }
    Ok(())
}
