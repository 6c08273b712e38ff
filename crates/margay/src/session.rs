//! A conversation with a model.

use crate::{Answer, AskOptions, Error, Image, Model, engine::prefix_of, sample::Sampler};
use margay_graph::{Cancel, State};
use margay_model::{ModelConfig, VisionConfig};
use margay_prompt::{
    layout::{Layout, PictureLayout, Sequence},
    text::{Message, Part, RenderedPart},
};
use std::collections::VecDeque;

/// A message of a conversation that was had elsewhere.
#[derive(Clone, Debug)]
pub struct Turn {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Texts and pictures in order.
    pub content: Vec<Content>,
}

/// A part of a [`Turn`].
#[derive(Clone, Debug)]
pub enum Content {
    /// Words.
    Text(String),
    /// A picture.
    Image(Image),
}

/// A conversation: its messages, its pictures as visual tokens, and the KV cache of what was computed.
pub struct Session {
    pub(crate) model: Model,
    pub(crate) state: Box<dyn State>,
    /// Ids of the tokens in the cache, negative for visual rows.
    pub(crate) held: Vec<i32>,
    pub(crate) messages: Vec<Message>,
    /// Visual rows of all pictures so far, [V, E].
    pub(crate) visual: Vec<f32>,
    /// What each picture so far became in the prompt.
    pub(crate) images: Vec<PictureLayout>,
    pub(crate) cancel: Cancel,
}

impl Session {
    pub(crate) fn new(model: Model) -> Result<Self, Error> {
        let state = model.engine()?.new_state(model.context())?;
        Ok(Session {
            model,
            state,
            held: vec![],
            messages: vec![],
            visual: vec![],
            images: vec![],
            cancel: Cancel::new(),
        })
    }

    /// Asks about pictures (they stand before the question) or goes on with the conversation. The answer comes as an
    /// iterator; its tokens are computed as it is read.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::NoVision`], [`Error::PromptTooLong`], and whatever else can be said before
    /// anything is computed.
    pub fn ask(&mut self, images: &[Image], text: &str) -> Result<Answer<'_>, Error> {
        self.ask_with(images, text, &AskOptions::default())
    }

    /// As [`Session::ask`], with options.
    ///
    /// # Errors
    /// As [`Session::ask`]; [`Error::Option`] for options out of range.
    pub fn ask_with(
        &mut self,
        images: &[Image],
        text: &str,
        options: &AskOptions,
    ) -> Result<Answer<'_>, Error> {
        if text.trim().is_empty() && images.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let layouts = self.layouts(images)?;
        let sampler = Sampler::new(options.sampling)?;
        if !self.messages.iter().any(|m| m.role == "user") {
            // Pictures of a raw prompt are no part of the conversation that begins here.
            self.forget_computed();
        }
        self.messages.push(Message::user(images.len(), text));
        let all: Vec<_> = self.images.iter().chain(&layouts).cloned().collect();
        let sequence = self.model.source().render(&self.messages).and_then(|parts| self.place(&parts, &all));
        let pictures = images.iter().cloned().zip(layouts).collect();
        match sequence {
            Ok(sequence) => Ok(Answer::new(self, sequence, pictures, options.clone(), sampler)),
            Err(e) => {
                self.messages.pop();
                Err(e)
            }
        }
    }

    /// Asks another question about the pictures of the last one, in its place: the conversation is as if the last question
    /// had not been asked. The pictures are not looked at again, and what the two prompts share is not computed again.
    ///
    /// # Errors
    /// [`Error::Turns`] where there is no question yet; else as [`Session::ask_with`].
    pub fn ask_instead(&mut self, text: &str, options: &AskOptions) -> Result<Answer<'_>, Error> {
        let Some(last) = self.messages.iter().rposition(|m| m.role == "user") else {
            let what = "there is no question yet that another could stand in for".to_owned();
            return Err(Error::Turns { what });
        };
        let images = self.messages[last].content.iter().filter(|part| **part == Part::Image).count();
        if text.trim().is_empty() && images == 0 {
            return Err(Error::EmptyPrompt);
        }
        let sampler = Sampler::new(options.sampling)?;
        let mut messages = self.messages[..last].to_vec();
        messages.push(Message::user(images, text));
        let sequence =
            self.model.source().render(&messages).and_then(|parts| self.place(&parts, &self.images))?;
        self.messages = messages;
        Ok(Answer::new(self, sequence, VecDeque::new(), options.clone(), sampler))
    }

    /// Goes on with a conversation that was had elsewhere, in place of the one that was held: its last turn is the
    /// question. Pictures stand where they are in their turns.
    ///
    /// # Errors
    /// [`Error::Turns`] where the turns are no conversation that ends with a question; else as [`Session::ask_with`].
    pub fn ask_turns(&mut self, turns: &[Turn], options: &AskOptions) -> Result<Answer<'_>, Error> {
        check_turns(turns)?;
        let content = turns.iter().flat_map(|turn| &turn.content);
        let images: Vec<_> = content
            .filter_map(|part| if let Content::Image(image) = part { Some(image.clone()) } else { None })
            .collect();
        let layouts = self.layouts(&images)?;
        let sampler = Sampler::new(options.sampling)?;
        let messages: Vec<_> = turns.iter().map(message).collect();
        let sequence =
            self.model.source().render(&messages).and_then(|parts| self.place(&parts, &layouts))?;
        self.clear();
        self.messages = messages;
        let pictures = images.into_iter().zip(layouts).collect();
        Ok(Answer::new(self, sequence, pictures, options.clone(), sampler))
    }

    /// Asks with a prompt that is used as it stands: no template, `<image>` marks each picture. Starts a new
    /// conversation.
    ///
    /// # Errors
    /// As [`Session::ask`].
    pub fn ask_raw(
        &mut self,
        images: &[Image],
        prompt: &str,
        options: &AskOptions,
    ) -> Result<Answer<'_>, Error> {
        let layouts = self.layouts(images)?;
        self.clear();
        let parts = raw_parts(prompt, self.model.config().prompt.image_mark);
        let sequence = self.place(&parts, &layouts)?;
        if sequence.ids.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let sampler = Sampler::new(options.sampling)?;
        let pictures = images.iter().cloned().zip(layouts).collect();
        Ok(Answer::new(self, sequence, pictures, options.clone(), sampler))
    }

    /// Says how the model should behave; stands before the first question.
    pub fn system(&mut self, text: &str) {
        let message = Message { role: "system".to_owned(), content: vec![Part::Text(text.to_owned())] };
        match self.messages.first_mut() {
            Some(first) if first.role == "system" => *first = message,
            _ => self.messages.insert(0, message),
        }
    }

    /// Forgets the conversation.
    pub fn clear(&mut self) {
        self.messages.clear();
        self.forget_computed();
    }

    fn forget_computed(&mut self) {
        self.visual.clear();
        self.images.clear();
        self.held.clear();
        self.state.truncate(0);
    }

    /// Keeps the first `tokens` of what was computed, or nothing where that would cut tokens that saw one another; says how
    /// many.
    pub(crate) fn keep(&mut self, tokens: usize) -> usize {
        let prefix = prefix_of(self.model.config(), &self.held);
        let tokens = if tokens < prefix { 0 } else { tokens };
        self.held.truncate(tokens);
        self.state.truncate(tokens);
        tokens
    }

    /// The flag that stops a running answer, from any thread.
    pub fn cancel(&self) -> Cancel {
        self.cancel.clone()
    }

    /// Tokens of context in use.
    pub fn used_tokens(&self) -> usize {
        self.state.len()
    }

    /// Bytes of the KV cache.
    pub fn cache_bytes(&self) -> usize {
        self.state.size_bytes()
    }

    fn layouts(&self, images: &[Image]) -> Result<Vec<PictureLayout>, Error> {
        images.iter().map(|image| self.model.source().picture_layout(image)).collect()
    }

    fn place(&self, parts: &[RenderedPart], pictures: &[PictureLayout]) -> Result<Sequence, Error> {
        let config = self.model.config();
        one_picture(config, pictures.len())?;
        let sequence = Layout::default().place(self.model.tokenizer(), parts, pictures)?;
        let (prompt, context) = (sequence.ids.len(), self.model.context());
        // One place is left for the answer's first token.
        if prompt >= context {
            let visual = sequence.visual_tokens();
            return Err(too_long(config, prompt, visual, context));
        }
        Ok(sequence)
    }
}

pub(crate) fn too_long(config: &ModelConfig, prompt: usize, visual: usize, context: usize) -> Error {
    let varies = visual > 0 && config.vision.as_ref().is_some_and(VisionConfig::varies);
    let fewer = if varies { ", let pictures be fewer tokens with --max-image-tokens" } else { "" };
    Error::PromptTooLong { prompt, visual, context, trained: config.text.context, fewer }
}

/// A decoder in which the picture sees itself whole takes one.
pub(crate) fn one_picture(config: &ModelConfig, pictures: usize) -> Result<(), Error> {
    match pictures {
        2.. if config.text.decoder.has_prefix() => {
            Err(Error::OnePicture { model: config.name.clone(), pictures })
        }
        _ => Ok(()),
    }
}

pub(crate) fn check_turns(turns: &[Turn]) -> Result<(), Error> {
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

pub(crate) fn message(turn: &Turn) -> Message {
    let part = |part: &Content| match part {
        Content::Text(text) => Part::Text(text.clone()),
        Content::Image(_) => Part::Image,
    };
    Message { role: turn.role.clone(), content: turn.content.iter().map(part).collect() }
}

/// A prompt that is used as it stands, cut at its image marks.
pub(crate) fn raw_parts(prompt: &str, mark: &str) -> Vec<RenderedPart> {
    let mut parts = vec![];
    for (i, text) in prompt.split(mark).enumerate() {
        if i > 0 {
            parts.push(RenderedPart::Image);
        }
        if !text.is_empty() {
            parts.push(RenderedPart::Text { text: text.to_owned(), trusted: true });
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Event, KvType, LoadOptions, ModelSource, Stage};
    use std::path::Path;

    #[test]
    fn what_is_reused_gives_the_answer_that_computing_it_again_gives() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/mobilevlm-v2");
        let options = LoadOptions { kv: KvType::F32, ..LoadOptions::default() };
        let model = Model::load_with(&folder, &options).unwrap();
        let pictures =
            [Image::open(folder.join("wide.png")).unwrap(), Image::filled(30, 60, [0, 90, 200]).unwrap()];
        let ask = AskOptions { max_tokens: 10, ..AskOptions::default() };
        let second = |reuse: bool, order: [usize; 2]| {
            let mut session = model.session().unwrap();
            session.ask_with(&[pictures[order[0]].clone()], "one", &ask).unwrap().report().unwrap();
            if !reuse {
                session.held.clear();
                session.state.truncate(0);
            }
            let report =
                session.ask_with(&[pictures[order[1]].clone()], "two", &ask).unwrap().report().unwrap();
            assert_eq!(report.stages.reused_tokens > 0, reuse);
            (report.tokens, session.visual)
        };
        let (tokens, visual) = second(true, [0, 1]);
        assert_eq!(tokens, second(false, [0, 1]).0);
        let (_, swapped) = second(true, [1, 0]);
        let half = visual.len() / 2;
        assert_eq!(visual[..half], swapped[half..], "each picture keeps its own rows");
        assert_ne!(visual[..half], visual[half..]);
    }

    #[test]
    fn a_question_in_place_of_the_last_gets_the_answer_that_it_gets_first() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/mobilevlm-v2");
        let options = LoadOptions { kv: KvType::F32, ..LoadOptions::default() };
        let model = Model::load_with(&folder, &options).unwrap();
        let picture = [Image::open(folder.join("wide.png")).unwrap()];
        let ask = AskOptions { max_tokens: 8, ..AskOptions::default() };
        let mut fresh = model.session().unwrap();
        let expected = fresh.ask_with(&picture, "two", &ask).unwrap().report().unwrap();
        let mut session = model.session().unwrap();
        assert!(matches!(session.ask_instead("two", &ask), Err(Error::Turns { .. })));
        session.ask_with(&picture, "one and more", &ask).unwrap().report().unwrap();
        let instead = session.ask_instead("two", &ask).unwrap().report().unwrap();
        assert_eq!(instead.tokens, expected.tokens);
        assert_eq!(
            (instead.stages.encode_ms, instead.stages.visual_tokens),
            (None, expected.stages.visual_tokens)
        );
        assert!(instead.stages.reused_tokens > instead.stages.visual_tokens);
        let next =
            |session: &mut Session| session.ask_with(&[], "three", &ask).unwrap().report().unwrap().tokens;
        assert_eq!(next(&mut session), next(&mut fresh));

        // Stopped before its first token, it leaves nothing that a later question could stumble over.
        let cancel = session.cancel();
        let mut answer = session.ask_instead("four", &ask).unwrap();
        cancel.cancel();
        assert!(answer.by_ref().all(|event| event.is_ok()));
        drop(answer);
        let again = session.ask_with(&picture, "two", &ask).unwrap().report().unwrap();
        assert!(!again.tokens.is_empty());
    }

    #[test]
    fn a_conversation_that_was_had_elsewhere_goes_on_as_if_it_had_been_had_here() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/mobilevlm-v2");
        let options = LoadOptions { kv: KvType::F32, ..LoadOptions::default() };
        let model = Model::load_with(&folder, &options).unwrap();
        let picture = Image::open(folder.join("wide.png")).unwrap();
        let ask = AskOptions { max_tokens: 8, ..AskOptions::default() };
        let mut here = model.session().unwrap();
        let first = here.ask_with(std::slice::from_ref(&picture), "one", &ask).unwrap().report().unwrap();
        let second = here.ask_with(&[], "two", &ask).unwrap().report().unwrap();

        let turn = |role: &str, content: Vec<Content>| Turn { role: role.to_owned(), content };
        let words = |text: &str| Content::Text(text.to_owned());
        let turns = [
            turn("user", vec![Content::Image(picture), words("one")]),
            turn("assistant", vec![words(&first.text)]),
            turn("user", vec![words("two")]),
        ];
        let mut there = model.session().unwrap();
        // What was held before does not matter.
        there.ask_with(&[], "three", &ask).unwrap().report().unwrap();
        let answered = there.ask_turns(&turns, &ask).unwrap().report().unwrap();
        assert_eq!(answered.tokens, second.tokens);
        assert_eq!(answered.stages.visual_tokens, first.stages.visual_tokens);
        let third =
            |session: &mut Session| session.ask_with(&[], "four", &ask).unwrap().report().unwrap().tokens;
        assert_eq!(third(&mut there), third(&mut here));

        // Stopped before its first token, nothing is left that a later question could stumble over.
        let cancel = there.cancel();
        let mut answer = there.ask_turns(&turns, &ask).unwrap();
        cancel.cancel();
        assert!(answer.by_ref().all(|event| event.is_ok()));
        drop(answer);
        there.ask_with(&[], "five", &ask).unwrap().report().unwrap();

        for (turns, why) in [
            (vec![], "there is none"),
            (turns[..2].to_vec(), "asks nothing"),
            (vec![turn("judge", vec![words("x")])], "judge"),
            (vec![turns[2].clone(), turn("system", vec![words("x")]), turns[2].clone()], "turn 2"),
        ] {
            let error = there.ask_turns(&turns, &ask).err().unwrap().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    /// The golden prompt is what `chat` of MiniCPM-V 2.6 makes of this message.
    #[test]
    fn pictures_amid_a_message_stand_where_they_were_put() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/minicpmv");
        let source = ModelSource::open(&folder, None).unwrap();
        let prompt = std::fs::read_to_string(folder.join("prompt.json")).unwrap();
        let prompt: serde_json::Value = serde_json::from_str(&prompt).unwrap();
        let case = prompt["cases"].as_array().unwrap().iter().find(|case| case["name"] == "three").unwrap();
        let layout = |name: &serde_json::Value| {
            let image = Image::open(folder.join(name.as_str().unwrap())).unwrap();
            source.picture_layout(&image).unwrap()
        };
        let layouts: Vec<_> = case["images"].as_array().unwrap().iter().map(layout).collect();
        let ids =
            |parts: &[RenderedPart]| Layout::default().place(&source.tokenizer, parts, &layouts).unwrap().ids;
        let words = |text: &str| Part::Text(text.to_owned());
        let content = vec![Part::Image, Part::Image, words("then"), Part::Image, words("Which is large?")];
        let message = Message { role: "user".to_owned(), content };
        let expected = raw_parts(case["prompt"].as_str().unwrap(), source.config.prompt.image_mark);
        assert_eq!(ids(&source.render(&[message]).unwrap()), ids(&expected));
    }

    #[test]
    fn pictures_of_different_token_counts_are_reused_and_taken_back() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/smolvlm");
        // Small batches, so that a question can be stopped within its prefill.
        let options = LoadOptions { kv: KvType::F32, batch: 16, ..LoadOptions::default() };
        let model = Model::load_with(&folder, &options).unwrap();
        let [wide, tall] = ["wide.png", "tall.png"].map(|name| Image::open(folder.join(name)).unwrap());
        let ask = AskOptions { max_tokens: 6, ..AskOptions::default() };
        let fresh = {
            let mut session = model.session().unwrap();
            session.ask_with(std::slice::from_ref(&wide), "one", &ask).unwrap().report().unwrap();
            session.held.clear();
            session.state.truncate(0);
            session.ask_with(std::slice::from_ref(&tall), "two", &ask).unwrap().report().unwrap()
        };
        assert_eq!(fresh.stages.visual_tokens, (7 + 4) * 4);

        let mut session = model.session().unwrap();
        let first = session.ask_with(std::slice::from_ref(&wide), "one", &ask).unwrap().report().unwrap();
        assert_eq!(first.stages.visual_tokens, 7 * 4);
        let cancel = session.cancel();
        // Stopped behind its second tile of seven, then within its prefill: nothing of it may be found again.
        for stop in [Stage::Project, Stage::Prefill] {
            let mut ended = 0;
            for event in session.ask_with(std::slice::from_ref(&wide), "other", &ask).unwrap() {
                if let Event::Stage { stage, done, of, .. } = event.unwrap()
                    && stage == stop
                {
                    ended += 1;
                    if stop == Stage::Project {
                        assert_eq!((done, of), (ended, 7));
                    }
                    if ended == 2 {
                        cancel.cancel();
                    }
                }
            }
            assert_eq!(ended, 2);
            assert_eq!((session.images.len(), session.visual.len()), (1, 7 * 4 * 30));
        }
        let second = session.ask_with(&[tall], "two", &ask).unwrap().report().unwrap();
        assert!(second.stages.reused_tokens >= first.stages.prefill_tokens, "{:?}", second.stages);
        assert_eq!((second.tokens, second.stages.visual_tokens), (fresh.tokens, fresh.stages.visual_tokens));
    }
}
