//! A bounded folder of what was computed once, for other processes.
//!
//! A file each, under a name that tells everything it depends on; it appears whole or not at all, carries a checksum, and one that
//! is damaged is removed and counts as absent. What was looked at longest ago goes first. Several processes may share a folder, and
//! it may hold other things, which stay.

use crate::{Error, digest::hexadecimal};
use margay_file::{FileError, SafeTensors, TensorSource, is_half_written, safetensors::write_safetensors};
use margay_observe::{modified, touch, unix_seconds};
use margay_tensor::{DType, Shape, Storage, Tensor};
use ring::digest::{Context, SHA256};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// Keys of the metadata: what is told, and the checksum of that and the parts.
const ABOUT: &str = "margay.about";
const CHECKSUM: &str = "margay.sha256";

/// A file that is half written and was not written to for so long was left by a process that was killed.
const HALF_WRITTEN: Duration = Duration::from_secs(3600);

/// A folder of files with names of one ending.
pub(crate) struct Folder {
    path: PathBuf,
    most_bytes: u64,
    ending: &'static str,
}

/// What a file holds.
pub(crate) struct Kept {
    /// What is told of it.
    pub(crate) about: String,
    file: SafeTensors,
}

impl Kept {
    /// A part of that name; `None` where there is none.
    pub(crate) fn part(&self, name: &str) -> Option<Tensor> {
        self.file.tensor(name).ok()
    }
}

impl Folder {
    /// Makes the folder where it is not there, for its owner alone: what was asked can be read from it. Names of its files end with
    /// `ending`.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be made.
    pub(crate) fn new(path: &Path, most_bytes: u64, ending: &'static str) -> Result<Self, Error> {
        let failed = |source| FileError::Io { action: "make the folder", path: path.to_owned(), source };
        let mut builder = fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.recursive(true).create(path).map_err(failed)?;
        Ok(Folder { path: path.to_owned(), most_bytes, ending })
    }

    /// Where the file of that name, its ending left out, lies.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}{}", self.ending))
    }

    /// Names of its files that begin so, their endings left out.
    pub(crate) fn names(&self, beginning: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.path) else { return vec![] };
        let name = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            let name = name.strip_suffix(self.ending)?;
            name.starts_with(beginning).then(|| name.to_owned())
        };
        entries.filter_map(|entry| name(entry.ok()?)).collect()
    }

    /// What a file holds, its parts unchecked: a hint. One that is no such file is removed.
    pub(crate) fn peek(&self, name: &str) -> Option<Kept> {
        let path = self.path(name);
        if !path.exists() {
            return None;
        }
        let read = || {
            let file = SafeTensors::open(&path).ok()?;
            Some(Kept { about: file.metadata().get(ABOUT)?.clone(), file })
        };
        let kept = read();
        if kept.is_none() {
            self.remove(name);
        }
        kept
    }

    /// What a file holds, where it is there and whole.
    pub(crate) fn read(&self, name: &str) -> Option<Kept> {
        let kept = self.peek(name)?;
        let sum = checksum_of(&kept);
        if sum.is_none() || kept.file.metadata().get(CHECKSUM) != sum.as_ref() {
            self.remove(name);
            return None;
        }
        self.looked_at(name);
        Some(kept)
    }

    /// Has a file count as looked at now.
    pub(crate) fn looked_at(&self, name: &str) {
        // The oldest go first.
        _ = touch(&self.path(name));
    }

    /// Removes a file; another process may have done so.
    pub(crate) fn remove(&self, name: &str) {
        _ = fs::remove_file(self.path(name));
    }

    /// Keeps parts under a name, and lets go of what was looked at longest ago where there is too much. What alone is larger than
    /// the bound is not kept, which is told by `false`.
    ///
    /// # Errors
    /// [`Error::File`] where the disk refuses.
    pub(crate) fn keep(&self, name: &str, about: &str, parts: &[(&str, &[u8])]) -> Result<bool, Error> {
        let bytes: u64 = parts.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        if bytes > self.most_bytes {
            return Ok(false);
        }
        let tensor = |bytes: &[u8]| {
            Tensor::new(DType::U8, Shape::from([bytes.len()]), Storage::from_bytes(bytes))
                .expect("invariant: as many bytes as bytes")
        };
        let tensors: Vec<(&str, Tensor)> = parts.iter().map(|(name, bytes)| (*name, tensor(bytes))).collect();
        let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let metadata = BTreeMap::from([
            (ABOUT.to_owned(), about.to_owned()),
            (CHECKSUM.to_owned(), checksum(about, parts.iter().copied())),
        ]);
        write_safetensors(self.path(name), &named, &metadata)?;
        self.make_room();
        Ok(true)
    }

    /// Another process may do the same: a file that is gone is no matter. What a killed process left half written goes once nobody
    /// can be at it any more.
    fn make_room(&self) {
        let Ok(entries) = fs::read_dir(&self.path) else { return };
        let now = Duration::from_secs(unix_seconds());
        let mut half_written = 0;
        let mut files: Vec<(Duration, u64, PathBuf)> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let name = entry.file_name();
                let name = name.to_str()?;
                let half = is_half_written(name);
                let ours = half || name.ends_with(self.ending);
                let about = entry.metadata().ok().filter(|about| ours && about.is_file())?;
                let time = modified(&about)?;
                if half {
                    let left =
                        now.saturating_sub(time) > HALF_WRITTEN && fs::remove_file(entry.path()).is_ok();
                    // One that is being written counts, and stays.
                    half_written += if left { 0 } else { about.len() };
                    return None;
                }
                Some((time, about.len(), entry.path()))
            })
            .collect();
        let mut all: u64 = half_written + files.iter().map(|(_, bytes, _)| bytes).sum::<u64>();
        files.sort();
        for (_, bytes, path) in files {
            if all <= self.most_bytes {
                return;
            }
            if fs::remove_file(&path).is_ok() {
                all -= bytes;
            }
        }
    }
}

fn checksum_of(kept: &Kept) -> Option<String> {
    let mut parts = vec![];
    for (name, _) in kept.file.tensors() {
        parts.push((name, kept.part(name)?));
    }
    Some(checksum(&kept.about, parts.iter().map(|(name, tensor)| (*name, tensor.bytes()))))
}

/// Of what is told and of the parts, whatever their order.
fn checksum<'p>(about: &str, parts: impl Iterator<Item = (&'p str, &'p [u8])>) -> String {
    let mut parts: Vec<_> = parts.collect();
    parts.sort();
    let mut context = Context::new(&SHA256);
    for bytes in std::iter::once(about.as_bytes()).chain(parts.iter().flat_map(|(n, b)| [n.as_bytes(), *b])) {
        context.update(&(bytes.len() as u64).to_le_bytes());
        context.update(bytes);
    }
    hexadecimal(context)
}
