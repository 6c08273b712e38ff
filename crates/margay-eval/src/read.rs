//! Files of benchmarks, read as hostile: capped, and with the line of a fault in its message.

use crate::EvalError;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use std::{
    fs::File,
    io::Read,
    path::{Component, Path, PathBuf},
};

/// Bytes of a question file. GQA's largest (train, all questions) has 1.2 GB and is nobody's test set; its test files
/// have at most 300 MB.
pub(crate) const MAX_QUESTIONS_BYTES: u64 = 1 << 29;

/// Bytes of a question file with its pictures inside (MMBench's has 30 MB).
pub(crate) const MAX_PICTURES_BYTES: u64 = 1 << 31;

/// A file's bytes.
pub(crate) fn bytes(path: &Path, most: u64) -> Result<Vec<u8>, EvalError> {
    let failed = |e| EvalError::io("read", path, e);
    let file = File::open(path).map_err(failed)?;
    let mut bytes = vec![];
    file.take(most + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > most {
        return Err(EvalError::TooLarge { path: path.to_owned(), most });
    }
    Ok(bytes)
}

/// A file's text, without a byte order mark.
///
/// # Errors
/// [`EvalError`] where it cannot be read, has more than `most` bytes or is not UTF-8.
pub fn text_file(path: &Path, most: u64) -> Result<String, EvalError> {
    let text = String::from_utf8(bytes(path, most)?).map_err(|e| {
        let before = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        EvalError::content(path, Some(line), "this is not UTF-8 text")
    })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

/// A file that holds one JSON value.
pub(crate) fn json<T: DeserializeOwned>(path: &Path) -> Result<T, EvalError> {
    let text = text_file(path, MAX_QUESTIONS_BYTES)?;
    serde_json::from_str(&text).map_err(|e| EvalError::content(path, Some(e.line()), because(&e)))
}

/// A file with one JSON value a line; blank lines are passed over. With the number of each line.
pub(crate) fn json_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<(usize, T)>, EvalError> {
    let text = text_file(path, MAX_QUESTIONS_BYTES)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(at, line)| {
            let value = serde_json::from_str(line);
            Ok((at + 1, value.map_err(|e| EvalError::content(path, Some(at + 1), because(&e)))?))
        })
        .collect()
}

/// What serde says, without the place, which the message has already.
pub(crate) fn because(error: &serde_json::Error) -> String {
    let said = error.to_string();
    match said.rfind(" at line ") {
        Some(at) => said[..at].to_owned(),
        None => said,
    }
}

/// The path of a picture that a file names: within `folder`, whatever the file says.
pub(crate) fn picture(folder: &Path, name: &str) -> Result<PathBuf, String> {
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    let path = Path::new(name);
    if name.is_empty() || !path.components().all(plain) {
        return Err(format!("{name:?} is no picture below {}", folder.display()));
    }
    Ok(folder.join(path))
}

/// An id that some files write as a number and some as a text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id(pub String);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "an id is a number or a text")]
        enum Either {
            Number(u64),
            Text(String),
        }
        Ok(Id(match Either::deserialize(from)? {
            Either::Number(number) => number.to_string(),
            Either::Text(text) => text,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_told_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("questions.jsonl");
        std::fs::write(&path, "\u{feff}{\"a\": 1}\n\n[2\n").unwrap();
        let error = json_lines::<serde_json::Value>(&path).unwrap_err().to_string();
        assert!(error.contains("questions.jsonl:3: EOF while parsing a list"), "{error}");
        assert!(!error.contains("at line"), "{error}");
        std::fs::write(&path, b"a\nb\xff").unwrap();
        assert!(text_file(&path, 100).unwrap_err().to_string().contains("jsonl:2: this is not UTF-8"));
        assert!(matches!(text_file(&path, 3), Err(EvalError::TooLarge { most: 3, .. })));
        assert!(text_file(Path::new("no-such"), 3).unwrap_err().to_string().contains("cannot read no-such"));
    }

    #[test]
    fn a_picture_lies_below_its_folder() {
        let folder = Path::new("data/images");
        assert_eq!(picture(folder, "a/b.jpg").unwrap(), Path::new("data/images/a/b.jpg"));
        for name in ["", "/etc/passwd", "../x.jpg", "a/../../x.jpg"] {
            assert!(picture(folder, name).unwrap_err().contains("is no picture below data/images"));
        }
    }
}
