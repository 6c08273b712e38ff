//! A small hub on this machine, which answers as Hugging Face's does and can be told to misbehave.
#![allow(dead_code, reason = "each test file uses what it needs")]

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

/// The commit of every repository of this hub.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Name and value of a header.
type Header = (&'static str, String);

/// Sends a status, headers and a body.
type Reply<'a> = dyn FnMut(&str, &[Header], &[u8]) + 'a;

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub method: String,
    pub path: String,
    pub host: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
}

/// What the hub holds and how it behaves.
#[derive(Default)]
pub(crate) struct Hub {
    /// By name; those of tensors are stored elsewhere, behind a redirect.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Only who sends it is answered.
    pub token: Option<String>,
    /// So many downloads break in the middle.
    pub cuts: AtomicUsize,
    /// Downloads are sent with another last byte than was announced.
    pub wrong: bool,
    /// Ranges are not understood: everything is sent.
    pub no_ranges: bool,
    /// What was asked.
    pub log: Mutex<Vec<Request>>,
}

/// A hub that runs until the test ends.
pub(crate) struct Running {
    pub hub: Arc<Hub>,
    pub port: u16,
}

impl Hub {
    pub(crate) fn start(self) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let hub = Arc::new(self);
        let served = hub.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let hub = served.clone();
                std::thread::spawn(move || serve(&hub, stream, port));
            }
        });
        Running { hub, port }
    }
}

impl Running {
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn asked(&self) -> Vec<Request> {
        std::mem::take(&mut self.hub.log.lock().unwrap())
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

/// The checksum of a small file: git's.
pub(crate) fn git_sha(bytes: &[u8]) -> String {
    let whole = [format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat();
    hex(digest(&SHA1_FOR_LEGACY_USE_ONLY, &whole).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".gguf")
}

fn serve(hub: &Hub, stream: TcpStream, port: u16) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let headers: BTreeMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    let mut words = first.split(' ').map(str::to_owned);
    let request = Request {
        method: words.next().unwrap_or_default(),
        path: words.next().unwrap_or_default(),
        host: headers.get("host").cloned().unwrap_or_default(),
        authorization: headers.get("authorization").cloned(),
        range: headers.get("range").cloned(),
    };
    hub.log.lock().unwrap().push(request.clone());
    answer(hub, &request, port, stream);
}

fn answer(hub: &Hub, request: &Request, port: u16, mut stream: TcpStream) {
    let mut reply = |status: &str, headers: &[Header], body: &[u8]| {
        let mut head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
        headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        if !headers.iter().any(|header| header.0 == "Content-Length") {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        let _ = stream.write_all(format!("{head}\r\n").as_bytes()).and_then(|()| stream.write_all(body));
    };
    // The store of large files knows no token, as it is another host.
    if let Some(name) = request.path.strip_prefix("/store/") {
        let Some(bytes) = hub.files.get(name) else { return reply("404 Not Found", &[], b"") };
        return send(hub, request, bytes.clone(), &mut reply);
    }
    let expected = hub.token.as_ref().map(|token| format!("Bearer {token}"));
    if expected.is_some() && request.authorization != expected {
        return reply("401 Unauthorized", &[], b"");
    }
    if request.path.starts_with("/api/models/owner/model/revision/") {
        if !request.path.ends_with("/main") && !request.path.ends_with("/v1%2Fx") {
            return reply("404 Not Found", &[], b"");
        }
        let names: Vec<String> =
            hub.files.keys().map(|name| format!("{{\"rfilename\":\"{name}\"}}")).collect();
        let body = format!("{{\"sha\":\"{COMMIT}\",\"siblings\":[{}]}}", names.join(","));
        return reply("200 OK", &[("Content-Type", "application/json".to_owned())], body.as_bytes());
    }
    // A repository that was renamed.
    if let Some(rest) = request.path.strip_prefix("/api/models/owner/old/") {
        return reply(
            "307 Temporary Redirect",
            &[("Location", format!("/api/models/owner/model/{rest}"))],
            b"",
        );
    }
    let inside = request.path.strip_prefix(&format!("/owner/model/resolve/{COMMIT}/"));
    let name = inside.or_else(|| request.path.strip_prefix(&format!("/owner/old/resolve/{COMMIT}/")));
    let Some((name, bytes)) = name.and_then(|name| hub.files.get_key_value(name)) else {
        return reply("404 Not Found", &[], b"");
    };
    if is_large(name) {
        let headers = [
            ("X-Repo-Commit", COMMIT.to_owned()),
            ("X-Linked-Etag", format!("\"{}\"", sha256(bytes))),
            ("X-Linked-Size", bytes.len().to_string()),
            ("ETag", "\"of the redirect\"".to_owned()),
            ("Location", format!("http://localhost:{port}/store/{name}")),
        ];
        reply("302 Found", &headers, b"")
    } else if request.method == "HEAD" {
        let headers =
            [("ETag", format!("W/\"{}\"", git_sha(bytes))), ("Content-Length", bytes.len().to_string())];
        reply("200 OK", &headers, b"")
    } else {
        send(hub, request, bytes.clone(), &mut reply)
    }
}

fn send(hub: &Hub, request: &Request, mut bytes: Vec<u8>, reply: &mut Reply<'_>) {
    if hub.wrong
        && let Some(last) = bytes.last_mut()
    {
        *last ^= 1;
    }
    let size = bytes.len();
    let range = request.range.as_ref().filter(|_| !hub.no_ranges);
    let start: Option<usize> =
        range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let rest = &bytes[start.unwrap_or(0).min(size)..];
    let cut = size > 1000
        && hub.cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
    let sent = if cut { &rest[..rest.len() / 2] } else { rest };
    let mut headers = vec![("Content-Length", rest.len().to_string())];
    let status = match start {
        Some(start) => {
            headers.push(("Content-Range", format!("bytes {start}-{}/{size}", size - 1)));
            "206 Partial Content"
        }
        None => "200 OK",
    };
    reply(status, &headers, sent);
}
