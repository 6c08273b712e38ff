//! What the processor can do ([`limits()`]), and how much of it the kernels do ([`mod@kernels`]).
//!
//! The caller brings the clock, in seconds: this crate reads none.

pub mod kernels;
mod limits;

pub use limits::{Limits, Peak, Probe, Sustained, limits};

/// Turns beyond which a clock that does not move is given up on.
const MOST_TURNS: usize = 1 << 24;

/// How long and how often something is timed.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Pace {
    /// Turns of the shortest run.
    turns: usize,
    /// What a run lasts at least, seconds.
    least_seconds: f64,
    /// Runs that are timed.
    runs: usize,
}

/// Seconds a turn took in each of several runs, shortest first; never 0. Shorter runs come first, to warm up and to
/// find out how many turns last long enough.
fn timed<E>(
    clock: &dyn Fn() -> f64,
    pace: Pace,
    mut run: impl FnMut(usize) -> Result<(), E>,
) -> Result<Vec<f64>, E> {
    let mut time = |turns: usize| {
        let start = clock();
        run(turns)?;
        Ok((clock() - start).max(1e-9))
    };
    let mut turns = pace.turns;
    let mut seconds = time(turns)?;
    // A very short run says little about the length of a longer one.
    while seconds < pace.least_seconds / 8.0 && turns < MOST_TURNS {
        turns *= 4;
        seconds = time(turns)?;
    }
    let enough = (turns as f64 * pace.least_seconds / seconds).ceil();
    turns = pace.turns.max(enough as usize);
    let mut times = (0..pace.runs).map(|_| Ok(time(turns)? / turns as f64)).collect::<Result<Vec<_>, E>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn runs_are_lengthened_until_they_can_be_timed() {
        let now = Cell::new(0.0);
        let longest = Cell::new(0);
        let pace = Pace { turns: 2, least_seconds: 1.0, runs: 3 };
        // A turn takes a millisecond.
        let times = timed::<()>(&|| now.get(), pace, |turns| {
            now.set(now.get() + turns as f64 * 1e-3);
            longest.set(longest.get().max(turns));
            Ok(())
        });
        let times = times.unwrap();
        assert!(times.len() == 3 && times.iter().all(|t| (t - 1e-3).abs() < 1e-9), "{times:?}");
        assert!((1000..1002).contains(&longest.get()), "{}", longest.get());
        assert!(timed::<()>(&|| 0.0, pace, |_| Ok(())).unwrap()[0] > 0.0, "a clock that stands still ends");
        let failed = timed(&|| 0.0, pace, |_| Err("no"));
        assert_eq!(failed, Err("no"));
    }
}
