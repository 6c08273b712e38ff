//! A conversation with a model.

use crate::{
    Answer, AskOptions, Clip, Error, Image, Model,
    draft::Drafted,
    engine::prefix_of,
    image::ImageDigest,
    image_cache::Seen,
    prompt::{Prompt, place},
    prune::SplitState,
    sample::Sampler,
    work::Work,
};
use margay_graph::{Cancel, Kept, State};
use margay_model::{ModelConfig, VisionConfig};
use margay_prompt::{
    layout::{PictureLayout, Sequence},
    text::{Message, Part, RenderedPart},
};
use std::collections::{HashMap, VecDeque};

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
    /// What a draft model has computed of it, where there is one.
    pub(crate) drafted: Option<Drafted>,
    /// What the governor asked for when the state was made.
    most_bits: Option<u32>,
    /// Ids of the tokens in the cache, negative for visual rows.
    pub(crate) held: Vec<i32>,
    /// Tokens before the first that was dropped from the cache, where any was: `held` still names all.
    pub(crate) whole: Option<usize>,
    pub(crate) messages: Vec<Message>,
    /// Visual rows of all pictures so far, [V, E].
    pub(crate) visual: Vec<f32>,
    /// What each picture so far became in the prompt.
    pub(crate) images: Vec<PictureLayout>,
    /// Which pictures those are.
    pub(crate) digests: Vec<ImageDigest>,
    /// See [`Session::note_picture`].
    pub(crate) looked: HashMap<ImageDigest, Option<Seen>>,
    pub(crate) cancel: Cancel,
}

impl Session {
    pub(crate) fn new(model: Model) -> Result<Self, Error> {
        let state = model.engine()?.new_state(model.context(), None)?;
        let drafted = model.drafter().map(|drafter| drafter.begin(model.context())).transpose()?;
        Ok(Session {
            model,
            state,
            drafted,
            most_bits: None,
            held: vec![],
            whole: None,
            messages: vec![],
            visual: vec![],
            images: vec![],
            digests: vec![],
            looked: HashMap::new(),
            cancel: Cancel::new(),
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
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
        self.model.admit()?;
        let pictures = self.pictures(images)?;
        let sampler = self.sampler(options)?;
        if !self.messages.iter().any(|m| m.role == "user") {
            // Pictures of a raw prompt are no part of the conversation that begins here.
            self.forget_computed();
        }
        self.messages.push(Message::user(images.len(), text));
        let all: Vec<_> =
            self.images.iter().chain(pictures.iter().map(|(_, layout)| layout)).cloned().collect();
        let sequence = self.model.source().render(&self.messages).and_then(|parts| self.place(&parts, &all));
        match sequence {
            Ok(sequence) => Ok(self.answer(sequence, pictures, options, sampler)),
            Err(e) => {
                self.messages.pop();
                Err(e)
            }
        }
    }

    /// Asks about a moving picture: the newest of its frames that the context has room for stand before the question, oldest
    /// first. Gives the answer, and how many they are.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`] where it has no frame; else as [`Session::ask_with`].
    pub fn ask_clip(
        &mut self,
        clip: &Clip,
        text: &str,
        options: &AskOptions,
    ) -> Result<(Answer<'_>, usize), Error> {
        self.model.admit()?;
        let rows = clip.held.iter().map(|held| clip.rows(held)).collect::<Result<Vec<_>, _>>()?;
        let sampler = self.sampler(options)?;
        if !self.messages.iter().any(|m| m.role == "user") {
            self.forget_computed();
        }
        let mut from = 0;
        let sequence = loop {
            let frames = clip.held.range(from..);
            if frames.len() == 0 {
                return Err(Error::EmptyPrompt);
            }
            self.messages.push(Message::user(frames.len(), text));
            let layouts: Vec<_> =
                self.images.iter().chain(frames.clone().map(|held| &held.layout)).cloned().collect();
            let placed =
                self.model.source().render(&self.messages).and_then(|parts| self.place(&parts, &layouts));
            match placed {
                Ok(sequence) => break sequence,
                Err(e) => {
                    self.messages.pop();
                    // The oldest frame gives way, as long as there is a newer one.
                    let fewer = matches!(e, Error::PromptTooLong { .. }) && frames.len() > 1;
                    from += 1;
                    if !fewer {
                        return Err(e);
                    }
                }
            }
        };
        let work = Work::new(self, sequence, VecDeque::new(), options.clone(), sampler);
        self.visual.extend(rows[from..].iter().flatten());
        self.images.extend(clip.held.range(from..).map(|held| held.layout.clone()));
        self.digests.extend(clip.held.range(from..).map(|held| held.digest));
        Ok((Answer::new(self, work), clip.held.len() - from))
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
        self.model.admit()?;
        let sampler = self.sampler(options)?;
        let mut messages = self.messages[..last].to_vec();
        messages.push(Message::user(images, text));
        let sequence =
            self.model.source().render(&messages).and_then(|parts| self.place(&parts, &self.images))?;
        self.messages = messages;
        Ok(self.answer(sequence, VecDeque::new(), options, sampler))
    }

    /// Goes on with a conversation that was had elsewhere, in place of the one that was held: its last turn is the
    /// question. Pictures stand where they are in their turns. What both conversations begin with, pictures included, is not
    /// computed again.
    ///
    /// # Errors
    /// [`Error::Turns`] where the turns are no conversation that ends with a question; else as [`Session::ask_with`].
    pub fn ask_turns(&mut self, turns: &[Turn], options: &AskOptions) -> Result<Answer<'_>, Error> {
        self.model.admit()?;
        let prompt = Prompt::of_turns(&self.model, turns)?;
        let work = self.begin(prompt, options)?;
        Ok(Answer::new(self, work))
    }

    /// As [`Session::ask_turns`], of what was laid out before.
    pub(crate) fn begin(&mut self, prompt: Prompt, options: &AskOptions) -> Result<Work, Error> {
        let sampler = self.sampler(options)?;
        let same = self.same_pictures(&prompt);
        let (same, sequence) = match self.with_pictures_held(&prompt, same) {
            Ok(sequence) => (same, sequence),
            // As they were seen then there is no room for them: they are seen anew.
            Err(_) => (0, prompt.sequence.clone()),
        };
        self.keep_pictures(same);
        self.messages = prompt.messages;
        let pictures = prompt.pictures.into_iter().skip(same).collect();
        let mut work = Work::new(self, sequence, pictures, options.clone(), sampler);
        work.reuses(same);
        Ok(work)
    }

    /// Tokens of a prompt that would not have to be computed.
    pub(crate) fn shared_tokens(&self, prompt: &Prompt) -> usize {
        let pictures = self.same_pictures(prompt);
        let rows = self.rows_of(pictures) as i64;
        let Ok(sequence) = self.with_pictures_held(prompt, pictures) else { return 0 };
        let same = |(held, id): &(&i32, &i32)| held == id && -1 - i64::from(**id) < rows;
        self.held[..self.intact()].iter().zip(&sequence.ids).take_while(same).count()
    }

    /// A conversation that begins as this one does, as far as a prompt shares it. Memory is shared, too, until one of the two
    /// goes on.
    ///
    /// # Errors
    /// [`Error::Backend`] of a backend that cannot, or where memory is at its end.
    pub(crate) fn fork(&self, prompt: &Prompt) -> Result<Session, Error> {
        let pictures = self.same_pictures(prompt);
        let tokens = self.shared_tokens(prompt);
        let rows = self.rows_of(pictures) * self.model.config().text.width;
        let drafted = match (self.model.drafter(), &self.drafted) {
            (Some(drafter), Some(drafted)) => {
                Some(drafter.fork(drafted, &self.held[..tokens], self.model.context())?)
            }
            _ => None,
        };
        Ok(Session {
            model: self.model.clone(),
            state: self.state.fork(tokens)?,
            drafted,
            most_bits: self.most_bits,
            held: self.held[..tokens].to_vec(),
            whole: None,
            messages: vec![],
            visual: self.visual[..rows].to_vec(),
            images: self.images[..pictures].to_vec(),
            digests: self.digests[..pictures].to_vec(),
            looked: self.looked_at(pictures),
            cancel: Cancel::new(),
        })
    }

    /// Pictures at the start of the conversation that are those of the prompt.
    fn same_pictures(&self, prompt: &Prompt) -> usize {
        self.digests
            .iter()
            .zip(&prompt.pictures)
            .take_while(|(held, (image, _))| image.digest().is_ok_and(|digest| digest == **held))
            .count()
    }

    /// Visual rows of the first so many pictures.
    pub(crate) fn rows_of(&self, pictures: usize) -> usize {
        self.images[..pictures].iter().map(PictureLayout::visual_tokens).sum()
    }

    /// What was noted of the first so many pictures.
    fn looked_at(&self, pictures: usize) -> HashMap<ImageDigest, Option<Seen>> {
        let noted = |picture: &ImageDigest| Some((*picture, self.looked.get(picture)?.clone()));
        self.digests[..pictures].iter().filter_map(noted).collect()
    }

    /// Forgets all pictures but the first so many, and what was computed from them.
    pub(crate) fn keep_pictures(&mut self, pictures: usize) {
        let rows = self.rows_of(pictures);
        self.images.truncate(pictures);
        self.digests.truncate(pictures);
        self.visual.truncate(rows * self.model.config().text.width);
        self.looked = self.looked_at(pictures);
        let gone = |id: &i32| *id < 0 && (-1 - i64::from(*id)) as usize >= rows;
        let known = self.held.iter().position(gone).unwrap_or(self.held.len());
        self.keep(known);
    }

    fn sampler(&self, options: &AskOptions) -> Result<Sampler, Error> {
        self.model.sampler(options)
    }

    fn answer(
        &mut self,
        sequence: Sequence,
        pictures: VecDeque<(Image, PictureLayout)>,
        options: &AskOptions,
        sampler: Sampler,
    ) -> Answer<'_> {
        let work = Work::new(self, sequence, pictures, options.clone(), sampler);
        Answer::new(self, work)
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
        let pictures = self.pictures(images)?;
        self.clear();
        let parts = raw_parts(prompt, self.model.config().prompt.image_mark);
        let layouts: Vec<_> = pictures.iter().map(|(_, layout)| layout.clone()).collect();
        let sequence = self.place(&parts, &layouts)?;
        if sequence.ids.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let sampler = self.sampler(options)?;
        Ok(self.answer(sequence, pictures, options, sampler))
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
        self.digests.clear();
        self.looked.clear();
        self.held.clear();
        self.whole = None;
        self.state.truncate(0);
        self.drafted.iter_mut().for_each(Drafted::clear);
    }

    /// Keeps the first `tokens` of what was computed, or nothing where that would cut tokens that saw one another; says how
    /// many.
    pub(crate) fn keep(&mut self, tokens: usize) -> usize {
        let prefix = prefix_of(self.model.config(), &self.held);
        let tokens = tokens.min(self.intact());
        let tokens = if tokens < prefix { 0 } else { tokens };
        self.held.truncate(tokens);
        self.state.truncate(tokens);
        self.whole = None;
        if let (Some(drafter), Some(drafted)) = (self.model.drafter(), &mut self.drafted) {
            drafter.keep(drafted, &self.held);
        }
        tokens
    }

    /// Tokens from the start that are all in the cache.
    pub(crate) fn intact(&self) -> usize {
        self.whole.unwrap_or(self.held.len())
    }

    /// Tokens that were dropped from the cache.
    pub fn dropped_tokens(&self) -> usize {
        self.held.len().saturating_sub(self.state.len())
    }

    /// Tokens that only the decoder's first layers hold.
    pub(crate) fn pruned_tokens(&mut self) -> usize {
        SplitState::of(self.state.as_mut()).map_or(0, |state| state.dropped())
    }

    /// Drops all tokens but those from the cache.
    pub(crate) fn retain(&mut self, kept: &Kept) -> Result<(), Error> {
        self.state.retain(kept)?;
        self.whole = Some(self.intact().min(kept.first_dropped()));
        Ok(())
    }

    /// The flag that stops a running answer, from any thread.
    pub fn cancel(&self) -> Cancel {
        self.cancel.clone()
    }

    /// Tokens of context in use.
    pub fn used_tokens(&self) -> usize {
        self.state.len()
    }

    /// Bytes of the KV cache that were ever used, a draft model's among them.
    pub fn used_cache_bytes(&self) -> usize {
        self.state.used_bytes() + self.drafted.as_ref().map_or(0, Drafted::used_bytes)
    }

    /// Bytes set aside for the KV cache: what it takes at most.
    pub fn cache_bytes(&self) -> usize {
        self.state.size_bytes() + self.drafted.as_ref().map_or(0, Drafted::size_bytes)
    }

    /// Pictures as they are seen now.
    fn pictures(&self, images: &[Image]) -> Result<VecDeque<(Image, PictureLayout)>, Error> {
        images.iter().map(|image| self.model.seen_now(image)).collect()
    }

    /// The sequence of a prompt whose first so many pictures the session has already: they stand in it as they were seen then.
    fn with_pictures_held(&self, prompt: &Prompt, same: usize) -> Result<Sequence, Error> {
        let held = &self.images[..same];
        if self.saw_as_now(prompt, same) {
            let mut sequence = prompt.sequence.clone();
            sequence.cut(held.iter().flat_map(PictureLayout::counts));
            return Ok(sequence);
        }
        let new = prompt.pictures[same..].iter().map(|(_, layout)| layout);
        let layouts: Vec<_> = held.iter().chain(new).cloned().collect();
        self.place(&self.model.source().render(&prompt.messages)?, &layouts)
    }

    /// Whether what a prompt shares with it is what it would be if it were computed now: the governor may have asked for less when
    /// it was.
    pub(crate) fn is_as_now(&self, prompt: &Prompt) -> bool {
        let same = self.same_pictures(prompt);
        self.bits_now() == self.most_bits && self.saw_as_now(prompt, same)
    }

    /// Whether its first so many pictures were seen at the size at which the prompt's are.
    fn saw_as_now(&self, prompt: &Prompt, same: usize) -> bool {
        self.images[..same].iter().zip(&prompt.pictures).all(|(held, (_, now))| held.is_cut_of(now))
    }

    fn bits_now(&self) -> Option<u32> {
        self.model.governed().and_then(|governed| governed.most_bits())
    }

    /// An empty cache becomes one of so few bits as the governor asks for now.
    pub(crate) fn fit_cache(&mut self) -> Result<(), Error> {
        let most_bits = self.bits_now();
        if self.state.is_empty() && most_bits != self.most_bits {
            self.state = self.model.engine()?.new_state(self.model.context(), most_bits)?;
            self.most_bits = most_bits;
        }
        Ok(())
    }

    fn place(&self, parts: &[RenderedPart], pictures: &[PictureLayout]) -> Result<Sequence, Error> {
        place(&self.model, parts, pictures)
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
    use margay_prompt::layout::Layout;
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

    #[test]
    fn pictures_that_are_cut_into_tiles_keep_within_a_bound_of_tokens() {
        for name in ["smolvlm", "minicpmv"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
            let image = Image::open(folder.join("wide.png")).unwrap();
            let source = ModelSource::open(&folder, None).unwrap();
            let tile = source.config.vision.as_ref().unwrap().tile_tokens();
            let whole = source.picture_layout(&image).unwrap().visual_tokens();
            assert!(whole > 3 * tile, "{name}: {whole} of {tile}");
            let seen = |most: usize| {
                let bounded = source.clone().with_max_image_tokens(most.try_into().unwrap()).unwrap();
                bounded.picture_layout(&image).unwrap().visual_tokens()
            };
            assert_eq!((seen(10_000), seen(1)), (whole, tile), "{name}");
            for most in tile..whole {
                assert!(seen(most) <= most && seen(most) >= tile, "{name} {most}: {}", seen(most));
            }
        }
        // And are answered about.
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/smolvlm");
        let options = LoadOptions { max_image_tokens: 20.try_into().ok(), ..LoadOptions::default() };
        let model = Model::load_with(&folder, &options).unwrap();
        let image = Image::open(folder.join("wide.png")).unwrap();
        let ask = AskOptions { max_tokens: 3, ..AskOptions::default() };
        let report = model.session().unwrap().ask_with(&[image], "one", &ask).unwrap().report().unwrap();
        assert!((5..=20).contains(&report.stages.visual_tokens), "{:?}", report.stages);
    }

    #[test]
    fn guesses_change_no_token_whatever_the_temperature() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/mobilevlm-v2");
        let load = |outputs| LoadOptions { kv: KvType::F32, outputs, ..LoadOptions::default() };
        let models = [1, 6].map(|outputs| Model::load_with(&folder, &load(outputs)).unwrap());
        *models[1].payoff().unwrap() = crate::draft::Payoff::always(5);
        let picture = [Image::open(folder.join("wide.png")).unwrap()];
        let mut right = 0;
        for temperature in [0.0, 0.7] {
            for seed in 0..4 {
                let sampling = crate::Sampling { temperature, seed, ..crate::Sampling::default() };
                let asked = |model: &Model, draft| {
                    let ask = AskOptions { max_tokens: 60, draft, sampling, ..AskOptions::default() };
                    let mut session = model.session().unwrap();
                    let mut told = vec![];
                    for text in ["one two one two", "one two one two one"] {
                        let report = session.ask_with(&picture, text, &ask).unwrap().report().unwrap();
                        assert_eq!(session.state.len(), session.held.len());
                        told.push(report);
                    }
                    told
                };
                let (plain, guessed) = (asked(&models[0], 5), asked(&models[1], 5));
                for (plain, guessed) in plain.iter().zip(&guessed) {
                    assert_eq!(plain.tokens, guessed.tokens);
                    assert_eq!((plain.stages.drafted_tokens, plain.stop), (0, guessed.stop));
                    assert!(guessed.stages.accepted_tokens <= guessed.stages.drafted_tokens);
                    right += guessed.stages.accepted_tokens;
                }
            }
        }
        assert!(right > 0, "this model repeats itself");
    }
}
