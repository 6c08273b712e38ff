//! An answer as it comes about.

use crate::{
    Error, GovernorEvent, Report, Session,
    work::{Pace, Work},
};
use margay_observe::Stage;
use std::time::Duration;

/// What happens while an answer is made.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A stage ended; prefill comes once a batch of the prompt, preprocess once a picture, encode and project once a
    /// tile of a picture, decode once a token behind the first, of as many as the answer may have.
    Stage {
        /// Which one.
        stage: Stage,
        /// How long it took.
        took: Duration,
        /// Of how many steps of this stage so many are done.
        done: usize,
        /// Steps of this stage.
        of: usize,
    },
    /// A token of the answer and its probability, where [`crate::AskOptions::logprobs`] asks for it; the text comes apart.
    Token(Box<Token>),
    /// The governor has moved: [`crate::Model::govern`].
    Governed(Box<GovernorEvent>),
    /// The next piece of the answer.
    Text(String),
    /// The answer is complete.
    Done(Box<Report>),
}

/// A token of an answer. Logarithms are natural, of the model's own probabilities: before temperature, cuts and penalties.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its number in the vocabulary.
    pub id: u32,
    /// What it stands for; a character may be several tokens.
    pub bytes: Vec<u8>,
    /// Logarithm of its probability.
    pub logprob: f32,
    /// The likeliest tokens, likeliest first.
    pub top: Vec<(u32, Vec<u8>, f32)>,
}

/// An iterator over an answer's [`Event`]s. Dropping it ends the answer; the session keeps what was said until then.
pub struct Answer<'s> {
    session: &'s mut Session,
    work: Work,
}

impl<'s> Answer<'s> {
    pub(crate) fn new(session: &'s mut Session, mut work: Work) -> Self {
        session.cancel.reset();
        work.overlap();
        Answer { session, work }
    }

    /// Reads to the end and gives the report.
    ///
    /// # Errors
    /// The first error of the answer.
    pub fn report(mut self) -> Result<Report, Error> {
        loop {
            match self.next() {
                Some(Ok(Event::Done(report))) => return Ok(*report),
                Some(Ok(_)) => {}
                Some(Err(e)) => return Err(e),
                None => unreachable!("invariant: an answer ends with its report or an error"),
            }
        }
    }
}

impl Iterator for Answer<'_> {
    type Item = Result<Event, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(event) = self.work.told() {
                return Some(Ok(event));
            }
            if self.work.is_over() {
                return None;
            }
            let mut pace = Pace { prefill: usize::MAX, pause: &mut || false };
            if let Err(e) = self.work.advance(self.session, &mut pace) {
                return Some(Err(e));
            }
        }
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        self.work.remember(self.session);
    }
}
