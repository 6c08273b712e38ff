//! Less heat, where a long run became slower.

use super::{Case, Found, Gain, Look, Suggestion};

pub(super) const HEAT: Suggestion = Suggestion { id: "less-heat", against: "throttling", look };

/// A rate that falls below this part of the first is one that heat, or a cap, took.
const FELL: f64 = 0.9;

fn look(case: &Case<'_>) -> Look {
    let Some(long) = &case.record.sustained else {
        return Look::Unknown("there was no long run: margay bench --sustained 10m".to_owned());
    };
    let Some(factor) = long.factor else {
        return Look::Unknown("the long run is too short for two rates".to_owned());
    };
    let heat = match (long.start_celsius, long.peak_celsius) {
        (Some(start), Some(peak)) => format!("{start:.0} C at the start and {peak:.0} C at most"),
        _ => "no thermometer was read".to_owned(),
    };
    let cap = match long.cap_fell_seconds {
        Some(at) => format!("the cap on a core's clock fell after {at:.0} s"),
        None => long.caps.clone(),
    };
    let words =
        format!("over {:.0} s the rate went to {factor:.2} of the first; {heat}; {cap}", long.seconds);
    if factor >= FELL && long.cap_fell_seconds.is_none() {
        return Look::Fine(words);
    }
    let rate = |mark: &crate::Mark| mark.tokens_per_second;
    let ends = long.marks.first().and_then(rate).zip(long.marks.last().and_then(rate));
    let gain = ends.map(|(first, last)| Gain {
        of: "tokens/s",
        unit: "1/s",
        before: last,
        after: first.max(last),
        by: "at most: the rate before it was hot".to_owned(),
    });
    Look::Do(Found {
        what: "use fewer threads or slower cores before the firmware does, pause between questions, give pictures fewer tokens".to_owned(),
        evidence: words,
        gain,
        command: format!(
            "margay bench MODEL --threads N --sustained {:.0}s; margay simulate --device DEVICE --model MODEL --govern 30m",
            long.planned_seconds
        ),
    })
}
