//! `entropy`: the range whose codes tell the most about the distribution.
//!
//! Source: the calibration of TensorRT ("8-bit Inference with TensorRT", GTC 2017): the threshold at which the
//! distribution of the codes diverges least (Kullback-Leibler) from that of the numbers cut off at it.

use super::{Histogram, Observer, min_max::widen};

/// What an empty bin of the coded distribution counts as where the other is not empty.
const LITTLE: f64 = 1e-4;

/// The observer. An asymmetric range is the symmetric one as far as numbers were seen there.
#[derive(Clone, Debug)]
pub struct Entropy {
    levels: usize,
    histogram: Histogram,
}

impl Entropy {
    /// For symmetric codes of 2 to 11 bits.
    pub fn new(bits: u32) -> Self {
        Self { levels: 1 << (bits.clamp(2, 11) - 1), histogram: Histogram::default() }
    }
}

impl Observer for Entropy {
    fn observe(&mut self, batch: &[f32]) {
        self.histogram.add(batch);
    }

    fn range(&self, symmetric: bool) -> Option<(f32, f32)> {
        let (min, max) = self.histogram.seen()?;
        let bins = self.histogram.magnitudes();
        let kept = match threshold(&bins, self.levels) {
            None => max.max(-min),
            Some(bin) => ((bin as f64 + 0.5) * self.histogram.width()) as f32,
        };
        Some(widen((min.max(-kept), max.min(kept)), symmetric))
    }
}

/// How many of the first bins to keep; none where they are all to be kept.
fn threshold(bins: &[u64], levels: usize) -> Option<usize> {
    let used = bins.iter().rposition(|count| *count > 0)? + 1;
    let mut best: Option<(f64, usize)> = None;
    let mut kept: u64 = bins[..levels.min(used)].iter().sum();
    let total: u64 = bins.iter().sum();
    for end in levels..=used {
        if end > levels {
            kept += bins[end - 1];
        }
        let divergence = divergence(&bins[..end], (total - kept) as f64, levels);
        if best.is_none_or(|(least, _)| divergence < least) {
            best = Some((divergence, end));
        }
    }
    best.map(|(_, end)| end)
}

/// Of the bins with what lies `beyond` added to the last, from what `levels` runs of them tell.
fn divergence(bins: &[u64], beyond: f64, levels: usize) -> f64 {
    let n = bins.len();
    let each = n / levels;
    let total: f64 = bins.iter().map(|&count| count as f64).sum();
    if total == 0.0 {
        return f64::INFINITY;
    }
    let mut sum = 0.0;
    for level in 0..levels {
        let start = level * each;
        let end = if level + 1 == levels { n } else { start + each };
        let run = &bins[start..end];
        let filled = run.iter().filter(|count| **count > 0).count();
        let even = run.iter().map(|&count| count as f64).sum::<f64>() / filled.max(1) as f64 / total;
        for (i, &count) in run.iter().enumerate() {
            let last = start + i + 1 == n;
            let p = (count as f64 + if last { beyond } else { 0.0 }) / (total + beyond);
            if p > 0.0 {
                let q = if count > 0 { even } else { LITTLE };
                sum += p * (p / q).ln();
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published steps one by one, on whole vectors.
    fn naive(bins: &[u64], levels: usize) -> usize {
        let used = bins.iter().rposition(|count| *count > 0).unwrap() + 1;
        let mut best = (f64::INFINITY, 0);
        for end in levels..=used {
            let mut p: Vec<f64> = bins[..end].iter().map(|&c| c as f64).collect();
            p[end - 1] += bins[end..].iter().sum::<u64>() as f64;
            let mut q = vec![0.0; end];
            for level in 0..levels {
                let run = level * (end / levels)..if level + 1 == levels {
                    end
                } else {
                    (level + 1) * (end / levels)
                };
                let sum: u64 = bins[run.clone()].iter().sum();
                let filled = bins[run.clone()].iter().filter(|c| **c > 0).count();
                for i in run.filter(|&i| bins[i] > 0) {
                    q[i] = sum as f64 / filled as f64;
                }
            }
            let (sum_p, sum_q): (f64, f64) = (p.iter().sum(), q.iter().sum());
            if sum_q == 0.0 {
                continue;
            }
            let d = (0..end)
                .filter(|&i| p[i] > 0.0)
                .map(|i| {
                    let (p, q) = (p[i] / sum_p, if q[i] > 0.0 { q[i] / sum_q } else { LITTLE });
                    p * (p / q).ln()
                })
                .sum::<f64>();
            if d < best.0 - 1e-12 {
                best = (d, end);
            }
        }
        best.1
    }

    #[test]
    fn the_threshold_is_that_of_the_published_steps() {
        for (spread, seed) in [(9.0f64, 1u64), (30.0, 2), (120.0, 3)] {
            // A bell with a few numbers far out.
            let bins: Vec<u64> = (0..400)
                .map(|i| {
                    let bell = 1e4 * (-(i as f64 / spread).powi(2)).exp();
                    bell as u64 + u64::from(i as u64 * 7919 % 97 == seed)
                })
                .collect();
            let (got, expected) = (threshold(&bins, 16).unwrap(), naive(&bins, 16));
            assert_eq!(got, expected, "spread {spread}");
            assert!(got < 400, "outliers are cut off");
        }
    }
}
