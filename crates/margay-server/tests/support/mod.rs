//! A server on the built-in model, and a client that speaks plain HTTP over a socket.
#![allow(dead_code, reason = "each test file uses what it needs")]

use margay::{LoadOptions, Model};
use margay_server::{Handle, Server, ServerOptions};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    thread::JoinHandle,
    time::Duration,
};

/// A server that ends with the test.
pub(crate) struct Site {
    pub(crate) address: SocketAddr,
    pub(crate) handle: Handle,
    thread: Option<JoinHandle<()>>,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// Server-sent events as they come.
pub(crate) struct Events {
    reader: BufReader<TcpStream>,
    pub(crate) head: String,
}

impl Site {
    pub(crate) fn nano(options: ServerOptions) -> Site {
        Site::of(Model::nano().unwrap(), options)
    }

    /// A tiny random model that never ends an answer by itself.
    pub(crate) fn endless(options: ServerOptions) -> Site {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/mobilevlm-v2");
        let load = LoadOptions { context: Some(1 << 16), threads: Some(1), ..LoadOptions::default() };
        Site::of(Model::load_with(folder, &load).unwrap(), options)
    }

    pub(crate) fn of(model: Model, options: ServerOptions) -> Site {
        let server = Server::bind(model, ServerOptions { port: 0, ..options }).unwrap();
        let (address, handle) = (server.address(), server.handle());
        let thread = Some(std::thread::spawn(move || server.run().unwrap()));
        Site { address, handle, thread }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Sends bytes and reads whatever comes until the server closes.
    pub(crate) fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // A server that has said what it thinks of a head may no longer read the body.
        let _ = stream.write_all(bytes);
        let mut text = vec![];
        let _ = stream.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Sends bytes, listens for a moment and leaves.
    pub(crate) fn fling(&self, bytes: &[u8]) {
        let mut stream = self.connect();
        let _ = stream.write_all(bytes);
        stream.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
        let _ = stream.read(&mut [0; 512]);
    }

    pub(crate) fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let mut stream = self.connect();
        let _ = stream.write_all(self.head(method, path, headers, body).as_bytes());
        let mut bytes = vec![];
        let _ = stream.read_to_end(&mut bytes);
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        let body = if chunked { unchunk(body) } else { body.to_owned() };
        Answer { status, head: head.to_owned(), body }
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.request("GET", path, "", "")
    }

    pub(crate) fn ask(&self, body: &Value) -> Answer {
        self.request("POST", "/v1/chat/completions", "", &body.to_string())
    }

    /// Asks for a stream; events can be read while they come.
    pub(crate) fn stream(&self, body: &Value) -> Events {
        let mut stream = self.connect();
        let mut body = body.clone();
        body["stream"] = json!(true);
        let body = body.to_string();
        stream.write_all(self.head("POST", "/v1/chat/completions", "", &body).as_bytes()).unwrap();
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).unwrap() > 0, "the server closed after {head:?}");
        }
        Events { reader, head }
    }

    /// Waits until nothing runs and nothing waits, and says how long that took.
    pub(crate) fn idle(&self) -> Duration {
        let clock = std::time::Instant::now();
        loop {
            let load = self.handle.load();
            if load.running + load.waiting == 0 {
                return clock.elapsed();
            }
            assert!(clock.elapsed() < Duration::from_secs(30), "still busy: {load:?}");
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    fn head(&self, method: &str, path: &str, headers: &str, body: &str) -> String {
        format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n{headers}\r\n{body}",
            self.address,
            body.len()
        )
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.handle.stop();
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the server panicked");
        }
    }
}

impl Site {
    /// Waits for the server to end by itself.
    pub(crate) fn ended(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}\n{}", self.head, self.body))
    }

    /// Status, `param`, `code` and message of an error.
    pub(crate) fn problem(&self) -> (u16, String, String, String) {
        let error = &self.json()["error"];
        let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
        (self.status, text("param"), text("code"), text("message"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let found = |line: &str| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then(|| value.to_owned())
        };
        self.head.lines().find_map(found)
    }
}

impl Iterator for Events {
    type Item = String;

    /// The data of the next event.
    fn next(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some(data) = line.trim_end().strip_prefix("data: ") {
                return Some(data.to_owned());
            }
        }
    }
}

impl Events {
    /// All that is left, as JSON; the last must be `[DONE]`.
    pub(crate) fn all(self) -> Vec<Value> {
        let mut texts: Vec<String> = self.collect();
        assert_eq!(texts.pop().as_deref(), Some("[DONE]"));
        texts.iter().map(|text| serde_json::from_str(text).unwrap()).collect()
    }
}

fn unchunk(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        text.push_str(&rest[..size]);
        body = rest[size..].strip_prefix("\r\n").unwrap();
    }
    text
}

/// A question about a picture of the project's examples.
pub(crate) fn about(picture: &str, question: &str) -> Value {
    json!({ "messages": [{ "role": "user", "content": [
        { "type": "image_url", "image_url": { "url": data_url(picture) } },
        { "type": "text", "text": question },
    ]}]})
}

pub(crate) fn words(question: &str) -> Value {
    json!({ "messages": [{ "role": "user", "content": question }] })
}

pub(crate) fn data_url(picture: &str) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/images").join(picture);
    format!("data:image/png;base64,{}", STANDARD.encode(std::fs::read(path).unwrap()))
}

/// `body` with further members.
pub(crate) fn with(mut body: Value, extra: Value) -> Value {
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// What the tiny random model answers for as long as it may.
pub(crate) const ENDLESS: &str = "x";
