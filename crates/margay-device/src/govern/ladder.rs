//! The ladder: what is given up, in order, and which resource may ask for it.

use super::settings::{KvStep, LEAST_SPEED, Settings};
use serde::Serialize;

/// What can run short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the field's own words")]
pub enum Resource {
    Heat,
    Memory,
    Battery,
}

impl Resource {
    /// All of them.
    pub const ALL: [Resource; 3] = [Resource::Heat, Resource::Memory, Resource::Battery];

    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Resource::Heat => "heat",
            Resource::Memory => "memory",
            Resource::Battery => "battery",
        }
    }
}

/// What a governor is used for: rungs that change nothing are passed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purpose {
    /// Somebody reads the answers as they come.
    pub conversation: bool,
    /// Pictures come as a stream of frames.
    pub frames: bool,
    /// The model needs all visual tokens of a picture.
    pub all_tokens: bool,
    /// Half the visual tokens are given up before anything is slowed: answers say a little less, and more of them are possible.
    pub tokens_first: bool,
    /// The model sees every picture at one size.
    pub one_size: bool,
}

/// Something that is given up, in steps.
#[derive(Debug)]
pub struct Rung {
    /// As events and metrics name it.
    pub id: &'static str,
    /// What it does.
    pub about: &'static str,
    /// Which resources may go how many steps down it.
    pub reach: &'static [(Resource, usize)],
    /// Whether it does anything for that purpose.
    pub(super) of_use: fn(Purpose) -> bool,
    /// Applies so many steps, more than none.
    pub(super) set: fn(&mut Settings, usize),
}

/// Speed of a step: 3% slower is 7% less power where it grows with the 2.5th power of the frequency, which is about 5 K of 70.
const SPEED_STEP: f64 = 0.97;
/// Steps of speed down to [`LEAST_SPEED`].
const SPEED_STEPS: usize = 40;
/// Steps of speed of the battery mode: 0.69 of the speed at 0.4 of the power.
const BATTERY_STEPS: usize = 12;
/// Tokens a second, the first twice as fast as people read. 238 words a minute (Brysbaert 2019, "How many words do we read per
/// minute?", silent reading of English) at 4 tokens for 3 words are 5.3.
const PACES: [f64; 2] = [10.6, 5.3];

/// The ladder, the first rung first. Each resource goes down the rungs that it reaches in this order.
pub const LADDER: &[Rung] = &[
    Rung {
        id: "speed",
        about: "slower cores, or fewer threads",
        reach: &[(Resource::Heat, SPEED_STEPS), (Resource::Battery, BATTERY_STEPS)],
        of_use: |_| true,
        set: |settings, steps| {
            settings.speed = SPEED_STEP.powi(steps as i32).max(LEAST_SPEED);
            settings.decode_speed = settings.speed;
        },
    },
    Rung {
        id: "pace",
        about: "tokens no faster than they are read",
        reach: &[(Resource::Heat, 2), (Resource::Battery, 2)],
        of_use: |purpose| purpose.conversation,
        set: |settings, steps| settings.pace = PACES.get(steps - 1).or(PACES.last()).copied(),
    },
    Rung {
        id: "visual-tokens",
        about: "fewer visual tokens",
        reach: &[(Resource::Heat, 2), (Resource::Memory, 2), (Resource::Battery, 1)],
        of_use: |purpose| !purpose.all_tokens,
        set: |settings, steps| settings.visual_tokens = 0.5f64.powi(steps as i32),
    },
    Rung {
        id: "resolution",
        about: "smaller pictures",
        reach: &[(Resource::Heat, 2), (Resource::Memory, 2)],
        of_use: |purpose| !purpose.one_size,
        set: |settings, steps| settings.resolution = 1.0 - 0.25 * steps as f64,
    },
    Rung {
        id: "kv",
        about: "smaller keys and values",
        reach: &[(Resource::Memory, 2)],
        of_use: |_| true,
        set: |settings, steps| settings.kv = if steps == 1 { KvStep::Q8 } else { KvStep::Q4 },
    },
    Rung {
        id: "frames",
        about: "frames left out",
        reach: &[(Resource::Heat, 3), (Resource::Battery, 1)],
        of_use: |purpose| purpose.frames,
        set: |settings, steps| settings.every_frame = 1 << steps,
    },
    Rung {
        id: "queue",
        about: "questions wait",
        reach: &[(Resource::Heat, 1), (Resource::Memory, 1)],
        of_use: |_| true,
        set: |_, _| {},
    },
    Rung {
        id: "refuse",
        about: "questions are turned away, with a time to ask again",
        reach: &[(Resource::Heat, 1), (Resource::Memory, 1), (Resource::Battery, 1)],
        of_use: |_| true,
        set: |_, _| {},
    },
    Rung {
        id: "hold",
        about: "running answers wait: nothing else would keep the ceiling",
        // Nobody comes here step by step.
        reach: &[],
        of_use: |_| true,
        set: |settings, _| settings.hold = true,
    },
];

/// Number of rungs.
pub(super) const RUNGS: usize = LADDER.len();
/// Where rungs stand in the ladder that the governor itself asks about.
pub(super) const SPEED: usize = 0;
pub(super) const PACE: usize = 1;
pub(super) const VISUAL_TOKENS: usize = 2;
pub(super) const QUEUE: usize = 6;
pub(super) const REFUSE: usize = 7;
pub(super) const HOLD: usize = 8;

/// Steps of each rung.
pub(super) type Steps = [usize; RUNGS];

/// A resource's own ladder: the rung of each of its levels, the first level first.
pub(super) fn path(resource: Resource, purpose: Purpose) -> Vec<usize> {
    let mut path = vec![];
    for (at, rung) in LADDER.iter().enumerate().filter(|(_, rung)| (rung.of_use)(purpose)) {
        let steps = rung.reach.iter().find(|(of, _)| *of == resource).map_or(0, |(_, steps)| *steps);
        path.extend(std::iter::repeat_n(at, steps));
    }
    if let Some(first) = path.iter().position(|rung| *rung == VISUAL_TOKENS && purpose.tokens_first) {
        path[..=first].rotate_right(1);
    }
    path
}

/// Levels of the heat's ladder in front of the first of speed.
pub(super) fn before_speed(path: &[usize]) -> usize {
    path.iter().position(|rung| *rung == SPEED).unwrap_or(0)
}

/// Steps of each rung at a level of a path.
pub(super) fn steps(path: &[usize], level: usize) -> Steps {
    let mut steps = [0; RUNGS];
    path.iter().take(level).for_each(|rung| steps[*rung] += 1);
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_of_every_rung_gives_up_more_and_stays_within_bounds() {
        for (at, name) in [
            (SPEED, "speed"),
            (PACE, "pace"),
            (VISUAL_TOKENS, "visual-tokens"),
            (QUEUE, "queue"),
            (REFUSE, "refuse"),
            (HOLD, "hold"),
        ] {
            assert_eq!(LADDER[at].id, name);
        }
        for rung in LADDER {
            let most = rung.reach.iter().map(|(_, steps)| *steps).max().unwrap_or(0);
            let mut before = Settings::FULL;
            for step in 1..=most {
                let mut now = Settings::FULL;
                (rung.set)(&mut now, step);
                let less = now.speed < before.speed
                    || now.visual_tokens < before.visual_tokens
                    || now.resolution < before.resolution
                    || now.kv > before.kv
                    || now.every_frame > before.every_frame
                    || (now.pace.is_some() && now.pace != before.pace);
                assert!(less || matches!(rung.id, "queue" | "refuse"), "{} {step}", rung.id);
                assert!(now.speed >= LEAST_SPEED && now.visual_tokens > 0.0 && now.resolution > 0.0);
                before = now;
            }
        }
    }

    #[test]
    fn a_resource_passes_over_rungs_of_no_use_and_ends_by_refusing() {
        let all = Purpose { conversation: true, frames: true, ..Purpose::default() };
        for resource in Resource::ALL {
            let (long, short) = (path(resource, all), path(resource, Purpose::default()));
            assert_eq!((long.last(), short.last()), (Some(&REFUSE), Some(&REFUSE)), "{resource:?}");
            assert!(long.windows(2).all(|pair| pair[0] <= pair[1]), "{resource:?}");
            assert!(!short.contains(&PACE));
            assert_eq!(steps(&long, long.len()).iter().sum::<usize>(), long.len());
        }
        assert_eq!(path(Resource::Heat, Purpose::default()).len(), 46);
        let first = path(Resource::Heat, Purpose { tokens_first: true, ..Purpose::default() });
        assert_eq!((first.len(), &first[..3]), (46, &[VISUAL_TOKENS, SPEED, SPEED][..]));
        assert_eq!(
            (before_speed(&first), steps(&first, 46)),
            (1, steps(&path(Resource::Heat, Purpose::default()), 46))
        );
        let fixed = Purpose { all_tokens: true, one_size: true, ..Purpose::default() };
        assert_eq!(path(Resource::Heat, fixed).len(), 42);
    }
}
