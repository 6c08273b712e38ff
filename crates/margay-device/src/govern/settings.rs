//! How the engine is to run.

use std::time::Duration;

/// What the governor asks of an engine until the next tick.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Part of the top speed of its cores, [`LEAST_SPEED`] to 1: a cap on their frequency where the system takes one from a
    /// program (Linux: `sched_setattr` with a utilisation clamp), otherwise the same part of the threads.
    pub speed: f64,
    /// The same while tokens are decoded; at most `speed`.
    pub decode_speed: f64,
    /// Tokens a second at most, in a conversation.
    pub pace: Option<f64>,
    /// Part of a picture's visual tokens that is kept, above 0, at most 1.
    pub visual_tokens: f64,
    /// Part of a picture's width and height, above 0, at most 1.
    pub resolution: f64,
    /// Of answers that begin from now on.
    pub kv: KvStep,
    /// Every n-th frame is looked at; at least 1.
    pub every_frame: u32,
    /// What happens to questions.
    pub admission: Admission,
    /// Running answers wait.
    pub hold: bool,
}

/// Slowest part of the top speed: the lowest step of the shipped profiles.
pub const LEAST_SPEED: f64 = 0.3;

impl Settings {
    /// Nothing is held back.
    pub const FULL: Settings = Settings {
        speed: 1.0,
        decode_speed: 1.0,
        pace: None,
        visual_tokens: 1.0,
        resolution: 1.0,
        kv: KvStep::AsAsked,
        every_frame: 1,
        admission: Admission::Accept,
        hold: false,
    };

    /// Whether answers are what they would be without a governor, if later.
    pub fn whole(&self) -> bool {
        self.visual_tokens >= 1.0 && self.resolution >= 1.0 && self.kv == KvStep::AsAsked
    }
}

/// How much smaller keys and values are kept than was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KvStep {
    /// As they are without a governor.
    AsAsked,
    /// 8 bits.
    Q8,
    /// 4 bits; where an engine has none, 8.
    Q4,
}

/// What happens to a question that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is answered.
    Accept,
    /// It waits.
    Queue,
    /// It is turned away.
    Refuse {
        /// When to ask again; at least a second.
        retry_after: Duration,
    },
}
