//! Records of `margay bench` beside what is simulated.

use crate::{
    Usage,
    sketch::{Sizes, Sketch},
};
use margay_bench::{Begin, MARGAY, METRICS, Record, Run, median};

/// The question that a record is of, to that model.
///
/// # Errors
/// Where no warm run was complete, or the model sees and the record has no picture.
pub(crate) fn sizes(record: &Record, sketch: &Sketch) -> anyhow::Result<Sizes> {
    if sketch.config.vision.is_some() && record.question.pictures.is_empty() {
        let what = format!("the record has no picture, and {} is simulated with one", sketch.name());
        return Err(Usage(what).into());
    }
    known(record).ok_or_else(|| Usage("the record has no complete warm run".to_owned()).into())
}

fn known(record: &Record) -> Option<Sizes> {
    let run = record.engine(MARGAY)?.runs.iter().find(|run| run.begin == Begin::Warm)?;
    let Run { prompt_tokens, visual_tokens, answer_tokens, .. } = run;
    let text = (*prompt_tokens)?.saturating_sub((*visual_tokens)?);
    // Of a question without a picture, any size does: the workload has none then.
    let picture =
        record.question.pictures.first().map_or((336, 336), |picture| (picture.width, picture.height));
    Some(Sizes { picture, prefix: 0, prompt: text.max(1), answer: (*answer_tokens)?.max(1) })
}

/// Median of a figure of Margay's runs.
pub(crate) fn figure(record: &Record, key: &str) -> Option<f64> {
    let metric = METRICS.iter().find(|metric| metric.key == key)?;
    median(&metric.values(record.engine(MARGAY)?))
}
