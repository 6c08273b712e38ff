//! `percentile`: all but a few numbers in ten thousand.

use super::{Histogram, Observer};

/// The observer: a part of all magnitudes where the range is symmetric; else as much is cut off at each end as makes the
/// rest that part.
#[derive(Clone, Debug)]
pub struct Percentile {
    part: f64,
    histogram: Histogram,
}

impl Percentile {
    /// Keeps `part` of the numbers, 0 to 1.
    pub fn new(part: f64) -> Self {
        Self { part: part.clamp(0.0, 1.0), histogram: Histogram::default() }
    }
}

impl Observer for Percentile {
    fn observe(&mut self, batch: &[f32]) {
        self.histogram.add(batch);
    }

    fn range(&self, symmetric: bool) -> Option<(f32, f32)> {
        let (min, max) = self.histogram.seen()?;
        let cut = 1.0 - self.part;
        Some(if symmetric {
            let largest = (self.histogram.tail(cut, None) as f32).min(max.max(-min));
            (-largest, largest)
        } else {
            let end = |positive| self.histogram.tail(cut / 2.0, Some(positive)) as f32;
            ((-end(false)).max(min), end(true).min(max))
        })
    }
}
