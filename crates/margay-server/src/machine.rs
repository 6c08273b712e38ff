//! What the sensors say of this machine, looked at when somebody asks.

use margay_observe::{Clock, Root, Sample, Sensors, Watched, What};
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// Looks are at least so far apart: rates over less mean little, and who asks often shall not cost much.
const APART: Duration = Duration::from_millis(400);

/// The sensors, and their last look.
pub(crate) struct Machine(Mutex<State>);

struct State {
    clock: Clock,
    root: Root,
    sensors: Sensors,
    last: Option<Now>,
}

/// One look.
#[derive(Clone, Debug)]
pub(crate) struct Now {
    pub(crate) sample: Sample,
    /// Energy since the first look, of the times for which power is known; `None` where it never was.
    pub(crate) joules: Option<f64>,
    /// What the power is of, in words.
    pub(crate) power_scope: Option<String>,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let root = Root::system();
        let what = What { process: Watched::Own, threads: false };
        let sensors = Sensors::probe(&root, &what);
        Machine(Mutex::new(State { clock: Clock::start(), root, sensors, last: None }))
    }

    /// What the sensors say, at most [`APART`] old. Reads some dozens of small files.
    pub(crate) fn now(&self) -> Now {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let State { clock, root, sensors, last } = &mut *state;
        let at = clock.now();
        if let Some(last) = last.as_ref().filter(|last| at.saturating_sub(last.sample.at) < APART) {
            return last.clone();
        }
        let sample = sensors.sample(root, at);
        let spent = sample.power_watts.map(|watts| watts * sample.over.as_secs_f64());
        let before = last.as_ref().and_then(|last| last.joules);
        let joules = match (before, spent) {
            (None, None) => None,
            (before, spent) => Some(before.unwrap_or(0.0) + spent.unwrap_or(0.0)),
        };
        let power_scope = sensors.channels().power_scope.clone();
        last.insert(Now { sample, joules, power_scope }).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_is_kept_for_a_while() {
        let machine = Machine::new();
        let (first, second) = (machine.now(), machine.now());
        assert_eq!(first.sample.at, second.sample.at);
        std::thread::sleep(APART);
        assert!(machine.now().sample.at > first.sample.at);
    }
}
