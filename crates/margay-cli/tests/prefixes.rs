//! Prompts that one process computed and the next goes on from, and processes that are killed meanwhile.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

mod program;

use program::{margay, names};
use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

/// Processes that are killed. `MARGAY_KILLS=200 cargo nextest run -p margay-cli killed` takes some minutes.
fn kills() -> u64 {
    std::env::var("MARGAY_KILLS").map_or(12, |kills| kills.parse().unwrap())
}

fn run(folder: Option<&Path>, question: &str) -> Command {
    let mut command = margay();
    let picture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/images/street.png");
    command.args(["run", "--max-tokens", "4", "--stats", "--image"]).arg(picture);
    if let Some(folder) = folder {
        command.arg("--prefix-folder").arg(folder);
    }
    command.arg(question).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn told(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_next_process_goes_on_from_what_the_last_one_computed() {
    let folder = tempfile::tempdir().unwrap();
    let within = folder.path().join("prefixes");
    let plain = run(None, "What is there?").output().unwrap();
    let first = run(Some(&within), "How many shapes are there?").output().unwrap();
    assert!(!told(&first).contains("reused"), "{first:?}");
    let second = run(Some(&within), "What is there?").output().unwrap();
    assert!(told(&second).contains("reused"), "{second:?}");
    assert_eq!(second.stdout, plain.stdout);
    assert_eq!(names(&within).len(), 1);
}

#[cfg(unix)]
#[test]
fn a_process_that_is_killed_while_it_keeps_a_prompt_leaves_a_whole_file_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let expected = run(Some(folder.path()), "What is there?").output().unwrap();
    let [name] = <[String; 1]>::try_from(names(folder.path())).unwrap();
    let file = folder.path().join(&name);
    let whole = std::fs::read(&file).unwrap();
    let (mut kept, mut while_writing) = (0, 0);
    for kill in 0..kills() {
        std::fs::remove_file(&file).unwrap();
        let mut running = run(Some(folder.path()), "What is there?").spawn().unwrap();
        // Some before it begins, most as it writes: from when there is a temporary file.
        if kill % 4 == 0 {
            std::thread::sleep(Duration::from_millis(20 + 29 * (kill / 4 % 23)));
        } else {
            while names(folder.path()).is_empty() && running.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_micros(20));
            }
            std::thread::sleep(Duration::from_micros(100 * (kill % 13)));
        }
        running.kill().unwrap();
        running.wait().unwrap();
        match std::fs::read(&file) {
            Ok(bytes) => {
                assert_eq!(bytes, whole, "kill {kill}");
                kept += 1;
            }
            Err(_) => std::fs::write(&file, &whole).unwrap(),
        }
        let parts: Vec<String> = names(folder.path()).into_iter().filter(|part| *part != name).collect();
        while_writing += usize::from(!parts.is_empty());
        // What was left behind is nothing to the next.
        let next = run(Some(folder.path()), "What is there?").output().unwrap();
        assert_eq!(next.stdout, expected.stdout, "kill {kill}");
        parts.iter().for_each(|part| std::fs::remove_file(folder.path().join(part)).unwrap());
    }
    println!("{kept} of {} had kept it, {while_writing} were killed while they wrote", kills());
}
