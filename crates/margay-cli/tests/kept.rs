//! Conversations that `margay chat` keeps, and processes that are killed while they do.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

mod program;

use program::{margay, names};
use std::{
    io::Write,
    path::Path,
    process::{Child, Output, Stdio},
    time::Duration,
};

/// Processes that are killed. `MARGAY_KILLS=200 cargo nextest run -p margay-cli killed` takes some minutes.
fn kills() -> usize {
    std::env::var("MARGAY_KILLS").map_or(12, |kills| kills.parse().unwrap())
}

fn chat(folder: &Path, words: &[&str]) -> Child {
    let mut command = margay();
    command.args(["chat", "--max-tokens", "4"]).args(words).current_dir(folder);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn say(mut chat: Child, lines: &str) -> Output {
    chat.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    chat.wait_with_output().unwrap()
}

#[test]
fn a_conversation_goes_on_in_another_process() {
    let folder = tempfile::tempdir().unwrap();
    let picture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/images/street.png");
    let image = ["--image", picture.to_str().unwrap()];
    let whole = say(chat(folder.path(), &image), "What is there?\nWhere is it?\n");
    let first = say(chat(folder.path(), &image), "What is there?\n/save my talk.margay\n");
    assert!(String::from_utf8_lossy(&first.stderr).contains("tokens kept in my talk.margay"), "{first:?}");
    let second = say(chat(folder.path(), &[]), "/load my talk.margay\nWhere is it?\n");
    assert!(second.status.success(), "{second:?}");
    assert_eq!([first.stdout, second.stdout].concat(), whole.stdout);
    assert_eq!(names(folder.path()), ["my talk.margay"]);

    let bad = say(chat(folder.path(), &[]), "/load absent\n/save\nStill there?\n");
    let told = String::from_utf8_lossy(&bad.stderr).into_owned();
    assert!(told.contains("absent") && told.contains("needs the path"), "{told}");
    assert!(!bad.stdout.is_empty() && !bad.status.success());
}

#[cfg(unix)]
#[test]
fn a_process_that_is_killed_while_it_keeps_a_conversation_leaves_a_whole_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("talk");
    let lines = format!("One?\n{}", "/save talk\n".repeat(400));
    assert!(say(chat(folder.path(), &[]), "One?\n/save talk\n").status.success());
    let expected = std::fs::read(&file).unwrap();
    let mut while_writing = 0;
    for kill in 0..kills() {
        let mut running = chat(folder.path(), &[]);
        running.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        // Some before it begins, some amid it.
        std::thread::sleep(Duration::from_millis(50 + 37 * (kill as u64 % 23)));
        running.kill().unwrap();
        running.wait().unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), expected, "kill {kill}");
        let parts = names(folder.path()).iter().filter(|name| name.ends_with(".part")).count();
        while_writing += usize::from(parts > 0);
        for name in names(folder.path()).iter().filter(|name| *name != "talk") {
            std::fs::remove_file(folder.path().join(name)).unwrap();
        }
    }
    println!("{while_writing} of {} were killed while they wrote", kills());
    let restored = say(chat(folder.path(), &[]), "/load talk\nTwo?\n");
    assert!(restored.status.success(), "{restored:?}");
}
