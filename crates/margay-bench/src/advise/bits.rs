//! Fewer bits a weight, where decoding takes much of the time: it reads every weight for every token.

use super::{Case, FOUR_BIT, Found, LARGE_PART, Look, MANY_BITS, Suggestion, percent};

pub(super) const BITS: Suggestion = Suggestion { id: "fewer-bits", against: "high latency", look };

fn look(case: &Case<'_>) -> Look {
    let Some((decode, part)) = case.figure("decode_ms").and_then(|ms| Some((ms, case.part(ms)?))) else {
        return Look::Unknown("no warm run tells its decoding".to_owned());
    };
    if part < LARGE_PART {
        return Look::Fine(format!("decoding is {} of an answer", percent(part)));
    }
    let Some((bits, rate)) = case.bits().zip(case.decode_rate()) else {
        return Look::Unknown("decoding takes long, and the record does not count its work".to_owned());
    };
    if bits < MANY_BITS {
        return Look::Fine(format!(
            "decoding is {} of an answer, and reads {bits:.1} bits a weight already",
            percent(part)
        ));
    }
    let by = format!(
        "decoding that waits for memory takes as long as its bytes: {FOUR_BIT} of {bits:.1} bits a weight"
    );
    Look::Do(Found {
        what: "store the weights in 4 bits".to_owned(),
        evidence: format!(
            "decoding is {} of an answer ({decode:.0} ms) and reads {bits:.1} bits a weight, {:.1} GB/s",
            percent(part),
            rate / 1e9
        ),
        gain: case.shorter(decode, decode * FOUR_BIT / bits, by),
        command: "margay quantize MODEL -o SMALL.gguf --recipe mobile-int4 && margay bench SMALL.gguf"
            .to_owned(),
    })
}
