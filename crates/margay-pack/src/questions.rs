//! Questions about pictures, to calibrate with.

use crate::PackError;
use margay::{AskOptions, Image, LoadOptions, Model, ModelSource, PromptInputs};
use margay_prompt::text::Segment;
use std::ops::ControlFlow;

/// A question to calibrate with.
#[derive(Clone, Debug)]
pub struct Question {
    /// Pictures before it.
    pub images: Vec<Image>,
    /// What is asked.
    pub text: String,
    /// Tokens of the answer, as far as they count.
    pub answer: Vec<u32>,
}

impl Question {
    /// With an answer in words, as the model would write it.
    ///
    /// # Errors
    /// [`PackError::Tokenizer`].
    pub fn answered(mut self, source: &ModelSource, answer: &str) -> Result<Self, PackError> {
        self.answer = source.tokenizer.encode_segments_behind(&[Segment::untrusted(answer)])?;
        Ok(self)
    }
}

/// How far a walk over a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalkProgress<'a> {
    /// What is being done.
    pub doing: &'a str,
    /// Steps done.
    pub done: usize,
    /// Steps in all.
    pub of: usize,
}

/// Told of each step; may stop.
pub type OnStep<'p> = &'p mut dyn FnMut(&WalkProgress<'_>) -> ControlFlow<()>;

/// The model's own answers, greedily, of so many tokens at most. The model is loaded for it.
///
/// # Errors
/// [`PackError::Engine`] as an answer gives it.
pub fn answer(
    model: &Model,
    questions: &mut [Question],
    tokens: usize,
    on_step: OnStep<'_>,
) -> Result<(), PackError> {
    let of = questions.len();
    let options = AskOptions { max_tokens: tokens, ..AskOptions::default() };
    for (done, question) in questions.iter_mut().enumerate() {
        if on_step(&WalkProgress { doing: "answering", done, of }).is_break() {
            return Err(PackError::Stopped);
        }
        let mut session = model.session()?;
        question.answer = session.ask_with(&question.images, &question.text, &options)?.report()?.tokens;
    }
    Ok(())
}

/// Loads the model of that source for [`answer`].
///
/// # Errors
/// [`PackError::Engine`].
pub fn load(source: &ModelSource) -> Result<Model, PackError> {
    Ok(Model::from_source(source.clone(), &LoadOptions::default())?)
}

/// The questions as the programs take them.
///
/// # Errors
/// [`PackError::Engine`] where one does not fit the model; [`PackError::NoQuestions`].
pub fn prompts(source: &ModelSource, questions: &[Question]) -> Result<Vec<PromptInputs>, PackError> {
    if questions.is_empty() {
        return Err(PackError::NoQuestions);
    }
    let prompt = |q: &Question| Ok(source.prompt_inputs(&q.images, &q.text, &q.answer)?);
    questions.iter().map(prompt).collect()
}
