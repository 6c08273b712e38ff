//! Answers in OpenAI's form. Source: OpenAI API reference, "The chat completion object", "The chat completion chunk
//! object". `margay` beside a choice is an extension.

use crate::tools;
use margay::{Report, Stop, Token};
use serde_json::{Value, json};

/// What every part of one answer says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) id: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) model: String,
}

/// A whole answer.
pub(crate) fn completion(head: &Head, choices: Vec<Value>, reports: &[Box<Report>]) -> Value {
    json!({
        "id": head.id, "object": "chat.completion", "created": head.created, "model": head.model,
        "system_fingerprint": fingerprint(), "choices": choices, "usage": usage(reports),
    })
}

/// A token and its probability. Source: OpenAI API reference, "The chat completion object", `logprobs`.
pub(crate) fn token(token: &Token) -> Value {
    let told = |bytes: &[u8], logprob: f32| json!({ "token": String::from_utf8_lossy(bytes), "logprob": logprob, "bytes": bytes });
    let mut value = told(&token.bytes, token.logprob);
    let top: Vec<_> = token.top.iter().map(|(_, bytes, logprob)| told(bytes, *logprob)).collect();
    value["top_logprobs"] = Value::Array(top);
    value
}

/// Probabilities of those tokens; null where they were not asked for.
pub(crate) fn logprobs(tokens: Option<Vec<Value>>) -> Value {
    tokens.map_or(Value::Null, |tokens| json!({ "content": tokens, "refusal": null }))
}

/// One of its choices; with the ids of its calls where it may call functions.
pub(crate) fn choice(
    index: usize,
    report: &Report,
    tokens: Option<Vec<Value>>,
    id_of: Option<&dyn Fn(usize) -> String>,
) -> Value {
    let mut message = json!({ "role": "assistant", "content": report.text, "refusal": null });
    let mut called = false;
    if let Some(id_of) = id_of {
        let (content, calls) = tools::split(&report.text, id_of);
        called = !calls.is_empty();
        message["content"] = content;
        if called {
            message["tool_calls"] = Value::Array(calls);
        }
    }
    json!({
        "index": index,
        "message": message,
        "logprobs": logprobs(tokens),
        "finish_reason": finish_reason(report.stop, called),
        "margay": stages(report),
    })
}

/// A piece of an answer; `usage` is there, as null, where usage was asked for.
pub(crate) fn chunk(head: &Head, choices: Value, usage: Option<Value>) -> Value {
    let mut chunk = json!({
        "id": head.id, "object": "chat.completion.chunk", "created": head.created, "model": head.model,
        "system_fingerprint": fingerprint(), "choices": choices,
    });
    if let Some(usage) = usage {
        chunk["usage"] = usage;
    }
    chunk
}

/// The prompt counts once, however many answers it got.
pub(crate) fn usage(reports: &[Box<Report>]) -> Value {
    let first = reports.first().map(|report| report.stages).unwrap_or_default();
    let prompt = first.prefill_tokens + first.reused_tokens;
    let completion: usize = reports.iter().map(|report| report.tokens.len()).sum();
    json!({
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "prompt_tokens_details": { "cached_tokens": first.reused_tokens },
    })
}

pub(crate) fn finish_reason(stop: Stop, called: bool) -> &'static str {
    match stop {
        Stop::End | Stop::StopText if called => "tool_calls",
        Stop::End | Stop::StopText | Stop::Cancelled => "stop",
        Stop::Length | Stop::Context => "length",
    }
}

/// What the stages took, in milliseconds and tokens; what is unknown is null.
pub(crate) fn stages(report: &Report) -> Value {
    let mut value = json!(report.stages);
    value["stop"] = json!(report.stop);
    value["prefill_tokens_per_second"] = json!(report.stages.prefill_rate());
    value["decode_tokens_per_second"] = json!(report.stages.decode_rate());
    value
}

fn fingerprint() -> &'static str {
    concat!("margay-", env!("CARGO_PKG_VERSION"))
}
