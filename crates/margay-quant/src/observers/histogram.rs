//! How often magnitudes were seen: the memory of the observers that weigh a range against what it cuts off.

use super::min_max::extremes;

/// Bins each way.
pub const BINS: usize = 2048;

/// Counts of numbers by magnitude, both signs apart, in bins of equal width. Where a number lies beyond the last, pairs of
/// bins merge and the width doubles, so nothing seen before has to be seen again.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    width: f64,
    negative: Vec<u64>,
    positive: Vec<u64>,
    /// Numbers that are zero: of neither sign.
    zeros: u64,
    seen: Option<(f32, f32)>,
}

impl Histogram {
    /// Takes in a batch; numbers that are not finite are passed over.
    pub fn add(&mut self, batch: &[f32]) {
        let Some((min, max)) = extremes(batch) else { return };
        let (low, high) = self.seen.unwrap_or((0.0, 0.0));
        self.seen = Some((low.min(min), high.max(max)));
        let largest = f64::from(max.max(-min));
        if self.negative.is_empty() && largest > 0.0 {
            self.width = largest / BINS as f64;
            (self.negative, self.positive) = (vec![0; BINS], vec![0; BINS]);
        }
        while largest > self.width * BINS as f64 {
            self.width *= 2.0;
            for bins in [&mut self.negative, &mut self.positive] {
                let merged: Vec<u64> = bins.chunks(2).map(|pair| pair.iter().sum()).collect();
                *bins = merged;
                bins.resize(BINS, 0);
            }
        }
        for &x in batch.iter().filter(|x| x.is_finite()) {
            if x == 0.0 {
                self.zeros += 1;
                continue;
            }
            let bin = ((f64::from(x.abs()) / self.width) as usize).min(BINS - 1);
            let bins = if x < 0.0 { &mut self.negative } else { &mut self.positive };
            bins[bin] += 1;
        }
    }

    /// The smallest and the largest number seen, zero included; none where nothing was.
    pub fn seen(&self) -> Option<(f32, f32)> {
        self.seen
    }

    /// Width of a bin; 0 while only zeros were seen.
    pub fn width(&self) -> f64 {
        self.width
    }

    /// Numbers seen.
    pub fn count(&self) -> u64 {
        self.zeros + self.negative.iter().sum::<u64>() + self.positive.iter().sum::<u64>()
    }

    /// Counts of the magnitudes of both signs; zeros are in the first bin. Empty while only zeros were seen.
    pub fn magnitudes(&self) -> Vec<u64> {
        let mut bins: Vec<u64> = self.negative.iter().zip(&self.positive).map(|(n, p)| n + p).collect();
        if let Some(first) = bins.first_mut() {
            *first += self.zeros;
        }
        bins
    }

    /// The bins in which anything lies, as the numbers at their middles with their counts.
    pub fn middles(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let middle =
            |sign: f64| move |(bin, &count): (usize, &u64)| (sign * (bin as f64 + 0.5) * self.width, count);
        let negative = self.negative.iter().enumerate().map(middle(-1.0));
        let positive = self.positive.iter().enumerate().map(middle(1.0));
        negative.chain(positive).filter(|(_, count)| *count > 0)
    }

    /// The magnitude beyond which at most `part` of all numbers lie, of one sign or of both (`None`), at the end of a bin.
    pub fn tail(&self, part: f64, positive: Option<bool>) -> f64 {
        let bins = match positive {
            None => &self.magnitudes(),
            Some(true) => &self.positive,
            Some(false) => &self.negative,
        };
        let allowed = part * self.count() as f64;
        let mut beyond = 0;
        for (bin, count) in bins.iter().enumerate().rev() {
            beyond += count;
            if beyond as f64 > allowed {
                return (bin + 1) as f64 * self.width;
            }
        }
        0.0
    }
}
