//! Moving pictures: frames that come one at a time, of which only those are looked at that show something new, and of which
//! the newest are remembered as a few bytes each.
//!
//! A frame that hardly differs from the last one that was looked at costs the comparison. Of one that does, the tower and the
//! projector run; its visual tokens are pooled, and kept in 8 bits or as a difference of 4 bits ([`coding`]). As many frames
//! are held as were asked for, so that memory does not grow with their number.

mod changed;
mod coding;
mod ffmpeg;
mod frames;

use crate::{Error, Image, Model, governed::Doing, image::ImageDigest};
use changed::KeptTile;
use coding::Coder;
pub use frames::{Frames, FramesOptions};
use margay_graph::Cancel;
use margay_observe::Stopwatch;
use margay_prompt::{
    image::{changed_blocks, preprocess},
    layout::PictureLayout,
};
use ring::digest::{Context, SHA256};
use serde::Serialize;
use std::collections::VecDeque;

/// What of a moving picture is looked at, and what of it is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClipOptions {
    /// Frames that are held at most, the newest.
    pub most_frames: usize,
    /// Share of a frame's blocks of 8 x 8 pixels that have to differ from the last one looked at; under it the frame is left
    /// out.
    pub least_change: f32,
    /// Side of the square of visual tokens that become their mean; 1 keeps each.
    pub pool: usize,
    /// Frames from one that is kept whole to the next, at most: those between are kept as differences from it. Where only
    /// patches that changed are encoded ([`crate::LoadOptions::changed_patches`]), as often a frame is encoded whole.
    pub key_every: usize,
}

impl Default for ClipOptions {
    fn default() -> Self {
        ClipOptions { most_frames: 16, least_change: 0.01, pool: 2, key_every: 8 }
    }
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looked {
    /// It hardly differs from the last one that was looked at.
    Still,
    /// It is among those held.
    Kept,
    /// The governor of the device asked to leave it out.
    Skipped,
}

/// Counts of a moving picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ClipReport {
    /// Frames that came.
    pub frames: usize,
    /// Those that hardly differed.
    pub still: usize,
    /// Those that a device at its limit left out without a look.
    pub skipped: usize,
    /// Those that were encoded.
    pub encoded: usize,
    /// Patches of those that went through the tower.
    pub patches: usize,
    /// Patches that they have.
    pub of_patches: usize,
    /// Those that are held: the others gave way to newer ones.
    pub held: usize,
    /// Visual tokens of those held.
    pub tokens: usize,
    /// Bytes they are kept in.
    pub bytes: usize,
}

/// A moving picture as it is remembered.
pub struct Clip {
    model: Model,
    options: ClipOptions,
    cancel: Cancel,
    /// The last frame that was looked at.
    last: Option<Image>,
    /// What is kept of its tiles, where only patches that changed are encoded.
    kept: Vec<KeptTile>,
    /// Frames encoded since the last whole one, that one counted.
    since_whole: usize,
    coder: Coder,
    pub(crate) held: VecDeque<Held>,
    report: ClipReport,
}

/// A frame that is held.
pub(crate) struct Held {
    pub(crate) digest: ImageDigest,
    pub(crate) layout: PictureLayout,
    rows: coding::Coded,
}

impl Clip {
    /// Of a model that sees; `cancel` stops what runs.
    ///
    /// # Errors
    /// [`Error::NoVision`]; [`Error::Option`] for options out of range, and of a model whose visual tokens are reduced in
    /// another way or do not lie on the picture.
    pub fn new(model: &Model, options: ClipOptions, cancel: Cancel) -> Result<Self, Error> {
        let vision = model.vision()?;
        let bad = |what: &str| Err(Error::Option { option: "video", what: what.to_owned() });
        if options.most_frames == 0 || options.pool == 0 || options.key_every == 0 {
            return bad("frames held, pooling and frames between two whole ones are at least 1");
        }
        if !(0.0..=1.0).contains(&options.least_change) {
            return bad("the least change is a share, 0 to 1");
        }
        if model.leaves_out() {
            return bad("its frames are pooled; leave out no other visual tokens (--keep-image-tokens)");
        }
        if options.pool > 1 && !vision.lies_on_picture() {
            return bad(
                "this model's visual tokens do not lie on the picture, so that none are neighbours; pool 1 keeps each",
            );
        }
        if let Some(governed) = model.governed() {
            governed.watches_frames();
        }
        let coder = Coder::new(model.config().text.width, options.key_every);
        let (model, held) = (model.clone(), VecDeque::new());
        let (kept, report) = (vec![], ClipReport::default());
        Ok(Clip { model, options, cancel, last: None, kept, since_whole: 0, coder, held, report })
    }

    /// Looks at the next frame.
    ///
    /// # Errors
    /// [`Error::Image`] of one that cannot be resized, [`Error::Backend`].
    pub fn push(&mut self, frame: &Image) -> Result<Looked, Error> {
        self.report.frames += 1;
        let governed = self.model.governed();
        if let Some(governed) = &governed {
            while governed.look().0.hold && !self.cancel.is_cancelled() {
                governed.hold();
            }
            if !(self.report.frames - 1).is_multiple_of(governed.settings().every_frame as usize) {
                self.report.skipped += 1;
                return Ok(Looked::Skipped);
            }
        }
        let clock = Stopwatch::start();
        let change = match &self.last {
            Some(last) => changed_blocks(last.picture()?, frame.picture()?),
            None => 1.0,
        };
        if self.last.is_some() && change < self.options.least_change {
            self.report.still += 1;
            return Ok(Looked::Still);
        }
        let (rows, layout) = self.look(frame)?;
        if let Some(governed) = &governed {
            governed.rest(Doing::Other, clock.elapsed(), &self.cancel);
        }
        self.report.encoded += 1;
        self.last = Some(frame.clone());
        let digest = self.digest(frame, &rows)?;
        let rows = self.coder.encode(&rows)?;
        self.held.push_back(Held { digest, layout, rows });
        while self.held.len() > self.options.most_frames {
            self.held.pop_front();
        }
        Ok(Looked::Kept)
    }

    /// What tells a frame that was pooled, and kept in few bits, from the same picture as it is.
    fn digest(&self, frame: &Image, rows: &[f32]) -> Result<ImageDigest, Error> {
        let mut hash = Context::new(&SHA256);
        hash.update(b"a frame of a moving picture");
        hash.update(&(self.options.pool as u64).to_le_bytes());
        hash.update(&frame.digest()?);
        if self.model.encodes_changes() {
            // What it became depends on the frames before it.
            rows.iter().for_each(|x| hash.update(&x.to_le_bytes()));
        }
        let mut digest = frame.digest()?;
        digest.copy_from_slice(hash.finish().as_ref());
        Ok(digest)
    }

    /// What it took so far.
    pub fn report(&self) -> ClipReport {
        let tokens = self.held.iter().map(|held| held.layout.visual_tokens()).sum();
        let bytes = coding::bytes(self.held.iter().map(|held| &held.rows));
        ClipReport { held: self.held.len(), tokens, bytes, ..self.report }
    }

    pub(crate) fn rows(&self, held: &Held) -> Result<Vec<f32>, Error> {
        self.coder.decode(&held.rows)
    }

    /// The visual tokens of a frame, pooled. [V, E]
    fn look(&mut self, frame: &Image) -> Result<(Vec<f32>, PictureLayout), Error> {
        let model = self.model.clone();
        let vision = model.vision()?;
        let bad = |source| Error::Image { place: frame.name.clone(), source };
        let layout = model.picture_layout(frame)?;
        let tiles = preprocess(frame.picture()?, &vision.image).map_err(bad)?;
        let mut engine = model.engine()?;
        engine.prepare_vision(model.source(), model.vision_backend(), &self.cancel)?;
        let (width, stitch) = (model.config().text.width, layout.stitch());
        let (mut features, mut rows) = (vec![], vec![]);
        let mut grids = layout.grids();
        let mut left = tiles.len();
        let changes = model.encodes_changes();
        if changes && (self.kept.len() != left || self.since_whole >= self.options.key_every) {
            self.kept = (0..left).map(|_| KeptTile::new(vision, left == 1)).collect();
            self.since_whole = 0;
        }
        self.since_whole += 1;
        for (at, tile) in tiles.enumerate() {
            let feed = model.feed(&tile, None)?;
            let (high, wide) = vision.tower.grid_of(tile.width, tile.height);
            self.report.of_patches += high * wide;
            match self.kept.get_mut(at) {
                Some(kept) => {
                    let done = kept.encode(vision, &tile, &feed, &mut engine, &self.cancel);
                    if done.is_err() {
                        // What is half done is not built upon.
                        self.kept.clear();
                    }
                    self.report.patches += done?;
                    features.extend_from_slice(&self.kept[at].features);
                }
                None => {
                    engine.encode(&feed, 0, &mut || false, &self.cancel)?;
                    features.extend_from_slice(engine.encoded());
                    self.report.patches += high * wide;
                }
            }
            left -= 1;
            if stitch.is_some() && left > 0 {
                continue;
            }
            let seen = engine.project(&feed, &features, stitch, &self.cancel)?;
            let columns = grids.next().map_or(1, |(_, columns)| columns);
            pool(seen, width, columns, self.options.pool, &mut rows);
            features.clear();
        }
        Ok((rows, layout.pooled(self.options.pool)))
    }
}

/// Appends the mean of each square of `side` x `side` tokens of [V, width] in rows of `columns`; at the edges, of those there
/// are.
fn pool(tokens: &[f32], width: usize, columns: usize, side: usize, out: &mut Vec<f32>) {
    let rows = tokens.len() / width / columns.max(1);
    for (top, left) in (0..rows).step_by(side).flat_map(|y| (0..columns).step_by(side).map(move |x| (y, x))) {
        let start = out.len();
        out.resize(start + width, 0.0);
        let (bottom, right) = ((top + side).min(rows), (left + side).min(columns));
        let share = 1.0 / ((bottom - top) * (right - left)) as f32;
        for (y, x) in (top..bottom).flat_map(|y| (left..right).map(move |x| (y, x))) {
            let token = &tokens[(y * columns + x) * width..][..width];
            out[start..].iter_mut().zip(token).for_each(|(sum, x)| *sum += x * share);
        }
    }
}

#[cfg(test)]
mod tests;
