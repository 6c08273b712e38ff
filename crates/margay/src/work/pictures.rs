//! A picture of a question, from its pixels to its visual tokens.

use super::{
    Pace, Phase, Work,
    beside::{Cut, Read},
};
use crate::{
    Error, Lane, PictureReport, Reason, Reduction, Session, engine::Engine, image::ImageDigest,
    image_cache::Seen, reduce::attention::Attention,
};
use margay_observe::{Stage, Stopwatch};
use margay_prompt::{
    image::{ImageTiles, Pixels},
    layout::PictureLayout,
};
use std::time::Duration;

/// What is left of a picture.
pub(super) struct Tiles {
    digest: ImageDigest,
    /// Visual numbers of the pictures before it.
    start: usize,
    left: ImageTiles,
    layout: PictureLayout,
    /// Those that are still to be projected. [P, C]
    features: Vec<f32>,
    /// Those of the last tile's patches that are encoded, where not all are.
    patches: Option<Vec<usize>>,
    /// What the last tile was looked at, where that says what is left out.
    attention: Option<Attention>,
    /// Whether the picture holds dense text, where that is asked.
    text: bool,
    /// Whether the governor asked for fewer tokens of it.
    governed: bool,
    /// What it became so far.
    seen: Seen,
}

impl Work {
    /// The next picture, as it is read; or what can be done until it is.
    pub(super) fn next_picture(&mut self, session: &mut Session) -> Result<(), Error> {
        if self.pictures.is_empty() {
            self.begin_prompt(session)?;
            self.phase = Phase::Prefill;
            return Ok(());
        }
        self.phase = Phase::Preprocess;
        match self.read_next(session)? {
            Some(read) => self.looked_at(session, read),
            None => Ok(()),
        }
    }

    /// A picture that was read: its visual tokens where they are kept, else its tiles.
    fn looked_at(&mut self, session: &mut Session, read: Read) -> Result<(), Error> {
        let Some((image, layout)) = self.pictures.pop_front() else { return Ok(()) };
        let Read { digest, cut, before, lane, ran } = read;
        self.read_ahead();
        let model = self.model.clone();
        // What was decoded when the picture was opened counts here.
        self.times.add(Stage::Preprocess, before);
        self.decoding += before;
        let clock = Stopwatch::start();
        let start = session.visual.len();
        // Those that were kept were seen whole.
        let kept = match image.is_whole() {
            true => session.known_picture(&digest)?,
            false => None,
        };
        let done = self.picture_count - self.pictures.len();
        let steps = (done, self.picture_count);
        if let Some(seen) = kept {
            self.stages.reused_pictures += 1;
            self.tiles_done += layout.tiles();
            self.projections_done += layout.projections();
            session.images.push(layout.with_counts(&seen.counts));
            session.digests.push(digest);
            session.note_picture(digest, Some(&seen));
            self.seen.push(seen.report);
            self.times.add(Stage::Preprocess, clock.elapsed());
            self.stage_ran(Stage::Preprocess, lane, ran, steps);
            return Ok(());
        }
        let cut = match cut {
            Some(cut) => cut,
            None => Cut::new(&model, &image)?,
        };
        let ran = match lane {
            Lane::Read => {
                self.times.add(Stage::Preprocess, clock.elapsed());
                ran
            }
            // Read, looked up and resized here, one behind the other.
            _ => (ran.0, self.clock.elapsed()),
        };
        self.stage_ran(Stage::Preprocess, lane, ran, steps);
        let clock = Stopwatch::start();
        let vision = model.vision_backend();
        if model.engine()?.prepare_vision(model.source(), vision, &session.cancel)? {
            // Packing the tower is loading, not encoding.
            let took = clock.elapsed();
            self.outside += took;
            self.vision_loaded(took);
        }
        let Cut { tiles: left, text, whole } = cut;
        self.phase = Phase::Encode(Tiles {
            digest,
            start,
            left,
            layout,
            features: vec![],
            patches: None,
            attention: None,
            text,
            governed: !image.is_whole(),
            seen: Seen { whole, ..Seen::default() },
        });
        Ok(())
    }

    /// The next tile of the picture; one at a time is there as floats.
    pub(super) fn next_tile(
        &mut self,
        session: &mut Session,
        mut tiles: Tiles,
        pace: &mut Pace<'_>,
    ) -> Result<(), Error> {
        let clock = Stopwatch::start();
        let Some(tile) = tiles.left.next() else {
            let Tiles { digest, start, layout, seen, .. } = &tiles;
            // What a hot device left of it is not what it is later.
            if !tiles.governed {
                self.model.images()?.keep(*digest, &mut session.visual[*start..], seen)?;
            }
            session.images.push(layout.with_counts(&seen.counts));
            session.note_picture(*digest, (!tiles.governed).then_some(seen));
            self.seen.push(seen.report);
            session.digests.push(tiles.digest);
            self.phase = Phase::Preprocess;
            return Ok(());
        };
        tiles.patches = self.model.distinct_patches(&tile)?;
        self.times.add(Stage::Preprocess, clock.elapsed());
        self.encode(session, (tiles, tile), (Duration::ZERO, 0), pace)
    }

    pub(super) fn encode(
        &mut self,
        session: &mut Session,
        (tiles, tile): (Tiles, Pixels),
        (took, at): (Duration, usize),
        pace: &mut Pace<'_>,
    ) -> Result<(), Error> {
        let model = self.model.clone();
        if at == 0
            && let Some(ready) = self.beside_next_tile(session)?
        {
            return self.encode_beside(session, (tiles, tile), ready);
        }
        let clock = Stopwatch::start();
        let feed = model.feed(&tile, tiles.patches.as_deref())?;
        let mut engine = model.engine()?;
        let next = engine.encode(&feed, at, pace.pause, &session.cancel)?;
        let took = took + clock.elapsed();
        if let Some(at) = next {
            drop(feed);
            self.phase = Phase::Encoding(tiles, tile, took, at);
            return Ok(());
        }
        drop(feed);
        model.overlapping().learn_encode(tile.data.len(), took);
        let end = self.clock.elapsed();
        self.encoded(&mut engine, (tiles, tile), (end.saturating_sub(took), end));
        Ok(())
    }

    /// A tile went through the tower.
    pub(super) fn encoded(
        &mut self,
        engine: &mut Engine,
        (mut tiles, tile): (Tiles, Pixels),
        ran: (Duration, Duration),
    ) {
        tiles.features.extend_from_slice(engine.encoded());
        tiles.attention = engine.attention();
        self.tiles_done += 1;
        self.stage_ran(Stage::Encode, Lane::Vision, ran, (self.tiles_done, self.tile_count));
        // What is stitched is projected once it is whole.
        let whole = tiles.layout.stitch().is_none() || tiles.left.len() == 0;
        self.phase = if whole { Phase::Project(tiles, tile) } else { Phase::Encode(tiles) };
    }

    pub(super) fn project(
        &mut self,
        session: &mut Session,
        mut tiles: Tiles,
        tile: &Pixels,
    ) -> Result<(), Error> {
        let model = self.model.clone();
        let clock = Stopwatch::start();
        let mut engine = model.engine()?;
        let stitch = tiles.layout.stitch();
        let visual = engine.project(
            &model.feed(tile, tiles.patches.as_deref())?,
            &tiles.features,
            stitch,
            &session.cancel,
        )?;
        let (width, attention) = (model.config().text.width, tiles.attention.take());
        let seen = visual.len() / width;
        // Where some of its patches are not encoded, each of them is a token.
        let of = tiles.patches.as_ref().map_or(seen, |_| model.vision().map_or(seen, |v| v.tile_tokens()));
        let start = session.visual.len();
        let asked = model.reduction();
        let share = model.governed().map_or(1.0, |governed| governed.settings().visual_tokens);
        let governed = (share < 1.0).then(|| Reduction::under_a_governor(asked, share));
        tiles.governed |= governed.is_some();
        let reduction = governed.as_ref().or(asked).filter(|_| Reduction::leaves_rows_out(model.config()));
        let why = match reduction {
            Some(reduction) => {
                let rows = visual.to_vec();
                drop(engine);
                let (rows, why) = reduction.apply(&rows, width, attention.as_ref(), tiles.text)?;
                session.visual.extend(rows);
                Some(if governed.is_some() { Reason::Device } else { why })
            }
            None => {
                session.visual.extend_from_slice(visual);
                drop(engine);
                (seen < of).then_some(Reason::Repeats).or(tiles.text.then_some(Reason::Text))
            }
        };
        let tokens = (session.visual.len() - start) / width;
        tiles.seen.counts.push(tokens);
        let report = &mut tiles.seen.report;
        *report = PictureReport { tokens: report.tokens + tokens, of: report.of + of, why };
        if tiles.left.len() == 0 && tiles.seen.whole > report.of {
            let why = if tiles.governed { Reason::Device } else { Reason::Resolution };
            *report = PictureReport { of: tiles.seen.whole, why: Some(why), ..*report };
        }
        tiles.features.clear();
        self.projections_done += 1;
        self.stage_ended(Stage::Project, clock.elapsed(), self.projections_done, self.projection_count);
        self.phase = Phase::Encode(tiles);
        Ok(())
    }
}
