//! The prefix below which the system is read.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

/// Files of /proc and /sys are small; reading more than this would mean that the prefix points elsewhere.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// A directory that stands for `/`. Tests and replays point it at a recorded tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// The tree below `prefix`.
    pub fn new(prefix: impl Into<PathBuf>) -> Self {
        Root(prefix.into())
    }

    /// This machine's own tree.
    pub fn system() -> Self {
        Self::new("/")
    }

    /// The prefix.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Text of the file at `relative` (no leading slash), at most 4 MiB of it; `None` where it cannot be read, which is
    /// what "unknown" means everywhere in this crate.
    pub fn read(&self, relative: &str) -> Option<String> {
        let file = std::fs::File::open(self.0.join(relative)).ok()?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Default for Root {
    fn default() -> Self {
        Self::system()
    }
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
}
