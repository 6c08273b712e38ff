//! Monotonic time, and the time of day.

use std::time::{Duration, Instant, SystemTime};

/// Seconds since 1970 by the system's clock, which may be wrong; 0 where it says an earlier time.
pub fn unix_seconds() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs())
}

/// A monotonic clock that counts from its own start. Copies share the origin, so their readings compare.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Clock(Instant::now())
    }

    /// Time since the start.
    pub fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Measures one stretch of time, or several in a row.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts now.
    pub fn start() -> Self {
        Stopwatch(Instant::now())
    }

    /// Time since the start, or since the last [`Stopwatch::lap`].
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    /// As [`Stopwatch::elapsed`], and starts the next stretch at the same instant, so that laps add up to the whole.
    pub fn lap(&mut self) -> Duration {
        let now = Instant::now();
        let lap = now.duration_since(self.0);
        self.0 = now;
        lap
    }
}

/// Time that the calling thread spent on a processor so far, from `/proc/thread-self/schedstat`; `None` anywhere but on
/// Linux. Of this machine, whatever tree is looked at: it is the observer's own time.
pub(crate) fn thread_cpu_time() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(Duration::from_nanos(text.split_ascii_whitespace().next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn laps_add_up_to_at_most_the_whole() {
        let clock = Clock::start();
        let mut watch = Stopwatch::start();
        std::thread::sleep(Duration::from_millis(2));
        let first = watch.lap();
        let second = watch.lap();
        assert!(first >= Duration::from_millis(2));
        assert!(first + second <= clock.now());
    }
}
