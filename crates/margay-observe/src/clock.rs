//! Monotonic time, and the time of day.

use std::{
    fs::{File, Metadata},
    io,
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Seconds since 1970 by the system's clock, which may be wrong; 0 where it says an earlier time.
pub fn unix_seconds() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs())
}

/// Says of a file that it was used just now.
///
/// # Errors
/// Where its time cannot be set.
pub fn touch(path: &Path) -> io::Result<()> {
    File::options().append(true).open(path)?.set_modified(SystemTime::now())
}

/// When a file was changed or touched last, since 1970; `None` where the system does not say.
pub fn modified(file: &Metadata) -> Option<Duration> {
    file.modified().ok()?.duration_since(UNIX_EPOCH).ok()
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

/// The day that it is by the system's clock, in UTC: `2026-11-27`. `None` where that clock stands before 1970.
pub fn today() -> Option<String> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Some(day(since.as_secs() / 86_400))
}

/// The date so many days after 1970-01-01. Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms",
/// `civil_from_days`.
fn day(days: u64) -> String {
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{date:02}")
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
    fn days_are_those_of_the_calendar() {
        for (days, date) in [
            (0, "1970-01-01"),
            (59, "1970-03-01"),
            (11_016, "2000-02-29"),
            (11_017, "2000-03-01"),
            (20_453, "2025-12-31"),
            (47_540, "2100-02-28"),
            (47_541, "2100-03-01"),
        ] {
            assert_eq!(day(days), date);
        }
        assert!(today().is_some_and(|today| today.len() == 10 && today.as_str() > "2024-01-01"));
    }

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
