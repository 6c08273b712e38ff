//! Fewer threads that decode, where all cores are busy and others have to wait.

use super::{Case, Found, Gain, Look, Suggestion, percent};

pub(super) const DECODE_THREADS: Suggestion =
    Suggestion { id: "fewer-decode-threads", against: "high CPU", look };

/// Part of all cores that is most of them.
const BUSY: f64 = 0.8;
/// Missed frames that a person sees, and waiting for a core that others feel.
const MISSED: f64 = 0.05;
const PRESSED: f64 = 10.0;

fn look(case: &Case<'_>) -> Look {
    let Some((cpu, cores)) = case.warm(|run| run.process_cpu_percent).zip(case.record.device.logical_cores)
    else {
        return Look::Unknown("the record does not tell the processor's use, or its cores".to_owned());
    };
    let busy = cpu / (100.0 * cores.max(1) as f64);
    let missed = case.warm(|run| {
        let beat = run.heartbeat.filter(|beat| beat.frames > 0)?;
        Some(beat.missed as f64 / beat.frames as f64)
    });
    let (missed, pressure) =
        (missed.unwrap_or(0.0), case.warm(|run| run.cpu_pressure_percent).unwrap_or(0.0));
    let evidence = format!(
        "{cpu:.0} % of {cores} cores ({}), {} of frames missed, {pressure:.0} % of the time something waited for a core",
        percent(busy),
        percent(missed)
    );
    if busy < BUSY || (missed < MISSED && pressure < PRESSED) {
        return Look::Fine(evidence);
    }
    let threads = case.option("threads").and_then(|text| text.parse::<usize>().ok()).unwrap_or(cores);
    if threads < 2 {
        return Look::Fine(format!("{evidence}, by a single thread"));
    }
    let decode = case.figure("decode_ms").and_then(|ms| case.part(ms)).unwrap_or(0.0);
    let half = threads.div_ceil(2);
    let saved = decode * (1.0 - half as f64 / threads as f64);
    Look::Do(Found {
        what: format!("decode with {half} of {threads} threads"),
        evidence,
        gain: Some(Gain {
            of: "CPU",
            unit: "percent",
            before: cpu,
            after: cpu * (1.0 - saved),
            by: format!(
                "decoding is {} of an answer; where it waits for memory, half the threads take hardly longer",
                percent(decode)
            ),
        }),
        command: format!("margay bench MODEL --decode-threads {half}"),
    })
}
