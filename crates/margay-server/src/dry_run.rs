//! What a request would take, without answering it.

use crate::{app::App, chat::Prepared, metrics::Rates, problem::Problem};
use margay::PromptSize;
use serde_json::{Value, json};

/// Tokens, bytes of KV cache, and the time that answers took lately would have it take.
pub(crate) fn tell(app: &App, prepared: &Prepared, model: &str) -> Result<Value, Problem> {
    let size = app.model().prompt_size(&prepared.turns).map_err(|e| Problem::of_engine(&e))?;
    let context = app.model().context();
    let asked = prepared.request.max_tokens.unwrap_or(app.limits().tokens);
    // The last token of an answer is told, not kept.
    let answer = asked.min((context + 1).saturating_sub(size.tokens));
    let kept = (size.tokens + answer.saturating_sub(1)).min(context);
    let choices = prepared.request.choices;
    Ok(json!({
        "object": "chat.completion.dry_run",
        "model": model,
        "prompt_tokens": size.tokens,
        "visual_tokens": size.visual_tokens,
        "max_completion_tokens": answer * choices,
        "context_tokens": context,
        "fits": size.tokens < context,
        "kv_bytes": kv_bytes(app, kept).and_then(|bytes| bytes.checked_mul(choices)),
        "predicted": predict(&app.metrics.served().rates, size, answer),
    }))
}

/// Bytes that keys and values of so many tokens take. Conversations that share a beginning may share its bytes.
fn kv_bytes(app: &App, tokens: usize) -> Option<usize> {
    let text = &app.model().config().text;
    app.options.kv.layer_bytes(text.kv_heads, text.head_dim, tokens)?.checked_mul(text.layers)
}

/// Milliseconds by the means of what was served, with nothing reused and nobody waiting; null until each was measured.
fn predict(rates: &Rates, size: PromptSize, answer: usize) -> Value {
    let encode = match size.visual_tokens {
        0 => Some(0.0),
        tokens => rates.encode_ms.map(|ms| ms * tokens as f64),
    };
    let prefill = rates.prefill_ms.map(|ms| ms * size.tokens as f64);
    let (Some(encode), Some(prefill), Some(decode)) = (encode, prefill, rates.decode_ms) else {
        return Value::Null;
    };
    json!({
        "encode_ms": encode,
        "prefill_ms": prefill,
        "ttft_ms": encode + prefill,
        "decode_ms_per_token": decode,
        "total_ms": encode + prefill + decode * answer.saturating_sub(1) as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_is_not_predicted() {
        let text = PromptSize { tokens: 100, visual_tokens: 0 };
        let picture = PromptSize { tokens: 100, visual_tokens: 50 };
        let rates = Rates { prefill_ms: Some(2.0), decode_ms: Some(10.0), ..Rates::default() };
        assert_eq!(predict(&Rates::default(), text, 5), Value::Null);
        assert_eq!(predict(&rates, picture, 5), Value::Null);
        assert_eq!(predict(&rates, text, 5)["total_ms"], json!(240.0));
        let rates = Rates { encode_ms: Some(1.0), ..rates };
        assert_eq!(predict(&rates, picture, 1)["total_ms"], json!(250.0));
    }
}
