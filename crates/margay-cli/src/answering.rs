//! One answer, from the question to its last token.

use crate::{
    Usage,
    interrupt::{Interrupt, Late},
    output,
    progress::Spinner,
    watching,
};
use margay::{AskOptions, Clip, Content, Event, GovernorEvent, Image, Report, Session, Stage, Stop, Turn};
use std::{io::Read, path::PathBuf};

/// Bytes of a question at most: more than any context holds, little enough to read at once.
pub(crate) const MAX_QUESTION_BYTES: u64 = 1 << 20;

/// A question and how to answer it.
pub(crate) struct Question<'a> {
    /// What is asked.
    pub asked: &'a Asked<'a>,
    /// How tokens are chosen.
    pub options: &'a AskOptions,
    /// What Ctrl-C does where the model does not stop at once.
    pub late: Late,
    /// Show the text as it comes about.
    pub stream: bool,
}

/// What is asked.
pub(crate) enum Asked<'a> {
    /// Pictures, and words behind them.
    Words(&'a [Image], &'a str),
    /// A conversation that ends with a question.
    Turns(&'a [Turn]),
    /// A video, and words behind it.
    Clip(&'a Clip, &'a str),
}

impl Asked<'_> {
    fn sees(&self) -> bool {
        match self {
            Asked::Words(images, _) => !images.is_empty(),
            Asked::Clip(..) => true,
            Asked::Turns(turns) => {
                turns.iter().flat_map(|turn| &turn.content).any(|part| matches!(part, Content::Image(_)))
            }
        }
    }
}

/// Asks, shows and reports. An answer that Ctrl-C stopped is one with [`Stop::Cancelled`].
pub(crate) fn answer(
    session: &mut Session,
    question: &Question<'_>,
    interrupt: &Interrupt,
) -> anyhow::Result<Report> {
    let watch = interrupt.watch(session.cancel(), question.late);
    let noted = session.model().notes()?.len();
    let spinner = Spinner::start(if question.asked.sees() { "looking" } else { "reading" });
    let answer = match question.asked {
        Asked::Words(images, text) => session.ask_with(images, text, question.options)?,
        Asked::Turns(turns) => session.ask_turns(turns, question.options)?,
        Asked::Clip(clip, text) => {
            let (answer, shown) = session.ask_clip(clip, text, question.options)?;
            spinner.clear();
            watching::tell(&clip.report(), shown);
            answer
        }
    };
    watch.repeat();
    let mut shown = String::new();
    let mut report = None;
    for event in answer {
        match event? {
            Event::Stage { stage: Stage::Prefill, done, of, .. } => {
                spinner.say(format!("reading {done}/{of}"))
            }
            Event::Stage { stage: Stage::Project, done, of, .. } if of > 1 => {
                spinner.say(format!("looking {done}/{of}"));
            }
            Event::Stage { stage: Stage::Project, .. } => spinner.say("reading".to_owned()),
            Event::Governed(event) => {
                spinner.clear();
                output::aside(&moved(&event));
            }
            Event::Text(piece) => {
                if question.stream {
                    spinner.clear();
                    output::answer(&piece)?;
                } else if shown.is_empty() {
                    spinner.say("answering".to_owned());
                }
                shown += &piece;
            }
            Event::Done(done) => report = Some(*done),
            _ => {}
        }
    }
    spinner.clear();
    let notes = session.model().notes()?;
    notes.iter().skip(noted).for_each(|note| output::aside(&output::harmless(note)));
    let report = report.ok_or_else(|| anyhow::anyhow!("the answer ended without its report"))?;
    if question.stream {
        if !shown.ends_with('\n') {
            output::text("\n")?;
        }
        if let Some(why) = cut_short(&report) {
            output::aside(why);
        }
    }
    Ok(report)
}

/// What a person should know of a governor that has moved.
fn moved(event: &GovernorEvent) -> String {
    let GovernorEvent { rung, from, to, resource, why, .. } = event;
    let way = if to > from { "down" } else { "up" };
    format!("(governor: {rung} {way} to step {to} for {}: {why})", resource.name())
}

/// What a person should know of how the answer ended.
fn cut_short(report: &Report) -> Option<&'static str> {
    match report.stop {
        Stop::Length => Some("(cut off: raise --max-tokens for more)"),
        Stop::Context => Some("(cut off: the context is full; raise --context for more)"),
        Stop::Cancelled => Some("(stopped)"),
        Stop::End | Stop::StopText if report.text.trim().is_empty() => Some("(the model has nothing to say)"),
        Stop::End | Stop::StopText => None,
    }
}

/// Reads pictures.
pub(crate) fn open_images(paths: &[PathBuf]) -> anyhow::Result<Vec<Image>> {
    paths.iter().map(|path| Ok(Image::open(path)?)).collect()
}

/// Reads the headers of pictures, whose pixels are decoded while the answer is made.
pub(crate) fn open_images_later(paths: &[PathBuf]) -> anyhow::Result<Vec<Image>> {
    paths.iter().map(|path| Ok(Image::open_later(path)?)).collect()
}

/// A question from stdin.
pub(crate) fn question_from_stdin() -> anyhow::Result<String> {
    let mut bytes = vec![];
    std::io::stdin().lock().take(MAX_QUESTION_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_QUESTION_BYTES {
        anyhow::bail!("the question on stdin is longer than {MAX_QUESTION_BYTES} bytes");
    }
    String::from_utf8(bytes).map_err(|_| anyhow::anyhow!("the question on stdin is not UTF-8 text"))
}

/// The one of two ways to say something; both at once is a mistake.
pub(crate) fn only<T>(word: Option<T>, flag: Option<T>, what: &str) -> anyhow::Result<Option<T>> {
    match (word, flag) {
        (Some(_), Some(_)) => Err(Usage(format!("{what} is given twice, as a word and as an option")).into()),
        (word, flag) => Ok(word.or(flag)),
    }
}
