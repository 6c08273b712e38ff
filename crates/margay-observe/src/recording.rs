//! Recorded trees: what the samplers read, over time.
//!
//! A recording is a tar file, or a folder with the same names: `recording.json` says of what, and each sample is a folder
//! `000000`, `000001`, ... with a `moment.json` (when, and which files are gone) and the files that changed since the sample
//! before, under their paths. Characters of a path other than letters, digits and `._+@,-` are written `%3A`. Nothing is
//! unpacked onto a disk, and what is read is hostile: everything is capped.

use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::root::stays_inside;

/// Greatest recording, as a file and as the sum of its contents.
pub const MOST_BYTES: u64 = 256 << 20;
/// Greatest file within one.
const MOST_FILE_BYTES: u64 = 1 << 20;
/// Most files within one, each version counted: what a file costs in memory besides its bytes.
const MOST_ENTRIES: usize = 2_000_000;
/// Most samples: 27 hours at ten a second.
const MOST_MOMENTS: usize = 1_000_000;
/// Longest path.
const MOST_PATH_BYTES: usize = 512;
/// Most folders deep: /sys has paths of about twelve.
const MOST_DEPTH: usize = 32;

const ABOUT: &str = "recording.json";
const MOMENT: &str = "moment.json";

/// Why a recording cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordingError {
    /// Reading or writing failed.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// It is no recording, or one that somebody made to do harm.
    #[error("not a recording of `margay observe record`: {what}")]
    Malformed {
        /// What is wrong, and where.
        what: String,
    },
    /// It is larger than any honest one.
    #[error("the recording has {what}, more than the {most} that are read; record for a shorter time")]
    TooLarge {
        /// Of what there is too much.
        what: String,
        /// The cap.
        most: u64,
    },
}

/// What a recording is of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// Version of the format: 1.
    pub margay_recording: u32,
    /// The machine, for people.
    pub machine: Option<String>,
    /// The watched process: `self`, a number, or nothing.
    pub process: Option<String>,
    /// Seconds between samples, as planned.
    pub period_seconds: f64,
}

/// Head of a sample.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    at_seconds: f64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    gone: Vec<String>,
}

/// Versions of a file: from which sample on, and what it held; `None` where it was gone.
type Versions = Vec<(usize, Option<Box<[u8]>>)>;

/// A recorded tree, in memory.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    about: About,
    moments: Vec<Duration>,
    files: BTreeMap<String, Versions>,
}

impl Recording {
    /// Reads a recording: a tar file or a folder.
    ///
    /// # Errors
    /// [`RecordingError`] where it cannot be read, is no recording, or is larger than 256 MiB.
    pub fn open(path: &Path) -> Result<Self, RecordingError> {
        let failed = |source| RecordingError::Io { doing: format!("read {}", path.display()), source };
        if std::fs::metadata(path).map_err(failed)?.is_dir() {
            return Self::from_folder(path);
        }
        Self::from_tar(std::fs::File::open(path).map_err(failed)?)
    }

    /// Reads a recording's tar file.
    ///
    /// # Errors
    /// As [`Recording::open`].
    pub fn from_tar(file: impl Read) -> Result<Self, RecordingError> {
        let failed = |source: std::io::Error| match source.kind() {
            // The reader's messages quote what it read, which may be anything.
            ErrorKind::Other | ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
                malformed("it is no whole tar file")
            }
            _ => RecordingError::Io { doing: "read the tar file".to_owned(), source },
        };
        // A longer file ends early, and is noticed by that.
        let mut archive = tar::Archive::new(file.take(MOST_BYTES));
        let mut loading = Loading::default();
        for entry in archive.entries().map_err(failed)? {
            let mut entry = entry.map_err(failed)?;
            let kind = entry.header().entry_type();
            let path = entry.path_bytes();
            let path =
                std::str::from_utf8(&path).map_err(|_| malformed("a name that is no UTF-8"))?.to_owned();
            if kind.is_dir() || kind.is_pax_global_extensions() {
                continue;
            }
            if !kind.is_file() {
                return Err(malformed(format!("{path:?} is neither a file nor a folder")));
            }
            loading.add(&path, &mut entry)?;
        }
        loading.finish()
    }

    fn from_folder(folder: &Path) -> Result<Self, RecordingError> {
        let mut loading = Loading::default();
        let mut pending = vec![(folder.to_owned(), String::new(), 0)];
        while let Some((folder, below, depth)) = pending.pop() {
            let failed = |source| RecordingError::Io { doing: format!("read {}", folder.display()), source };
            let mut entries: Vec<_> =
                std::fs::read_dir(&folder).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
            entries.sort_by_key(std::fs::DirEntry::file_name);
            for entry in entries {
                let name =
                    entry.file_name().into_string().map_err(|_| malformed("a name that is no UTF-8"))?;
                let path = if below.is_empty() { name } else { format!("{below}/{name}") };
                let kind = entry.file_type().map_err(failed)?;
                if kind.is_dir() && depth < MOST_DEPTH {
                    pending.push((entry.path(), path, depth + 1));
                } else if kind.is_file() {
                    if path.contains('/') || path == ABOUT {
                        loading.add(&path, &mut std::fs::File::open(entry.path()).map_err(failed)?)?;
                    }
                } else {
                    return Err(malformed(format!("{path:?} is neither a file nor a folder")));
                }
            }
        }
        loading.finish()
    }

    /// What it is of.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// When its samples were taken.
    pub fn moments(&self) -> &[Duration] {
        &self.moments
    }

    /// Every path it holds.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// The same recording with another content of a file, at all times; for tests of hostile machines.
    pub fn with_content(mut self, path: &str, content: &[u8]) -> Self {
        self.files.insert(path.to_owned(), vec![(0, Some(content.into()))]);
        self
    }

    /// What a file held at a moment.
    pub(crate) fn content(&self, path: &str, moment: usize) -> Option<&[u8]> {
        version(self.files.get(path.trim_start_matches("./"))?, moment)
    }

    /// Names in a folder at a moment.
    pub(crate) fn names(&self, folder: &str, moment: usize, most: usize) -> Vec<String> {
        let start = format!("{}/", folder.trim_start_matches("./").trim_end_matches('/'));
        let mut names: Vec<String> = Vec::new();
        for (path, versions) in self.files.range(start.clone()..) {
            let Some(below) = path.strip_prefix(&start) else { break };
            let name = below.split('/').next().unwrap_or_default();
            if names.last().is_none_or(|last| last != name) && version(versions, moment).is_some() {
                names.push(name.to_owned());
                if names.len() == most {
                    break;
                }
            }
        }
        names
    }
}

fn version(versions: &Versions, moment: usize) -> Option<&[u8]> {
    let later = versions.partition_point(|(from, _)| *from <= moment);
    versions.get(later.checked_sub(1)?)?.1.as_deref()
}

/// A recording while it is read; files come in any order.
#[derive(Default)]
struct Loading {
    about: Option<About>,
    heads: BTreeMap<usize, Head>,
    files: BTreeMap<String, Versions>,
    bytes: u64,
    entries: usize,
}

impl Loading {
    fn add(&mut self, path: &str, content: &mut dyn Read) -> Result<(), RecordingError> {
        if path.len() > MOST_PATH_BYTES || path.split('/').count() > MOST_DEPTH {
            return Err(malformed(format!("a path of {} bytes", path.len())));
        }
        self.entries += 1;
        if self.entries > MOST_ENTRIES {
            let (what, most) = ("too many files".to_owned(), MOST_ENTRIES as u64);
            return Err(RecordingError::TooLarge { what, most });
        }
        let mut bytes = Vec::new();
        let failed = |source| RecordingError::Io { doing: format!("read {path:?}"), source };
        content.take(MOST_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > MOST_FILE_BYTES {
            let what = format!("a file {path:?} of more bytes");
            return Err(RecordingError::TooLarge { what, most: MOST_FILE_BYTES });
        }
        self.bytes += (bytes.len() + path.len()) as u64;
        if self.bytes > MOST_BYTES {
            return Err(RecordingError::TooLarge { what: "more bytes".to_owned(), most: MOST_BYTES });
        }
        let json = |e: serde_json::Error| malformed(format!("{path:?}: {e}"));
        if path == ABOUT {
            self.about = Some(serde_json::from_slice(&bytes).map_err(json)?);
            return Ok(());
        }
        let (moment, below) =
            path.split_once('/').ok_or_else(|| malformed(format!("{path:?} lies in no sample")))?;
        let moment: usize = moment.parse().map_err(|_| malformed(format!("{path:?} lies in no sample")))?;
        if moment >= MOST_MOMENTS {
            let (what, most) = ("more samples".to_owned(), MOST_MOMENTS as u64);
            return Err(RecordingError::TooLarge { what, most });
        }
        if below == MOMENT {
            self.heads.insert(moment, serde_json::from_slice(&bytes).map_err(json)?);
            return Ok(());
        }
        let below = unescape(below).filter(|below| stays_inside(below));
        let below = below.ok_or_else(|| malformed(format!("{path:?} is no path below a root")))?;
        self.files.entry(below).or_default().push((moment, Some(bytes.into())));
        Ok(())
    }

    fn finish(mut self) -> Result<Recording, RecordingError> {
        let about = self.about.ok_or_else(|| malformed(format!("it has no {ABOUT}")))?;
        if about.margay_recording != 1 {
            let version = about.margay_recording;
            return Err(malformed(format!("its version is {version}, this program reads version 1")));
        }
        let mut moments = Vec::with_capacity(self.heads.len());
        for (expected, (moment, head)) in std::mem::take(&mut self.heads).into_iter().enumerate() {
            let at = Duration::try_from_secs_f64(head.at_seconds).ok().filter(|at| at.as_secs() < 1 << 32);
            let at =
                at.ok_or_else(|| malformed(format!("sample {moment} was taken at {} s", head.at_seconds)))?;
            if moment != expected || moments.last().is_some_and(|last| *last > at) {
                return Err(malformed(format!("sample {expected} is missing or out of order")));
            }
            moments.push(at);
            for path in head.gone {
                self.files.entry(path).or_default().push((moment, None));
            }
        }
        if moments.is_empty() {
            return Err(malformed("it has no sample"));
        }
        for (path, versions) in &mut self.files {
            versions.sort_by_key(|(moment, _)| *moment);
            if versions.windows(2).any(|pair| pair[0].0 == pair[1].0) {
                return Err(malformed(format!("{path:?} stands twice in a sample")));
            }
        }
        Ok(Recording { about, moments, files: self.files })
    }
}

fn malformed(what: impl Into<String>) -> RecordingError {
    RecordingError::Malformed { what: what.into() }
}

/// Notes what is read below a root, to tell what changed.
#[derive(Debug, Default)]
pub(crate) struct Tape(Mutex<Notes>);

#[derive(Debug, Default)]
struct Notes {
    known: BTreeMap<String, Vec<u8>>,
    changed: BTreeMap<String, Option<Vec<u8>>>,
}

impl Tape {
    /// Notes the content of a file that was read, or that it could not be.
    pub(crate) fn note(&self, path: &str, content: Option<&[u8]>) {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.known.get(path).map(Vec::as_slice) == content {
            return;
        }
        notes.changed.insert(path.to_owned(), content.map(<[u8]>::to_vec));
        match content {
            Some(content) => notes.known.insert(path.to_owned(), content.to_vec()),
            None => notes.known.remove(path),
        };
    }

    /// Notes the names in a folder: what was known below another is gone.
    pub(crate) fn note_names(&self, folder: &str, names: &[String]) {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let start = format!("{folder}/");
        let below = notes.known.range(start.clone()..).map(|(path, _)| path);
        let below = below.take_while(|path| path.starts_with(&start));
        let name = |path: &str| path[start.len()..].split('/').next().unwrap_or_default().to_owned();
        let gone: Vec<String> = below.filter(|path| !names.contains(&name(path))).cloned().collect();
        for path in gone {
            notes.known.remove(&path);
            notes.changed.insert(path, None);
        }
    }

    fn take(&self) -> BTreeMap<String, Option<Vec<u8>>> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).changed)
    }
}

/// Writes a recording as a tar file.
pub(crate) struct TapeWriter<W: Write> {
    tar: tar::Builder<W>,
    moments: usize,
    bytes: u64,
    most: u64,
}

impl<W: Write> TapeWriter<W> {
    pub(crate) fn new(out: W, about: &About, most: u64) -> Result<Self, RecordingError> {
        let mut writer =
            TapeWriter { tar: tar::Builder::new(out), moments: 0, bytes: 0, most: most.min(MOST_BYTES) };
        let about =
            serde_json::to_vec_pretty(about).map_err(std::io::Error::other).map_err(failed_to_write)?;
        writer.put(ABOUT, &about)?;
        Ok(writer)
    }

    /// Writes what changed; `false`, and nothing, where it would be too much.
    pub(crate) fn moment(&mut self, at: Duration, tape: &Tape) -> Result<bool, RecordingError> {
        let changed = tape.take();
        let gone = changed.iter().filter(|(_, content)| content.is_none()).map(|(path, _)| path.clone());
        // What was never there is not gone.
        let head = Head {
            at_seconds: at.as_secs_f64(),
            gone: if self.moments == 0 { vec![] } else { gone.collect() },
        };
        let head = serde_json::to_vec(&head).map_err(std::io::Error::other).map_err(failed_to_write)?;
        // A tar file has a head of 512 bytes for each file, and fills up to such blocks.
        let size = |bytes: &[u8]| 1024 + bytes.len() as u64;
        let all = changed.values().flatten().map(|content| size(content)).sum::<u64>() + size(&head);
        if self.bytes + all > self.most {
            return Ok(false);
        }
        let folder = format!("{:06}", self.moments);
        self.put(&format!("{folder}/{MOMENT}"), &head)?;
        for (path, content) in &changed {
            if let Some(content) = content {
                let most = content.len().min(MOST_FILE_BYTES as usize);
                self.put(&format!("{folder}/{}", escape(path)), &content[..most])?;
            }
        }
        self.bytes += all;
        self.moments += 1;
        Ok(true)
    }

    fn put(&mut self, path: &str, content: &[u8]) -> Result<(), RecordingError> {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        self.tar.append_data(&mut header, path, content).map_err(failed_to_write)
    }

    pub(crate) fn moments(&self) -> usize {
        self.moments
    }

    pub(crate) fn finish(self) -> Result<W, RecordingError> {
        self.tar.into_inner().map_err(failed_to_write)
    }
}

fn failed_to_write(source: std::io::Error) -> RecordingError {
    RecordingError::Io { doing: "write the recording".to_owned(), source }
}

/// A path in the characters that every file system takes.
pub(crate) fn escape(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._+@,-/".contains(&b);
    path.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// The path that was escaped; `None` of what no path escapes to.
pub(crate) fn unescape(name: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        if *byte == b'%' {
            let (hex, tail) = tail.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
            rest = tail;
        } else {
            bytes.push(*byte);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_survive_their_escape() {
        for path in ["proc/stat", "sys/class/powercap/intel-rapl:0:1/energy_uj", "a b/ü%3A"] {
            let name = escape(path);
            assert!(name.is_ascii() && !name.contains([':', ' ']), "{name}");
            assert_eq!(unescape(&name).as_deref(), Some(path));
        }
        for name in ["%", "%4", "%zz", "%ff", "%+4"] {
            assert!(unescape(name).is_none() || name == "%+4", "{name}");
        }
    }

    #[test]
    fn a_file_is_as_it_was_last_and_a_folder_lists_what_is_there() {
        let versions = |list: &[(usize, Option<&str>)]| {
            list.iter().map(|(from, text)| (*from, text.map(|text| text.as_bytes().into()))).collect()
        };
        let files = BTreeMap::from([
            ("a/1/x".to_owned(), versions(&[(0, Some("old")), (2, Some("new"))])),
            ("a/1/y".to_owned(), versions(&[(0, Some("y"))])),
            ("a/2/x".to_owned(), versions(&[(1, Some("x")), (3, None)])),
            ("ab/3/x".to_owned(), versions(&[(0, Some("x"))])),
        ]);
        let recording = Recording { files, ..Recording::default() };
        assert_eq!(recording.content("a/1/x", 1), Some(&b"old"[..]));
        assert_eq!(recording.content("a/1/x", 9), Some(&b"new"[..]));
        assert_eq!((recording.content("a/2/x", 0), recording.content("a/2/x", 3)), (None, None));
        let names = [0, 1, 2, 3].map(|moment| recording.names("a", moment, 10).join(" "));
        assert_eq!(names, ["1", "1 2", "1 2", "1"]);
    }
}
