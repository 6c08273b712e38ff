//! Ctrl-C and closed pipes, with the signals and pipes of the real system.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

mod program;

use program::{golden, margay, names};
use std::{
    io::{Read, Write},
    process::{Child, Command, Stdio},
    sync::mpsc::Receiver,
    time::{Duration, Instant},
};

/// How soon the program must be gone. The goal is 50 ms; the rest is for a machine that runs other tests meanwhile.
const SOON: Duration = Duration::from_millis(1000);

/// An answer that would go on for long: nearly every token is as likely as the end of the answer.
const LONG: [&str; 14] = [
    "--backend",
    "reference",
    "--temperature",
    "100",
    "--top-k",
    "0",
    "--top-p",
    "1",
    "--min-p",
    "0",
    "--max-tokens",
    "2000",
    "--seed",
    "5",
];

/// How long a test waits for what must come before it gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program that runs; what it writes arrives line by line or byte by byte, and never blocks a test for ever.
struct Running {
    child: Child,
    stdout: Receiver<u8>,
    stderr: Receiver<u8>,
}

fn start(words: &[&str]) -> Running {
    let mut command = margay();
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (stdout, stderr) = (listen(child.stdout.take().unwrap()), listen(child.stderr.take().unwrap()));
    Running { child, stdout, stderr }
}

fn listen(pipe: impl Read + Send + 'static) -> Receiver<u8> {
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        std::io::BufReader::new(pipe).bytes().map_while(Result::ok).all(|byte| send.send(byte).is_ok())
    });
    receive
}

impl Running {
    fn type_line(&mut self, line: &str) {
        self.child.stdin.as_mut().unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Waits until the answer has begun.
    #[track_caller]
    fn answers(&mut self) {
        if self.stdout.recv_timeout(PATIENCE).is_err() {
            let _ = self.child.kill();
            panic!("no answer came; stderr: {}", self.all_of_stderr());
        }
    }

    /// The next line of stderr.
    #[track_caller]
    fn says(&self) -> String {
        let bytes = std::iter::from_fn(|| self.stderr.recv_timeout(PATIENCE).ok());
        String::from_utf8(bytes.take_while(|byte| *byte != b'\n').collect()).unwrap()
    }

    fn all_of_stderr(&self) -> String {
        String::from_utf8(self.stderr.iter().collect()).unwrap()
    }

    /// The exit code, after a check that the end came soon.
    fn ends_soon(&mut self) -> Option<i32> {
        let pressed = Instant::now();
        while pressed.elapsed() < SOON {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.child.kill().unwrap();
        panic!("still running {SOON:?} after Ctrl-C");
    }

    fn press_ctrl_c(&self) {
        let sent = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn ctrl_c_stops_a_running_answer() {
    let model = golden("llama");
    let mut running = start(&[&["run", &model, "hello"][..], &LONG].concat());
    running.answers();
    running.press_ctrl_c();
    assert_eq!(running.ends_soon(), Some(130));
    let stderr = running.all_of_stderr();
    assert!(!stderr.contains("panicked"), "{stderr}");
}

#[test]
fn ctrl_c_in_a_chat_stops_the_answer_and_at_the_prompt_leaves() {
    let model = golden("llama");
    let mut running = start(&[&["chat", &model][..], &LONG].concat());
    running.type_line("hello");
    running.answers();
    running.press_ctrl_c();
    assert_eq!(running.says(), "(stopped)");
    assert!(running.child.try_wait().unwrap().is_none(), "the chat goes on");
    running.type_line("/clear");
    assert_eq!(running.says(), "forgotten");
    running.press_ctrl_c();
    assert_eq!(running.ends_soon(), Some(130));
}

#[test]
fn a_reader_that_has_enough_ends_the_program_quietly() {
    let model = golden("llama");
    let mut command = margay();
    command
        .args([&["run", &model, "hello"][..], &LONG].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // One byte is read, then the pipe is closed.
    let read = child.stdout.take().unwrap().read(&mut [0]).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((read, output.status.code(), stderr.as_str()), (1, Some(0), ""));
}

#[test]
fn an_interrupted_conversion_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = program::word(folder.path(), "out.gguf");
    let mut running = start(&["convert", &golden("llava"), "-o", &out, "--type", "q6_k"]);
    running.says();
    running.press_ctrl_c();
    match running.ends_soon() {
        Some(130) => assert_eq!(names(folder.path()), [""; 0]),
        // So small a model may be done before the signal arrives; then it is whole.
        code => assert_eq!((code, names(folder.path()).len()), (Some(0), 2)),
    }
}
