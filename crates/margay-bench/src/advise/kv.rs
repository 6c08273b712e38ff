//! Less memory: fewer bits a weight first, as they are most of it, then keys and values in 8 bits.

use super::{Case, FOUR_BIT, Found, Gain, Look, MANY_BITS, Suggestion, percent};
use margay_observe::report::bytes;

pub(super) const KV: Suggestion = Suggestion { id: "less-memory", against: "high memory", look };

/// Part of the machine's memory that one program should leave alone: systems end programs, or swap, from about there on.
const MUCH: f64 = 0.5;
/// Share of the time in which something waited for memory.
const PRESSED: f64 = 10.0;

fn look(case: &Case<'_>) -> Look {
    let peak = case
        .record
        .engine(crate::MARGAY)
        .and_then(|engine| engine.runs.iter().filter_map(|run| run.peak_rss_bytes).max());
    let Some((peak, all)) = peak.zip(case.record.device.memory_bytes).filter(|(_, all)| *all > 0) else {
        return Look::Unknown("the record does not tell the peak, or the machine's memory".to_owned());
    };
    let part = peak as f64 / all as f64;
    let pressure = case.warm(|run| run.memory_pressure_percent).unwrap_or(0.0);
    if part < MUCH && pressure < PRESSED {
        return Look::Fine(format!("the peak is {} of {}, {}", bytes(peak), bytes(all), percent(part)));
    }
    let evidence = format!(
        "the peak is {} of {} ({}), and {pressure:.0} % of the time something waited for memory",
        bytes(peak),
        bytes(all),
        percent(part)
    );
    let weights = case.record.model.weights_bytes.map(|bytes| bytes as f64);
    if let Some((bits, weights)) = case.bits().zip(weights).filter(|(bits, _)| *bits > MANY_BITS) {
        let saved = weights * (1.0 - FOUR_BIT / bits);
        let by = format!("weights of {bits:.1} bits in {FOUR_BIT}: {} less", bytes(saved as u64));
        let after = (peak as f64 - saved).max(0.0);
        return Look::Do(Found {
            what: "store the weights in 4 bits, and keys and values in 8 (--kv q8)".to_owned(),
            evidence,
            gain: Some(Gain { of: "peak memory", unit: "bytes", before: peak as f64, after, by }),
            command:
                "margay quantize MODEL -o SMALL.gguf --recipe mobile-int4 && margay bench SMALL.gguf --kv q8"
                    .to_owned(),
        });
    }
    if case.option("kv") == Some("q8") {
        return Look::Do(Found {
            what:
                "a smaller model, or a shorter --context: weights and keys and values have few bits already"
                    .to_owned(),
            evidence,
            gain: None,
            command: "margay inspect MODEL --context 1024 --kv q8".to_owned(),
        });
    }
    Look::Do(Found {
        what: "keep keys and values in 8 bits, and the context no longer than is needed".to_owned(),
        evidence,
        gain: None,
        command: "margay inspect MODEL --context 1024 --kv q8 && margay bench MODEL --context 1024 --kv q8"
            .to_owned(),
    })
}
