//! A suite's questions, put to a model.

use crate::{Answered, Entry, EvalError, Item, PictureAt, Record, Suite};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use margay::{AskOptions, Error, Image, Session, Stop};
use std::ops::ControlFlow;

/// How far a run is.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Questions answered, those of an earlier run as well.
    pub done: usize,
    /// Questions chosen.
    pub of: usize,
    /// Questions that this run began with.
    pub before: usize,
    /// What the answers of this run are worth so far, 0 to 1 each, and how many there are.
    pub worth: (f64, usize),
    /// The question answered last.
    pub item: &'a Item,
}

/// Asks the `chosen` questions that the record has no answer to, greedily. Questions of one picture that follow each other
/// share what was computed of it. Every answer is in the record before the next is asked; gives `false` where `each` or the
/// session's cancel flag stopped it.
///
/// A question that does not fit the context is recorded as one that could not be asked, which is wrong.
///
/// # Errors
/// [`EvalError::Engine`] where a picture cannot be read or the model fails, [`EvalError::Io`] of the record.
pub fn ask(
    session: &mut Session,
    suite: &dyn Suite,
    chosen: &[usize],
    max_tokens: usize,
    record: &mut Record,
    each: &mut dyn FnMut(&Asked<'_>) -> ControlFlow<()>,
) -> Result<bool, EvalError> {
    let options = AskOptions { max_tokens, ..AskOptions::default() };
    let items = suite.items();
    let left: Vec<usize> = chosen.iter().copied().filter(|at| record.get(&items[*at].id).is_none()).collect();
    let before = chosen.len() - left.len();
    let mut worth = (0.0, 0);
    let mut seen: Option<&PictureAt> = None;
    for (at, place) in left.into_iter().enumerate() {
        let item = &items[place];
        let again = item.picture.is_some() && item.picture.as_ref() == seen;
        let answer = if again {
            session.ask_instead(&item.prompt, &options)
        } else {
            session.clear();
            seen = None;
            let images: Vec<Image> =
                item.picture.iter().map(|at| open_picture(at, &item.id)).collect::<Result<_, _>>()?;
            session.ask_with(&images, &item.prompt, &options)
        };
        let entry = match answer {
            Ok(answer) => {
                let report = answer.report()?;
                if report.stop == Stop::Cancelled {
                    return Ok(false);
                }
                seen = item.picture.as_ref();
                let tokens = report.tokens.len();
                Entry { id: item.id.clone(), answer: Some(report.text.trim().to_owned()), why: None, tokens }
            }
            Err(e @ Error::PromptTooLong { .. }) => {
                // Whatever was held is still that of the question before, or nothing.
                Entry { id: item.id.clone(), answer: None, why: Some(e.to_string()), tokens: 0 }
            }
            Err(e) => return Err(e.into()),
        };
        let answered = [Answered { item: place, text: entry.answer.as_deref() }];
        let values = suite.worth(&answered);
        worth = (worth.0 + values.iter().sum::<f64>(), worth.1 + values.len());
        record.add(entry)?;
        let asked = Asked { done: before + at + 1, of: chosen.len(), before, worth, item };
        if each(&asked).is_break() {
            return Ok(at + 1 + before == chosen.len());
        }
    }
    Ok(true)
}

/// Decodes the picture of the question `id`.
///
/// # Errors
/// [`EvalError`] where it cannot be read or is none.
pub fn open_picture(picture: &PictureAt, id: &str) -> Result<Image, EvalError> {
    Ok(match picture {
        PictureAt::File(path) => Image::open(path)?,
        PictureAt::Base64(text) => {
            let name = format!("the picture of question {id}");
            let bytes = BASE64_STANDARD
                .decode(text.trim())
                .map_err(|e| EvalError::Empty { what: format!("{name} is no base64: {e}") })?;
            Image::from_bytes(&bytes, &name)?
        }
    })
}
