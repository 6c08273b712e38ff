//! Packed weights on the disk, where a first answer waits for loading more than for itself.

use super::{Case, Found, Look, Suggestion, percent};

pub(super) const PREPACK: Suggestion = Suggestion { id: "prepack", against: "high latency", look };

/// Part of a cold answer that loading may take.
const MUCH: f64 = 0.3;

fn look(case: &Case<'_>) -> Look {
    let (load, whole) = match case.figure("load_ms").zip(case.figure("with_load_ms")) {
        Some((load, whole)) if whole > 0.0 => (load, whole),
        _ => return Look::Unknown("no cold run tells its loading".to_owned()),
    };
    let part = load / whole;
    if part < MUCH {
        return Look::Fine(format!("loading is {} of a cold answer", percent(part)));
    }
    let gain = super::Gain {
        of: "answer, with load",
        unit: "ms",
        before: whole,
        after: whole - load,
        by: "at most: all of loading; packed files are mapped, and read when they are needed".to_owned(),
    };
    Look::Do(Found {
        what: "keep packed weights beside the model, or keep the model loaded".to_owned(),
        evidence: format!("loading is {} of a cold answer ({load:.0} of {whole:.0} ms)", percent(part)),
        gain: Some(gain),
        command: "margay prepack MODEL && margay bench MODEL".to_owned(),
    })
}
