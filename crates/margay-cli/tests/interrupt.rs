//! Ctrl-C and closed pipes, with the signals and pipes of the real system.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

mod program;

use program::{golden, margay, names};
use std::{
    io::{Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::Receiver,
    time::{Duration, Instant},
};

/// How soon the program must have stopped, by the clock. Other programs may hold the processors just then: it was soon as
/// well where the program itself ran no longer than that, and nobody waited longer than [`AT_ALL`]. The best of [`TRIES`]
/// counts.
const SOON: Duration = Duration::from_millis(50);
const AT_ALL: Duration = Duration::from_secs(2);
const TRIES: usize = 8;

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

/// Processor time that a program has used in all its threads, also one that has ended and was not waited for; `None` where
/// the system does not say. Source: proc_pid_stat(5), fields 14 and 15, in hundredths of a second.
fn processor_time(program: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{program}/stat")).ok()?;
    // The second field is a name in brackets, which may hold brackets and blanks.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Duration::from_millis(10 * (ticks(11)? + ticks(12)?)))
}

/// When Ctrl-C was pressed.
struct Pressed {
    program: u32,
    at: Instant,
    used: Option<Duration>,
}

/// How long a program took to stop: by the clock, and of processor time where the system says it.
#[derive(Debug)]
struct Waited {
    wall: Duration,
    worked: Option<Duration>,
}

impl Pressed {
    fn so_far(&self) -> Waited {
        let used = processor_time(self.program);
        let worked = used.zip(self.used).map(|(now, then)| now.saturating_sub(then));
        Waited { wall: self.at.elapsed(), worked }
    }
}

impl Waited {
    fn is_soon(&self) -> bool {
        self.wall < SOON || self.wall < AT_ALL && self.worked.is_some_and(|worked| worked < SOON)
    }
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

    /// Waits until it has ended as it ends after Ctrl-C, and says how long that took.
    fn ends(&mut self, pressed: &Pressed) -> Waited {
        while pressed.at.elapsed() < PATIENCE {
            // Nothing can be read of a program that was waited for.
            let waited = pressed.so_far();
            if let Some(status) = self.child.try_wait().unwrap() {
                assert_eq!(status.code(), Some(130));
                return waited;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.child.kill().unwrap();
        panic!("still running {PATIENCE:?} after Ctrl-C");
    }

    fn press_ctrl_c(&self) -> Pressed {
        let program = self.child.id();
        let sent = Command::new("kill").args(["-INT", &program.to_string()]).status().unwrap();
        assert!(sent.success());
        Pressed { program, at: Instant::now(), used: processor_time(program) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `once`, which presses Ctrl-C and says how long the program took to stop, until that was soon.
#[track_caller]
fn soon(once: impl FnMut(usize) -> Waited) {
    let waits: Vec<Waited> = (0..TRIES).map(once).take_while(|waited| !waited.is_soon()).collect();
    assert!(waits.len() < TRIES, "never within {SOON:?}: {waits:?}");
}

#[test]
fn ctrl_c_stops_a_running_answer() {
    let model = golden("llama");
    soon(|_| {
        let mut running = start(&[&["run", &model, "hello"][..], &LONG].concat());
        running.answers();
        let pressed = running.press_ctrl_c();
        let waited = running.ends(&pressed);
        let stderr = running.all_of_stderr();
        assert!(!stderr.contains("panicked"), "{stderr}");
        waited
    });
}

#[test]
fn ctrl_c_in_a_chat_stops_the_answer_and_at_the_prompt_leaves() {
    let model = golden("llama");
    soon(|_| {
        let mut running = start(&[&["chat", &model][..], &LONG].concat());
        running.type_line("hello");
        running.answers();
        let pressed = running.press_ctrl_c();
        assert_eq!(running.says(), "(stopped)");
        let stopped = pressed.so_far();
        assert!(running.child.try_wait().unwrap().is_none(), "the chat goes on");
        running.type_line("/clear");
        assert_eq!(running.says(), "forgotten");
        let pressed = running.press_ctrl_c();
        let left = running.ends(&pressed);
        if stopped.is_soon() { left } else { stopped }
    });
}

/// A LLaMA whose feed-forward matrices are so large that reading them takes seconds. They are holes of a sparse file:
/// no disk is used.
fn large(folder: &Path) -> String {
    const FFN: usize = 1 << 17;
    const WIDTH: usize = 1024;
    let edit = |name: &str, edits: &[(&str, usize)]| {
        let text = std::fs::read_to_string(Path::new(&golden("llama")).join(name)).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        for (key, value) in edits {
            json[*key] = (*value).into();
        }
        std::fs::write(folder.join(name), json.to_string()).unwrap();
    };
    let (heads, kv_heads, head_dim, vocabulary) = (4, 2, 64, 512);
    edit(
        "config.json",
        &[
            ("hidden_size", WIDTH),
            ("intermediate_size", FFN),
            ("num_hidden_layers", 1),
            ("head_dim", head_dim),
        ],
    );
    edit("tokenizer_config.json", &[]);
    for name in ["tokenizer.json", "tokenizer.model", "special_tokens_map.json"] {
        std::fs::copy(Path::new(&golden("llama")).join(name), folder.join(name)).unwrap();
    }
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let tensors = [
        ("model.embed_tokens.weight".to_owned(), vec![vocabulary, WIDTH]),
        ("model.norm.weight".to_owned(), vec![WIDTH]),
        ("lm_head.weight".to_owned(), vec![vocabulary, WIDTH]),
        (layer("input_layernorm"), vec![WIDTH]),
        (layer("post_attention_layernorm"), vec![WIDTH]),
        (layer("self_attn.q_proj"), vec![heads * head_dim, WIDTH]),
        (layer("self_attn.k_proj"), vec![kv_heads * head_dim, WIDTH]),
        (layer("self_attn.v_proj"), vec![kv_heads * head_dim, WIDTH]),
        (layer("self_attn.o_proj"), vec![WIDTH, heads * head_dim]),
        (layer("mlp.gate_proj"), vec![FFN, WIDTH]),
        (layer("mlp.up_proj"), vec![FFN, WIDTH]),
        (layer("mlp.down_proj"), vec![WIDTH, FFN]),
    ];
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let begin = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(
            name,
            serde_json::json!({ "dtype": "F16", "shape": shape, "data_offsets": [begin, end] }),
        );
    }
    let header = serde_json::Value::from(header).to_string();
    let mut file = std::fs::File::create(folder.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
    folder.to_str().unwrap().to_owned()
}

/// Starts the program, presses Ctrl-C after `work`, while it is at it, and says how long it took to end.
#[track_caller]
fn stopped_at_work(words: &[&str], work: Duration) -> Waited {
    let mut running = start(words);
    std::thread::sleep(work);
    assert!(running.child.try_wait().unwrap().is_none(), "{}", running.all_of_stderr());
    let pressed = running.press_ctrl_c();
    running.ends(&pressed)
}

#[test]
fn ctrl_c_stops_a_model_that_is_still_being_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let model = large(folder.path());
    soon(|_| stopped_at_work(&["run", &model, "hello"], Duration::from_millis(300)));
}

#[test]
fn ctrl_c_stops_a_bench() {
    let words = ["bench", "kernels", "--filter", "gemm/q8_0"];
    soon(|_| stopped_at_work(&words, Duration::from_millis(500)));
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
    let (source, target) = (folder.path().join("source"), folder.path().join("target"));
    std::fs::create_dir(&source).unwrap();
    std::fs::create_dir(&target).unwrap();
    let (model, out) = (large(&source), program::word(&target, "out.gguf"));
    soon(|try_| {
        let mut running = start(&["convert", &model, "-o", &out, "--type", "q6_k"]);
        running.says();
        // Each time it is somewhere else in the large matrices.
        std::thread::sleep(Duration::from_millis(20 * try_ as u64));
        let pressed = running.press_ctrl_c();
        let waited = running.ends(&pressed);
        assert_eq!(names(&target), [""; 0]);
        waited
    });
}
