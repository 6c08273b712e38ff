//! When the stages of an answer ran, and beside which.

use margay_observe::Stage;
use serde::{Serialize, Serializer};
use std::time::Duration;

/// Who computes. What stands in one lane runs one behind the other, but for pictures that are read at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Threads that read, decode and resize pictures, one each.
    Read,
    /// The threads that encode pictures; those of [`Lane::Text`] unless they are halved.
    Vision,
    /// The threads that compute the prompt and the answer.
    Text,
}

impl Lane {
    /// All of them.
    pub const ALL: [Lane; 3] = [Lane::Read, Lane::Vision, Lane::Text];

    /// Its name: `read`, `vision`, `text`.
    pub fn name(self) -> &'static str {
        match self {
            Lane::Read => "read",
            Lane::Vision => "vision",
            Lane::Text => "text",
        }
    }
}

/// A stage, or one of its steps: a picture that was read, a tile that was encoded, a batch of the prompt, all of the decode.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StageRun {
    /// Which stage.
    #[serde(serialize_with = "stage_name")]
    pub stage: Stage,
    /// Who ran it.
    pub lane: Lane,
    /// Which picture of the question it was of, counted from 1; `None` of the prompt and the answer.
    pub picture: Option<usize>,
    /// Tokens of the prompt or the answer that it computed.
    pub tokens: usize,
    /// When it began, milliseconds behind the question.
    pub begin_ms: f64,
    /// When it ended.
    pub end_ms: f64,
}

impl StageRun {
    pub(crate) fn new(stage: Stage, lane: Lane, (begin, end): (Duration, Duration)) -> Self {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        StageRun { stage, lane, picture: None, tokens: 0, begin_ms: ms(begin), end_ms: ms(end) }
    }
}

/// When the stages of an answer ran. What was done before the question (loading but for the vision side, pictures that were
/// decoded when they were opened) and pictures that were not encoded again have no run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Schedule {
    /// Whether any ran at the same time as another.
    pub overlapped: bool,
    /// What could run at the same time, and why no more.
    pub why: String,
    /// In the order in which they ended.
    pub runs: Vec<StageRun>,
}

impl Schedule {
    pub(crate) fn push(&mut self, run: StageRun) {
        // All tokens of the answer are one run.
        match self.runs.last_mut().filter(|last| run.stage == Stage::Decode && last.stage == Stage::Decode) {
            Some(last) => {
                last.end_ms = run.end_ms;
                last.tokens += run.tokens;
            }
            None => self.runs.push(run),
        }
    }

    /// Says whether any overlapped, now that all have run.
    pub(crate) fn close(&mut self) {
        let beside = |(at, a): (usize, &StageRun)| {
            let turns = |b: &StageRun| b.lane == a.lane && a.lane != Lane::Read;
            let apart = |b: &StageRun| turns(b) || b.begin_ms >= a.end_ms || b.end_ms <= a.begin_ms;
            !self.runs[..at].iter().all(apart)
        };
        self.overlapped = self.runs.iter().enumerate().any(beside);
    }
}

fn stage_name<S: Serializer>(stage: &Stage, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(stage.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stage: Stage, lane: Lane, begin: u64, end: u64) -> StageRun {
        let ms = Duration::from_millis;
        StageRun { tokens: 1, ..StageRun::new(stage, lane, (ms(begin), ms(end))) }
    }

    #[test]
    fn runs_of_two_lanes_at_one_time_overlap_and_others_do_not() {
        let mut schedule = Schedule::default();
        schedule.push(run(Stage::Encode, Lane::Vision, 0, 40));
        schedule.push(run(Stage::Prefill, Lane::Text, 40, 50));
        schedule.close();
        assert!(!schedule.overlapped);
        schedule.push(run(Stage::Preprocess, Lane::Read, 10, 12));
        schedule.close();
        assert!(schedule.overlapped);
    }

    #[test]
    fn an_answers_tokens_are_one_run() {
        let mut schedule = Schedule::default();
        (0..9).for_each(|at| schedule.push(run(Stage::Decode, Lane::Text, at, at + 1)));
        assert_eq!(schedule.runs.len(), 1);
        assert_eq!((schedule.runs[0].tokens, schedule.runs[0].end_ms), (9, 9.0));
        let json = serde_json::to_value(&schedule).unwrap();
        assert_eq!((&json["runs"][0]["stage"], &json["runs"][0]["lane"]), (&"decode".into(), &"text".into()));
    }
}
