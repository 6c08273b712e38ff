//! What the time of each stage goes to, op by op.

use crate::{
    BenchError, Plan,
    record::{OpMs, StageOps},
    work::Prompt,
};
use margay::{Image, Model, OpTime, Stages};

/// Tokens that are decoded for it.
const DECODED: usize = 8;
/// Tokens of the prompt where the question's are not known.
const PROMPT: usize = 128;

/// One more pass of each stage with a look at the clock between its ops: the first picture, as many tokens as the question has,
/// and some decoded behind them. The tokens' meaning does not matter.
pub(crate) fn by_op(
    plan: &Plan<'_>,
    model: &Model,
    prompt: Option<&Prompt>,
) -> Result<Vec<StageOps>, BenchError> {
    let mut stages = Stages::new(model)?;
    let mut all = vec![];
    let told = |stage: &str, tokens, times: Vec<OpTime>| StageOps {
        stage: stage.to_owned(),
        tokens,
        ops: times.into_iter().map(op).collect(),
    };
    if let Some(path) = plan.pictures.first().filter(|_| model.config().vision.is_some()) {
        let image = Image::open(path)?;
        stages.prepare_vision()?;
        all.push(told("encode", None, stages.by_op(|stages| stages.encode(&image))?));
    }
    let room = model.context();
    let tokens = prompt.map_or(PROMPT, Prompt::tokens).min(room.saturating_sub(1)).max(1);
    all.push(told("prefill", Some(tokens), stages.by_op(|stages| stages.prefill(tokens))?));
    let decoded = DECODED.min(room - tokens);
    if decoded > 0 {
        all.push(told("decode", Some(decoded), stages.by_op(|stages| stages.decode(decoded))?));
    }
    Ok(all)
}

fn op(time: OpTime) -> OpMs {
    let OpTime { op, calls, took, operations } = time;
    OpMs { op, calls, ms: took.as_secs_f64() * 1e3, operations }
}
