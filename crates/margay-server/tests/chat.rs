//! Answers over a real socket, from the built-in model.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

mod support;

use margay::SchedulerOptions;
use margay_server::ServerOptions;
use serde_json::{Value, json};
use support::{Site, about, data_url, with, words};

fn text(chunks: &[Value]) -> String {
    let piece = |chunk: &Value| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned);
    chunks.iter().filter_map(piece).collect()
}

#[test]
fn a_picture_is_answered_whole_and_streamed_with_the_same_words() {
    // Nothing is kept of the first answer, so that the second one has all stages as well.
    let scheduler = SchedulerOptions { kept: 0, ..SchedulerOptions::default() };
    let site = Site::nano(ServerOptions { scheduler, ..ServerOptions::default() });
    let question = about("street.png", "What does the sign say?");
    let whole = site.ask(&question);
    assert_eq!(whole.status, 200, "{}", whole.body);
    let whole = whole.json();
    let said = whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert!(said.contains("BAR"), "{said}");
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    assert_eq!(whole["choices"][0]["message"]["role"], "assistant");

    let stages = &whole["choices"][0]["margay"];
    for stage in ["preprocess_ms", "encode_ms", "project_ms", "prefill_ms", "ttft_ms"] {
        assert!(stages[stage].as_f64().unwrap() > 0.0, "{stage}: {stages}");
    }
    let usage = &whole["usage"];
    let (prompt, completion) =
        (usage["prompt_tokens"].as_u64().unwrap(), usage["completion_tokens"].as_u64().unwrap());
    assert_eq!(usage["total_tokens"].as_u64().unwrap(), prompt + completion);
    assert!(prompt > stages["visual_tokens"].as_u64().unwrap() && completion > 0);

    let asked = json!({"stream_options": {"include_usage": true, "include_stages": true}});
    let events = site.stream(&with(question, asked));
    assert!(events.head.contains("text/event-stream"), "{}", events.head);
    let mut chunks = events.all();
    let told = chunks.pop().unwrap();
    assert_eq!(
        (told["choices"].clone(), told["usage"]["completion_tokens"].as_u64()),
        (json!([]), Some(completion))
    );
    let (stages, chunks): (Vec<_>, Vec<_>) =
        chunks.into_iter().partition(|chunk| chunk.get("margay").is_some());
    let names: Vec<_> = stages.iter().map(|chunk| chunk["margay"]["stage"].as_str().unwrap()).collect();
    assert_eq!(names, ["preprocess", "encode", "project", "prefill"]);
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(text(&chunks), said);
    let last = chunks.last().unwrap();
    assert_eq!(
        (&last["choices"][0]["finish_reason"], &last["choices"][0]["delta"]),
        (&json!("stop"), &json!({}))
    );
    assert!(chunks[..chunks.len() - 1].iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null()));
    assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"] && chunk["usage"].is_null()));
    assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk"));
}

#[test]
fn pictures_and_texts_may_stand_in_any_order() {
    let site = Site::nano(ServerOptions::default());
    let picture =
        |name: &str| json!({"type": "image_url", "image_url": {"url": data_url(name), "detail": "auto"}});
    let text = |text: &str| json!({"type": "text", "text": text});
    let tokens = |content: Value| {
        let answer = site.ask(&json!({"messages": [{"role": "user", "content": content}], "max_tokens": 4}));
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()["choices"][0]["margay"]["visual_tokens"].as_u64().unwrap()
    };
    let one = tokens(json!([text("a"), picture("street.png")]));
    assert!(one > 0);
    let three = json!([picture("shapes.png"), text("b"), picture("balloons.jpg"), picture("poster.webp")]);
    assert_eq!(tokens(three), 3 * one);
}

#[test]
fn a_conversation_goes_on_with_roles_as_clients_send_them() {
    let site = Site::nano(ServerOptions::default());
    let answer = site.ask(&json!({"messages": [
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_url("shapes.png")}}]},
        {"role": "assistant", "content": "Shapes.", "refusal": null, "tool_calls": null},
        {"role": "user", "content": "How many are there?"}]}));
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(!answer.json()["choices"][0]["message"]["content"].as_str().unwrap().is_empty());
}

/// The built-in model knows nothing of functions: what it calls is what the form of its answer leaves it.
#[test]
fn functions_are_called_with_arguments_of_their_schema_whole_and_streamed() {
    let site = Site::nano(ServerOptions::default());
    let look = json!({"type": "function", "function": {"name": "look_closer", "description": "Zooms in.",
        "parameters": {"type": "object", "properties": {"at": {"enum": ["sign", "tree"]}, "times": {"$ref": "#/$defs/n"}},
            "required": ["at", "times"], "additionalProperties": false,
            "$defs": {"n": {"type": "integer", "minimum": 2, "maximum": 4}}}}});
    let wait = json!({"type": "function", "function": {"name": "wait"}});
    let question = with(about("street.png", "What does the sign say?"), json!({"tools": [look, wait]}));
    let checked = |call: &Value| {
        assert_eq!(
            (&call["type"], call["function"]["name"].as_str()),
            (&json!("function"), Some("look_closer"))
        );
        let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
        assert!(["sign", "tree"].contains(&arguments["at"].as_str().unwrap()), "{arguments}");
        assert!((2..=4).contains(&arguments["times"].as_u64().unwrap()), "{arguments}");
        call["id"].as_str().unwrap().to_owned()
    };
    let named = json!({"tool_choice": {"type": "function", "function": {"name": "look_closer"}}});
    let named = with(question.clone(), named);
    let answer = site.ask(&named).json();
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &Value::Null)
    );
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    assert_eq!(calls.len(), 1);
    let id = checked(&calls[0]);

    let chunks = site.stream(&named).all();
    let deltas = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]["tool_calls"]);
    let streamed: Vec<&Value> = deltas.filter(|calls| calls.is_array()).map(|calls| &calls[0]).collect();
    assert_eq!((streamed.len(), &streamed[0]["index"]), (1, &json!(0)));
    checked(streamed[0]);
    assert_eq!(streamed[0]["function"], calls[0]["function"]);
    assert_eq!(
        (text(&chunks).as_str(), &chunks.last().unwrap()["choices"][0]["finish_reason"]),
        ("", &json!("tool_calls"))
    );

    let needed =
        site.ask(&with(question.clone(), json!({"tool_choice": "required", "max_tokens": 200}))).json();
    let calls = needed["choices"][0]["message"]["tool_calls"].as_array().unwrap();
    assert!(
        calls
            .iter()
            .all(|call| ["look_closer", "wait"].contains(&call["function"]["name"].as_str().unwrap()))
    );

    // Left to itself it talks, and what a function gave back is part of the conversation.
    let free = site.ask(&question).json();
    assert_eq!(free["choices"][0]["finish_reason"], "stop", "{free}");
    assert!(!free["choices"][0]["message"]["content"].as_str().unwrap().is_empty());
    let mut messages = question["messages"].as_array().unwrap().clone();
    messages.push(choice["message"].clone());
    messages.push(json!({"role": "tool", "tool_call_id": id, "content": "BAR"}));
    let mut on = question.clone();
    on["messages"] = json!(messages);
    let after = site.ask(&on);
    assert_eq!(after.status, 200, "{}", after.body);
    on["messages"][2]["tool_call_id"] = json!("call_x");
    assert_eq!(site.ask(&on).problem().1, "messages[2].tool_call_id");
}

#[test]
fn several_choices_have_seeds_of_their_own_and_a_seed_repeats_them() {
    let site = Site::endless(ServerOptions::default());
    let body = with(words("x"), json!({"n": 3, "temperature": 1.5, "seed": 7, "max_tokens": 24}));
    let contents = |answer: Value| {
        let choices = answer["choices"].as_array().unwrap().clone();
        let index = |choice: &Value| choice["index"].as_u64().unwrap();
        assert_eq!(choices.iter().map(index).collect::<Vec<_>>(), [0, 1, 2]);
        choices
            .iter()
            .map(|choice| choice["message"]["content"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let first = site.ask(&body).json();
    let each = |choice: &Value| choice["margay"]["decode_tokens"].as_u64().unwrap() + 1;
    let all: u64 = first["choices"].as_array().unwrap().iter().map(each).sum();
    // The token that ends an answer is decoded and not told.
    let told = first["usage"]["completion_tokens"].as_u64().unwrap();
    assert!((all - 3..=all).contains(&told) && told > 40, "{told} of {all}");
    let first = contents(first);
    assert!(first[0] != first[1] && first[1] != first[2]);
    assert_eq!(contents(site.ask(&body).json()), first);
    let streamed = site.stream(&body).all();
    for (index, expected) in first.iter().enumerate() {
        let of = |chunk: &&Value| chunk["choices"][0]["index"].as_u64() == Some(index as u64);
        let chunks: Vec<Value> = streamed.iter().filter(of).cloned().collect();
        assert_eq!(text(&chunks), *expected);
    }
    let without = with(words("x"), json!({"temperature": 1.5, "max_tokens": 24}));
    let said = |body: &Value| site.ask(body).json()["choices"][0]["message"]["content"].clone();
    assert_ne!(said(&without), said(&without), "without a seed answers differ");
}

#[test]
fn a_stop_text_ends_the_answer_and_is_not_told() {
    let site = Site::nano(ServerOptions::default());
    let question = about("street.png", "What does the sign say?");
    let whole = site.ask(&question).json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let stop = &whole[whole.len() / 2..];
    let cut = site.ask(&with(question, json!({"stop": ["\u{1}", stop]}))).json();
    assert_eq!(cut["choices"][0]["message"]["content"].as_str().unwrap(), &whole[..whole.len() / 2]);
    assert_eq!(
        (&cut["choices"][0]["finish_reason"], &cut["choices"][0]["margay"]["stop"]),
        (&json!("stop"), &json!("stop_text"))
    );
}

#[test]
fn a_dry_run_tells_what_the_request_then_takes() {
    let site = Site::nano(ServerOptions::default());
    let question = with(about("shapes.png", "How many?"), json!({"max_tokens": 6, "n": 2}));
    let dry = with(question.clone(), json!({"dry_run": true}));
    let before = site.ask(&dry).json();
    assert_eq!((&before["object"], &before["predicted"]), (&json!("chat.completion.dry_run"), &json!(null)));
    assert_eq!((&before["fits"], &before["max_completion_tokens"]), (&json!(true), &json!(12)));
    assert!(before["kv_bytes"].as_u64().unwrap() > 0);
    assert_eq!(site.handle.load(), margay::Load::default(), "nothing ran");
    let answer = site.ask(&question).json();
    assert_eq!(answer["usage"]["prompt_tokens"], before["prompt_tokens"]);
    assert_eq!(answer["choices"][0]["margay"]["visual_tokens"], before["visual_tokens"]);
    let after = site.ask(&dry).json();
    let (ttft, total) = (&after["predicted"]["ttft_ms"], &after["predicted"]["total_ms"]);
    assert!(ttft.as_f64().unwrap() > 0.0 && total.as_f64() > ttft.as_f64(), "{after}");
}

#[test]
fn a_question_that_goes_on_computes_only_what_is_new() {
    let site = Site::nano(ServerOptions::default());
    let question = about("street.png", "What does the sign say?");
    let first = site.ask(&question).json();
    let again = site.ask(&question).json();
    assert_eq!(again["choices"][0]["message"], first["choices"][0]["message"]);
    let (usage, stages) = (&again["usage"], &again["choices"][0]["margay"]);
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert_eq!(cached + 1, usage["prompt_tokens"].as_u64().unwrap());
    assert!(stages["encode_ms"].is_null() && stages["reused_pictures"] == 1, "{stages}");
}

#[test]
fn tokens_and_their_probabilities_make_up_the_answer() {
    let site = Site::nano(ServerOptions::default());
    let question =
        with(about("street.png", "What does the sign say?"), json!({"logprobs": true, "top_logprobs": 3}));
    let choice = site.ask(&question).json()["choices"][0].clone();
    let said = choice["message"]["content"].as_str().unwrap().to_owned();
    let tokens = |logprobs: &Value| logprobs["content"].as_array().cloned().unwrap_or_default();
    let told = tokens(&choice["logprobs"]);
    let bytes = |token: &Value| {
        token["bytes"].as_array().unwrap().iter().map(|b| b.as_u64().unwrap() as u8).collect::<Vec<_>>()
    };
    let joined: Vec<u8> = told.iter().flat_map(bytes).collect();
    assert_eq!(String::from_utf8(joined).unwrap().trim_start(), said);
    for token in &told {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        // Without a temperature, the likeliest is what is said.
        assert_eq!(top[0]["logprob"], token["logprob"]);
        let share: f64 = top.iter().map(|top| top["logprob"].as_f64().unwrap().exp()).sum();
        assert!(share > 0.0 && share <= 1.0 + 1e-6, "{token}");
    }
    let chunks = site.stream(&question).all();
    let streamed: Vec<Value> =
        chunks.iter().flat_map(|chunk| tokens(&chunk["choices"][0]["logprobs"])).collect();
    assert_eq!(streamed, told);
}

#[test]
fn an_answer_has_the_form_that_was_asked_for() {
    let site = Site::nano(ServerOptions::default());
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["sign", "legible"],
        "properties": {"sign": {"type": "string", "maxLength": 8}, "legible": {"type": "boolean"}},
    });
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "sign", "strict": true, "schema": schema}});
    let question = with(about("street.png", "What does the sign say?"), json!({"response_format": format}));
    let told = site.ask(&question).json();
    let said = told["choices"][0]["message"]["content"].as_str().unwrap();
    let value: Value = serde_json::from_str(said).unwrap();
    assert!(value["sign"].is_string() && value["legible"].is_boolean(), "{said}");
    let bad = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "colour"}}});
    let refused = site.ask(&with(about("street.png", "What?"), json!({"response_format": bad})));
    assert_eq!(refused.status, 400, "{}", refused.body);
}
