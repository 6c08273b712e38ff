//! `POST /v1/chat/completions`: what a request may say.
//!
//! Source: OpenAI API reference, "Create chat completion"; `top_k`, `min_p`, `repeat_penalty`, `dry_run` and
//! `stream_options.include_stages` are Margay's own.

use crate::{
    fields::{Fields, kind, shown},
    message::{Part, Said, messages},
    options::Limits,
    problem::Problem,
    tools::Tools,
};
use margay::{Form, Sampling};
use serde_json::Value;

/// Texts that end an answer at most, as OpenAI has it.
const MOST_STOPS: usize = 4;
/// Characters of such a text at most.
const LONGEST_STOP: usize = 256;
/// Alternatives that are told for each token at most, as OpenAI has it.
const MOST_TOP_LOGPROBS: u64 = 20;
/// Biased tokens at most.
const MOST_BIASES: usize = 1024;

/// A request for a chat completion, checked but for its pictures.
#[derive(Debug)]
pub(crate) struct ChatRequest {
    /// As asked for; `None` takes the model there is.
    pub(crate) model: Option<String>,
    pub(crate) messages: Vec<Said>,
    pub(crate) sampling: Sampling,
    /// Without one, each answer has its own.
    pub(crate) seed: Option<u64>,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) stops: Vec<String>,
    pub(crate) choices: usize,
    /// What is added to the logits of tokens.
    pub(crate) bias: Vec<(u32, f32)>,
    /// Alternatives to tell for each token; `None` tells no probabilities.
    pub(crate) logprobs: Option<usize>,
    /// What an answer has to look like.
    pub(crate) form: Option<Form>,
    pub(crate) tools: Tools,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) include_stages: bool,
    pub(crate) dry_run: bool,
}

impl ChatRequest {
    /// Reads a request.
    ///
    /// # Errors
    /// What is wrong first, with its place.
    pub(crate) fn read(body: &[u8], limits: &Limits) -> Result<Self, Problem> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|e| Problem::bad("", format!("is not JSON: {e}")).with_code("invalid_json"))?;
        let mut fields = Fields::of(value, "")?;
        let streaming = fields.flag("stream")?.unwrap_or(false);
        let (include_usage, include_stages) = stream_options(&mut fields, streaming)?;
        let request = ChatRequest {
            model: fields.text("model")?,
            messages: messages(&mut fields)?,
            sampling: sampling(&mut fields)?,
            seed: seed(&mut fields)?,
            max_tokens: max_tokens(&mut fields, limits)?,
            stops: stops(&mut fields)?,
            choices: fields.whole("n", 1..=limits.choices as u64)?.unwrap_or(1),
            bias: bias(&mut fields)?,
            logprobs: logprobs(&mut fields)?,
            form: form(&mut fields)?,
            tools: Tools::read(&mut fields)?,
            stream: streaming,
            include_usage,
            include_stages,
            dry_run: fields.flag("dry_run")?.unwrap_or(false),
        };
        without_effect(&mut fields)?;
        fields.finish()?;
        request.with_tools()
    }

    /// Where the tools say what the system's message says, and what form the answer has.
    fn with_tools(mut self) -> Result<Self, Problem> {
        let Some(form) = self.tools.form() else { return Ok(self) };
        if self.form.is_some() {
            let what = "and tools cannot both shape an answer; leave one out, or say tool_choice: none";
            return Err(Problem::bad("response_format", what));
        }
        self.form = Some(form);
        let words = self.tools.words().map(Part::Text).into_iter();
        match self.messages.first_mut().filter(|first| first.role == "system") {
            Some(system) => system.parts.extend([Part::Text("\n\n".to_owned())].into_iter().chain(words)),
            None => self.messages.insert(0, Said { role: "system", parts: words.collect() }),
        }
        Ok(self)
    }
}

fn stream_options(fields: &mut Fields, streaming: bool) -> Result<(bool, bool), Problem> {
    let Some(mut options) = fields.object("stream_options")? else { return Ok((false, false)) };
    if !streaming {
        return Err(Problem::bad("stream_options", "needs stream: true"));
    }
    let usage = options.flag("include_usage")?.unwrap_or(false);
    let stages = options.flag("include_stages")?.unwrap_or(false);
    // Padding against guessing a text by its length; nothing here is padded either way.
    options.flag("include_obfuscation")?;
    options.finish()?;
    Ok((usage, stages))
}

/// Greedy unless a temperature is asked for; then the model's own distribution unless a cut is asked for.
fn sampling(fields: &mut Fields) -> Result<Sampling, Problem> {
    Ok(Sampling {
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(0.0),
        top_k: fields.whole("top_k", 0..=1_000_000)?.unwrap_or(0),
        top_p: fields.number("top_p", f64::MIN_POSITIVE..=1.0)?.unwrap_or(1.0),
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0),
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        repeat_penalty: fields.number("repeat_penalty", 0.1..=10.0)?.unwrap_or(1.0),
        ..Sampling::default()
    })
}

/// Any whole number; those below zero are seeds of their own.
fn seed(fields: &mut Fields) -> Result<Option<u64>, Problem> {
    let Some(value) = fields.take("seed") else { return Ok(None) };
    let seed = value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned));
    seed.map(Some).ok_or_else(|| {
        Problem::bad("seed", format!("must be a whole number of 64 bits, not {}", kind(&value)))
    })
}

fn max_tokens(fields: &mut Fields, limits: &Limits) -> Result<Option<usize>, Problem> {
    let most = limits.tokens as u64;
    let newer = fields.whole("max_completion_tokens", 1..=most)?;
    let older = fields.whole("max_tokens", 1..=most)?;
    match (newer, older) {
        (Some(newer), Some(older)) if newer != older => {
            Err(Problem::bad("max_tokens", "and max_completion_tokens mean the same and differ; give one"))
        }
        (newer, older) => Ok(newer.or(older)),
    }
}

fn stops(fields: &mut Fields) -> Result<Vec<String>, Problem> {
    let values = match fields.take("stop") {
        None => return Ok(vec![]),
        Some(Value::Array(list)) => list,
        Some(one) => vec![one],
    };
    if values.len() > MOST_STOPS {
        return Err(Problem::bad(
            "stop",
            format!("holds {} texts, and {MOST_STOPS} is the most", values.len()),
        ));
    }
    let text = |value| match value {
        Value::String(text) if text.is_empty() => {
            Err(Problem::bad("stop", "holds an empty text, which would end every answer"))
        }
        Value::String(text) if text.chars().count() > LONGEST_STOP => {
            Err(Problem::bad("stop", format!("holds a text of more than {LONGEST_STOP} characters")))
        }
        Value::String(text) => Ok(text),
        other => {
            Err(Problem::bad("stop", format!("must be a string or a list of strings, not {}", kind(&other))))
        }
    };
    values.into_iter().map(text).collect()
}

fn bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, Problem> {
    let Some(mut object) = fields.object("logit_bias")? else { return Ok(vec![]) };
    let mut biases = vec![];
    for (token, value) in object.rest() {
        let place = format!("logit_bias.{}", shown(&token));
        let id = token.parse().map_err(|_| Problem::bad(&place, "is not the number of a token"))?;
        let bias = value.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
        let bias = bias.ok_or_else(|| Problem::bad(&place, "must be a number between -100 and 100"))?;
        biases.push((id, bias as f32));
    }
    if biases.len() > MOST_BIASES {
        return Err(Problem::bad("logit_bias", format!("names more than {MOST_BIASES} tokens")));
    }
    Ok(biases)
}

fn logprobs(fields: &mut Fields) -> Result<Option<usize>, Problem> {
    let wanted = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.whole("top_logprobs", 0..=MOST_TOP_LOGPROBS)?;
    match (wanted, top) {
        (false, Some(1..)) => Err(Problem::bad("top_logprobs", "needs logprobs: true")),
        (wanted, top) => Ok(wanted.then_some(top.unwrap_or(0))),
    }
}

fn form(fields: &mut Fields) -> Result<Option<Form>, Problem> {
    let Some(mut object) = fields.object("response_format")? else { return Ok(None) };
    let word = object.word("type", &["text", "json_object", "json_schema"])?;
    let form = match word.as_deref() {
        None => return Err(Problem::bad("response_format.type", "is missing")),
        Some("json_schema") => {
            let mut inner = object
                .object("json_schema")?
                .ok_or_else(|| Problem::bad("response_format.json_schema", "is missing"))?;
            inner.needed_text("name")?;
            inner.text("description")?;
            inner.flag("strict")?;
            let schema = inner.take("schema").unwrap_or_else(|| serde_json::json!({}));
            inner.finish()?;
            Some(Form::JsonSchema(schema))
        }
        Some("json_object") => Some(Form::Json),
        Some(_) => None,
    };
    object.finish()?;
    Ok(form)
}

/// Parameters that are known and change nothing in an answer that is made here. What would change something is refused.
fn without_effect(fields: &mut Fields) -> Result<(), Problem> {
    for name in ["user", "safety_identifier", "prompt_cache_key"] {
        fields.text(name)?;
    }
    if fields.flag("store")? == Some(true) {
        return Err(Problem::bad("store", "is true, and this server keeps no answers"));
    }
    fields.word("service_tier", &["auto", "default"])?;
    fields.object("metadata")?;
    let kinds = fields.list("modalities")?.unwrap_or_default();
    if kinds.iter().any(|kind| kind.as_str() != Some("text")) {
        return Err(Problem::bad("modalities", "can be [\"text\"]: answers are texts"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(mut extra: Value) -> Result<ChatRequest, Problem> {
        let object = extra.as_object_mut().unwrap();
        object.entry("messages").or_insert(json!([{"role": "user", "content": "x"}]));
        ChatRequest::read(extra.to_string().as_bytes(), &Limits::default())
    }

    fn refused(extra: Value) -> (String, String) {
        let problem = read(extra).unwrap_err();
        assert_eq!(problem.status, 400);
        (problem.param.unwrap_or_default(), problem.message)
    }

    #[test]
    fn what_is_not_asked_for_is_not_done() {
        let request = read(json!({})).unwrap();
        let plain = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Sampling::default() };
        assert_eq!(request.sampling, plain);
        assert_eq!(
            (request.choices, request.max_tokens, request.seed, request.stream),
            (1, None, None, false)
        );
    }

    #[test]
    fn every_parameter_arrives() {
        let request = read(json!({
            "model": "m", "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "seed": -1, "n": 2,
            "stop": ["a", "b"], "max_tokens": 7, "max_completion_tokens": 7, "stream": true, "user": "u",
            "stream_options": {"include_usage": true, "include_stages": true}, "metadata": {"a": "b"},
            "service_tier": "auto", "modalities": ["text"], "store": false, "tools": [], "tool_choice": "auto",
            "frequency_penalty": 0, "logprobs": false, "response_format": {"type": "text"}, "dry_run": true,
            "logit_bias": null,
        }))
        .unwrap();
        assert_eq!((request.sampling.top_k, request.sampling.temperature), (3, 0.5));
        assert_eq!((request.seed, request.choices, request.max_tokens), (Some(u64::MAX), 2, Some(7)));
        assert_eq!(request.stops, ["a", "b"]);
        assert!(request.stream && request.include_usage && request.include_stages && request.dry_run);
        assert_eq!(read(json!({"stop": "x"})).unwrap().stops, ["x"]);
    }

    #[test]
    fn what_is_unknown_or_out_of_range_is_refused_by_name() {
        for (body, param) in [
            (json!({"temprature": 1}), "temprature"),
            (json!({"reasoning_effort": "low"}), "reasoning_effort"),
            (json!({"temperature": 2.5}), "temperature"),
            (json!({"temperature": "hot"}), "temperature"),
            (json!({"top_p": 0}), "top_p"),
            (json!({"n": 0}), "n"),
            (json!({"n": 99}), "n"),
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"max_tokens": 1, "max_completion_tokens": 2}), "max_tokens"),
            (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop"),
            (json!({"stop": ""}), "stop"),
            (json!({"seed": 1.5}), "seed"),
            (json!({"stream_options": {"include_usage": true}}), "stream_options"),
            (json!({"stream": true, "stream_options": {"x": 1}}), "stream_options.x"),
            (json!({"logit_bias": {"x": 1}}), "logit_bias.x"),
            (json!({"logit_bias": {"5": 101}}), "logit_bias.5"),
            (json!({"top_logprobs": 3}), "top_logprobs"),
            (json!({"response_format": {"type": "xml"}}), "response_format.type"),
            (json!({"store": true}), "store"),
            (json!({"messages": "hello"}), "messages"),
        ] {
            let (found, message) = refused(body.clone());
            assert_eq!(found, param, "{body}: {message}");
            assert!(message.contains(param.split('.').next_back().unwrap()), "{message}");
        }
    }

    #[test]
    fn functions_are_told_to_the_model_and_shape_the_answer() {
        let tool = json!({"type": "function", "function": {"name": "look"}});
        let request = read(json!({"tools": [tool], "messages": [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}]}))
        .unwrap();
        assert!(matches!(request.form, Some(Form::Calls(_))));
        let Some(Part::Text(words)) = request.messages[0].parts.last() else { panic!("no words") };
        assert!(words.contains("<tools>") && words.contains("look"));
        assert_eq!(read(json!({"tools": [tool]})).unwrap().messages.len(), 2);
        let both = json!({"tools": [tool], "response_format": {"type": "json_object"}});
        assert_eq!(refused(both).0, "response_format");
        let none =
            json!({"tools": [tool], "tool_choice": "none", "response_format": {"type": "json_object"}});
        assert_eq!(read(none).unwrap().form, Some(Form::Json));
    }

    #[test]
    fn penalties_probabilities_and_forms_arrive() {
        let request = read(json!({
            "frequency_penalty": 1, "presence_penalty": -1, "repeat_penalty": 1.5, "logit_bias": {"5": -100},
            "logprobs": true, "top_logprobs": 2,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": {"type": "null"}}},
        }))
        .unwrap();
        let sampling = request.sampling;
        let penalties = (sampling.frequency_penalty, sampling.presence_penalty, sampling.repeat_penalty);
        assert_eq!(penalties, (1.0, -1.0, 1.5));
        assert_eq!((request.bias, request.logprobs), (vec![(5, -100.0)], Some(2)));
        assert_eq!(request.form, Some(Form::JsonSchema(json!({"type": "null"}))));
        assert_eq!(read(json!({"response_format": {"type": "json_object"}})).unwrap().form, Some(Form::Json));
        assert_eq!(read(json!({"response_format": {"type": "text"}})).unwrap().form, None);
    }

    #[test]
    fn what_is_no_json_says_where() {
        let problem = ChatRequest::read(b"{\"a\": ", &Limits::default()).unwrap_err();
        assert!(problem.message.contains("column 6"), "{}", problem.message);
        let deep = "[".repeat(100_000);
        assert_eq!(ChatRequest::read(deep.as_bytes(), &Limits::default()).unwrap_err().status, 400);
    }
}
