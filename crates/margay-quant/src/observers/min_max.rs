//! `min_max`: everything that was seen.

use super::Observer;

/// The observer.
#[derive(Clone, Copy, Debug, Default)]
pub struct MinMax {
    range: Option<(f32, f32)>,
}

impl Observer for MinMax {
    fn observe(&mut self, batch: &[f32]) {
        if let Some((min, max)) = extremes(batch) {
            let (low, high) = self.range.unwrap_or((0.0, 0.0));
            self.range = Some((low.min(min), high.max(max)));
        }
    }

    fn range(&self, symmetric: bool) -> Option<(f32, f32)> {
        self.range.map(|range| widen(range, symmetric))
    }
}

/// The smallest and the largest finite number of a batch, zero included; none where there is none.
pub(super) fn extremes(batch: &[f32]) -> Option<(f32, f32)> {
    let mut range = None;
    for &x in batch.iter().filter(|x| x.is_finite()) {
        let (min, max) = range.unwrap_or((0.0f32, 0.0f32));
        range = Some((min.min(x), max.max(x)));
    }
    range
}

/// The range, as wide one way as the other where `symmetric`.
pub(super) fn widen((min, max): (f32, f32), symmetric: bool) -> (f32, f32) {
    let largest = max.max(-min);
    if symmetric { (-largest, largest) } else { (min.min(0.0), max.max(0.0)) }
}
