//! Runs the built `margay` as a person would.
#![allow(dead_code, reason = "each test file uses what it needs")]

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// What a run left.
pub(crate) struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// The program, without what the developer's own environment may say.
pub(crate) fn margay() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_margay"));
    command.env_remove("MARGAY_ISA").env_remove("NO_COLOR").stdin(Stdio::null());
    command
}

/// Runs with these words and an empty stdin.
pub(crate) fn run<S: AsRef<std::ffi::OsStr>>(words: impl IntoIterator<Item = S>) -> Ran {
    finish(margay().args(words), "")
}

/// Runs a prepared command, handing it that text.
pub(crate) fn finish(command: &mut Command, stdin: &str) -> Ran {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may end without reading, which is no failure of ours.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Ran {
    /// What it printed, after a check that it went well.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "stderr: {}", self.stderr);
        self.stdout
    }

    /// The JSON it printed, after a check that it went well.
    #[track_caller]
    pub(crate) fn json(self) -> serde_json::Value {
        let text = self.ok();
        assert_eq!(text.lines().count(), 1, "one object on one line: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Checks that it failed with that code, one line on stderr that holds all of `parts`, and nothing on stdout.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, parts: &[&str]) {
        let stderr = &self.stderr;
        assert_eq!(self.code, Some(code), "stderr: {stderr}");
        assert!(stderr.starts_with("margay: error: "), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        for part in parts {
            assert!(stderr.contains(part), "no {part:?} in: {stderr}");
        }
        assert_eq!(self.stdout, "");
    }
}

/// A file or folder of the golden data.
pub(crate) fn golden(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
    path.canonicalize().unwrap_or_else(|e| panic!("{}: {e}", path.display())).to_str().unwrap().to_owned()
}

/// A path in a folder, as a word.
pub(crate) fn word(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().unwrap().to_owned()
}

/// Writes a file and gives its path as a word.
pub(crate) fn written(folder: &Path, name: &str, bytes: &[u8]) -> String {
    std::fs::write(folder.join(name), bytes).unwrap();
    word(folder, name)
}

/// Names of the files in a folder, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The tiny LLaVA as GGUF files: `llava.gguf` and its mmproj.
pub(crate) fn tiny_gguf(folder: &Path) -> PathBuf {
    let out = folder.join("llava.gguf");
    run(["convert", &golden("llava"), "-o", out.to_str().unwrap()]).ok();
    out
}
