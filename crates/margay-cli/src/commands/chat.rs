//! `margay chat`: a conversation in the terminal, or one line a turn from a pipe.

use crate::{
    Outcome,
    answering::{Asked, MAX_QUESTION_BYTES, Question, answer, open_images},
    environment,
    interrupt::{Interrupt, Late},
    model::{AskArgs, LoadArgs, OverlapArgs},
    output, stats,
};
use clap::Args;
use margay::{Image, LoadOptions, Model, Report, Session, Stop, rooms::observe::report::bytes};
use rustyline::{DefaultEditor, error::ReadlineError};
use std::{
    io::{BufRead, Read},
    path::PathBuf,
};

const AFTER_HELP: &str = "\
EXAMPLES:
  margay chat                                    the built-in model
  margay chat llava.gguf --image street.png
  printf 'Is there a car?\\nWhere?\\n' | margay chat --image street.png

In the chat:
  /image FILE   show a picture with the next question
  /save FILE    keep the conversation, with all that was computed
  /load FILE    go on with one that was kept, by the same model
  /clear        forget the conversation
  /stats        what the last answer took
  /help         this list
  /quit         leave (Ctrl-D and, at the prompt, Ctrl-C do so too)

Lines are edited as in a shell: arrows, Ctrl-A, Ctrl-E, Ctrl-R to search what was said before.
Ctrl-C stops an answer and keeps the conversation.";

const COMMANDS: &str = "\
/image FILE  show a picture with the next question
/save FILE   keep the conversation, with all that was computed
/load FILE   go on with one that was kept, by the same model
/clear       forget the conversation
/stats       what the last answer took
/help        this list
/quit        leave (Ctrl-D and, at the prompt, Ctrl-C do so too)
Ctrl-C stops an answer and keeps the conversation";

/// Talk with a model
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Chat {
    /// A GGUF file or a Hugging Face folder; the built-in model unless given
    model: Option<PathBuf>,
    /// A picture to begin with; may be repeated
    #[arg(long = "image", short = 'i', value_name = "FILE")]
    images: Vec<PathBuf>,
    /// How the model should behave
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    ask: AskArgs,
    #[command(flatten)]
    overlap: OverlapArgs,
    #[command(flatten)]
    load: LoadArgs,
}

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Nothing,
    Say(&'a str),
    Image(&'a str),
    Save(&'a str),
    Load(&'a str),
    Clear,
    Stats,
    Help,
    Quit,
    Unknown(&'a str),
}

/// A conversation and what belongs to it.
struct Talk<'i> {
    model: Model,
    session: Session,
    system: Option<String>,
    /// Pictures that wait for the next question.
    images: Vec<Image>,
    last: Option<Report>,
    interrupt: &'i Interrupt,
    options: margay::AskOptions,
}

impl Chat {
    /// A chat that begins without a picture.
    pub(crate) fn new(
        model: Option<PathBuf>,
        system: Option<String>,
        ask: AskArgs,
        overlap: OverlapArgs,
        load: LoadArgs,
    ) -> Self {
        Chat { model, images: vec![], system, ask, overlap, load }
    }

    pub(crate) fn run(self, interrupt: &Interrupt) -> anyhow::Result<Outcome> {
        let images = open_images(&self.images)?;
        let options = LoadOptions { overlap: self.overlap.overlap, ..self.load.options_for(&self.ask)? };
        let model = self.load.load_as(self.model.as_deref(), options)?;
        let session = model.session()?;
        let options = self.ask.options();
        let mut talk = Talk { model, session, system: self.system, images, last: None, interrupt, options };
        talk.begin();
        let person = environment::stdin_is_terminal();
        if person {
            let name = talk.model.config().name.escape_debug().to_string();
            output::aside(&format!("{name} on {}; /help lists what you can do", talk.model.backend().id()));
        }
        // A terminal that cannot be edited on is read as a pipe is.
        let edited = person && environment::stdout_is_terminal();
        let mut editor = if edited { DefaultEditor::new().ok() } else { None };
        let mut failures = 0;
        loop {
            let line = match &mut editor {
                Some(editor) => edited_line(editor)?,
                None => {
                    if person {
                        output::prompt();
                    }
                    read_line()?
                }
            };
            let Some(line) = line else { break };
            match talk.turn(Line::parse(&line)) {
                Ok(true) => {}
                Ok(false) => break,
                Err(e) if e.is::<output::Closed>() => return Err(e),
                // A turn that failed does not end the conversation.
                Err(e) => {
                    output::error(&e);
                    failures += 1;
                }
            }
        }
        // A script wants to know; a person has read it.
        anyhow::ensure!(person || failures == 0, "{failures} of the lines failed");
        Ok(Outcome::Done)
    }
}

impl Talk<'_> {
    fn begin(&mut self) {
        if let Some(system) = &self.system {
            self.session.system(system);
        }
    }

    fn forget(&mut self) {
        self.session.clear();
        self.begin();
    }

    /// Does what the line asks for; false where that is to leave.
    fn turn(&mut self, line: Line<'_>) -> anyhow::Result<bool> {
        match line {
            Line::Nothing => {}
            Line::Say(text) => self.say(text)?,
            Line::Image("") => anyhow::bail!("/image needs the path of a picture"),
            Line::Image(path) => {
                let image = Image::open(path)?;
                output::aside(&format!(
                    "{path}: {} x {} pixels; ask about it",
                    image.width(),
                    image.height()
                ));
                self.images.push(image);
            }
            Line::Save("") | Line::Load("") => anyhow::bail!("it needs the path of a file"),
            Line::Save(path) => {
                self.session.save(path)?;
                let size = std::fs::metadata(path).map_or(0, |meta| meta.len());
                output::aside(&format!(
                    "{} tokens kept in {path}, {}",
                    self.session.used_tokens(),
                    bytes(size)
                ));
            }
            Line::Load(path) => {
                self.session = self.model.load_session(path)?;
                self.images.clear();
                self.last = None;
                output::aside(&format!("{} tokens from {path}; go on", self.session.used_tokens()));
            }
            Line::Clear => {
                self.forget();
                self.images.clear();
                output::aside("forgotten");
            }
            Line::Stats => match &self.last {
                Some(report) => {
                    output::note(stats::of_session(report, &self.model, &self.session).trim_end())
                }
                None => output::aside("nothing was asked yet"),
            },
            Line::Help => output::note(COMMANDS),
            Line::Quit => return Ok(false),
            Line::Unknown(word) => anyhow::bail!("{word} is no command; /help lists them"),
        }
        Ok(true)
    }

    fn say(&mut self, text: &str) -> anyhow::Result<()> {
        let images = std::mem::take(&mut self.images);
        let (options, late) = (&self.options, Late::Wait);
        let question = Question { asked: &Asked::Words(&images, text), options, late, stream: true };
        let report = match answer(&mut self.session, &question, self.interrupt) {
            Ok(report) => report,
            Err(e) => {
                // The pictures were not shown: they wait for a question that works.
                if e.downcast_ref::<margay::Error>().is_some_and(is_refusal) {
                    self.images = images;
                }
                return Err(e);
            }
        };
        // A question whose pictures were not all seen is taken back; they wait for the next one.
        if report.stop == Stop::Cancelled && report.stages.ttft_ms.is_none() {
            self.images = images;
        }
        self.last = Some(report);
        Ok(())
    }
}

/// True where the question was turned down before anything was computed, and another one may work.
fn is_refusal(error: &margay::Error) -> bool {
    matches!(error, margay::Error::PromptTooLong { .. } | margay::Error::EmptyPrompt)
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Self {
        let line = line.trim();
        if !line.starts_with('/') {
            return if line.is_empty() { Line::Nothing } else { Line::Say(line) };
        }
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (word, rest.trim().trim_matches(['"', '\''])) {
            ("/image", path) => Line::Image(path),
            ("/save", path) => Line::Save(path),
            ("/load", path) => Line::Load(path),
            ("/clear", "") => Line::Clear,
            ("/stats", "") => Line::Stats,
            ("/help" | "/?", "") => Line::Help,
            ("/quit" | "/exit" | "/q", "") => Line::Quit,
            _ => Line::Unknown(word),
        }
    }
}

/// The next line a person types; `None` where they leave. What they typed can be called back.
fn edited_line(editor: &mut DefaultEditor) -> anyhow::Result<Option<String>> {
    match editor.readline(output::PROMPT) {
        Ok(line) => {
            anyhow::ensure!(
                line.len() as u64 <= MAX_QUESTION_BYTES,
                "a line is longer than {MAX_QUESTION_BYTES} bytes"
            );
            // A history that is full or off loses nothing of the conversation.
            let _ = editor.add_history_entry(line.trim());
            Ok(Some(line))
        }
        Err(ReadlineError::Eof | ReadlineError::Interrupted) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The next line of stdin; `None` at its end.
fn read_line() -> anyhow::Result<Option<String>> {
    let mut bytes = vec![];
    let read = std::io::stdin().lock().take(MAX_QUESTION_BYTES + 1).read_until(b'\n', &mut bytes)?;
    anyhow::ensure!(read as u64 <= MAX_QUESTION_BYTES, "a line is longer than {MAX_QUESTION_BYTES} bytes");
    Ok((read > 0).then(|| String::from_utf8_lossy(&bytes).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_begin_with_a_slash_are_commands() {
        assert_eq!(Line::parse("  \n"), Line::Nothing);
        assert_eq!(Line::parse(" What is it?\n"), Line::Say("What is it?"));
        assert_eq!(Line::parse("/image a b.png\n"), Line::Image("a b.png"));
        assert_eq!(Line::parse("/image 'a b.png'"), Line::Image("a b.png"));
        assert_eq!(Line::parse("/image"), Line::Image(""));
        assert_eq!(Line::parse("/save talk.margay"), Line::Save("talk.margay"));
        assert_eq!(Line::parse("/load \"my talk\""), Line::Load("my talk"));
        assert_eq!(Line::parse("/quit\r\n"), Line::Quit);
        assert_eq!(Line::parse("/quit now"), Line::Unknown("/quit"));
        assert_eq!(Line::parse("/tmp is full"), Line::Unknown("/tmp"));
    }
}
