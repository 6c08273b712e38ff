//! What of an answer runs at the same time: pictures are read by threads of their own, the prompt is computed as far as its
//! pictures are known, and where that pays a tile is encoded meanwhile.

use super::{Work, pictures::Tiles};
use crate::{
    Error, Event, Image, Keep, Lane, Model, Overlap, Schedule, Session, StageRun,
    engine::TextLane,
    image::ImageDigest,
    overlap::{Choice, LEAST_PIXELS, LEAST_TOKENS},
};
use margay_observe::{Stage, Stopwatch};
use margay_prompt::image::{ImageTiles, Pixels, preprocess};
use std::{
    borrow::Cow,
    collections::VecDeque,
    ops::Range,
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    time::Duration,
};

/// How long a picture is waited for before somebody asks whether the answer is still wanted.
const WAIT: Duration = Duration::from_millis(5);
/// Tokens that are computed while a picture is read before somebody asks whether it has come: enough that reading the weights
/// once more costs little.
const TOKENS_MEANWHILE: usize = 64;

/// What of an answer may run at the same time, and what did.
#[derive(Default)]
pub(super) struct Beside {
    /// No other answer takes turns with it.
    alone: bool,
    /// Large pictures are read by threads of their own.
    reads: bool,
    /// Why the prompt is computed behind its pictures; `None` where it need not be.
    whole: Option<&'static str>,
    /// Whether the cache holds nothing but what this prompt shares.
    begun: bool,
    /// The next pictures as they are read, in their order; `None` for one that is to be read when its turn comes.
    reading: VecDeque<Option<Receiver<Result<Read, Error>>>>,
    schedule: Schedule,
    /// Tokens of the prompt that the schedule tells of.
    told_tokens: usize,
}

/// A picture that was read.
pub(super) struct Read {
    pub digest: ImageDigest,
    /// `None` where that was left to do.
    pub cut: Option<Cut>,
    /// What decoding it took before the question.
    pub before: Duration,
    pub lane: Lane,
    pub ran: (Duration, Duration),
}

/// A picture as its tower sees it.
pub(super) struct Cut {
    pub tiles: ImageTiles,
    /// Whether it holds dense text, where that is asked.
    pub text: bool,
    /// Visual tokens that it would have been at the model's own resolution, where it is seen at a lower one; else 0.
    pub whole: usize,
}

impl Cut {
    pub(super) fn new(model: &Model, image: &Image) -> Result<Self, Error> {
        let spec = model.image_spec(image)?;
        let tiles = preprocess(image.picture()?, &spec)
            .map_err(|source| Error::Image { place: image.name.clone(), source })?;
        let guarded = model.reduction().is_some_and(|reduction| reduction.keep == Keep::Auto);
        let text = guarded && image.has_dense_text()?;
        let whole = match spec {
            Cow::Owned(_) => model.source().picture_layout(image)?.visual_tokens(),
            Cow::Borrowed(_) => 0,
        };
        Ok(Cut { tiles, text, whole })
    }
}

impl Read {
    fn new(image: &Image, lane: Lane, clock: Stopwatch) -> Result<Self, Error> {
        let begin = clock.elapsed();
        let before = image.decoded().unwrap_or_default();
        let digest = image.digest()?;
        Ok(Read { digest, cut: None, before, lane, ran: (begin, clock.elapsed()) })
    }

    /// As far as another thread can: a picture that is kept need not be resized.
    fn whole(model: &Model, image: &Image, clock: Stopwatch) -> Result<Self, Error> {
        let mut read = Read::new(image, Lane::Read, clock)?;
        if !model.images()?.holds(&read.digest) {
            read.cut = Some(Cut::new(model, image)?);
        }
        read.ran.1 = clock.elapsed();
        Ok(read)
    }
}

impl Work {
    /// Lets stages run at the same time where the model was loaded for that and answers stay the same. Not for answers that
    /// take turns with others: a step of both stages takes as long as the longer.
    pub(crate) fn overlap(&mut self) {
        let overlapping = self.model.overlapping();
        let governed = self.model.governed().is_some();
        self.beside.whole = match overlapping.whole {
            Some(why) => Some(why),
            None if governed => Some("a governor paces what is computed"),
            None if self.options.pictures_apart => Some("each stage is timed for itself"),
            None if self.pictures.is_empty() => Some("no picture is to be looked at"),
            None => None,
        };
        self.beside.reads = overlapping.asked != Overlap::Off && !governed;
        self.beside.alone = true;
    }

    /// Whether the prompt may be computed as far as its pictures are known.
    fn is_early(&self) -> bool {
        self.beside.alone && self.beside.whole.is_none()
    }

    /// The next picture; `None` where something else was done and it is still being read.
    pub(super) fn read_next(&mut self, session: &mut Session) -> Result<Option<Read>, Error> {
        self.read_ahead();
        let Some(reading) = self.beside.reading.pop_front().flatten() else {
            let image = self.pictures.front().map(|(image, _)| image);
            return image.map(|image| Read::new(image, Lane::Vision, self.clock)).transpose();
        };
        let waits = match reading.try_recv() {
            Ok(read) => return read.map(Some),
            Err(_) if self.is_early() => {
                self.begin_prompt(session)?;
                !self.prefill_ready(session, TOKENS_MEANWHILE)?
            }
            Err(_) => true,
        };
        match if waits { reading.recv_timeout(WAIT) } else { Err(RecvTimeoutError::Timeout) } {
            Ok(read) => read.map(Some),
            Err(RecvTimeoutError::Timeout) => {
                self.beside.reading.push_front(Some(reading));
                Ok(None)
            }
            // It panicked, and said so.
            Err(RecvTimeoutError::Disconnected) => Err(Error::Poisoned),
        }
    }

    /// Has the next pictures read by other threads, those that are large enough for that to be worth it.
    pub(super) fn read_ahead(&mut self) {
        if !self.beside.reads {
            return;
        }
        while self.beside.reading.len() < self.model.overlapping().readers() {
            let Some((image, _)) = self.pictures.get(self.beside.reading.len()) else { return };
            let large = u64::from(image.width()) * u64::from(image.height()) >= LEAST_PIXELS;
            let reading = if large { self.read_beside(image.clone()) } else { None };
            self.beside.reading.push_back(reading);
        }
    }

    /// Has a picture read by a thread of its own; `None` where the system refuses one.
    fn read_beside(&self, image: Image) -> Option<Receiver<Result<Read, Error>>> {
        let (model, clock) = (self.model.clone(), self.clock);
        let (give, take) = sync_channel(1);
        // Nobody takes it where the answer has ended.
        let read = move || drop(give.send(Read::whole(&model, &image, clock)));
        let thread = std::thread::Builder::new().name("margay-read".to_owned()).spawn(read);
        thread.ok().map(|_| take)
    }

    /// Fits the cache to the prompt, once.
    pub(super) fn begin_prompt(&mut self, session: &mut Session) -> Result<(), Error> {
        if !std::mem::replace(&mut self.beside.begun, true) {
            self.begin_prefill(session)?;
        }
        Ok(())
    }

    /// The next tokens of the prompt whose visual rows are known. Never its last token, whose logits begin the answer.
    fn ready(&self, session: &Session) -> Range<usize> {
        let rows = if self.model.rows_are_exact() {
            session.visual.len() / self.model.config().text.width
        } else {
            session.rows_of(session.images.len())
        };
        let (ids, from) = (&self.sequence.ids, session.held.len());
        let unknown = |id: &i32| *id < 0 && (-1 - i64::from(*id)) as usize >= rows;
        let known = ids.get(from..).unwrap_or_default().iter().take_while(|id| !unknown(id)).count();
        from..(from + known).min(ids.len().saturating_sub(1)).max(from)
    }

    /// Computes at most so many tokens that are ready, on all threads; false where they are too few.
    fn prefill_ready(&mut self, session: &mut Session, most: usize) -> Result<bool, Error> {
        let ready = self.ready(session);
        if ready.len() < LEAST_TOKENS {
            return Ok(false);
        }
        let model = self.model.clone();
        let mut engine = model.engine()?;
        let batch = engine.batch();
        // What would be left alone goes along.
        let most = if ready.len() < most.saturating_add(LEAST_TOKENS) { ready.len() } else { most };
        let range = ready.start..ready.start + most.min(batch);
        let (count, clock) = (range.len(), Stopwatch::start());
        self.prefill_range(session, &mut engine.text_lane(), range, batch)?;
        model.overlapping().learn_prefill(count, clock.elapsed());
        Ok(true)
    }

    fn prefill_range(
        &mut self,
        session: &mut Session,
        lane: &mut TextLane<'_>,
        range: Range<usize>,
        batch: usize,
    ) -> Result<(), Error> {
        let begin = self.clock.elapsed();
        let call = self.prompt_call(&session.visual, range.clone());
        lane.run(&call, 1, session.state.as_mut(), &session.cancel)?;
        session.held.extend_from_slice(&self.sequence.ids[range.clone()]);
        self.stages.prefill_tokens += range.len();
        self.prefill_steps += 1;
        let of = self.prefill_steps + self.batches_left(range.end, batch);
        let ran = (begin, self.clock.elapsed());
        self.stage_ran(Stage::Prefill, Lane::Text, ran, (self.prefill_steps, of));
        Ok(())
    }

    /// The tokens that are to be computed while the next tile is encoded, where any are.
    pub(super) fn beside_next_tile(&mut self, session: &mut Session) -> Result<Option<Range<usize>>, Error> {
        if !self.is_early() || self.model.overlapping().choose() == Choice::Apart {
            return Ok(None);
        }
        self.begin_prompt(session)?;
        match self.model.overlapping().choose() {
            Choice::Halves => Ok(Some(self.ready(session)).filter(|ready| ready.len() >= LEAST_TOKENS)),
            Choice::Learn => self.prefill_ready(session, usize::MAX).map(|_| None),
            Choice::Apart => Ok(None),
        }
    }

    /// A tile through the tower on one half of the threads, and those tokens through the decoder on the other. Whichever ends
    /// first leaves its threads to the other.
    pub(super) fn encode_beside(
        &mut self,
        session: &mut Session,
        (tiles, tile): (Tiles, Pixels),
        ready: Range<usize>,
    ) -> Result<(), Error> {
        let model = self.model.clone();
        let feed = model.feed(&tile, None)?;
        let mut engine = model.engine()?;
        let (batch, count) = (engine.batch(), ready.len());
        let (cancel, clock) = (session.cancel.clone(), self.clock);
        let begin = clock.elapsed();
        let halved = model.halve();
        let (mut vision, mut text) = engine.lanes();
        let (encoded, computed) = std::thread::scope(|scope| {
            let encoding = scope.spawn(|| {
                let done = vision.encode(&feed, &cancel);
                halved.leave_vision();
                done.map(|()| clock.elapsed())
            });
            let mut from = ready.start;
            let mut computed = Ok(());
            while computed.is_ok() && from < ready.end {
                let to = ready.end.min(from + batch);
                computed = self.prefill_range(session, &mut text, from..to, batch);
                from = to;
            }
            halved.leave_text();
            let encoded = encoding.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (encoded, computed)
        });
        drop((halved, feed));
        let end = encoded?;
        computed?;
        let took = clock.elapsed().saturating_sub(begin);
        model.overlapping().learn_both(tile.data.len(), count, took);
        self.encoded(&mut engine, (tiles, tile), (begin, end));
        Ok(())
    }

    /// Tells of a stage, or a step of one: what it ran from and to, and how many of how many steps are done.
    pub(super) fn stage_ran(
        &mut self,
        stage: Stage,
        lane: Lane,
        (begin, end): (Duration, Duration),
        (done, of): (usize, usize),
    ) {
        let took = end.saturating_sub(begin);
        self.times.add(stage, took);
        self.pending.push_back(Event::Stage { stage, took, done, of });
        let tokens = match stage {
            Stage::Prefill => self.stages.prefill_tokens - self.beside.told_tokens,
            Stage::Decode => 1,
            _ => 0,
        };
        if stage == Stage::Prefill {
            self.beside.told_tokens += tokens;
        }
        let sees = matches!(stage, Stage::Preprocess | Stage::Encode | Stage::Project);
        let picture = sees.then(|| self.picture_count - self.pictures.len());
        let run = StageRun { picture, tokens, ..StageRun::new(stage, lane, (begin, end)) };
        self.beside.schedule.push(run);
    }

    /// The vision side was loaded just now.
    pub(super) fn vision_loaded(&mut self, took: Duration) {
        self.times.add(Stage::Load, took);
        let end = self.clock.elapsed();
        self.beside.schedule.push(StageRun::new(Stage::Load, Lane::Vision, (end.saturating_sub(took), end)));
    }

    /// When each stage ran, now that all have.
    pub(super) fn schedule(&mut self) -> Schedule {
        let mut schedule = std::mem::take(&mut self.beside.schedule);
        schedule.close();
        schedule.why = match self.beside.whole {
            _ if !self.beside.alone => "answers of several callers take turns".to_owned(),
            Some(why) => format!("the prompt is computed behind its pictures: {why}"),
            None => self.model.overlapping().why(),
        };
        schedule
    }
}
