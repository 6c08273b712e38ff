//! What the time of each stage goes to, op by op.

use crate::{
    BenchError, Plan,
    record::{OpMs, StageOps},
    work::Prompt,
};
use margay::{Error, Image, Model, OpTime, Stages};
use margay_observe::{OpSpan, Recorder, Series, Stage, Timeline};
use std::time::Duration;

/// Tokens that are decoded for it.
const DECODED: usize = 8;
/// Tokens of the prompt where the question's are not known.
const PROMPT: usize = 128;

/// One more pass of each stage with a look at the clock between its ops: the first picture, as many tokens as the question has,
/// and some decoded behind them. The tokens' meaning does not matter. What each op took, and when each ran.
pub(crate) fn by_op(
    plan: &Plan<'_>,
    model: &Model,
    prompt: Option<&Prompt>,
) -> Result<(Vec<StageOps>, Timeline), BenchError> {
    let mut pass = Pass { stages: Stages::new(model)?, recorder: Recorder::new(), all: vec![] };
    if let Some(path) = plan.pictures.first().filter(|_| model.config().vision.is_some()) {
        let image = Image::open(path)?;
        pass.stages.prepare_vision()?;
        pass.of(Stage::Encode, None, |stages| stages.encode(&image))?;
    }
    let room = model.context();
    let tokens = prompt.map_or(PROMPT, Prompt::tokens).min(room.saturating_sub(1)).max(1);
    pass.of(Stage::Prefill, Some(tokens), |stages| stages.prefill(tokens))?;
    let decoded = DECODED.min(room - tokens);
    if decoded > 0 {
        pass.of(Stage::Decode, Some(decoded), |stages| stages.decode(decoded))?;
    }
    Ok((pass.all, Timeline::new("", &pass.recorder, Series::new(Duration::ZERO))))
}

struct Pass {
    stages: Stages,
    recorder: Recorder,
    all: Vec<StageOps>,
}

impl Pass {
    fn of(
        &mut self,
        stage: Stage,
        tokens: Option<usize>,
        run: impl FnOnce(&mut Stages) -> Result<Duration, Error>,
    ) -> Result<(), Error> {
        let open = self.recorder.begin(stage);
        let runs = self.stages.each_op(self.recorder.clock(), run)?;
        self.recorder.end(open);
        let ops = OpTime::sums(&runs).into_iter().map(op).collect();
        self.all.push(StageOps { stage: stage.name().to_owned(), tokens, ops });
        for run in runs {
            self.recorder.push_op(OpSpan { name: run.op, start: run.start, duration: run.took });
        }
        Ok(())
    }
}

fn op(time: OpTime) -> OpMs {
    let OpTime { op, calls, took, operations } = time;
    OpMs { op, calls, ms: took.as_secs_f64() * 1e3, operations }
}
