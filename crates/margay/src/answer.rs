//! An answer as it comes about.

use crate::{
    AskOptions, Error, Image, Model, Report, Session, StageReport, Stop,
    engine::{TextCall, prefix_of},
    sample::Sampler,
};
use margay_graph::BackendError;
use margay_model::Feed;
use margay_observe::{Root, Stage, StageTimes, Stopwatch, process};
use margay_prompt::{
    image::{ImageTiles, Pixels, preprocess},
    layout::{PictureLayout, Sequence},
    text::{Message, Part, StopMatcher, StreamDecoder, Tokenizer},
};
use std::{collections::VecDeque, sync::Arc, time::Duration};

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
    /// The next piece of the answer.
    Text(String),
    /// The answer is complete.
    Done(Box<Report>),
}

/// An iterator over an answer's [`Event`]s. Dropping it ends the answer; the session keeps what was said until then.
pub struct Answer<'s> {
    session: &'s mut Session,
    options: AskOptions,
    sequence: Sequence,
    /// The place of each token of the sequence, and of the next one.
    places: Vec<[i32; 3]>,
    next_place: i32,
    pictures: VecDeque<(Image, PictureLayout)>,
    picture_count: usize,
    /// Tiles of all pictures of this question, and how many went through the tower.
    tile_count: usize,
    tiles_done: usize,
    /// How often the projector runs for them, and how often it did.
    projection_count: usize,
    projections_done: usize,
    /// Tokens at the start of the prompt that see one another.
    prefix: usize,
    /// Pictures and visual numbers the session had before this question.
    images_then: usize,
    visual_then: usize,
    decoder: StreamDecoder<Arc<Tokenizer>>,
    stops: StopMatcher,
    sampler: Sampler,
    phase: Phase,
    clock: Stopwatch,
    /// Time since the question that went into loading.
    outside: Duration,
    /// Time before the question that went into decoding its pictures.
    decoding: Duration,
    times: StageTimes,
    stages: StageReport,
    prefill_steps: usize,
    text: String,
    tokens: Vec<u32>,
    pending: VecDeque<Event>,
    told: bool,
}

enum Phase {
    Preprocess,
    Encode(Tiles),
    Project(Tiles, Pixels),
    Prefill,
    Decode,
    Ended(Stop),
    Over,
}

/// What is left of a picture.
struct Tiles {
    left: ImageTiles,
    layout: PictureLayout,
    /// Those that are still to be projected. [P, C]
    features: Vec<f32>,
}

impl<'s> Answer<'s> {
    pub(crate) fn new(
        session: &'s mut Session,
        sequence: Sequence,
        pictures: VecDeque<(Image, PictureLayout)>,
        options: AskOptions,
        sampler: Sampler,
    ) -> Self {
        let model = session.model.clone();
        let texts =
            model.config().prompt.stops.iter().map(|s| (*s).to_owned()).chain(options.stops.iter().cloned());
        let mut times = StageTimes::default();
        times.add(Stage::Load, model.load_time());
        let visual_tokens = sequence.visual_tokens();
        let (places, next_place) = sequence.places();
        session.cancel.reset();
        Answer {
            decoder: StreamDecoder::new(model.source().tokenizer.clone(), true),
            stops: StopMatcher::new(texts),
            sampler,
            phase: Phase::Preprocess,
            clock: Stopwatch::start(),
            times,
            stages: StageReport { visual_tokens, ..StageReport::default() },
            prefill_steps: 0,
            text: String::new(),
            tokens: vec![],
            pending: VecDeque::new(),
            told: false,
            picture_count: pictures.len(),
            tile_count: pictures.iter().map(|(_, layout)| layout.tiles()).sum(),
            tiles_done: 0,
            projection_count: pictures.iter().map(|(_, layout)| layout.projections()).sum(),
            projections_done: 0,
            prefix: prefix_of(model.config(), &sequence.ids),
            images_then: session.images.len(),
            visual_then: session.visual.len(),
            pictures,
            session,
            options,
            sequence,
            places,
            next_place,
            outside: Duration::ZERO,
            decoding: Duration::ZERO,
        }
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

    fn step(&mut self) -> Result<(), Error> {
        let ending = matches!(self.phase, Phase::Ended(_) | Phase::Over);
        if self.session.cancel.is_cancelled() && !ending {
            self.end(Stop::Cancelled);
            return Ok(());
        }
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Preprocess => self.preprocess(),
            Phase::Encode(tiles) => self.encode(tiles),
            Phase::Project(tiles, tile) => self.project(tiles, &tile),
            Phase::Prefill => self.prefill(),
            Phase::Decode => self.decode(),
            Phase::Ended(stop) => {
                self.finish(stop);
                Ok(())
            }
            Phase::Over => Ok(()),
        }
    }

    fn preprocess(&mut self) -> Result<(), Error> {
        let Some((image, layout)) = self.pictures.pop_front() else {
            self.begin_prefill();
            return Ok(());
        };
        let model = self.session.model.clone();
        let source = model.source();
        let name = &source.config.name;
        let vision = source.config.vision.as_ref().ok_or_else(|| Error::NoVision { model: name.clone() })?;
        let clock = Stopwatch::start();
        if model.engine()?.prepare_vision(source, model.backend(), &self.session.cancel)? {
            // Packing the tower is loading, not encoding.
            self.outside += clock.elapsed();
            self.times.add(Stage::Load, clock.elapsed());
        }
        // Decoding happened when the picture was opened; it counts here.
        self.times.add(Stage::Preprocess, image.decode);
        self.decoding += image.decode;
        let clock = Stopwatch::start();
        let left = preprocess(&image.picture, &vision.image)
            .map_err(|source| Error::Image { place: image.name.clone(), source })?;
        let done = self.picture_count - self.pictures.len();
        self.stage_ended(Stage::Preprocess, clock.elapsed(), done, self.picture_count);
        self.phase = Phase::Encode(Tiles { left, layout, features: vec![] });
        Ok(())
    }

    /// The next tile of the picture; one at a time is there as floats.
    fn encode(&mut self, mut tiles: Tiles) -> Result<(), Error> {
        let clock = Stopwatch::start();
        let Some(tile) = tiles.left.next() else {
            self.session.images.push(tiles.layout);
            self.phase = Phase::Preprocess;
            return Ok(());
        };
        self.times.add(Stage::Preprocess, clock.elapsed());
        let model = self.session.model.clone();
        let clock = Stopwatch::start();
        let feed = fed(&model, &tile)?;
        tiles.features.extend_from_slice(model.engine()?.encode(&feed, &self.session.cancel)?);
        drop(feed);
        self.tiles_done += 1;
        self.stage_ended(Stage::Encode, clock.elapsed(), self.tiles_done, self.tile_count);
        // What is stitched is projected once it is whole.
        let whole = tiles.layout.stitch().is_none() || tiles.left.len() == 0;
        self.phase = if whole { Phase::Project(tiles, tile) } else { Phase::Encode(tiles) };
        Ok(())
    }

    fn project(&mut self, mut tiles: Tiles, tile: &Pixels) -> Result<(), Error> {
        let model = self.session.model.clone();
        let clock = Stopwatch::start();
        let mut engine = model.engine()?;
        let stitch = tiles.layout.stitch();
        let visual = engine.project(&fed(&model, tile)?, &tiles.features, stitch, &self.session.cancel)?;
        self.session.visual.extend_from_slice(visual);
        drop(engine);
        tiles.features.clear();
        self.projections_done += 1;
        self.stage_ended(Stage::Project, clock.elapsed(), self.projections_done, self.projection_count);
        self.phase = Phase::Encode(tiles);
        Ok(())
    }

    /// Keeps the part of the cache that this prompt shares with what was computed before.
    fn begin_prefill(&mut self) {
        let ids = &self.sequence.ids;
        let shared = self.session.held.iter().zip(ids).take_while(|(a, b)| a == b).count();
        // The last token is computed anew: its logits are wanted.
        let shared = shared.min(ids.len().saturating_sub(1)).min(self.session.state.len());
        let shared = if shared < self.prefix { 0 } else { shared };
        let shared = self.session.keep(shared);
        self.stages.reused_tokens = shared;
        self.phase = Phase::Prefill;
    }

    fn prefill(&mut self) -> Result<(), Error> {
        let model = self.session.model.clone();
        let clock = Stopwatch::start();
        let mut engine = model.engine()?;
        let from = self.session.held.len();
        let to = self.sequence.ids.len().min(from + engine.batch());
        if from == 0 && to < self.prefix {
            return Err(Error::LongPrefix { prefix: self.prefix, batch: engine.batch() });
        }
        let of = self.prefill_steps + (self.sequence.ids.len() - from).div_ceil(engine.batch());
        let ids = &self.sequence.ids[from..to];
        let places = &self.places[from..to];
        let (visual, width) = (&self.session.visual, model.config().text.width);
        let call = TextCall { ids, places, visual, width, prefix: self.prefix };
        let logits = engine.run_text(&call, self.session.state.as_mut(), &self.session.cancel)?;
        let last = to == self.sequence.ids.len();
        let token = last.then(|| self.sampler.choose(logits)).transpose()?;
        drop(engine);
        self.session.held.extend_from_slice(ids);
        self.stages.prefill_tokens += to - from;
        self.prefill_steps += 1;
        let took = clock.elapsed();
        self.times.add(Stage::Prefill, took);
        self.pending.push_back(Event::Stage { stage: Stage::Prefill, took, done: self.prefill_steps, of });
        match token {
            Some(token) => {
                let waited = (self.clock.elapsed() + self.decoding).saturating_sub(self.outside);
                self.stages.ttft_ms = Some(waited.as_secs_f64() * 1000.0);
                self.take(token);
            }
            None => self.phase = Phase::Prefill,
        }
        Ok(())
    }

    fn decode(&mut self) -> Result<(), Error> {
        let model = self.session.model.clone();
        let clock = Stopwatch::start();
        let token = *self.tokens.last().expect("invariant: prefill gave the first token");
        let ids = [token as i32];
        let mut engine = model.engine()?;
        let places = [[self.next_place; 3]];
        let (visual, width) = (&self.session.visual, model.config().text.width);
        let call = TextCall { ids: &ids, places: &places, visual, width, prefix: self.prefix };
        let logits = engine.run_text(&call, self.session.state.as_mut(), &self.session.cancel)?;
        let next = self.sampler.choose(logits)?;
        drop(engine);
        self.session.held.push(ids[0]);
        self.next_place += 1;
        self.stages.decode_tokens += 1;
        let of = self.options.max_tokens.saturating_sub(1);
        self.stage_ended(Stage::Decode, clock.elapsed(), self.stages.decode_tokens, of);
        self.take(next);
        Ok(())
    }

    /// Takes a chosen token: ends the answer, or shows its text and goes on.
    fn take(&mut self, token: u32) {
        if self.session.model.tokenizer().stop_ids().contains(&token) {
            self.end(Stop::End);
            return;
        }
        self.tokens.push(token);
        let piece = self.decoder.push(token);
        let (shown, met) = self.stops.push(&piece);
        self.show(shown);
        if met {
            self.end(Stop::StopText);
        } else if self.tokens.len() >= self.options.max_tokens {
            self.end(Stop::Length);
        } else if self.session.state.len() + 1 > self.session.state.capacity() {
            self.end(Stop::Context);
        } else {
            self.phase = Phase::Decode;
        }
    }

    fn end(&mut self, stop: Stop) {
        if stop != Stop::StopText {
            let held = self.decoder.finish();
            let (shown, met) = self.stops.push(&held);
            self.show(shown);
            if !met {
                let rest = self.stops.finish();
                self.show(rest);
            }
        }
        self.phase = Phase::Ended(stop);
    }

    fn show(&mut self, piece: String) {
        // The space that SentencePiece puts before the first word is no part of the answer.
        let piece = if self.text.is_empty() { piece.trim_start().to_owned() } else { piece };
        if !piece.is_empty() {
            self.text.push_str(&piece);
            self.pending.push_back(Event::Text(piece));
        }
    }

    fn finish(&mut self, stop: Stop) {
        self.stages.set_times(&self.times);
        let report = Report {
            text: self.text.clone(),
            tokens: self.tokens.clone(),
            stop,
            stages: self.stages,
            peak_rss_bytes: process::peak_rss_bytes(&Root::system()),
        };
        self.remember();
        self.pending.push_back(Event::Done(Box::new(report)));
    }

    /// The session goes on from what was said. A question that was stopped before its first token is taken back, as if
    /// it had not been asked.
    fn remember(&mut self) {
        if std::mem::replace(&mut self.told, true) || self.session.messages.is_empty() {
            return;
        }
        if self.stages.ttft_ms.is_some() {
            self.session.messages.push(Message::text("assistant", self.text.clone()));
            return;
        }
        let session = &mut *self.session;
        session.messages.pop();
        session.images.truncate(self.images_then);
        session.visual.truncate(self.visual_then);
        let marked = session.messages.iter().flat_map(|m| &m.content).filter(|part| **part == Part::Image);
        if marked.count() != session.images.len() {
            // The pictures of a conversation that came as a whole go with its question.
            session.clear();
            return;
        }
        // The rows of its pictures will be those of others: what was computed from them must not be found again.
        let rows = self.visual_then / session.model.config().text.width;
        let is_new = |id: &i32| *id < 0 && (-1 - i64::from(*id)) as usize >= rows;
        let known = session.held.iter().position(is_new).unwrap_or(session.held.len());
        session.keep(known);
    }

    fn stage_ended(&mut self, stage: Stage, took: Duration, done: usize, of: usize) {
        self.times.add(stage, took);
        self.pending.push_back(Event::Stage { stage, took, done, of });
    }
}

/// A tile as the model's tower takes it.
fn fed<'p>(model: &Model, tile: &'p Pixels) -> Result<Feed<'p>, Error> {
    let config = model.config();
    let vision = config.vision.as_ref().ok_or_else(|| Error::NoVision { model: config.name.clone() })?;
    Ok(vision.tower.feed(tile))
}

impl Iterator for Answer<'_> {
    type Item = Result<Event, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(Ok(event));
            }
            if matches!(self.phase, Phase::Over) {
                return None;
            }
            match self.step() {
                Ok(()) => {}
                // A stage that was stopped half way ends the answer; it is no failure.
                Err(Error::Backend(BackendError::Cancelled)) => self.end(Stop::Cancelled),
                Err(e) => {
                    self.phase = Phase::Over;
                    return Some(Err(e));
                }
            }
        }
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        self.remember();
    }
}
