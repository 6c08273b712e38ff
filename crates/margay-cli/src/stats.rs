//! What an answer took, for people.

use crate::gantt;
use margay::{
    Model, Report, Session, Stage, StageReport,
    rooms::observe::report::{bytes, table},
};

/// Table of stage times, and what the process and the model took. Absent numbers are "unknown" or "-", never 0.
pub(crate) fn describe(report: &Report, model: &Model, used_tokens: usize, cache_bytes: usize) -> String {
    let s = &report.stages;
    let rows: Vec<Vec<String>> = Stage::ALL.iter().map(|stage| row(*stage, s)).collect();
    let mut text = table(&["stage", "ms", "tokens", "tokens/s", "also called"], &rows);
    let mut fact = |name: &str, value: String| text += &format!("{name:<12}{value}\n");
    fact(
        "first token",
        s.ttft_ms.map_or_else(|| "unknown".to_owned(), |ms| format!("{ms:.1} ms after the question")),
    );
    if s.reused_tokens > 0 {
        fact("reused", format!("{} tokens of the prompt were still in the cache", s.reused_tokens));
    }
    if s.reused_pictures > 0 {
        fact("pictures", format!("{} were not encoded again", s.reused_pictures));
    }
    for (at, picture) in report.pictures.iter().enumerate() {
        let Some(why) = picture.why else { continue };
        let (tokens, of) = (picture.tokens, picture.of);
        fact("picture", format!("{}: {tokens} of {of} visual tokens kept, {}", at + 1, why.words()));
    }
    if s.pruned_tokens > 0 {
        let (stay, of) = (s.visual_tokens - s.pruned_tokens, s.visual_tokens);
        fact("pruning", format!("{stay} of {of} visual tokens seen by all layers"));
    }
    if s.drafted_tokens > 0 {
        fact("drafts", format!("{} of {} tokens accepted", s.accepted_tokens, s.drafted_tokens));
    }
    if let Some(draft) = model.draft_model() {
        let sees = if draft.sees_pictures { "sees pictures" } else { "sees words alone" };
        let (accepted, drafted) = (s.model_accepted_tokens, s.model_drafted_tokens);
        let took = s.draft_ms.map_or_else(|| "not asked".to_owned(), |ms| format!("{ms:.1} ms"));
        let name = draft.name.escape_debug();
        fact("draft model", format!("{name}, {sees}: {accepted} of {drafted} tokens accepted, {took}"));
    }
    fact("answer", format!("{} tokens; stop: {}", report.tokens.len(), stop_name(report)));
    fact(
        "context",
        format!("{used_tokens} of {} tokens, {} of cache", model.context(), bytes(cache_bytes as u64)),
    );
    fact("peak memory", report.peak_rss_bytes.map_or_else(|| "unknown".to_owned(), bytes));
    fact("model", format!("{} ({})", model.config().name.escape_debug(), model.config().family));
    fact("kernels", model.backend().describe());
    let how = if report.schedule.overlapped { "stages overlapped" } else { "one stage behind the other" };
    fact("schedule", format!("{how}; {}", report.schedule.why));
    text + &gantt::chart(&report.schedule)
}

/// As [`describe`], for a session that has just answered.
pub(crate) fn of_session(report: &Report, model: &Model, session: &Session) -> String {
    describe(report, model, session.used_tokens(), session.cache_bytes())
}

fn row(stage: Stage, s: &StageReport) -> Vec<String> {
    let (ms, tokens, rate) = match stage {
        Stage::Load => (s.load_ms, None, None),
        Stage::Preprocess => (s.preprocess_ms, None, None),
        Stage::Encode => (s.encode_ms, None, None),
        Stage::Project => (s.project_ms, Some(s.visual_tokens).filter(|_| s.project_ms.is_some()), None),
        Stage::Prefill => (s.prefill_ms, s.prefill_ms.map(|_| s.prefill_tokens), s.prefill_rate()),
        Stage::Decode => (s.decode_ms, s.decode_ms.map(|_| s.decode_tokens), s.decode_rate()),
    };
    vec![
        stage.name().to_owned(),
        ms.map_or_else(|| "unknown".to_owned(), |ms| format!("{ms:.1}")),
        tokens.map_or_else(|| "-".to_owned(), |n| n.to_string()),
        rate.map_or_else(|| "-".to_owned(), |r| format!("{r:.1}")),
        stage.field_name().to_owned(),
    ]
}

fn stop_name(report: &Report) -> String {
    let json = serde_json::to_value(report.stop).unwrap_or_default();
    json.as_str().unwrap_or("unknown").replace('_', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_run_is_unknown_and_what_has_no_tokens_a_dash() {
        let report = StageReport {
            prefill_ms: Some(500.0),
            prefill_tokens: 100,
            visual_tokens: 144,
            ..StageReport::default()
        };
        assert_eq!(row(Stage::Encode, &report), ["encode", "unknown", "-", "-", "slice-encode"]);
        assert_eq!(row(Stage::Project, &report), ["project", "unknown", "-", "-", "slice-encode"]);
        assert_eq!(row(Stage::Prefill, &report), ["prefill", "500.0", "100", "200.0", "prompt-eval"]);
        assert_eq!(row(Stage::Decode, &report), ["decode", "unknown", "-", "-", "token-eval"]);
    }
}
