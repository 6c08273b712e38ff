//! What an answer took.

use crate::{Reason, Schedule};
use margay_observe::{Stage, StageTimes};
use serde::{Deserialize, Serialize};

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// The model said it is done.
    End,
    /// A stop text was met.
    StopText,
    /// The answer reached its length limit.
    Length,
    /// The context is full.
    Context,
    /// The caller cancelled.
    Cancelled,
}

/// An answer and what it took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The answer.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub stop: Stop,
    /// What each stage took.
    pub stages: StageReport,
    /// When each of them ran, and beside which.
    pub schedule: Schedule,
    /// What the prompt came to, where that was asked for: the numbers that the decoder's head reads behind its last token, as
    /// many as the decoder is wide, of length 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding: Option<Vec<f32>>,
    /// The pictures of the question, in order.
    pub pictures: Vec<PictureReport>,
    /// Most memory the process ever held, bytes; unknown where the system does not say.
    pub peak_rss_bytes: Option<u64>,
}

/// Visual tokens of a picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PictureReport {
    /// Those that the decoder saw.
    pub tokens: usize,
    /// Those that it would have seen if none had been left out.
    pub of: usize,
    /// Why so many; `None` where nothing was to be left out.
    pub why: Option<Reason>,
}

/// Times of the stages in milliseconds, and their counts; a stage that did not run is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct StageReport {
    /// Open, check and pack the weights.
    pub load_ms: Option<f64>,
    /// Picture to pixels.
    pub preprocess_ms: Option<f64>,
    /// Pixels to patch features.
    pub encode_ms: Option<f64>,
    /// Patch features to visual tokens.
    pub project_ms: Option<f64>,
    /// Prompt to the first logits.
    pub prefill_ms: Option<f64>,
    /// Tokens of the prompt that were computed.
    pub prefill_tokens: usize,
    /// Tokens of the prompt that were still in the cache.
    pub reused_tokens: usize,
    /// Pictures that were not encoded, because their visual tokens were still there.
    pub reused_pictures: usize,
    /// Visual tokens of the prompt.
    pub visual_tokens: usize,
    /// Those of them that only the decoder's first layers saw.
    pub pruned_tokens: usize,
    /// All tokens after the first.
    pub decode_ms: Option<f64>,
    /// Tokens decoded in that time: all but the first, which prefill gives.
    pub decode_tokens: usize,
    /// Tokens that were drafted ahead.
    pub drafted_tokens: usize,
    /// Those of them that were accepted, and cost no run of their own.
    pub accepted_tokens: usize,
    /// Of those that were drafted, what a draft model guessed; the others were looked up.
    pub model_drafted_tokens: usize,
    /// Those of them that were accepted.
    pub model_accepted_tokens: usize,
    /// What the draft model took of the decode, whatever part of the prompt it had to compute first counted.
    pub draft_ms: Option<f64>,
    /// From the question to the first token: decoding the pictures counts, loading does not.
    pub ttft_ms: Option<f64>,
}

impl StageReport {
    pub(crate) fn set_times(&mut self, times: &StageTimes) {
        self.load_ms = times.millis(Stage::Load);
        self.preprocess_ms = times.millis(Stage::Preprocess);
        self.encode_ms = times.millis(Stage::Encode);
        self.project_ms = times.millis(Stage::Project);
        self.prefill_ms = times.millis(Stage::Prefill);
        self.decode_ms = times.millis(Stage::Decode);
    }

    /// Prompt tokens a second.
    pub fn prefill_rate(&self) -> Option<f64> {
        rate(self.prefill_tokens, self.prefill_ms)
    }

    /// Answer tokens a second, the first not counted.
    pub fn decode_rate(&self) -> Option<f64> {
        rate(self.decode_tokens, self.decode_ms)
    }
}

fn rate(tokens: usize, ms: Option<f64>) -> Option<f64> {
    ms.filter(|ms| *ms > 0.0 && tokens > 0).map(|ms| tokens as f64 * 1000.0 / ms)
}
