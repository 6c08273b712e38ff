//! A question, ready to be computed.

use crate::{
    Content, Error, Image, Model, Turn,
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
        check_turns(turns)?;
        let source = model.source();
        let mut pictures = vec![];
        for part in turns.iter().flat_map(|turn| &turn.content) {
            if let Content::Image(image) = part {
                pictures.push((image.clone(), model.picture_layout(image)?));
            }
        }
        let messages: Vec<_> = turns.iter().map(message).collect();
        let layouts: Vec<_> = pictures.iter().map(|(_, layout)| layout.clone()).collect();
        let sequence = place(model, &source.render(&messages)?, &layouts)?;
        // Here, where no other caller waits for it.
        pictures.iter().for_each(|(image, _)| _ = image.digest());
        Ok(Prompt { messages, pictures, sequence })
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
    let (config, context) = (model.config(), model.context());
    one_picture(config, pictures.len())?;
    let sequence = Layout::default().place(model.tokenizer(), parts, pictures)?;
    let prompt = sequence.ids.len();
    if prompt >= context {
        return Err(too_long(config, prompt, sequence.visual_tokens(), context));
    }
    Ok(sequence)
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
