//! `moving_average`: an average of each batch's extremes, later batches counting more.

use super::{
    Observer,
    min_max::{extremes, widen},
};

/// The observer: each batch moves the range by a part of the way to its own.
#[derive(Clone, Copy, Debug)]
pub struct MovingAverage {
    keep: f32,
    range: Option<(f32, f32)>,
}

impl MovingAverage {
    /// Keeps `keep` of the range at each batch, 0 to 1.
    pub fn new(keep: f32) -> Self {
        Self { keep: keep.clamp(0.0, 1.0), range: None }
    }
}

impl Observer for MovingAverage {
    fn observe(&mut self, batch: &[f32]) {
        let Some((min, max)) = extremes(batch) else { return };
        let blend = |old: f32, new: f32| self.keep * old + (1.0 - self.keep) * new;
        self.range = Some(match self.range {
            None => (min, max),
            Some((low, high)) => (blend(low, min), blend(high, max)),
        });
    }

    fn range(&self, symmetric: bool) -> Option<(f32, f32)> {
        self.range.map(|range| widen(range, symmetric))
    }
}
