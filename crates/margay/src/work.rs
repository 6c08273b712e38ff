//! Making an answer, step by step.

mod beside;
mod guesses;
mod pictures;
mod pruned;

use crate::{
    AskOptions, Error, Event, Eviction, Image, Lane, Model, PictureReport, Report, Session, StageReport,
    Stop, Token,
    batches::{batch_end, prompt_batches},
    draft::Lookup,
    embed::of_length_1,
    engine::{Engine, TextCall, prefix_of},
    governed::{Doing, Governed},
    sample::{Sampler, logprobs},
};
use beside::Beside;
use margay_graph::BackendError;
use margay_observe::{Root, Stage, StageTimes, Stopwatch, process};
use margay_prompt::{
    image::Pixels,
    layout::{PictureLayout, Sequence},
    text::{Message, Part, StopMatcher, StreamDecoder, Tokenizer},
};
use pictures::Tiles;
use pruned::Pruned;
use std::{collections::VecDeque, ops::Range, sync::Arc, time::Duration};

/// An answer under way: everything about it but its conversation, which each step is lent.
pub(crate) struct Work {
    model: Model,
    options: AskOptions,
    sequence: Sequence,
    /// The place of each token of the sequence, and of the next one.
    places: Vec<[i32; 3]>,
    next_place: i32,
    pictures: VecDeque<(Image, PictureLayout)>,
    picture_count: usize,
    /// What those that were looked at became.
    seen: Vec<PictureReport>,
    /// Tiles of all pictures of this question, and how many went through the tower.
    tile_count: usize,
    tiles_done: usize,
    /// How often the projector runs for them, and how often it did.
    projection_count: usize,
    projections_done: usize,
    /// Tokens at the start of the prompt that see one another.
    prefix: usize,
    /// How far it came, where visual tokens are left out inside the decoder.
    pruned: Pruned,
    /// Tokens that may stay in the cache.
    budget: usize,
    /// Pictures the session had before this question.
    images_then: usize,
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
    lookup: Option<Lookup>,
    /// Tokens of the answer that it has looked at.
    looked_at: usize,
    /// The token that was chosen last, where its probability is to be told.
    chosen: Option<Token>,
    /// What the prompt came to, where that was asked for.
    embedding: Option<Vec<f32>>,
    pending: VecDeque<Event>,
    beside: Beside,
    told: bool,
}

enum Phase {
    Preprocess,
    /// The next tile.
    Encode(Tiles),
    /// A tile from a step of the tower on.
    Encoding(Tiles, Pixels, Duration, usize),
    Project(Tiles, Pixels),
    Prefill,
    Decode,
    Ended(Stop),
    Over,
}

/// How much a step may do.
pub(crate) struct Pace<'a> {
    /// Tokens of a prompt that are computed in one step, at most; a draft model's, too.
    pub prefill: usize,
    /// Asked between two ops of an encode; true ends the step there.
    pub pause: &'a mut dyn FnMut() -> bool,
}

/// The token that a run of the decoder should begin with.
#[derive(Clone, Copy)]
pub(crate) struct NextToken {
    pub id: i32,
    /// See [`TextCall::position`].
    pub position: usize,
    pub place: [i32; 3],
}

impl Work {
    pub(crate) fn new(
        session: &mut Session,
        sequence: Sequence,
        pictures: VecDeque<(Image, PictureLayout)>,
        options: AskOptions,
        mut sampler: Sampler,
    ) -> Self {
        sampler.begin(&sequence.ids);
        let model = session.model.clone();
        let texts =
            model.config().prompt.stops.iter().map(|s| (*s).to_owned()).chain(options.stops.iter().cloned());
        let mut times = StageTimes::default();
        times.add(Stage::Load, model.load_time());
        let visual_tokens = sequence.visual_tokens();
        let (places, next_place) = sequence.places();
        Work {
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
            lookup: None,
            looked_at: 0,
            chosen: None,
            embedding: None,
            pending: VecDeque::new(),
            beside: Beside::default(),
            told: false,
            picture_count: pictures.len(),
            seen: vec![],
            tile_count: pictures.iter().map(|(_, layout)| layout.tiles()).sum(),
            tiles_done: 0,
            projection_count: pictures.iter().map(|(_, layout)| layout.projections()).sum(),
            projections_done: 0,
            prefix: prefix_of(model.config(), &sequence.ids),
            pruned: Pruned::Not,
            budget: usize::MAX,
            images_then: session.images.len(),
            pictures,
            model,
            options,
            sequence,
            places,
            next_place,
            outside: Duration::ZERO,
            decoding: Duration::ZERO,
        }
    }

    /// Counts pictures that the session had already.
    pub(crate) fn reuses(&mut self, pictures: usize) {
        self.stages.reused_pictures += pictures;
    }

    /// The next event, where one waits.
    pub(crate) fn told(&mut self) -> Option<Event> {
        self.pending.pop_front()
    }

    /// True where nothing is left to do; events may still wait.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    /// Goes one step on. An error ends the answer.
    pub(crate) fn advance(&mut self, session: &mut Session, pace: &mut Pace<'_>) -> Result<(), Error> {
        let done = self.step(session, pace);
        self.checked(done)
    }

    /// The token of which the decoder's logits are wanted, where that is the next step.
    pub(crate) fn next_token(&self, session: &Session) -> Option<NextToken> {
        let decodes = matches!(self.phase, Phase::Decode) && !session.cancel.is_cancelled();
        let token = self.tokens.last().filter(|_| decodes)?;
        Some(NextToken { id: *token as i32, position: session.held.len(), place: [self.next_place; 3] })
    }

    /// Takes the logits of [`Work::next_token`], [vocabulary], which is in the session's cache now. An error ends the answer.
    pub(crate) fn decoded(
        &mut self,
        session: &mut Session,
        logits: &[f32],
        took: Duration,
    ) -> Result<(), Error> {
        let done = self.take_logits(session, logits, took);
        self.checked(done)
    }

    /// True where only the report is left to make.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended(_))
    }

    /// Ends the answer as it is.
    pub(crate) fn stop(&mut self) {
        self.phase = Phase::Over;
    }

    /// True where the prompt is all there is to compute.
    pub(crate) fn embeds(&self) -> bool {
        self.options.embed
    }

    /// True until the prompt is computed.
    pub(crate) fn is_in_prompt(&self) -> bool {
        !matches!(self.phase, Phase::Decode | Phase::Ended(_) | Phase::Over)
    }

    /// True while a tile is half way through the tower.
    pub(crate) fn is_encoding(&self) -> bool {
        matches!(self.phase, Phase::Encoding(..))
    }

    fn checked(&mut self, done: Result<(), Error>) -> Result<(), Error> {
        match done {
            // A stage that was stopped half way ends the answer; it is no failure.
            Err(Error::Backend(BackendError::Cancelled)) => self.end(Stop::Cancelled),
            Err(e) => {
                self.phase = Phase::Over;
                return Err(e);
            }
            Ok(()) => {}
        }
        Ok(())
    }

    fn step(&mut self, session: &mut Session, pace: &mut Pace<'_>) -> Result<(), Error> {
        let ending = matches!(self.phase, Phase::Ended(_) | Phase::Over);
        if session.cancel.is_cancelled() && !ending {
            self.end(Stop::Cancelled);
            return Ok(());
        }
        match self.model.governed() {
            Some(governed) if !ending => self.governed_step(session, pace, &governed),
            _ => self.phase_step(session, pace),
        }
    }

    /// A step under a governor: short enough to look in between, and rests behind it.
    fn governed_step(
        &mut self,
        session: &mut Session,
        pace: &mut Pace<'_>,
        governed: &Governed,
    ) -> Result<(), Error> {
        let (settings, events) = governed.look();
        self.pending.extend(events.into_iter().map(|event| Event::Governed(Box::new(event))));
        if settings.hold {
            governed.hold();
            return Ok(());
        }
        let decodes = matches!(self.phase, Phase::Decode);
        let before = (self.stages.prefill_tokens, self.stages.decode_tokens);
        let clock = Stopwatch::start();
        let mut pause = || (pace.pause)() || clock.elapsed() >= governed.step();
        let mut slower = Pace { prefill: pace.prefill.min(governed.chunk()), pause: &mut pause };
        let done = self.phase_step(session, &mut slower);
        let doing = match self.stages.prefill_tokens - before.0 {
            _ if decodes => Doing::Decode(self.stages.decode_tokens - before.1),
            0 => Doing::Other,
            tokens => Doing::Prefill(tokens),
        };
        governed.rest(doing, clock.elapsed(), &session.cancel);
        done
    }

    fn phase_step(&mut self, session: &mut Session, pace: &mut Pace<'_>) -> Result<(), Error> {
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Preprocess => self.next_picture(session),
            Phase::Encode(tiles) => self.next_tile(session, tiles, pace),
            Phase::Encoding(tiles, tile, took, at) => self.encode(session, (tiles, tile), (took, at), pace),
            Phase::Project(tiles, tile) => self.project(session, tiles, &tile),
            Phase::Prefill => self.prefill(session, pace),
            Phase::Decode => self.decode(session, pace),
            Phase::Ended(stop) => self.finish(session, stop),
            Phase::Over => Ok(()),
        }
    }

    /// Keeps the part of the cache that this prompt shares with what was computed before.
    fn begin_prefill(&mut self, session: &mut Session) -> Result<(), Error> {
        // What was left out of pictures is known only now.
        if self.sequence.cut(session.images.iter().flat_map(PictureLayout::counts)) {
            (self.places, self.next_place) = self.sequence.places();
            self.prefix = prefix_of(self.model.config(), &self.sequence.ids);
            self.stages.visual_tokens = self.sequence.visual_tokens();
        }
        let ids = &self.sequence.ids;
        let shared = session.held.iter().zip(ids).take_while(|(a, b)| a == b).count();
        // The last token is computed anew: its logits are wanted.
        let shared = shared.min(ids.len().saturating_sub(1)).min(session.intact());
        let shared = match self.model.pruning() {
            Some(pruning) => pruning.reused(ids, shared)?,
            None => shared,
        };
        let shared = if shared < self.prefix { 0 } else { shared };
        let shared = session.keep(shared);
        let shared = session.restore_prefix(ids, self.prefix, shared)?;
        self.stages.reused_tokens = shared;
        session.fit_cache()?;
        self.begin_pruned(session, shared)?;
        if let Some(eviction) = self.model.eviction() {
            session.state.observe(eviction.observe())?;
        }
        Ok(())
    }

    /// Drops tokens that are to go before another is decoded.
    pub(crate) fn make_room(&self, session: &mut Session) -> Result<(), Error> {
        match self.model.eviction() {
            Some(eviction) => {
                let held = session.held.len();
                let place = |token: usize| self.place_of(token, held);
                session.evict_decoded(eviction, self.budget, &place)
            }
            None => Ok(()),
        }
    }

    /// Where a token of the conversation stands, of which so many tokens are computed: in time, row and column where the model
    /// asks for them.
    fn place_of(&self, token: usize, computed: usize) -> [i32; 3] {
        if self.model.config().text.rope_sections.is_none() {
            return [token as i32; 3];
        }
        let answered = || self.next_place - computed.saturating_sub(token) as i32;
        self.places.get(token).copied().unwrap_or_else(|| [answered(); 3])
    }

    fn prefill(&mut self, session: &mut Session, pace: &mut Pace<'_>) -> Result<(), Error> {
        if self.pruned != Pruned::Not {
            return self.prefill_pruned(session, pace);
        }
        let model = self.model.clone();
        let clock = Stopwatch::start();
        let mut engine = model.engine()?;
        let from = session.held.len();
        let batch = pace.prefill.clamp(1, engine.batch());
        let to = self.batch_end(&engine, from, batch)?;
        let call = self.prompt_call(&session.visual, from..to);
        let logits = engine.run_text(&call, 1, session.state.as_mut(), &session.cancel)?;
        let last = to == self.sequence.ids.len();
        let token = if last { Some(self.choose(logits)?) } else { None };
        if last && self.options.embed {
            self.embedding = engine.embedding(model.config().text.width).map(of_length_1);
        }
        drop(engine);
        session.held.extend_from_slice(&self.sequence.ids[from..to]);
        self.stages.prefill_tokens += to - from;
        let took = clock.elapsed();
        model.overlapping().learn_prefill(to - from, took);
        self.prefilled(session, token, took, self.batches_left(to, batch))
    }

    /// Where the batch of the prompt that begins at `from` ends. Tokens that see one another are computed together, whatever
    /// the pace.
    fn batch_end(&self, engine: &Engine, from: usize, batch: usize) -> Result<usize, Error> {
        let (prefix, most) = (self.prefix, engine.batch());
        if from == 0 && most < prefix {
            return Err(Error::LongPrefix { prefix, batch: most });
        }
        Ok(batch_end(&self.sequence.ids, from, batch, prefix, self.options.pictures_apart))
    }

    /// Batches of the prompt from `to` on, where no prefix is left to mind.
    fn batches_left(&self, to: usize, batch: usize) -> usize {
        prompt_batches(&self.sequence.ids[to..], batch, 0, self.options.pictures_apart).count()
    }

    /// Those tokens of the prompt as the decoder is given them.
    fn prompt_call<'a>(&'a self, visual: &'a [f32], of: Range<usize>) -> TextCall<'a> {
        TextCall {
            ids: &self.sequence.ids[of.clone()],
            places: &self.places[of.clone()],
            visual,
            width: self.model.config().text.width,
            position: of.start,
            prefix: self.prefix,
        }
    }

    /// Behind a step of the prefill, of which `left` are left: goes on with it, or with the answer's first token.
    fn prefilled(
        &mut self,
        session: &mut Session,
        token: Option<u32>,
        took: Duration,
        left: usize,
    ) -> Result<(), Error> {
        self.prefill_steps += 1;
        self.stage_ended(Stage::Prefill, took, self.prefill_steps, self.prefill_steps + left);
        match token {
            Some(_) if self.options.embed => self.end(Stop::End),
            Some(token) => {
                let waited = (self.clock.elapsed() + self.decoding).saturating_sub(self.outside);
                self.stages.ttft_ms = Some(waited.as_secs_f64() * 1000.0);
                if let Some(eviction) = self.model.eviction() {
                    self.budget = session.evict_prompt(eviction)?;
                }
                self.take(session, token)?;
            }
            None => self.phase = Phase::Prefill,
        }
        Ok(())
    }

    fn decode(&mut self, session: &mut Session, pace: &Pace<'_>) -> Result<(), Error> {
        let model = self.model.clone();
        let clock = Stopwatch::start();
        self.make_room(session)?;
        let (position, dropped) = (session.held.len(), session.dropped_tokens());
        // Tokens that saw one another may have been dropped.
        let prefix = if dropped > 0 { 0 } else { self.prefix };
        let mut ids = vec![self.last_token() as i32];
        let mut engine = model.engine()?;
        let guessed = self.guess(session, engine.outputs(), &mut ids, pace)?;
        let place = self.next_place;
        let places: Vec<[i32; 3]> = (place..).take(ids.len()).map(|place| [place; 3]).collect();
        let (visual, width) = (&session.visual, model.config().text.width);
        let call = TextCall { ids: &ids, places: &places, visual, width, position, prefix };
        let logits = engine.run_text(&call, ids.len(), session.state.as_mut(), &session.cancel)?;
        let mut took = clock.elapsed();
        let run = took.saturating_sub(guessed.took);
        let mut right = 0;
        for (at, logits) in logits.chunks_exact(logits.len() / ids.len()).enumerate() {
            // All of them came in one run.
            self.take_logits(session, logits, std::mem::take(&mut took))?;
            if !matches!(self.phase, Phase::Decode) || ids.get(at + 1) != Some(&(self.last_token() as i32)) {
                break;
            }
            right = at + 1;
        }
        drop(engine);
        session.state.truncate(session.held.len() - dropped);
        if self.options.draft > 0 {
            self.guessed(&guessed, right, run)?;
        }
        Ok(())
    }

    fn last_token(&self) -> u32 {
        *self.tokens.last().expect("invariant: prefill gave the first token")
    }

    /// The logits behind the answer's last token, which is in the cache now.
    fn take_logits(&mut self, session: &mut Session, logits: &[f32], took: Duration) -> Result<(), Error> {
        self.phase = Phase::Over;
        let clock = Stopwatch::start();
        let token = self.last_token();
        let next = self.choose(logits)?;
        session.held.push(token as i32);
        self.next_place += 1;
        self.stages.decode_tokens += 1;
        let of = self.options.max_tokens.saturating_sub(1);
        self.stage_ended(Stage::Decode, took + clock.elapsed(), self.stages.decode_tokens, of);
        self.take(session, next)
    }

    fn choose(&mut self, logits: &[f32]) -> Result<u32, Error> {
        let id = self.sampler.choose(logits)?;
        if let Some(most) = self.options.logprobs {
            let tokenizer = self.model.tokenizer();
            let (logprob, top) = logprobs(logits, id, most);
            let top = top.into_iter().map(|(id, logprob)| (id, tokenizer.token_bytes(id), logprob)).collect();
            self.chosen = Some(Token { id, bytes: tokenizer.token_bytes(id), logprob, top });
        }
        Ok(id)
    }

    /// Takes a chosen token: ends the answer, or shows its text and goes on.
    fn take(&mut self, session: &mut Session, token: u32) -> Result<(), Error> {
        if self.model.tokenizer().stop_ids().contains(&token) {
            self.end(Stop::End);
            return Ok(());
        }
        self.sampler.accept(token)?;
        self.tokens.push(token);
        if let Some(chosen) = self.chosen.take() {
            self.pending.push_back(Event::Token(Box::new(chosen)));
        }
        let piece = self.decoder.push(token);
        let (shown, met) = self.stops.push(&piece);
        self.show(shown);
        if met {
            self.end(Stop::StopText);
        } else if self.sampler.is_complete() {
            self.end(Stop::End);
        } else if self.tokens.len() >= self.options.max_tokens {
            self.end(Stop::Length);
        } else if session.state.len() + 1 > session.state.capacity()
            && !self.model.eviction().is_some_and(Eviction::makes_room)
        {
            self.end(Stop::Context);
        } else {
            self.phase = Phase::Decode;
        }
        Ok(())
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

    fn finish(&mut self, session: &mut Session, stop: Stop) -> Result<(), Error> {
        self.stages.set_times(&self.times);
        if self.options.draft > 0 && stop != Stop::Cancelled {
            self.model.payoff()?.learn_length(self.tokens.len());
        }
        if let Some(took) = self.times.millis(Stage::Prefill) {
            let each = took / 1000.0 / self.stages.prefill_tokens.max(1) as f64;
            session.keep_prefix(&self.sequence.ids, each);
        }
        let report = Report {
            text: self.text.clone(),
            tokens: self.tokens.clone(),
            stop,
            stages: self.stages,
            schedule: self.schedule(),
            embedding: self.embedding.take(),
            pictures: std::mem::take(&mut self.seen),
            peak_rss_bytes: process::peak_rss_bytes(&Root::system()),
        };
        self.remember(session);
        self.pending.push_back(Event::Done(Box::new(report)));
        Ok(())
    }

    /// The session goes on from what was said. A question that was stopped before its first token is taken back, as if
    /// it had not been asked.
    pub(crate) fn remember(&mut self, session: &mut Session) {
        if std::mem::replace(&mut self.told, true) || session.messages.is_empty() {
            return;
        }
        if self.stages.ttft_ms.is_some() {
            session.messages.push(Message::text("assistant", self.text.clone()));
            return;
        }
        session.messages.pop();
        let marked = session.messages.iter().flat_map(|m| &m.content).filter(|part| **part == Part::Image);
        if marked.count() != self.images_then {
            // The pictures of a conversation that came as a whole go with its question.
            session.clear();
            return;
        }
        // The rows of its pictures will be those of others: what was computed from them must not be found again.
        session.keep_pictures(self.images_then);
    }

    fn stage_ended(&mut self, stage: Stage, took: Duration, done: usize, of: usize) {
        let end = self.clock.elapsed();
        let lane = match stage {
            Stage::Prefill | Stage::Decode => Lane::Text,
            _ => Lane::Vision,
        };
        self.stage_ran(stage, lane, (end.saturating_sub(took), end), (done, of));
    }
}
