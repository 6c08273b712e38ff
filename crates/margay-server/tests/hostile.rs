//! Requests that nobody would send in good faith: each is answered or its connection closed, and the server goes on.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

mod support;

use margay_server::{Limits, ServerOptions};
use proptest::{prelude::*, test_runner::TestRunner};
use serde_json::{Value, json};
use support::{Site, data_url};

fn site() -> Site {
    let limits = Limits { tokens: 4, body_bytes: 1 << 20, ..Limits::default() };
    Site::nano(ServerOptions { limits, ..ServerOptions::default() })
}

fn config(cases: u32) -> TestRunner {
    TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) })
}

/// Any JSON, and often the names and values that requests are made of.
fn value() -> impl Strategy<Value = Value> {
    let picture = data_url("street.png");
    let words = [
        "user",
        "system",
        "assistant",
        "tool",
        "text",
        "image_url",
        "auto",
        "json_schema",
        "margay-nano",
        "data:image/png;base64,",
        "data:image/png;base64,iVBORw0KGgo=",
        "data:,x",
        "<image>",
        "<|im_end|>",
        "</s>",
        "",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|x| json!(x)),
        prop::sample::select(words.to_vec()).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        Just(Value::from(picture)),
    ];
    let names = [
        "model",
        "messages",
        "role",
        "content",
        "type",
        "text",
        "image_url",
        "url",
        "detail",
        "stream",
        "stop",
        "n",
        "seed",
        "temperature",
        "top_p",
        "max_tokens",
        "logit_bias",
        "response_format",
        "json_schema",
        "tools",
        "stream_options",
        "include_usage",
        "dry_run",
        "name",
        "tool_calls",
    ];
    leaf.prop_recursive(5, 48, 6, move |inner| {
        let name = prop_oneof![9 => prop::sample::select(names.to_vec()).prop_map(str::to_owned), 1 => any::<String>()];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((name, inner), 0..6).prop_map(|list| Value::Object(list.into_iter().collect())),
        ]
    })
}

/// A question that would be answered, with one thing put in place of another somewhere.
fn mutated() -> impl Strategy<Value = Value> {
    let sound = json!({
        "model": "margay-nano", "temperature": 0.5, "seed": 1, "max_tokens": 2, "stop": ["x"], "n": 1, "stream": false,
        "messages": [{"role": "system", "content": "a"}, {"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": data_url("street.png"), "detail": "auto"}}, {"type": "text", "text": "b"}]}],
    });
    let places = [
        "/model",
        "/temperature",
        "/seed",
        "/max_tokens",
        "/stop",
        "/stop/0",
        "/n",
        "/stream",
        "/messages",
        "/messages/0",
        "/messages/0/role",
        "/messages/0/content",
        "/messages/1/role",
        "/messages/1/content",
        "/messages/1/content/0",
        "/messages/1/content/0/type",
        "/messages/1/content/0/image_url",
        "/messages/1/content/0/image_url/url",
        "/messages/1/content/1/text",
    ];
    (prop::sample::select(places.to_vec()), value()).prop_map(move |(place, value)| {
        let mut request = sound.clone();
        *request.pointer_mut(place).unwrap() = value;
        request
    })
}

#[test]
fn any_json_is_answered_or_refused_and_never_breaks_the_server() {
    let site = site();
    let check = |request: Value| {
        let answer = site.ask(&request);
        prop_assert!(
            matches!(answer.status, 200 | 400 | 404),
            "{request}: {} {}",
            answer.status,
            answer.body
        );
        if answer.status != 200 {
            let error = &answer.json()["error"];
            prop_assert!(error["message"].as_str().is_some_and(|said| !said.is_empty()), "{error}");
        }
        Ok(())
    };
    config(300).run(&value(), check).unwrap();
    config(300).run(&mutated(), check).unwrap();
    assert_eq!(site.get("/health").json()["ready"], json!(true));
    site.idle();
    let metrics = site.get("/metrics").body;
    assert!(!metrics.contains("status=\"500\""), "{metrics}");
}

#[test]
fn damaged_pictures_are_refused() {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let site = site();
    let whole = data_url("street.png");
    let bytes = STANDARD.decode(whole.split_once(',').unwrap().1).unwrap();
    let strategy = (0..bytes.len(), any::<u8>(), any::<bool>());
    config(150)
        .run(&strategy, |(at, byte, cut)| {
            let mut bytes = bytes.clone();
            if cut {
                bytes.truncate(at);
            } else {
                bytes[at] ^= byte;
            }
            let url = format!("data:image/png;base64,{}", STANDARD.encode(&bytes));
            let body = json!({"max_tokens": 1, "dry_run": true,
                "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]});
            let answer = site.ask(&body);
            prop_assert!(matches!(answer.status, 200 | 400), "{}", answer.body);
            Ok(())
        })
        .unwrap();
    assert_eq!(site.get("/health").status, 200);
}

#[test]
fn any_bytes_on_the_socket_leave_the_server_answering() {
    let site = site();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n";
    let bytes = || prop::collection::vec(any::<u8>(), 0..400);
    let strategy = prop_oneof![
        bytes(),
        bytes().prop_map(move |body| [
            format!("{head}Content-Length: {}\r\n\r\n", body.len()).into_bytes(),
            body
        ]
        .concat()),
        (bytes(), any::<u64>()).prop_map(move |(body, length)| {
            [format!("{head}Content-Length: {length}\r\n\r\n").into_bytes(), body].concat()
        }),
        bytes().prop_map(move |body| [
            format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes(),
            body
        ]
        .concat()),
        "[A-Z]{1,8} /[a-z0-9/%?{}.]{0,40} HTTP/1.[019]\r\n([A-Za-z-]{1,12}: [ -~]{0,30}\r\n){0,6}\r\n"
            .prop_map(String::into_bytes),
    ];
    config(400)
        .run(&strategy, |bytes| {
            site.fling(&bytes);
            Ok(())
        })
        .unwrap();
    assert_eq!(site.get("/health").status, 200);
    // Heads without end are not kept.
    let endless = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}", "x".repeat(1 << 20));
    let answer = site.raw(endless.as_bytes());
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{}", &answer[..answer.len().min(100)]);
    site.idle();
}
