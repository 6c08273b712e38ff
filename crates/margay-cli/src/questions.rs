//! The options that say which questions a model is calibrated with.

use crate::{output, progress::Meter};
use anyhow::Context;
use clap::Args;
use margay::{Cancel, Image, ModelSource};
use margay_pack::{PackError, Question, answer, load};
use std::{
    num::NonZeroUsize,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

/// Asked where nobody says what to ask.
const QUESTION: &str = "Describe this picture.";
/// Endings of pictures that are read.
const ENDINGS: [&str; 6] = ["png", "jpg", "jpeg", "webp", "gif", "bmp"];
/// Bytes of weights above which answers are not computed unless asked for: the whole model has to be loaded for them.
const MOST_LOADED_BYTES: u64 = 1 << 30;
/// Tokens of an answer that are computed where nobody says how many.
const ANSWER_TOKENS: usize = 8;
/// Largest file of questions.
const MOST_TEXT_BYTES: u64 = 64 << 20;

/// Which questions.
#[derive(Clone, Debug, Args)]
pub(crate) struct QuestionArgs {
    /// A folder of pictures, or one picture
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// Questions, one a line, in turn for the pictures; behind a tab, the answer. Without pictures, plain text
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Pictures, or lines, at most: evenly spread over all there are
    #[arg(long, value_name = "N", default_value = "32")]
    pub samples: NonZeroUsize,
    /// Tokens of the model's own answer that count as well; 8, or 0 where the model is larger than 1 GiB
    #[arg(long, value_name = "N")]
    pub answer_tokens: Option<usize>,
}

impl QuestionArgs {
    /// Whether there is anything to ask.
    pub(crate) fn given(&self) -> bool {
        self.images.is_some() || self.text.is_some()
    }

    /// In words, for reports.
    pub(crate) fn describe(&self, questions: &[Question]) -> String {
        let pictures = questions.iter().filter(|q| !q.images.is_empty()).count();
        let answers: usize = questions.iter().map(|q| q.answer.len()).sum();
        format!("{} questions, {pictures} with a picture, {answers} answer tokens", questions.len())
    }

    /// The questions, with their answers.
    pub(crate) fn read(
        &self,
        source: &ModelSource,
        cancel: &Cancel,
        quiet: bool,
    ) -> anyhow::Result<Vec<Question>> {
        let lines = self.text.as_deref().map(lines).transpose()?.unwrap_or_default();
        let pictures = self.images.as_deref().map(pictures).transpose()?.unwrap_or_default();
        let mut questions = vec![];
        let mut unanswered = vec![];
        let count = if pictures.is_empty() { lines.len() } else { pictures.len() };
        let taken = self.samples.get().min(count);
        for at in (0..taken).map(|i| i * count / taken) {
            let line = lines.get(at % lines.len().max(1)).map_or(QUESTION, String::as_str);
            let (text, said) = match line.split_once('\t') {
                Some((text, said)) => (text, Some(said)),
                None => (line, None),
            };
            let images = match pictures.get(at) {
                Some(path) => vec![Image::open(path)?],
                None => vec![],
            };
            let question = Question { images, text: text.to_owned(), answer: vec![] };
            match said {
                Some(said) => questions.push(question.answered(source, said)?),
                None => unanswered.push(question),
            }
        }
        let tokens = self.answer_tokens(source)?;
        if tokens > 0 && !unanswered.is_empty() {
            let model = load(source)?;
            let mut meter = if quiet { Meter::start(true) } else { Meter::counting() };
            let result = answer(&model, &mut unanswered, tokens, &mut |step| {
                meter.update(step.done as u64, step.of as u64, step.doing);
                if cancel.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            result?;
        }
        questions.extend(unanswered);
        if questions.is_empty() {
            return Err(PackError::NoQuestions.into());
        }
        Ok(questions)
    }

    fn answer_tokens(&self, source: &ModelSource) -> anyhow::Result<usize> {
        if let Some(tokens) = self.answer_tokens {
            return Ok(tokens);
        }
        let sizes = source.weights.names().filter_map(|name| source.weights.info(name)?.size_bytes().ok());
        let bytes: u64 = sizes.map(|bytes| bytes as u64).sum();
        if bytes > MOST_LOADED_BYTES {
            output::aside(
                "the model is large, so its answers are not computed; --answer-tokens asks for them",
            );
            return Ok(0);
        }
        Ok(ANSWER_TOKENS)
    }
}

/// Lines that say something.
///
/// # Errors
/// Of a file that cannot be read, is too large, no UTF-8, or without such a line.
pub(crate) fn lines(path: &Path) -> anyhow::Result<Vec<String>> {
    let bytes = margay::rooms::file::read_file(path, MOST_TEXT_BYTES)?;
    let text = String::from_utf8(bytes).with_context(|| format!("{} is no UTF-8 text", path.display()))?;
    let lines: Vec<String> = text.lines().filter(|l| !l.trim().is_empty()).map(str::to_owned).collect();
    anyhow::ensure!(!lines.is_empty(), "{} holds no line", path.display());
    Ok(lines)
}

/// The pictures of a folder by name, or the one.
///
/// # Errors
/// Of a folder that cannot be read, or holds none.
pub(crate) fn pictures(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    let entries =
        entries.collect::<Result<Vec<_>, _>>().with_context(|| format!("cannot read {}", path.display()))?;
    let is_picture = |path: &PathBuf| {
        let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase());
        ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()))
    };
    let mut pictures: Vec<PathBuf> = entries.into_iter().map(|e| e.path()).filter(is_picture).collect();
    pictures.sort();
    anyhow::ensure!(!pictures.is_empty(), "{} holds no picture ({})", path.display(), ENDINGS.join(", "));
    Ok(pictures)
}
