//! The prefix below which the system is read.

use crate::recording::{Recording, Tape};
use std::{
    io::Read,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

/// Files of /proc and /sys are small; reading more than this would mean that the prefix points elsewhere.
pub(crate) const MAX_FILE_BYTES: u64 = 4 << 20;

/// Names of one folder that are looked at; /proc itself has fewer on any machine that runs one model.
const MOST_NAMES: usize = 1 << 14;

/// A directory that stands for `/`. Tests and replays point it at a recorded tree.
#[derive(Clone, Debug)]
pub struct Root {
    tree: Tree,
    /// What is read goes here as well.
    tape: Option<Arc<Tape>>,
}

#[derive(Clone, Debug)]
enum Tree {
    Disk(PathBuf),
    /// A moment of a recording; the path is its name.
    Recorded(Arc<Recording>, usize, PathBuf),
}

impl Root {
    /// The tree below `prefix`.
    pub fn new(prefix: impl Into<PathBuf>) -> Self {
        Root { tree: Tree::Disk(prefix.into()), tape: None }
    }

    /// This machine's own tree.
    pub fn system() -> Self {
        Self::new("/")
    }

    /// The tree as it was at one moment of a recording.
    pub(crate) fn recorded(recording: Arc<Recording>, moment: usize) -> Self {
        let path = PathBuf::from(format!("recording/{moment:06}"));
        Root { tree: Tree::Recorded(recording, moment, path), tape: None }
    }

    /// The same tree; what is read of it from now on is noted on `tape`.
    pub(crate) fn with_tape(mut self, tape: Arc<Tape>) -> Self {
        self.tape = Some(tape);
        self
    }

    /// The prefix.
    pub fn path(&self) -> &Path {
        match &self.tree {
            Tree::Disk(path) | Tree::Recorded(_, _, path) => path,
        }
    }

    /// Text of the file at `relative` (no leading slash), at most 4 MiB of it; `None` where it cannot be read, which is
    /// what "unknown" means everywhere in this crate. A path that would leave the prefix cannot be read.
    pub fn read(&self, relative: &str) -> Option<String> {
        let bytes = self.read_bytes(relative);
        if let Some(tape) = &self.tape {
            tape.note(relative, bytes.as_deref());
        }
        Some(String::from_utf8_lossy(&bytes?).into_owned())
    }

    fn read_bytes(&self, relative: &str) -> Option<Vec<u8>> {
        if !stays_inside(relative) {
            return None;
        }
        match &self.tree {
            Tree::Disk(prefix) => {
                let file = std::fs::File::open(prefix.join(relative)).ok()?;
                let mut bytes = Vec::with_capacity(256);
                file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).ok()?;
                Some(bytes)
            }
            Tree::Recorded(recording, moment, _) => recording.content(relative, *moment).map(<[u8]>::to_vec),
        }
    }

    /// Names in the folder at `relative`, numbers in them by value (`cpu2` before `cpu10`); empty where there is none.
    pub fn list(&self, relative: &str) -> Vec<String> {
        if !stays_inside(relative) {
            return Vec::new();
        }
        let mut names: Vec<String> = match &self.tree {
            Tree::Disk(prefix) => {
                let entries = std::fs::read_dir(prefix.join(relative)).into_iter().flatten().flatten();
                entries.take(MOST_NAMES).filter_map(|e| e.file_name().into_string().ok()).collect()
            }
            Tree::Recorded(recording, moment, _) => recording.names(relative, *moment, MOST_NAMES),
        };
        names.sort_by(|a, b| natural(a).cmp(&natural(b)));
        if let Some(tape) = &self.tape {
            tape.note_names(relative, &names);
        }
        names
    }

    /// Why the file at `relative` tells nothing.
    pub fn why_unknown(&self, relative: &str) -> &'static str {
        use std::io::ErrorKind::{NotFound, PermissionDenied};
        match &self.tree {
            Tree::Recorded(recording, moment, _) => match recording.content(relative, *moment) {
                Some(_) => "holds no plausible value",
                None => "not in the recording",
            },
            Tree::Disk(prefix) => match std::fs::File::open(prefix.join(relative)).map(|f| f.take(1)) {
                Ok(mut file) => match file.read_to_end(&mut Vec::new()) {
                    Ok(_) => "holds no plausible value",
                    Err(_) => "the kernel refuses to read it",
                },
                Err(e) if e.kind() == NotFound => "no such file",
                Err(e) if e.kind() == PermissionDenied => "permission denied",
                Err(_) => "cannot be opened",
            },
        }
    }
}

impl PartialEq for Root {
    fn eq(&self, other: &Self) -> bool {
        match (&self.tree, &other.tree) {
            (Tree::Disk(a), Tree::Disk(b)) => a == b,
            (Tree::Recorded(a, m, _), Tree::Recorded(b, n, _)) => Arc::ptr_eq(a, b) && m == n,
            _ => false,
        }
    }
}

impl Eq for Root {}

impl Default for Root {
    fn default() -> Self {
        Self::system()
    }
}

/// True where `relative` names something below the prefix: files name other files (`/proc/self/cgroup`), and what a
/// recording says may be anything.
pub(crate) fn stays_inside(relative: &str) -> bool {
    !relative.is_empty()
        && !relative.contains('\0')
        && Path::new(relative).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
}

/// Pieces of a name that compare as people count.
fn natural(name: &str) -> (&str, Option<u64>, &str) {
    let digits = name.find(|c: char| c.is_ascii_digit()).unwrap_or(name.len());
    let (head, rest) = name.split_at(digits);
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    (head, rest[..end].parse().ok(), &rest[end..])
}

/// Value of the first `key: value` line, trimmed; `None` where the key or its value is missing.
pub(crate) fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let mut values = lines.filter(|(k, _)| k.trim() == key).map(|(_, v)| v.trim());
    values.next().filter(|v| !v.is_empty())
}

/// Bytes of a `key:   123 kB` line. The kernel's kB are 1024 bytes.
pub(crate) fn kib_field(text: &str, key: &str) -> Option<u64> {
    let number = field(text, key)?.strip_suffix("kB")?.trim();
    number.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_kib_fields_are_numbers() {
        let text = "VmHWM:\t  2048 kB\nVmRSS: 12 MB\nVmSwap:\nHuge: 99999999999999999999 kB\n";
        assert_eq!(kib_field(text, "VmHWM"), Some(2048 * 1024));
        assert_eq!(kib_field(text, "VmRSS"), None, "another unit is unknown");
        assert_eq!(kib_field(text, "VmSwap"), None);
        assert_eq!(kib_field(text, "Huge"), None);
        assert_eq!(kib_field(text, "HWM"), None, "part of a key is another key");
    }

    #[test]
    fn a_path_that_leaves_the_prefix_is_unknown() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("inside")).unwrap();
        std::fs::write(folder.path().join("outside"), "secret").unwrap();
        std::fs::write(folder.path().join("inside/file"), "1").unwrap();
        let root = Root::new(folder.path().join("inside"));
        assert_eq!(root.read("file").as_deref(), Some("1"));
        assert_eq!(root.read("./file").as_deref(), Some("1"));
        for path in ["../outside", "a/../../outside", "/etc/hostname", "", "a\0b"] {
            assert_eq!(root.read(path), None, "{path:?}");
            assert_eq!(root.list(path), [""; 0], "{path:?}");
        }
    }

    #[test]
    fn names_are_counted_as_people_count() {
        let mut names = ["cpu10", "cpu2", "cpufreq", "cpu1", "thermal_zone0"];
        names.sort_by(|a, b| natural(a).cmp(&natural(b)));
        assert_eq!(names, ["cpu1", "cpu2", "cpu10", "cpufreq", "thermal_zone0"]);
    }
}
