//! Fewer visual tokens, where the prompt takes much of the time and is mostly picture.

use super::{Case, Found, LARGE_PART, Look, Suggestion, percent};

pub(super) const VISUAL_TOKENS: Suggestion =
    Suggestion { id: "fewer-visual-tokens", against: "high latency", look };

fn look(case: &Case<'_>) -> Look {
    let Some((prefill, part)) = case.figure("prefill_ms").and_then(|ms| Some((ms, case.part(ms)?))) else {
        return Look::Unknown("no warm run tells its prefill".to_owned());
    };
    let visual = case.warm(|run| run.visual_tokens.map(|tokens| tokens as f64)).unwrap_or(0.0);
    let all = case.warm(|run| run.prompt_tokens.map(|tokens| tokens as f64)).unwrap_or(0.0);
    if part < LARGE_PART || all <= 0.0 || visual < 0.5 * all {
        return Look::Fine(format!(
            "prefill is {} of an answer, and {visual:.0} of its {all:.0} tokens are a picture's",
            percent(part)
        ));
    }
    let by = "prefill of half the visual tokens, as if each token took as long as another";
    let half = (visual / 2.0).floor();
    Look::Do(Found {
        what: "give the picture half its tokens, or take a model that makes fewer (MobileVLM V2: 144)"
            .to_owned(),
        evidence: format!(
            "prefill is {} of an answer ({prefill:.0} ms), and {visual:.0} of its {all:.0} tokens are a picture's",
            percent(part)
        ),
        gain: case.shorter(prefill, prefill * (all - half) / all, by),
        command: format!(
            "margay bench MODEL --image PICTURE --max-image-tokens {half:.0}   (models whose pictures become tokens by their size; others: a smaller picture does not help)"
        ),
    })
}
