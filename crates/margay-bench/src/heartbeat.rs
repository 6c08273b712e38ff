//! A thread that wakes 60 times a second, as one that draws a screen does: what it misses, a person would see.

use crate::{BenchError, record::Heartbeat};
use margay::Cancel;
use margay_observe::Clock;
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Time of a frame at 60 Hz.
const FRAME: Duration = Duration::from_nanos(16_666_667);

/// The thread at work. It also hands on a wish to stop to whoever is answering.
#[derive(Debug)]
pub(crate) struct Beating {
    stop: Sender<()>,
    thread: Option<JoinHandle<Heartbeat>>,
    answering: Arc<Mutex<Option<Cancel>>>,
}

impl Beating {
    /// Starts; once `wish` is cancelled, so is whatever [`Beating::answers`] named.
    pub(crate) fn start(wish: Cancel) -> Result<Self, BenchError> {
        let (stop, stopped) = channel();
        let answering = Arc::new(Mutex::new(None::<Cancel>));
        let shared = answering.clone();
        let beat = move || {
            let clock = Clock::start();
            let mut beats = Beats::default();
            loop {
                let wait = beats.next().saturating_sub(clock.now());
                // Whoever stops it, or is gone, ends it.
                match stopped.recv_timeout(wait) {
                    Err(std::sync::mpsc::RecvTimeoutError::Timeout) => beats.wake(clock.now()),
                    _ => return beats.told,
                }
                if wish.is_cancelled()
                    && let Some(cancel) = &*shared.lock().unwrap_or_else(PoisonError::into_inner)
                {
                    cancel.cancel();
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("margay-heartbeat".to_owned())
            .spawn(beat)
            .map_err(|source| BenchError::Start { what: "the heartbeat's thread".to_owned(), source })?;
        Ok(Beating { stop, thread: Some(thread), answering })
    }

    /// Names what is to be cancelled.
    pub(crate) fn answers(&self, cancel: Cancel) {
        *self.answering.lock().unwrap_or_else(PoisonError::into_inner) = Some(cancel);
    }

    /// Ends it; `None` where there was no time for a frame.
    pub(crate) fn stop(mut self) -> Option<Heartbeat> {
        let _ = self.stop.send(());
        self.thread.take()?.join().ok().filter(|told| told.frames > 0)
    }
}

/// Counts wakes on a raster of frames.
#[derive(Debug, Default)]
struct Beats {
    told: Heartbeat,
    last: Duration,
    /// Frames of the raster that are over.
    over: u32,
}

impl Beats {
    /// When the next frame is due.
    fn next(&self) -> Duration {
        FRAME * (self.over + 1)
    }

    /// A wake at that time: whole frames that passed since the one that was due are missed.
    fn wake(&mut self, now: Duration) {
        let late = now.saturating_sub(self.next());
        let missed = u32::try_from(late.as_nanos() / FRAME.as_nanos()).unwrap_or(u32::MAX >> 1);
        let gap = now.saturating_sub(self.last).as_secs_f64() * 1e3;
        self.told.frames += 1 + u64::from(missed);
        self.told.missed += u64::from(missed);
        self.told.worst_gap_ms = self.told.worst_gap_ms.max(gap);
        self.over = self.over.saturating_add(1 + missed).min(u32::MAX >> 1);
        self.last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_frames_that_pass_are_missed() {
        let mut beats = Beats::default();
        let at = |millis: u64| Duration::from_millis(millis);
        beats.wake(at(17));
        beats.wake(at(34));
        assert_eq!((beats.told.frames, beats.told.missed), (2, 0));
        // Due at 50 ms: at 101 ms three more have begun, of which that of 100 ms is drawn.
        beats.wake(at(101));
        assert_eq!((beats.told.frames, beats.told.missed), (6, 3));
        assert!((beats.told.worst_gap_ms - 67.0).abs() < 1e-9);
        assert!(beats.next() > at(116) && beats.next() < at(117));
    }

    #[test]
    fn it_beats_and_hands_on_the_wish_to_stop() {
        let (wish, task) = (Cancel::new(), Cancel::new());
        let beating = Beating::start(wish.clone()).unwrap();
        beating.answers(task.clone());
        std::thread::sleep(Duration::from_millis(60));
        assert!(!task.is_cancelled());
        wish.cancel();
        let clock = Clock::start();
        while !task.is_cancelled() {
            assert!(clock.now() < Duration::from_secs(20), "the wish was not heard");
            std::thread::sleep(Duration::from_millis(5));
        }
        let told = beating.stop().unwrap();
        assert!(told.frames >= 2 && told.worst_gap_ms > 10.0, "{told:?}");
    }
}
