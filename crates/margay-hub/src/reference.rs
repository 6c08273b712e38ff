//! How a model on a hub is named.

use crate::HubError;
use std::{fmt, str::FromStr};

/// A model on a hub: `OWNER/REPO`, with `@REVISION` and `:FILE` where they are given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelRef {
    /// `OWNER/REPO`
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// A file of the repository, or a part of a GGUF file's name that no other has.
    pub file: Option<String>,
}

/// The branch that is meant where none is named.
const MAIN: &str = "main";

impl FromStr for ModelRef {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let wrong = |why| HubError::Reference { text: text.to_owned(), why };
        let (name, file) = match text.split_once(':') {
            Some((name, file)) => (name, Some(file)),
            None => (text, None),
        };
        let (repo, revision) = name.split_once('@').unwrap_or((name, MAIN));
        let parts: Vec<&str> = repo.split('/').collect();
        if parts.len() != 2 || !parts.iter().all(|part| is_plain(part)) {
            return Err(wrong("names no repository"));
        }
        if !revision.split('/').all(is_plain) {
            return Err(wrong("names no revision"));
        }
        if file.is_some_and(|file| !is_inside(file)) {
            return Err(wrong("names no file of the repository"));
        }
        let file = file.map(str::to_owned);
        Ok(ModelRef { repo: repo.to_owned(), revision: revision.to_owned(), file })
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if self.revision != MAIN {
            write!(f, "@{}", self.revision)?;
        }
        self.file.iter().try_for_each(|file| write!(f, ":{file}"))
    }
}

/// A part of a path or address that means nothing else to a file system or a server.
pub(crate) fn is_plain(part: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || "-_.+= ".contains(c);
    !part.is_empty()
        && part.len() <= 128
        && part.chars().all(known)
        && !part.chars().all(|c| c == '.' || c == ' ')
}

/// A path below a repository.
pub(crate) fn is_inside(path: &str) -> bool {
    path.split('/').all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        let read = |text: &str| text.parse::<ModelRef>().unwrap();
        let model = read("mtgv/MobileVLM_V2-1.7B");
        assert_eq!(
            (model.repo.as_str(), model.revision.as_str(), model.file),
            ("mtgv/MobileVLM_V2-1.7B", "main", None)
        );
        let model = read("a/b@refs/pr/3:sub/x.gguf");
        assert_eq!((model.revision.as_str(), model.file.as_deref()), ("refs/pr/3", Some("sub/x.gguf")));
        for text in ["a/b", "a/b@v1", "a/b:q4_k.gguf", "a/b@v1:x"] {
            assert_eq!(read(text).to_string(), text);
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for text in [
            "",
            "a",
            "a/b/c",
            "../b",
            "a/..",
            "a/b:../x",
            "a/b:/etc/passwd",
            "a/b@../x",
            "a/b:",
            "a/b@",
            "a/b:x//y",
            "a\\b/c",
            "a/b:x?y",
            "a/b:x#y",
            "a/b:x%2e",
            "a/b:c:d",
            "a/b:.. ",
            "a/b:\n",
        ] {
            assert!(text.parse::<ModelRef>().is_err(), "{text:?}");
        }
    }
}
