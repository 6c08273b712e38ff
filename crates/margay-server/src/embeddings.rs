//! `POST /v1/embeddings`: texts and pictures as vectors that can be compared.
//!
//! Source: OpenAI API reference, "Create embeddings"; pictures as inputs are Margay's own, written as the parts of a message are.

use crate::{
    app::App,
    chat::{body_of, in_turn, start},
    fields::{Fields, kind},
    message::{Part, Said, part},
    problem::{Problem, json_response},
    turns,
};
use axum::{
    extract::{Request, State},
    http::StatusCode,
    response::Response,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use margay::{AskOptions, Event, Job, Report, Stop, embedding_turn};
use margay_observe::Stopwatch;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::time::sleep;

/// Inputs of a request at most, as OpenAI has it.
const MOST_INPUTS: usize = 2048;

/// A request, checked but for its pictures.
#[derive(Debug)]
pub(crate) struct EmbeddingRequest {
    model: Option<String>,
    inputs: Vec<Vec<Part>>,
    /// Little-endian float32 in base64, which OpenAI's clients ask for, rather than numbers.
    base64: bool,
}

impl EmbeddingRequest {
    /// `width`: numbers of an embedding.
    ///
    /// # Errors
    /// What is wrong first, with its place.
    pub(crate) fn read(body: &[u8], width: usize) -> Result<Self, Problem> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|e| Problem::bad("", format!("is not JSON: {e}")).with_code("invalid_json"))?;
        let mut fields = Fields::of(value, "")?;
        let request = EmbeddingRequest {
            model: fields.text("model")?,
            inputs: inputs(fields.take("input"))?,
            base64: fields.word("encoding_format", &["float", "base64"])?.as_deref() == Some("base64"),
        };
        if let Some(asked) =
            fields.whole("dimensions", 1..=u64::from(u32::MAX))?.filter(|asked| *asked != width)
        {
            let what = format!("is {asked}, and embeddings of this model have {width} numbers; leave it out");
            return Err(Problem::bad("dimensions", what));
        }
        fields.text("user")?;
        fields.finish()?;
        Ok(request)
    }
}

fn inputs(value: Option<Value>) -> Result<Vec<Vec<Part>>, Problem> {
    let list = match value {
        None => return Err(Problem::bad("input", "is missing")),
        Some(Value::Array(list)) => list,
        Some(one) => vec![one],
    };
    match list.len() {
        0 => return Err(Problem::bad("input", "is empty")),
        count if count > MOST_INPUTS => {
            return Err(Problem::bad("input", format!("has {count} inputs, and {MOST_INPUTS} is the most")));
        }
        _ => {}
    }
    list.into_iter().enumerate().map(|(at, value)| input(&format!("input[{at}]"), value)).collect()
}

fn input(place: &str, value: Value) -> Result<Vec<Part>, Problem> {
    let parts = match value {
        Value::String(text) => vec![Part::Text(text)],
        Value::Object(_) => vec![part(Fields::of(value, place)?)?],
        Value::Array(list) if list.iter().all(Value::is_object) => {
            let read = |(at, value)| part(Fields::of(value, format!("{place}[{at}]"))?);
            list.into_iter().enumerate().map(read).collect::<Result<_, _>>()?
        }
        other => {
            let what = format!(
                "must be a string, a part of type text or image_url, or a list of such parts, not {}; numbers of tokens are \
                 another model's",
                kind(&other)
            );
            return Err(Problem::bad(place, what));
        }
    };
    let says = |part: &Part| !matches!(part, Part::Text(text) if text.trim().is_empty());
    if parts.iter().any(says) { Ok(parts) } else { Err(Problem::bad(place, "is empty")) }
}

/// Answers a request: its inputs one after the other, so that it holds one picture at a time and others have their turn.
pub(crate) async fn embeddings(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    if !app.model().embeds() {
        let what = "the model of this server was not loaded for embeddings";
        return Err(Problem::new(StatusCode::NOT_IMPLEMENTED, what).with_code("unsupported"));
    }
    let limit = app.limits().time;
    tokio::select! {
        answered = answer(&app, request) => answered,
        () = sleep(limit) => Err(Problem::late(limit)),
    }
}

async fn answer(app: &Arc<App>, request: Request) -> Result<Response, Problem> {
    let arrived = Stopwatch::start();
    let body = body_of(app, request.into_body()).await?;
    let request = EmbeddingRequest::read(&body, app.model().config().text.width)?;
    drop(body);
    let model = app.name(request.model)?;
    let (mut data, mut tokens) = (vec![], 0);
    for (index, parts) in request.inputs.into_iter().enumerate() {
        let report = embed(app, parts, arrived).await?;
        let numbers = report.embedding.unwrap_or_default();
        let embedding = match request.base64 {
            true => json!(STANDARD.encode(numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())),
            false => json!(numbers),
        };
        data.push(json!({ "object": "embedding", "index": index, "embedding": embedding }));
        tokens += report.stages.prefill_tokens + report.stages.reused_tokens;
    }
    let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens });
    let told = json!({ "object": "list", "data": data, "model": model, "usage": usage });
    Ok(json_response(StatusCode::OK, &told))
}

async fn embed(app: &Arc<App>, parts: Vec<Part>, arrived: Stopwatch) -> Result<Report, Problem> {
    let said = turns::fetched(app, vec![Said { role: "user", parts }]).await?;
    let asked = app.clone();
    // Decoding pictures and tokenising may take a while.
    let started = in_turn(&app.preparing, move || {
        let (images, text, held) = turns::inputs(&asked, said)?;
        let options = AskOptions { embed: true, max_tokens: 1, ..AskOptions::default() };
        let job = Job { turns: vec![embedding_turn(&images, &text)], options };
        start(&asked, std::iter::once(job), (held, arrived), None)
    });
    let mut running = started.await?;
    loop {
        match running.told.recv().await {
            Some((_, Ok(Event::Done(report)))) if report.stop == Stop::Cancelled => {
                return Err(Problem::stopping());
            }
            Some((_, Ok(Event::Done(report)))) => return Ok(*report),
            Some((_, Ok(_))) => {}
            Some((_, Err(e))) => return Err(Problem::of_engine(&e)),
            None => return Err(Problem::stopping()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<EmbeddingRequest, Problem> {
        EmbeddingRequest::read(body.to_string().as_bytes(), 192)
    }

    #[test]
    fn inputs_are_texts_pictures_or_both() {
        let picture = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}});
        let text = json!({"type": "text", "text": "a cat"});
        let one = read(json!({"input": "a cat", "encoding_format": "base64", "dimensions": 192})).unwrap();
        assert!(one.base64 && one.inputs == [vec![Part::Text("a cat".to_owned())]]);
        let many =
            read(json!({"input": ["a", picture, [picture, text]], "model": "m", "user": "u"})).unwrap();
        assert_eq!(many.inputs.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 2]);
        assert_eq!((many.base64, many.model.as_deref()), (false, Some("m")));
    }

    #[test]
    fn what_is_no_input_is_named_with_its_place() {
        for (body, place) in [
            (json!({}), "input"),
            (json!({"input": []}), "input"),
            (json!({"input": ["a", " "]}), "input[1]"),
            (json!({"input": [1, 2, 3]}), "input[0]"),
            (json!({"input": [[1, 2, 3]]}), "input[0]"),
            (
                json!({"input": [[{"type": "image_url", "image_url": {"url": "file:///x/y.png"}}]]}),
                "input[0][0].image_url",
            ),
            (json!({"input": "a", "dimensions": 64}), "dimensions"),
            (json!({"input": "a", "encoding_format": "int8"}), "encoding_format"),
            (json!({"input": "a", "seed": 1}), "seed"),
        ] {
            assert_eq!(read(body.clone()).unwrap_err().param.as_deref(), Some(place), "{body}");
        }
    }
}
