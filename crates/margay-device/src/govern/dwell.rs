//! How fast a reading moves, and how long it has to be calm before anything is given back.

use std::{collections::VecDeque, time::Duration};

/// Readings that a slope is taken over.
const WINDOW: Duration = Duration::from_secs(3);
/// Two readings nearer than this tell no slope.
const LEAST_SPAN: Duration = Duration::from_millis(200);
/// Longest wait that relapses make.
const MOST: Duration = Duration::from_secs(480);

/// The last readings.
#[derive(Clone, Debug, Default)]
pub(super) struct Trend(VecDeque<(Duration, f64)>);

impl Trend {
    pub(super) fn push(&mut self, at: Duration, value: f64) {
        // After a gap the old readings say nothing of now.
        if self.0.back().is_some_and(|(last, _)| at.saturating_sub(*last) > 4 * WINDOW) {
            self.clear();
        }
        self.0.push_back((at, value));
        while self.0.len() > 2 && self.0.front().is_some_and(|(first, _)| at.saturating_sub(*first) > WINDOW)
        {
            self.0.pop_front();
        }
        // Many ticks at one moment would be kept for ever.
        if self.0.len() > 64 {
            self.0.pop_front();
        }
    }

    /// Change a second; `None` with fewer than two readings.
    pub(super) fn slope(&self) -> Option<f64> {
        let ((from, first), (to, last)) = (self.0.front()?, self.0.back()?);
        let span = to.saturating_sub(*from);
        (span >= LEAST_SPAN).then(|| (last - first) / span.as_secs_f64())
    }

    /// Forgets all but the newest: what was done since changes the slope.
    pub(super) fn restart(&mut self) {
        let newest = self.0.pop_back();
        self.0.clear();
        self.0.extend(newest);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// A climb stays if it is not taken back for so many waits and this: at most one climb in 4 minutes is free of a longer wait.
const STAYS_WAITS: u32 = 4;
const STAYS: Duration = Duration::from_secs(120);

/// The wait before a climb. A climb that does not stay doubles the next wait, one that does halves it.
#[derive(Clone, Debug)]
pub(super) struct Dwell {
    base: Duration,
    now: Duration,
    calm_since: Option<Duration>,
    climbed_at: Option<Duration>,
}

impl Dwell {
    pub(super) fn new(base: Duration) -> Self {
        Dwell { base, now: base, calm_since: None, climbed_at: None }
    }

    /// Whether it has been calm for long enough.
    pub(super) fn may_climb(&mut self, at: Duration, calm: bool) -> bool {
        if !calm {
            self.calm_since = None;
            return false;
        }
        let since = *self.calm_since.get_or_insert(at);
        at.saturating_sub(since) >= self.now
    }

    /// Whether this is the first moment of calm.
    pub(super) fn begins(&self) -> bool {
        self.calm_since.is_none()
    }

    pub(super) fn climbed(&mut self, at: Duration) {
        if self.climbed_at.is_some_and(|climbed| self.stayed(climbed, at)) {
            self.now = (self.now / 2).max(self.base);
        }
        self.climbed_at = Some(at);
        self.calm_since = None;
    }

    pub(super) fn fell(&mut self, at: Duration) {
        if self.climbed_at.is_some_and(|climbed| !self.stayed(climbed, at)) {
            self.now = (self.now * 2).min(MOST);
        }
        self.climbed_at = None;
        self.calm_since = None;
    }

    fn stayed(&self, climbed: Duration, at: Duration) -> bool {
        at.saturating_sub(climbed) > STAYS_WAITS * self.now + STAYS
    }

    /// Until a climb at the earliest.
    pub(super) fn left(&self, at: Duration) -> Duration {
        self.now.saturating_sub(self.calm_since.map_or(Duration::ZERO, |since| at.saturating_sub(since)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relapses_double_the_wait_and_calm_halves_it() {
        let second = Duration::from_secs;
        let mut dwell = Dwell::new(second(30));
        let mut at = second(0);
        for expected in [30, 60, 120, 240, 480, 480] {
            assert!(!dwell.may_climb(at, true));
            assert!(!dwell.may_climb(at + second(expected - 1), true));
            at += second(expected);
            assert!(dwell.may_climb(at, true), "{expected}");
            dwell.climbed(at);
            at += second(1);
            dwell.fell(at);
        }
        dwell.climbed(at);
        at += second(480);
        dwell.climbed(at);
        assert_eq!(dwell.left(at), second(480));
        at += second(2041);
        dwell.climbed(at);
        assert_eq!(dwell.left(at), second(240));
        assert!(!dwell.may_climb(at, false));
    }

    #[test]
    fn a_slope_is_of_the_last_seconds_and_none_after_a_gap() {
        let mut trend = Trend::default();
        for second in 0..10 {
            trend.push(Duration::from_secs(second), if second < 5 { 0.0 } else { 2.0 * second as f64 });
        }
        assert_eq!(trend.slope(), Some(2.0));
        trend.push(Duration::from_secs(100), 50.0);
        assert_eq!(trend.slope(), None);
        trend.push(Duration::from_secs(100), 90.0);
        assert_eq!(trend.slope(), None);
    }
}
