//! Shows every event of an answer: stages as they end, text as it is decoded, and what it all took.
//!
//!     cargo run --release -p margay --example stream_answer -- examples/images/street.png "What does the sign say?"

#![allow(clippy::print_stdout, reason = "an example prints")]

use margay::{Event, Image, Model, Stage};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: stream_answer PICTURE QUESTION";
    let picture = Image::open(args.next().ok_or(usage)?)?;
    let question = args.next().ok_or(usage)?;
    let model = Model::nano()?;
    let mut session = model.session()?;
    for event in session.ask(&[picture], &question)? {
        match event? {
            Event::Stage { stage, took, .. } if stage != Stage::Decode => {
                println!("[{} {took:.1?}]", stage.name())
            }
            Event::Text(piece) => println!("{piece:?}"),
            Event::Done(report) => println!("{} tokens, {:?}", report.tokens.len(), report.stop),
            _ => {}
        }
    }
    Ok(())
}
