//! Answers kept as they come, so that a killed run goes on.

use crate::{EvalError, read};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    fs::{File, OpenOptions, TryLockError},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// Bytes of a record at most: a hundred thousand long answers.
const MAX_RECORD_BYTES: u64 = 1 << 30;

/// First field of a record's first line.
const MAGIC: &str = "margay-answers-1";

/// Whose answers a record holds. Answers of one header may be mixed, of two never.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Name of the suite.
    pub suite: String,
    /// Its questions and truths.
    pub suite_digest: String,
    /// Name the model gives itself.
    pub model: String,
    /// Its weights.
    pub model_digest: String,
    /// How it was loaded, where that changes what it computes.
    pub options: String,
    /// Tokens of an answer at most.
    pub max_tokens: usize,
}

#[derive(Serialize, Deserialize)]
struct FirstLine {
    format: String,
    #[serde(flatten)]
    header: Header,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Name of the question.
    pub id: String,
    /// What was answered; `None` where the question could not be asked.
    pub answer: Option<String>,
    /// Why it could not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Tokens of the answer.
    #[serde(default)]
    pub tokens: usize,
}

/// Answers by question, in memory and, where it has a file, on the disk as soon as they are there: one JSON object a line,
/// the header first. A record is the one file that grows: a line that a kill cut off is dropped when it is opened again.
#[derive(Debug, Default)]
pub struct Record {
    entries: HashMap<String, Entry>,
    file: Option<(File, PathBuf)>,
}

impl Record {
    /// Answers that live as long as the process.
    pub fn in_memory() -> Self {
        Record::default()
    }

    /// Opens a record to go on with it, or begins one.
    ///
    /// # Errors
    /// [`EvalError::OtherRecord`] where it holds answers of another model, suite or setting, [`EvalError::Content`] where it
    /// is no record, [`EvalError::Io`] where it cannot be written or another process writes it.
    pub fn open(path: &Path, header: &Header) -> Result<Self, EvalError> {
        let failed = |e| EvalError::io("open", path, e);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            // A file system without locks is no reason to refuse.
            Ok(()) | Err(TryLockError::Error(_)) => {}
            Err(TryLockError::WouldBlock) => {
                let busy =
                    std::io::Error::new(std::io::ErrorKind::ResourceBusy, "another process is writing it");
                return Err(failed(busy));
            }
        }
        let text = read::text_file(path, MAX_RECORD_BYTES)?;
        // A line that a kill cut off has no end.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let mut lines = text[..whole].lines().enumerate();
        let mut record = Record::default();
        let start = format!("{{\"format\":\"{MAGIC}\"");
        match lines.next() {
            None if !(text.starts_with(&start) || start.starts_with(&text)) => {
                return Err(no_record(path, 1, "it has no whole line"));
            }
            None => {
                file.set_len(0).map_err(failed)?;
                let first = FirstLine { format: MAGIC.to_owned(), header: header.clone() };
                record.file = Some((file, path.to_owned()));
                record.write(&first)?;
                return Ok(record);
            }
            Some((_, line)) => {
                let first: FirstLine =
                    serde_json::from_str(line).map_err(|e| no_record(path, 1, &read::because(&e)))?;
                if first.format != MAGIC {
                    return Err(no_record(path, 1, &format!("its format is {:?}", first.format)));
                }
                same(path, &first.header, header)?;
            }
        }
        for (at, line) in lines {
            let entry: Entry =
                serde_json::from_str(line).map_err(|e| no_record(path, at + 1, &read::because(&e)))?;
            record.entries.insert(entry.id.clone(), entry);
        }
        file.set_len(whole as u64).and_then(|()| file.seek(SeekFrom::End(0))).map_err(failed)?;
        record.file = Some((file, path.to_owned()));
        Ok(record)
    }

    /// The answer to that question.
    pub fn get(&self, id: &str) -> Option<&Entry> {
        self.entries.get(id)
    }

    /// Keeps an answer.
    ///
    /// # Errors
    /// [`EvalError::Io`] where it cannot be written.
    pub fn add(&mut self, entry: Entry) -> Result<(), EvalError> {
        self.write(&entry)?;
        self.entries.insert(entry.id.clone(), entry);
        Ok(())
    }

    fn write(&mut self, line: &impl Serialize) -> Result<(), EvalError> {
        let Some((file, path)) = &mut self.file else { return Ok(()) };
        let mut bytes = serde_json::to_vec(line).map_err(|e| EvalError::io("write", path, e.into()))?;
        bytes.push(b'\n');
        // One call a line: a kill cuts at most the last.
        file.write_all(&bytes).map_err(|e| EvalError::io("write", path, e))
    }
}

fn no_record(path: &Path, line: usize, what: &str) -> EvalError {
    EvalError::content(path, Some(line), format!("this is no record of answers: {what}; give another file"))
}

fn same(path: &Path, found: &Header, expected: &Header) -> Result<(), EvalError> {
    let fields = |h: &Header| {
        [
            ("suite", h.suite.clone()),
            ("model", h.model.clone()),
            ("weights of the model", h.model_digest.clone()),
            ("questions of the suite", h.suite_digest.clone()),
            ("settings", h.options.clone()),
            ("limit of an answer", format!("{} tokens", h.max_tokens)),
        ]
    };
    for ((field, found), (_, expected)) in fields(found).into_iter().zip(fields(expected)) {
        if found != expected {
            return Err(EvalError::OtherRecord {
                path: path.to_owned(),
                field: field.to_owned(),
                found,
                expected,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let text = str::to_owned;
        Header {
            suite: text("nano"),
            suite_digest: text("aa"),
            model: text("m"),
            model_digest: text("bb"),
            options: text("cpu"),
            max_tokens: 8,
        }
    }

    fn entry(id: &str) -> Entry {
        Entry { id: id.to_owned(), answer: Some(format!("answer to {id}\n")), why: None, tokens: 3 }
    }

    #[test]
    fn a_killed_run_goes_on_behind_its_last_whole_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let mut record = Record::open(&path, &header()).unwrap();
        record.add(entry("1")).unwrap();
        record.add(entry("2")).unwrap();
        drop(record);
        let whole = std::fs::read(&path).unwrap();
        for cut in 1..25 {
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let mut record = Record::open(&path, &header()).unwrap();
            assert_eq!((record.get("1"), record.get("2")), (Some(&entry("1")), None));
            record.add(entry("2")).unwrap();
            drop(record);
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
        // Cut within its first line, it begins anew.
        std::fs::write(&path, &whole[..20]).unwrap();
        assert!(Record::open(&path, &header()).unwrap().get("1").is_none());
    }

    #[test]
    fn answers_of_another_model_suite_or_setting_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        drop(Record::open(&path, &header()).unwrap());
        let refused = |change: &dyn Fn(&mut Header)| {
            let mut other = header();
            change(&mut other);
            Record::open(&path, &other).unwrap_err().to_string()
        };
        assert!(
            refused(&|h| h.model_digest = "cc".into()).contains("another weights of the model (bb, not cc)")
        );
        assert!(refused(&|h| h.suite = "gqa".into()).contains("another suite (nano, not gqa)"));
        assert!(refused(&|h| h.suite_digest = "x".into()).contains("questions of the suite"));
        assert!(refused(&|h| h.options = "x".into()).contains("settings"));
        assert!(refused(&|h| h.max_tokens = 9).contains("8 tokens, not 9 tokens"));
    }

    #[test]
    fn what_is_no_record_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        for text in ["some words", "some words\n", "{\"format\":\"x\"}\n", "{}\n"] {
            std::fs::write(&path, text).unwrap();
            let why = Record::open(&path, &header()).unwrap_err().to_string();
            assert!(why.contains("no record of answers"), "{why}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        let first = Record::open(&folder.path().join("b.jsonl"), &header()).unwrap();
        let second = Record::open(&folder.path().join("b.jsonl"), &header()).unwrap_err().to_string();
        assert!(second.contains("another process is writing it"), "{second}");
        drop(first);
    }
}
