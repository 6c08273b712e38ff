//! Who may ask, how much, and what happens when it is too much.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]
#![allow(clippy::needless_update, reason = "the options of the scheduler grow")]

mod support;

use margay::SchedulerOptions;
use margay_server::{Limits, Server, ServerError, ServerOptions};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};
use support::{Site, about, data_url, with, words};

/// From a client that is gone to a model that is idle.
const CANCEL: Duration = Duration::from_millis(50);

fn long(question: &str) -> Value {
    with(words(question), json!({"max_tokens": 60_000}))
}

fn patient() -> ServerOptions {
    ServerOptions { limits: Limits { tokens: 60_000, ..Limits::default() }, ..ServerOptions::default() }
}

fn limited(limits: Limits) -> Site {
    Site::nano(ServerOptions { limits, ..ServerOptions::default() })
}

#[test]
fn a_client_that_leaves_frees_the_model_within_50_ms() {
    let site = Site::endless(patient());
    for streams in [true, false] {
        let mut times = vec![];
        for _ in 0..5 {
            if streams {
                let mut events = site.stream(&long(support::ENDLESS));
                for _ in 0..3 {
                    assert!(events.next().is_some());
                }
                assert_eq!(site.handle.load().running, 1);
                drop(events);
            } else {
                let body = long(support::ENDLESS).to_string();
                let mut stream = site.connect();
                let head = format!(
                    "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                stream.write_all((head + &body).as_bytes()).unwrap();
                while site.handle.load().running == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
                drop(stream);
            }
            times.push(site.idle());
        }
        times.sort();
        println!("streams {streams}: from leaving to idle {times:?}");
        // The middle one: a busy machine may keep any single one waiting.
        assert!(times[2] < CANCEL, "{times:?}");
    }
    let metrics = site.get("/metrics").body;
    assert!(metrics.contains("margay_answers_total{stop=\"cancelled\"} 10"), "{metrics}");
}

#[test]
fn a_full_queue_says_when_to_come_again() {
    let scheduler = SchedulerOptions { slots: 1, queue: 1, ..SchedulerOptions::default() };
    let site = Site::endless(ServerOptions { scheduler, ..patient() });
    let first = site.stream(&long(support::ENDLESS));
    let mut second = site.connect();
    let body = with(long(support::ENDLESS), json!({"stream": true})).to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    second.write_all((head + &body).as_bytes()).unwrap();
    while site.handle.load().waiting == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let third = site.ask(&words("x"));
    let (status, _, code, message) = third.problem();
    assert_eq!((status, code.as_str()), (429, "busy"), "{message}");
    assert!(third.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(third.json()["error"]["type"], "rate_limit_error");
    // Of several answers none begins where not all find room.
    drop((first, second));
    site.idle();
    assert_eq!(site.ask(&with(words("x"), json!({"n": 4}))).status, 429);
    site.idle();
    assert_eq!(site.ask(&with(words("x"), json!({"max_tokens": 3}))).status, 200);
}

#[test]
fn what_is_too_large_is_refused_with_its_limit() {
    let site = limited(Limits {
        body_bytes: 300_000,
        pictures: 2,
        pixels: 700_000,
        tokens: 50,
        choices: 2,
        ..Limits::default()
    });
    let picture = || json!({"type": "image_url", "image_url": {"url": data_url("street.png")}});
    let pictures = |n: usize| json!({"messages": [{"role": "user", "content": vec![picture(); n]}]});
    assert_eq!(site.ask(&with(pictures(1), json!({"max_tokens": 1}))).status, 200);
    let (status, param, code, message) = site.ask(&pictures(3)).problem();
    assert_eq!((status, param.as_str(), code.as_str()), (400, "messages", "too_many_images"), "{message}");
    let (status, _, code, message) = site.ask(&words(&"x".repeat(300_000))).problem();
    assert_eq!((status, code.as_str()), (413, "body_too_large"), "{message}");
    // Without a length the server finds out while it reads.
    let chunk = format!("{:x}\r\n{}\r\n", 100_000, "x".repeat(100_000)).repeat(4);
    let chunked = site.raw(format!("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}0\r\n\r\n").as_bytes());
    assert!(chunked.starts_with("HTTP/1.1 413"), "{}", &chunked[..chunked.len().min(300)]);
    for (extra, name) in [(json!({"max_tokens": 51}), "max_tokens"), (json!({"n": 3}), "n")] {
        let (status, param, _, message) = site.ask(&with(words("x"), extra)).problem();
        assert_eq!((status, param.as_str()), (400, name), "{message}");
    }
    let small = limited(Limits { pixels: 1000, ..Limits::default() });
    let (status, param, code, message) = small.ask(&about("street.png", "x")).problem();
    assert_eq!(
        (status, param.as_str(), code.as_str()),
        (400, "messages[0].content[0].image_url", "invalid_image")
    );
    assert!(message.contains("1000"), "{message}");
    let full = limited(Limits { held_pixels: 1000, ..Limits::default() });
    assert_eq!(full.ask(&about("street.png", "x")).problem().2, "too_many_pixels");
}

#[test]
fn what_is_wrong_is_said_in_openais_form() {
    let site = Site::nano(ServerOptions::default());
    let user = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    let url = |url: &str| user(json!([{"type": "image_url", "image_url": {"url": url}}]));
    for (body, status, param, code) in [
        (with(words("x"), json!({"temprature": 1})), 400, "temprature", "unknown_parameter"),
        (with(words("x"), json!({"model": "gpt-4o"})), 404, "model", "model_not_found"),
        (with(words("x"), json!({"tools": [{}]})), 400, "tools[0].function", ""),
        (
            with(
                words("x"),
                json!({"tools": [{"function": {"name": "f", "parameters": {"type": "zebra"}}}]}),
            ),
            400,
            "tools",
            "",
        ),
        (user(json!("")), 400, "messages", ""),
        (user(json!("word ".repeat(9000))), 400, "messages", "context_length_exceeded"),
        (json!({"messages": [{"role": "assistant", "content": "x"}]}), 400, "messages", ""),
        (
            json!({"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]}),
            400,
            "messages",
            "",
        ),
        (url("data:image/png;base64,AAAA"), 400, "messages[0].content[0].image_url", "invalid_image"),
        (url("data:image/png;base64,A*"), 400, "messages[0].content[0].image_url", "invalid_image_url"),
        (url("https://example.org/a.png"), 400, "messages[0].content[0].image_url", "invalid_image_url"),
    ] {
        for stream in [false, true] {
            let (found, at, why, message) =
                site.ask(&with(body.clone(), json!({"stream": stream}))).problem();
            assert_eq!((found, at.as_str(), why.as_str()), (status, param, code), "{message}");
            assert!(!message.is_empty());
        }
    }
    for (method, path, status) in [
        ("GET", "/nothing", 404),
        ("GET", "/v1/models/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/embeddings", 501),
        ("POST", "/v1/chat/completions", 400),
    ] {
        let answer = site.request(method, path, "", "");
        assert_eq!(answer.problem().0, status, "{method} {path}: {}", answer.body);
    }
}

#[test]
fn only_who_knows_the_key_is_answered() {
    let site =
        Site::nano(ServerOptions { key: Some("correct-horse".to_owned()), ..ServerOptions::default() });
    let status = |headers: &str| site.request("GET", "/v1/models", headers, "").status;
    assert_eq!(status("Authorization: Bearer correct-horse\r\n"), 200);
    for wrong in [
        "",
        "Authorization: Bearer correct-hors\r\n",
        "Authorization: Basic correct-horse\r\n",
        "Authorization: Bearer \r\n",
    ] {
        assert_eq!(status(wrong), 401, "{wrong}");
    }
    let refused = site.request("POST", "/v1/chat/completions", "", &words("x").to_string());
    assert_eq!(refused.problem().2, "invalid_api_key");
    assert_eq!(refused.header("www-authenticate").as_deref(), Some("Bearer"));
    assert_eq!(site.get("/metrics").status, 401);
    for open in ["/", "/health", "/openapi.json", "/app.js"] {
        assert_eq!(site.get(open).status, 200, "{open}");
    }
}

#[test]
fn pages_of_others_and_names_that_are_not_ours_are_kept_out() {
    let options = ServerOptions {
        origins: vec!["https://app.example".to_owned()],
        hosts: vec!["box.lan".to_owned()],
        ..ServerOptions::default()
    };
    let site = Site::nano(options);
    let host = |name: &str| {
        let text =
            site.raw(format!("GET /health HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n").as_bytes());
        text.split(' ').nth(1).unwrap().parse::<u16>().unwrap()
    };
    for ours in ["localhost", "localhost:9", "127.0.0.1:8080", "[::1]:8080", "margay.localhost", "BOX.lan:80"]
    {
        assert_eq!(host(ours), 200, "{ours}");
    }
    for theirs in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8080", ""] {
        assert!(matches!(host(theirs), 400 | 403), "{theirs}");
    }
    let from =
        |origin: &str| site.request("POST", "/v1/chat/completions", &format!("Origin: {origin}\r\n"), "{}");
    for theirs in ["https://evil.example", "null", "http://localhost:1", "https://app.example.evil.example"] {
        let answer = from(theirs);
        assert_eq!(answer.problem().2, "origin_not_allowed", "{theirs}");
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    assert_eq!(from(&format!("http://{}", site.address)).status, 400, "the page's own");
    let allowed = from("https://app.example");
    assert_eq!(allowed.header("access-control-allow-origin").as_deref(), Some("https://app.example"));
    let asked = "Origin: https://app.example\r\nAccess-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: x-stainless-os\r\n";
    let preflight = site.request("OPTIONS", "/v1/chat/completions", asked, "");
    assert_eq!(
        (preflight.status, preflight.header("access-control-allow-headers").as_deref()),
        (204, Some("x-stainless-os"))
    );
    let refused = site.request("OPTIONS", "/v1/chat/completions", "Origin: https://evil.example\r\n", "");
    assert_eq!(refused.status, 403);
}

#[test]
fn other_machines_are_not_served_without_a_key() {
    let model = margay::Model::nano().unwrap();
    let host = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let open = ServerOptions { host, port: 0, ..ServerOptions::default() };
    assert!(matches!(Server::bind(model.clone(), open.clone()), Err(ServerError::NeedsKey { .. })));
    assert!(Server::bind(model.clone(), ServerOptions { open: true, ..open.clone() }).is_ok());
    assert!(Server::bind(model.clone(), ServerOptions { key: Some("k".to_owned()), ..open.clone() }).is_ok());
    let empty = ServerOptions { key: Some(" ".to_owned()), ..open };
    assert!(matches!(Server::bind(model, empty), Err(ServerError::Option { option: "api-key", .. })));
}

#[test]
fn a_request_that_takes_too_long_is_ended() {
    let limits = Limits { time: Duration::from_millis(400), tokens: 60_000, ..Limits::default() };
    let site = Site::endless(ServerOptions { limits, ..ServerOptions::default() });
    let (status, _, code, message) = site.ask(&long(support::ENDLESS)).problem();
    assert_eq!((status, code.as_str()), (504, "timeout"), "{message}");
    let events: Vec<Value> = site.stream(&long(support::ENDLESS)).all();
    assert_eq!(events.last().unwrap()["error"]["code"], "timeout");
    site.idle();
}

#[test]
fn a_gentle_stop_lets_answers_end_and_refuses_new_ones() {
    let site = Site::endless(patient());
    let body = with(words(support::ENDLESS), json!({"max_tokens": 2000}));
    let mut events = site.stream(&body);
    assert!(events.next().is_some());
    // A connection that is open already, to see what it is told afterwards.
    site.handle.stop();
    let all = events.all();
    assert_eq!(all.last().unwrap()["choices"][0]["finish_reason"], "length");
    let address = site.address;
    site.ended();
    assert!(std::net::TcpStream::connect(address).is_err(), "nobody listens any more");
}

#[test]
fn a_stop_ends_what_outlives_its_grace_and_a_second_one_ends_at_once() {
    for second in [false, true] {
        let grace = if second { Duration::from_secs(60) } else { Duration::from_millis(200) };
        let site = Site::endless(ServerOptions { grace, ..patient() });
        let mut events = site.stream(&long(support::ENDLESS));
        assert!(events.next().is_some());
        let clock = Instant::now();
        site.handle.stop();
        if second {
            site.handle.stop();
        }
        site.ended();
        assert!(clock.elapsed() < Duration::from_secs(3), "{:?}", clock.elapsed());
    }
}

#[test]
fn what_the_server_says_of_itself_is_complete() {
    let site = Site::nano(ServerOptions { names: vec!["gpt-4o".to_owned()], ..ServerOptions::default() });
    let health = site.get("/health").json();
    assert_eq!((&health["ready"], &health["running"]), (&json!(true), &json!(0)));
    let models = site.get("/v1/models").json();
    let names: Vec<_> =
        models["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["margay-nano", "gpt-4o"]);
    assert_eq!(site.get("/v1/models/gpt-4o").json()["object"], "model");
    let answer =
        site.ask(&with(about("street.png", "What does the sign say?"), json!({"model": "gpt-4o"}))).json();
    assert_eq!(answer["model"], "gpt-4o");
    site.idle();
    let metrics = site.get("/metrics").body;
    for line in [
        "margay_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 1",
        "margay_answers_total{stop=\"end\"} 1",
        "margay_stage_seconds_count{stage=\"encode\"} 1",
        "margay_stage_seconds_bucket{stage=\"prefill\",le=\"+Inf\"} 1",
        "margay_first_text_seconds_count 1",
        "margay_running 0",
        "margay_waiting 0",
        "# TYPE margay_answer_seconds histogram",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
    let tokens = answer["usage"]["completion_tokens"].as_u64().unwrap();
    assert!(metrics.contains(&format!("margay_tokens_total{{kind=\"completion\"}} {tokens}\n")));
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let value = line.rsplit_once(' ').unwrap().1;
        assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
    }
    let status = site.get("/v1/margay/status").json();
    if cfg!(target_os = "linux") {
        assert!(status["rss_bytes"].as_u64().unwrap() > 1_000_000);
        assert!(metrics.contains("margay_resident_bytes "));
    }
    // What is unknown is null there and has no line here.
    assert_eq!(status["temperature_celsius"].is_null(), !metrics.contains("margay_temperature_celsius "));
    assert!(status["decode_ms_per_token"].as_f64().unwrap() > 0.0);
    let page = site.get("/");
    assert!(page.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
    assert_eq!(page.header("x-content-type-options").as_deref(), Some("nosniff"));
}

#[test]
fn one_connection_carries_several_requests() {
    let site = Site::nano(ServerOptions::default());
    let mut stream = site.connect();
    for _ in 0..3 {
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut bytes = [0; 4096];
        let read = stream.read(&mut bytes).unwrap();
        assert!(bytes[..read].starts_with(b"HTTP/1.1 200"));
    }
}
