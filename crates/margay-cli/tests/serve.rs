//! `margay serve` as a person starts and ends it.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

mod program;

use program::{margay, run};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
};

/// Starts on a free port and gives the address that it prints.
fn start(words: &[&str], key: Option<&str>) -> (Child, String) {
    let mut command = margay();
    command.args(["serve", "--port", "0"]).args(words).env_remove("MARGAY_API_KEY").stdout(Stdio::piped());
    if let Some(key) = key {
        command.env("MARGAY_API_KEY", key);
    }
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().split_once("http://").unwrap_or_else(|| panic!("{line}")).1.to_owned();
    assert!(line.starts_with("margay-nano at "), "{line}");
    (child, address)
}

fn get(address: &str, path: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn it_serves_until_it_is_asked_to_end() {
    for name in ["-TERM", "-INT"] {
        let (mut child, address) = start(&[], None);
        assert!(get(&address, "/health", "").contains("\"ready\":true"));
        assert!(get(&address, "/", "").contains("<title>Margay</title>"));
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(0), "{name}");
    }
}

#[test]
fn the_key_of_the_environment_is_asked_for() {
    let (mut child, address) = start(&["--alias", "other"], Some("secret"));
    assert!(get(&address, "/v1/models", "").starts_with("HTTP/1.1 401"));
    let models = get(&address, "/v1/models", "Authorization: Bearer secret\r\n");
    assert!(models.contains("margay-nano") && models.contains("other"), "{models}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn what_others_could_reach_needs_a_key() {
    let refused = run(["serve", "--host", "0.0.0.0", "--port", "0"]);
    assert_eq!(refused.code, Some(2));
    assert!(
        refused.stderr.contains("--api-key") && refused.stderr.contains("--no-key"),
        "{}",
        refused.stderr
    );
    let (mut child, address) = start(&["--host", "0.0.0.0", "--no-key"], None);
    assert!(address.starts_with("0.0.0.0:"));
    child.kill().unwrap();
    child.wait().unwrap();
}
