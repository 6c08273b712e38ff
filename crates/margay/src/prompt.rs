//! A question, ready to be computed.

use crate::{
    Content, Error, Image, Model, Turn,
    image::ImageDigest,
    session::{one_picture, too_long},
};
use margay_prompt::{
    layout::{Layout, PictureLayout, Sequence},
    text::{Message, Part, RenderedPart},
};

/// A conversation that ends with a question, laid out as tokens.
pub(crate) struct Prompt {
    pub messages: Vec<Message>,
    /// All pictures, in the order in which they stand.
    pub pictures: Vec<(Image, PictureLayout)>,
    pub sequence: Sequence,
}

impl Prompt {
    /// # Errors
    /// [`Error::Turns`] where the turns are no conversation that ends with a question; else what the template, the
    /// pictures or the vocabulary refuse.
    pub(crate) fn of_turns(model: &Model, turns: &[Turn]) -> Result<Self, Error> {
        let prompt = Self::of_any_length(model, turns)?;
        check_room(model, &prompt.sequence)?;
        // Here, where no other caller waits for it.
        prompt.pictures.iter().try_for_each(|(image, _)| image.digest().map(|_| ()))?;
        Ok(prompt)
    }

    /// What tells it from other prompts.
    ///
    /// # Errors
    /// [`Error::Image`] of a picture that cannot be decoded.
    pub(crate) fn outline(&self) -> Result<Outline, Error> {
        let rows = |(image, layout): &(Image, PictureLayout)| Ok((image.digest()?, layout.visual_tokens()));
        let pictures = self.pictures.iter().map(rows).collect::<Result<_, Error>>()?;
        Ok(Outline { ids: self.sequence.ids.clone(), pictures })
    }

    /// As [`Prompt::of_turns`], whether the context has room or not.
    fn of_any_length(model: &Model, turns: &[Turn]) -> Result<Self, Error> {
        check_turns(turns)?;
        let mut pictures = vec![];
        for part in turns.iter().flat_map(|turn| &turn.content) {
            if let Content::Image(image) = part {
                pictures.push(model.seen_now(image)?);
            }
        }
        let messages: Vec<_> = turns.iter().map(message).collect();
        let layouts: Vec<_> = pictures.iter().map(|(_, layout)| layout.clone()).collect();
        let sequence = laid_out(model, &model.source().render(&messages)?, &layouts)?;
        Ok(Prompt { messages, pictures, sequence })
    }
}

/// The tokens of a prompt, and whose pictures' rows its visual tokens are.
pub(crate) struct Outline {
    ids: Vec<i32>,
    /// Each picture with its visual tokens, before any is left out.
    pictures: Vec<(ImageDigest, usize)>,
}

impl Outline {
    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Tokens that both begin with, of the same pictures.
    pub(crate) fn shared(&self, other: &Outline) -> usize {
        let same = self.pictures.iter().zip(&other.pictures).take_while(|(a, b)| a == b);
        let rows: i64 = same.map(|((_, tokens), _)| *tokens as i64).sum();
        let alike = |(a, b): &(&i32, &i32)| a == b && -1 - i64::from(**a) < rows;
        self.ids.iter().zip(&other.ids).take_while(alike).count()
    }
}

/// Tokens of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptSize {
    /// All of them.
    pub tokens: usize,
    /// Those of pictures among them.
    pub visual_tokens: usize,
}

impl Model {
    /// Tokens that a conversation's prompt has. Whether it fits the context is not asked.
    ///
    /// # Errors
    /// As [`crate::Session::ask_turns`], but for [`Error::PromptTooLong`].
    pub fn prompt_size(&self, turns: &[Turn]) -> Result<PromptSize, Error> {
        let sequence = Prompt::of_any_length(self, turns)?.sequence;
        Ok(PromptSize { tokens: sequence.ids.len(), visual_tokens: sequence.visual_tokens() })
    }
}

/// Lays out a rendered conversation.
///
/// # Errors
/// [`Error::PromptTooLong`] where the context has no room for it and an answer's first token; what the layout refuses.
pub(crate) fn place(
    model: &Model,
    parts: &[RenderedPart],
    pictures: &[PictureLayout],
) -> Result<Sequence, Error> {
    let sequence = laid_out(model, parts, pictures)?;
    check_room(model, &sequence)?;
    Ok(sequence)
}

fn laid_out(model: &Model, parts: &[RenderedPart], pictures: &[PictureLayout]) -> Result<Sequence, Error> {
    one_picture(model.config(), pictures.len())?;
    Ok(Layout::default().place(model.tokenizer(), parts, pictures)?)
}

fn check_room(model: &Model, sequence: &Sequence) -> Result<(), Error> {
    let (prompt, context) = (sequence.ids.len(), model.context());
    // One place is left for the answer's first token.
    if prompt >= context {
        return Err(too_long(model.config(), prompt, sequence.visual_tokens(), context));
    }
    Ok(())
}

fn check_turns(turns: &[Turn]) -> Result<(), Error> {
    let bad = |what: String| Err(Error::Turns { what });
    let Some(last) = turns.last() else { return bad("there is none".to_owned()) };
    for (at, turn) in turns.iter().enumerate() {
        match turn.role.as_str() {
            "user" | "assistant" => {}
            "system" if at == 0 => {}
            "system" => return bad(format!("turn {} is the system's, which stands first", at + 1)),
            role => {
                return bad(format!("turn {} is {role:?}'s; known are system, user and assistant", at + 1));
            }
        }
        let sees = turn.content.iter().any(|part| matches!(part, Content::Image(_)));
        if sees && turn.role != "user" {
            return bad(format!("turn {} is the {}'s and holds a picture", at + 1, turn.role));
        }
    }
    if last.role != "user" {
        return bad("the last one asks nothing: it is not the user's".to_owned());
    }
    let says = |part: &Content| match part {
        Content::Text(text) => !text.trim().is_empty(),
        Content::Image(_) => true,
    };
    if last.content.iter().any(says) { Ok(()) } else { Err(Error::EmptyPrompt) }
}

fn message(turn: &Turn) -> Message {
    let part = |part: &Content| match part {
        Content::Text(text) => Part::Text(text.clone()),
        Content::Image(_) => Part::Image,
    };
    Message { role: turn.role.clone(), content: turn.content.iter().map(part).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AskOptions, Image};

    #[test]
    fn the_size_is_that_of_the_prompt_that_is_computed() {
        let model = Model::nano().unwrap();
        let picture = Image::filled(64, 48, [200, 30, 30]).unwrap();
        let content = vec![Content::Image(picture), Content::Text("What is this?".to_owned())];
        let turns = [Turn { role: "user".to_owned(), content }];
        let size = model.prompt_size(&turns).unwrap();
        let ask = AskOptions { max_tokens: 1, ..AskOptions::default() };
        let report = model.session().unwrap().ask_turns(&turns, &ask).unwrap().report().unwrap();
        assert_eq!(size.tokens, report.stages.prefill_tokens);
        assert_eq!(size.visual_tokens, report.stages.visual_tokens);
        assert!(size.visual_tokens > 0);
        assert!(matches!(model.prompt_size(&[]), Err(Error::Turns { .. })));
    }
}
