//! Pictures that requests name by address, from a server of the test's own.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

mod support;

use margay_hub::Fetcher;
use margay_server::{Fetch, Limits, ServerOptions};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex},
};
use support::{Site, about};

/// A gate that `/slow` waits at; and who came to it.
#[derive(Default)]
struct Gate {
    /// Requests that came, and whether they may go on.
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |(_, open)| !*open).unwrap());
    }

    fn wait_for(&self, requests: usize) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |(came, _)| *came < requests).unwrap());
    }

    fn open(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }
}

/// Answers each path with bytes behind a head until the test ends.
fn host() -> SocketAddr {
    host_with(Arc::default())
}

fn host_with(gate: Arc<Gate>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = move |mut stream: TcpStream| {
        let mut head = [0; 4096];
        let count = stream.read(&mut head).unwrap_or(0);
        let head = String::from_utf8_lossy(&head[..count]).into_owned();
        let path = head.split(' ').nth(1).unwrap_or("/").to_owned();
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/images");
        let (status, more, body) = match path.as_str() {
            "/street.png" => ("200 OK", String::new(), std::fs::read(folder.join("street.png")).unwrap()),
            "/slow" => {
                gate.pass();
                ("200 OK", String::new(), std::fs::read(folder.join("street.png")).unwrap())
            }
            "/elsewhere" => ("302 Found", format!("Location: http://{address}/street.png\r\n"), vec![]),
            "/large" => ("200 OK", String::new(), vec![0; 3 << 20]),
            "/words" => ("200 OK", String::new(), b"no picture".to_vec()),
            _ => ("404 Not Found", String::new(), vec![]),
        };
        let length = body.len();
        let head =
            format!("HTTP/1.1 {status}\r\n{more}Content-Length: {length}\r\nConnection: close\r\n\r\n");
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
    };
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            let answer = answer.clone();
            std::thread::spawn(move || answer(stream));
        }
    });
    address
}

fn asks(url: &str) -> Value {
    json!({"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What does the sign say?"}]}]})
}

fn site_that_fetches_from(host: SocketAddr) -> Site {
    let limits = Limits { body_bytes: 1 << 20, ..Limits::default() };
    let fetcher = Fetcher::new(None).unwrap();
    let get = move |url: &str, most: u64, time| fetcher.get(url, most, time).map_err(|e| e.to_string());
    let fetch = Some(Fetch { hosts: vec![host.to_string()], get: Arc::new(get) });
    Site::nano(ServerOptions { fetch, limits, ..ServerOptions::default() })
}

#[test]
fn a_picture_of_an_allowed_host_is_the_one_that_is_sent_and_no_other_host_is_asked() {
    let (host, other) = (host(), host());
    let site = site_that_fetches_from(host);
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

#[test]
fn who_waits_for_a_slow_host_holds_up_nobody_else() {
    let gate = Arc::new(Gate::default());
    let host = host_with(gate.clone());
    let site = site_that_fetches_from(host);
    std::thread::scope(|scope| {
        let slow: Vec<_> =
            (0..4).map(|_| scope.spawn(|| site.ask(&asks(&format!("http://{host}/slow"))).status)).collect();
        // More of them than requests are prepared at once.
        gate.wait_for(4);
        let own = site.ask(&about("street.png", "What does the sign say?"));
        let fetched = site.ask(&asks(&format!("http://{host}/street.png")));
        gate.open();
        assert_eq!((own.status, fetched.status), (200, 200), "{}{}", own.body, fetched.body);
        assert!(slow.into_iter().all(|slow| slow.join().unwrap() == 200));
    });
}
