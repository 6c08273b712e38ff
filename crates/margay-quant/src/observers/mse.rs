//! `mse`: the range whose codes are off by the least square.

use super::{Histogram, Observer, Params, min_max::widen};

/// Ranges tried: parts of the whole from this one to all of it.
const SMALLEST: f64 = 0.3;
/// How many of them.
const TRIALS: usize = 71;

/// The observer.
#[derive(Clone, Debug)]
pub struct Mse {
    bits: u32,
    histogram: Histogram,
}

impl Mse {
    /// For codes of `bits`.
    pub fn new(bits: u32) -> Self {
        Self { bits, histogram: Histogram::default() }
    }
}

impl Observer for Mse {
    fn observe(&mut self, batch: &[f32]) {
        self.histogram.add(batch);
    }

    fn range(&self, symmetric: bool) -> Option<(f32, f32)> {
        let whole = widen(self.histogram.seen()?, symmetric);
        let trials = (0..TRIALS).rev().map(|trial| {
            let part = SMALLEST + (1.0 - SMALLEST) * trial as f64 / (TRIALS - 1) as f64;
            ((f64::from(whole.0) * part) as f32, (f64::from(whole.1) * part) as f32)
        });
        let mut best = (f64::INFINITY, whole);
        for range in trials {
            let params = Params::of_range(range, self.bits, symmetric);
            let off = |(x, count): (f64, u64)| count as f64 * (x - f64::from(params.round(x as f32))).powi(2);
            let error: f64 = self.histogram.middles().map(off).sum();
            // The widest of equals: the first tried.
            if error < best.0 {
                best = (error, range);
            }
        }
        Some(best.1)
    }
}
