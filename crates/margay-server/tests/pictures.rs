//! Pictures that requests name by address, from a server of the test's own.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

mod support;

use margay_hub::Fetcher;
use margay_server::{Fetch, Limits, ServerOptions};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::Arc,
};
use support::{Site, about};

/// Answers each path with bytes behind a head until the test ends.
fn host() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = [0; 4096];
            let count = stream.read(&mut head).unwrap_or(0);
            let head = String::from_utf8_lossy(&head[..count]).into_owned();
            let path = head.split(' ').nth(1).unwrap_or("/").to_owned();
            let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/images");
            let (status, more, body) = match path.as_str() {
                "/street.png" => ("200 OK", String::new(), std::fs::read(folder.join("street.png")).unwrap()),
                "/elsewhere" => ("302 Found", format!("Location: http://{address}/street.png\r\n"), vec![]),
                "/large" => ("200 OK", String::new(), vec![0; 3 << 20]),
                "/words" => ("200 OK", String::new(), b"no picture".to_vec()),
                _ => ("404 Not Found", String::new(), vec![]),
            };
            let length = body.len();
            let head =
                format!("HTTP/1.1 {status}\r\n{more}Content-Length: {length}\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
        }
    });
    address
}

fn asks(url: &str) -> Value {
    json!({"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What does the sign say?"}]}]})
}

#[test]
fn a_picture_of_an_allowed_host_is_the_one_that_is_sent_and_no_other_host_is_asked() {
    let (host, other) = (host(), host());
    let limits = Limits { body_bytes: 1 << 20, ..Limits::default() };
    let fetcher = Fetcher::new(None).unwrap();
    let get = move |url: &str, most: u64, time| fetcher.get(url, most, time).map_err(|e| e.to_string());
    let fetch = Some(Fetch { hosts: vec![host.to_string()], get: Arc::new(get) });
    let site = Site::nano(ServerOptions { fetch, limits, ..ServerOptions::default() });
    let said = |answer: &support::Answer| answer.json()["choices"][0]["message"]["content"].clone();
    let fetched = site.ask(&asks(&format!("http://{host}/street.png")));
    assert_eq!(fetched.status, 200, "{}", fetched.body);
    assert_eq!(said(&fetched), said(&site.ask(&about("street.png", "What does the sign say?"))));
    for (url, why) in [
        (format!("http://{other}/street.png"), "fetches nothing"),
        (format!("http://{host}@{other}/street.png"), "fetches nothing"),
        (format!("http://{host}/nothing"), "404"),
        (format!("http://{host}/elsewhere"), "redirects are not followed"),
        (format!("http://{host}/large"), "more than 1048576 bytes"),
        (format!("http://{host}/words"), "not a picture"),
        ("file:///etc/passwd".to_owned(), "opens no files"),
    ] {
        let answer = site.ask(&asks(&url));
        let (status, param, _, message) = answer.problem();
        assert_eq!((status, param.as_str()), (400, "messages[0].content[0].image_url"), "{url}: {message}");
        assert!(message.contains(why), "{url}: {message}");
    }
    // Nobody is asked where none is allowed.
    let closed = Site::nano(ServerOptions::default()).ask(&asks(&format!("http://{host}/street.png")));
    assert!(closed.problem().3.contains("fetches nothing"), "{}", closed.body);
}
