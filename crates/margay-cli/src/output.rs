//! Everything that is written to stdout and stderr.

use crate::{environment, progress};
use margay::rooms::observe::report::table;
use serde::Serialize;
use std::{
    borrow::Cow,
    io::{ErrorKind, Write, stderr, stdout},
};

/// Nobody reads our output any more.
#[derive(Debug)]
pub(crate) struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the output is closed")
    }
}

impl std::error::Error for Closed {}

/// Writes to stdout and hands it on at once.
pub(crate) fn text(text: &str) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| match e.kind() {
        ErrorKind::BrokenPipe => anyhow::Error::new(Closed),
        _ => anyhow::Error::new(e).context("cannot write to stdout"),
    })
}

/// Writes a line to stdout.
pub(crate) fn line(line: &str) -> anyhow::Result<()> {
    text(&format!("{line}\n"))
}

/// Writes one JSON value on one line to stdout.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string(value)?)
}

/// Writes a piece of an answer to stdout. A model may say anything; what it says must not drive the terminal.
pub(crate) fn answer(piece: &str) -> anyhow::Result<()> {
    if environment::stdout_is_terminal() { text(&harmless(piece)) } else { text(piece) }
}

/// Writes a line for people to stderr. That nobody reads it is no reason to stop.
pub(crate) fn note(line: &str) {
    let _ = writeln!(stderr(), "{line}");
}

/// As [`note`], grey where there are colours.
pub(crate) fn aside(line: &str) {
    if environment::stderr_has_colours() { note(&format!("\x1b[2m{line}\x1b[0m")) } else { note(line) }
}

/// Writes the one line that says why the command failed.
pub(crate) fn error(error: &anyhow::Error) {
    let message = one_line(error);
    if environment::stderr_has_colours() {
        note(&format!("\x1b[1;31mmargay: error:\x1b[0m {message}"));
    } else {
        note(&format!("margay: error: {message}"));
    }
}

/// The chain of causes, joined by colons. Many errors repeat their cause in their own words; it is said once.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain() {
        let said = cause.to_string();
        if message.is_empty() {
            message = said;
        } else if !message.contains(&said) {
            message = format!("{message}: {said}");
        }
    }
    let lines: Vec<&str> = message.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    harmless(&lines.join(" ")).into_owned()
}

/// What stands in front of a line that a person types.
pub(crate) const PROMPT: &str = "> ";

/// Asks for a line. On stderr, so that stdout holds answers and nothing else.
pub(crate) fn prompt() {
    let mark = if environment::stderr_has_colours() { "\x1b[1;36m>\x1b[0m " } else { PROMPT };
    let _ = write!(stderr(), "{mark}");
}

/// A table whose last column holds words, which read better from the left; the others hold numbers.
pub(crate) fn table_of_words(header: &[&str], mut rows: Vec<Vec<String>>) -> String {
    let Some((words, numbers)) = header.split_last() else { return String::new() };
    let last = numbers.len();
    let lengths = rows.iter().filter_map(|row| row.get(last)).map(|cell| cell.chars().count());
    let width = lengths.chain([words.len()]).max().unwrap_or(0);
    for cell in rows.iter_mut().filter_map(|row| row.get_mut(last)) {
        *cell = format!("{cell:<width$}");
    }
    let words = format!("{words:<width$}");
    let header: Vec<&str> = numbers.iter().copied().chain([words.as_str()]).collect();
    table(&header, &rows)
}

/// Leaves the terminal as it was found: cursor shown, and the shell's prompt on a line of its own.
pub(crate) fn restore_terminal() {
    if environment::stderr_is_terminal() {
        // A progress line is wiped; half a line of an answer stays.
        let line = if progress::is_shown() { "\r\x1b[2K" } else { "\n" };
        let _ = write!(stderr(), "{line}\x1b[?25h");
    }
}

/// Text with its control characters (escape sequences begin with one) replaced; line ends and tabs stay.
pub(crate) fn harmless(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| c.is_control() && c != '\n' && c != '\t';
    if text.contains(harmful) { text.replace(harmful, "\u{fffd}").into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn a_cause_is_said_once_and_on_one_line() {
        let io = std::io::Error::other("no space\n  left");
        let repeated = anyhow::Error::new(io).context("cannot write x: no space\n  left");
        assert_eq!(one_line(&repeated), "cannot write x: no space left");
        assert_eq!(one_line(&anyhow!("inner").context("outer")), "outer: inner");
    }

    #[test]
    fn words_stand_to_the_left_and_numbers_to_the_right() {
        let rows = [["a", "1", "long word"], ["bc", "10", "w"]].map(|row| row.map(str::to_owned).to_vec());
        let text = table_of_words(&["x", "n", "why"], rows.to_vec());
        assert_eq!(text, "x    n  why\na    1  long word\nbc  10  w\n");
    }

    #[test]
    fn escape_sequences_lose_their_escape() {
        assert_eq!(harmless("a\x1b[2Jb\u{9b}c\n\td\r"), "a\u{fffd}[2Jb\u{fffd}c\n\td\u{fffd}");
        assert!(matches!(harmless("plain – ünïcode"), Cow::Borrowed(_)));
    }
}
