//! A faster encoder, where looking at the picture takes much of the time.

use super::{Case, Found, LARGE_PART, Look, Suggestion, percent};

pub(super) const ENCODER: Suggestion = Suggestion { id: "int8-encoder", against: "high latency", look };

/// 8-bit products that are not so many times as fast win nothing.
const LEAST: f64 = 1.05;

fn look(case: &Case<'_>) -> Look {
    if case.record.question.pictures.is_empty() {
        return Look::Fine("there was no picture".to_owned());
    }
    let Some((encode, part)) = case.figure("encode_ms").and_then(|ms| Some((ms, case.part(ms)?))) else {
        return Look::Unknown("no warm run tells its encoding".to_owned());
    };
    if part < LARGE_PART {
        return Look::Fine(format!("encoding is {} of an answer", percent(part)));
    }
    let chosen = ["int8-encoder", "bf16-encoder"].into_iter().find(|name| case.option(name).is_some());
    if let Some(name) = chosen {
        return Look::Fine(format!("encoding is {} of an answer, with --{name} already", percent(part)));
    }
    let ratio = case.pricing.and_then(|pricing| pricing.int8_over_float);
    if let Some(ratio) = ratio.filter(|ratio| *ratio < LEAST) {
        return Look::Fine(format!(
            "encoding is {} of an answer, and this processor multiplies 8-bit numbers {ratio:.2} times as fast as floats",
            percent(part)
        ));
    }
    Look::Do(Found {
        what: "encode pictures with 8-bit products (answers may differ a little)".to_owned(),
        evidence: format!("encoding is {} of an answer ({encode:.0} ms)", percent(part)),
        // How much faster 8-bit products are is not in a record of float ones.
        gain: ratio.and_then(|ratio| {
            case.shorter(encode, encode / ratio, format!("at most: 8-bit products are {ratio:.2} times as fast here"))
        }),
        command: "margay bench MODEL --image PICTURE --int8-encoder --out int8.json && margay bench compare RUN.json int8.json".to_owned(),
    })
}
