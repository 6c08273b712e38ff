//! `margay run`: one question, one answer.

use crate::{
    Outcome, Usage,
    answering::{Asked, Question, answer, only, open_images, open_images_later, question_from_stdin},
    commands::chat::Chat,
    environment,
    interrupt::{Interrupt, Late},
    messages,
    model::{AskArgs, LoadArgs, OverlapArgs},
    output, stats,
    watching::VideoArgs,
    words::Words,
};
use clap::Args;
use margay::{LoadOptions, Model, Overlap, Report, Session, Stop};
use std::path::{Path, PathBuf};

/// What is asked of a picture that comes without a question.
const DESCRIBE: &str = "Describe the picture.";

/// What is asked of a video that comes without a question.
const DESCRIBE_VIDEO: &str = "Describe the video.";

const AFTER_HELP: &str = "\
EXAMPLES:
  margay run street.png \"What does the sign say?\"
  margay run street.png                          describes the picture
  margay run llava.gguf a.jpg b.jpg \"What changed?\"
  margay run --image street.png --prompt \"Is there a dog?\" --json
  echo \"What is a margay?\" | margay run llama.gguf --stats
  margay run llava.gguf --video clip.mp4 --fps 1 \"What happens?\"
  margay run llava.gguf --messages chat.json     goes on with a conversation
  margay run                                     on a terminal: a chat

MESSAGES:
  [{\"role\": \"system\", \"content\": \"Be brief.\"},
   {\"role\": \"user\", \"content\": [{\"type\": \"image\", \"path\": \"a.jpg\"}, {\"type\": \"text\", \"text\": \"What is this?\"}]},
   {\"role\": \"assistant\", \"content\": \"A margay.\"}, {\"role\": \"user\", \"content\": \"Where does it live?\"}]
  Paths of pictures are relative to the file; OpenAI's image_url parts with paths are read as well.

JSON:
  text, tokens (ids), stop (end, stop_text, length, context, cancelled), peak_rss_bytes, pictures (tokens kept, of, why: share,
  text, redundancy, repeats, resolution), with --video also video (frames, still, skipped,
  encoded, patches, of_patches, held, tokens, bytes), and stages:
  load_ms, preprocess_ms, encode_ms, project_ms, prefill_ms, prefill_tokens, reused_tokens,
  reused_pictures, visual_tokens, pruned_tokens, decode_ms, decode_tokens, drafted_tokens, accepted_tokens,
  model_drafted_tokens, model_accepted_tokens, draft_ms, ttft_ms. What is unknown is null.
  schedule: overlapped, why, and runs of stages (stage, lane: read, vision, text; picture, tokens, begin_ms, end_ms).
  Stages that ran at the same time are each told whole, so that their times add up to more than the answer took.";

/// Ask a question, with or without a picture
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Run {
    /// A model, pictures and a question, in any order: told apart by what they are
    #[arg(value_name = "MODEL|PICTURE|QUESTION")]
    words: Vec<String>,
    /// A picture; may be repeated
    #[arg(long = "image", short = 'i', value_name = "FILE")]
    images: Vec<PathBuf>,
    /// The question; - reads it from stdin
    #[arg(long, short = 'p', value_name = "TEXT")]
    prompt: Option<String>,
    /// The model: a GGUF file or a Hugging Face folder
    #[arg(long, short = 'm', value_name = "PATH")]
    model: Option<PathBuf>,
    /// How the model should behave
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// A conversation as JSON, the question last; see below
    #[arg(long, value_name = "FILE", conflicts_with_all = ["images", "prompt", "system"])]
    messages: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Print the time of each stage to stderr
    #[arg(long)]
    stats: bool,
    #[command(flatten)]
    video: VideoArgs,
    #[command(flatten)]
    ask: AskArgs,
    #[command(flatten)]
    overlap: OverlapArgs,
    #[command(flatten)]
    load: LoadArgs,
}

impl Run {
    pub(crate) fn run(mut self, interrupt: &Interrupt) -> anyhow::Result<Outcome> {
        let words = Words::sort(&self.words)?;
        let model_path = only(words.model, self.model.take(), "the model")?;
        let question = only(words.question, self.prompt.take(), "the question")?;
        let pictures: Vec<PathBuf> =
            words.pictures.into_iter().chain(std::mem::take(&mut self.images)).collect();

        if self.video.video.is_some() {
            if !pictures.is_empty() {
                return Err(Usage("give a video or pictures, not both".to_owned()).into());
            }
            let question = match question {
                Some(dash) if dash == "-" => question_from_stdin()?,
                question => question.unwrap_or_default(),
            };
            return self.watch(model_path, question.trim(), interrupt);
        }
        if let Some(path) = &self.messages {
            if question.is_some() || !pictures.is_empty() {
                let what = "--messages holds the question and its pictures; give no others";
                return Err(Usage(what.to_owned()).into());
            }
            let turns = messages::read(path)?;
            return self.ask(model_path, &Asked::Turns(&turns), interrupt);
        }
        if question.is_none() && pictures.is_empty() && environment::stdin_is_terminal() {
            if !environment::stdout_is_terminal() || self.json {
                return Err(Usage("nothing to ask: give a picture or a question".to_owned()).into());
            }
            let chat = Chat::new(model_path, self.system, self.ask, self.overlap, self.load);
            return chat.run(interrupt);
        }
        let question = match question {
            Some(dash) if dash == "-" => question_from_stdin()?,
            Some(question) => question,
            None if pictures.is_empty() => question_from_stdin()?,
            None => String::new(),
        };
        let question = match question.trim() {
            "" if !pictures.is_empty() => DESCRIBE,
            question => question,
        };
        // A file that is no picture is said before a large model is loaded.
        let images = match self.overlap.overlap {
            Overlap::Off => open_images(&pictures)?,
            _ => open_images_later(&pictures)?,
        };
        self.ask(model_path, &Asked::Words(&images, question), interrupt)
    }

    fn watch(
        &self,
        model: Option<PathBuf>,
        question: &str,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Outcome> {
        let (model, mut session) = self.session(model.as_deref())?;
        let Some(clip) = self.video.watch(&model, &session, interrupt)? else {
            return Ok(Outcome::Interrupted);
        };
        let question = if question.is_empty() { DESCRIBE_VIDEO } else { question };
        let report = self.answer(&model, &mut session, &Asked::Clip(&clip, question), interrupt)?;
        if self.json {
            let mut json = serde_json::to_value(&report)?;
            json["video"] = serde_json::to_value(clip.report())?;
            output::json(&json)?;
        }
        Ok(if report.stop == Stop::Cancelled { Outcome::Interrupted } else { Outcome::Done })
    }

    fn ask(
        &self,
        model: Option<PathBuf>,
        asked: &Asked<'_>,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Outcome> {
        let (model, mut session) = self.session(model.as_deref())?;
        let report = self.answer(&model, &mut session, asked, interrupt)?;
        if self.json {
            output::json(&report)?;
        }
        Ok(if report.stop == Stop::Cancelled { Outcome::Interrupted } else { Outcome::Done })
    }

    fn session(&self, model: Option<&Path>) -> anyhow::Result<(Model, Session)> {
        let options = self.load.options_for(&self.ask)?;
        let (changed_patches, overlap) = (self.video.changed_patches, self.overlap.overlap);
        let options = LoadOptions { changed_patches, overlap, ..options };
        let model = self.load.load_as(model, options)?;
        let mut session = model.session()?;
        if let Some(system) = &self.system {
            session.system(system);
        }
        Ok((model, session))
    }

    fn answer(
        &self,
        model: &Model,
        session: &mut Session,
        asked: &Asked<'_>,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Report> {
        let options = self.ask.options();
        let question = Question { asked, options: &options, late: Late::Leave, stream: !self.json };
        let report = answer(session, &question, interrupt)?;
        if self.stats {
            output::note(stats::of_session(&report, model, session).trim_end());
        }
        Ok(report)
    }
}
