//! What all requests share.

use crate::{Limits, ServerOptions, machine::Machine, metrics::Metrics, problem::Problem};
use axum::http::StatusCode;
use margay::{Model, Scheduler};
use margay_observe::{Clock, unix_seconds};
use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::Semaphore;

/// Requests that are read and whose pictures are decoded at the same time: the work of a core each.
const PREPARED_AT_ONCE: usize = 2;
/// Requests whose pictures are fetched, or fetched and not decoded yet, at the same time: a slow host holds up those alone
/// that ask such hosts, and what was fetched stays bounded.
const FETCHED_AT_ONCE: usize = 8;

/// What all requests share.
pub(crate) struct App {
    pub(crate) scheduler: Scheduler,
    pub(crate) options: ServerOptions,
    /// What the model is called here; its own name first.
    pub(crate) names: Vec<String>,
    // Engine threads tell of answers for as long as they make them: what they hold must not hold the scheduler, whose
    // end waits for them.
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) held: Arc<Held>,
    pub(crate) machine: Machine,
    pub(crate) preparing: Arc<Semaphore>,
    pub(crate) fetching: Arc<Semaphore>,
    /// Since the start of the server.
    pub(crate) clock: Clock,
    /// Seconds since 1970.
    pub(crate) started: u64,
    stopping: AtomicBool,
    requests: AtomicU64,
    random: RandomState,
}

impl App {
    pub(crate) fn new(scheduler: Scheduler, options: ServerOptions) -> Self {
        let own = scheduler.model().config().name.clone();
        let own = if own.is_empty() { "margay".to_owned() } else { own };
        let mut names = vec![own];
        for name in &options.names {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        App {
            scheduler,
            names,
            metrics: Arc::default(),
            held: Arc::default(),
            machine: Machine::new(),
            preparing: Arc::new(Semaphore::new(PREPARED_AT_ONCE)),
            fetching: Arc::new(Semaphore::new(FETCHED_AT_ONCE)),
            clock: Clock::start(),
            started: unix_seconds(),
            stopping: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            random: RandomState::new(),
            options,
        }
    }

    pub(crate) fn model(&self) -> &Model {
        self.scheduler.model()
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.options.limits
    }

    /// A number of its own for a request, and one that nobody can guess, for its answers' seeds.
    pub(crate) fn number(&self) -> (u64, u64) {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let mut hasher = self.random.build_hasher();
        hasher.write_u64(number);
        (number, hasher.finish())
    }

    /// The name under which a model was asked for, or the model's own where none was.
    pub(crate) fn name(&self, asked: Option<String>) -> Result<String, Problem> {
        let Some(asked) = asked else { return Ok(self.names[0].clone()) };
        if self.names.contains(&asked) {
            return Ok(asked);
        }
        let shown = crate::fields::shown(&asked);
        let message = format!("the model {shown:?} is not served here; there is {}", self.names.join(", "));
        let problem = Problem::new(StatusCode::NOT_FOUND, message).with_code("model_not_found");
        Err(Problem { param: Some("model".to_owned()), ..problem })
    }

    /// When a request that finds no room may come again: when those before it are done, as fast as answers were until
    /// now.
    pub(crate) fn busy(&self) -> Problem {
        let load = self.scheduler.load();
        let each = self.metrics.service_time().unwrap_or(Duration::from_secs(1));
        let rounds = (load.waiting + 1).div_ceil(self.options.scheduler.slots.max(1));
        let after = each.saturating_mul(u32::try_from(rounds).unwrap_or(u32::MAX));
        let after = after.clamp(Duration::from_secs(1), Duration::from_secs(600));
        let message = format!(
            "the model is busy: {} answers are being made and {} requests wait; ask again in {} s",
            load.running,
            load.waiting,
            after.as_secs()
        );
        let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, message).with_code("busy");
        Problem { retry_after: Some(after), ..problem }
    }

    /// From now on requests are refused.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.scheduler.close();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}

/// Pixels of the pictures of all requests that wait or run.
#[derive(Debug, Default)]
pub(crate) struct Held(AtomicU64);

/// Some of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct HeldPixels {
    all: Arc<Held>,
    pixels: u64,
}

impl Held {
    /// Counts `pixels`, unless there would be more than `most`.
    pub(crate) fn take(self: &Arc<Self>, pixels: u64, most: u64) -> Option<HeldPixels> {
        let fits = |held: u64| held.checked_add(pixels).filter(|sum| *sum <= most);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(HeldPixels { all: self.clone(), pixels })
    }
}

impl Drop for HeldPixels {
    fn drop(&mut self) {
        self.all.0.fetch_sub(self.pixels, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_are_held_until_they_are_dropped() {
        let held = Arc::new(Held::default());
        let first = held.take(60, 100).unwrap();
        assert!(held.take(41, 100).is_none());
        let second = held.take(40, 100).unwrap();
        drop(first);
        assert!(held.take(60, 100).is_some());
        drop(second);
        assert_eq!(held.0.load(Ordering::Relaxed), 0);
    }
}
