//! Files as bytes: mapped where they are large, read where they are small. The only unsafe code of this crate.
#![allow(unsafe_code, reason = "mapping a file is unsafe; this file wraps it once")]

use std::{fs::File, io::Read, ops::Range, path::Path, sync::Arc};

use margay_tensor::{Owner, Storage};
use memmap2::Mmap;

use crate::FileError;

/// Maps a file into memory, read-only. Pages are read when they are touched and can be dropped again, so that a model
/// larger than the memory can be opened. An empty file gives empty bytes.
///
/// The file must not be changed while it is mapped; files that this crate writes are replaced as a whole (rename), so
/// that a mapping of the former file stays intact. For a file that others may truncate, use [`read_file`].
///
/// # Errors
/// [`FileError::Io`] where it cannot be opened or is no regular file.
pub fn map_file(path: &Path) -> Result<Storage, FileError> {
    Ok(match map(path)? {
        Some(map) => Storage::from_owner(Arc::new(Mapped(map))),
        None => Storage::from_bytes(&[]),
    })
}

/// As [`map_file`], for a file that is read from end to end again and again: in huge pages, where the system keeps it in
/// such. With pages of 4 KiB, decoding from a file is about a sixth slower.
///
/// # Errors
/// As [`map_file`].
pub(crate) fn map_file_in_huge_pages(path: &Path) -> Result<Storage, FileError> {
    let Some(map) = map(path)? else { return Ok(Storage::from_bytes(&[])) };
    // For the whole file at once: a huge page on the border of what is advised would be mapped in small ones. A refusal
    // costs speed only.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(Storage::from_owner(Arc::new(Mapped(map))))
}

/// The mapped file, or `None` where it is empty.
fn map(path: &Path) -> Result<Option<Mmap>, FileError> {
    let file = open_regular(path)?;
    let len = file.metadata().map_err(|e| FileError::io("read the size of", path, e))?.len();
    if len == 0 {
        return Ok(None);
    }
    // SAFETY: `Mmap::map` asks that the file is neither truncated nor written while the mapping lives. Nothing in this
    // crate writes to an existing file: writers create a new file and rename it, which leaves the mapped one alone.
    // Other processes are the user's to keep away, as for every program that maps its models; the documentation above
    // says so and offers `read_file` for files of untrusted writers. If a file is truncated all the same, touching a
    // page beyond its new end raises SIGBUS, which ends the process: no memory of ours is exposed or corrupted. If it
    // is overwritten, numbers change; everything that indexes memory (lengths, offsets, shapes) was copied out of the
    // mapping and checked when the file was opened, and text is checked to be UTF-8 each time it is handed out.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| FileError::io("map", path, e))?;
    Ok(Some(map))
}

/// A file mapped read-only.
struct Mapped(Mmap);

impl Owner for Mapped {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    #[cfg(unix)]
    fn release(&self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        // SAFETY: the mapping is shared and read-only: a page that is dropped comes back from the file unchanged.
        let dropped = unsafe {
            self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
        };
        // A system that refuses keeps the pages, as it may.
        let _ = dropped;
    }

    #[cfg(target_os = "linux")]
    fn prefetch(&self, range: Range<usize>) {
        // One call maps all pages, where touching them would cost a fault for every 16. An older system refuses, and the
        // pages come when they are touched.
        if !range.is_empty() {
            let _ = self.0.advise_range(memmap2::Advice::PopulateRead, range.start, range.len());
        }
    }
}

/// Reads a whole file into memory of our own, refusing one above `limit_bytes` before anything is allocated for it.
///
/// # Errors
/// [`FileError::Io`] where it cannot be read or is no regular file, [`FileError::TooLarge`] above the limit.
pub fn read_file(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, FileError> {
    let file = open_regular(path)?;
    let size_bytes = file.metadata().map_err(|e| FileError::io("read the size of", path, e))?.len();
    let too_large = |size_bytes| FileError::TooLarge { path: path.to_owned(), size_bytes, limit_bytes };
    if size_bytes > limit_bytes {
        return Err(too_large(size_bytes));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size_bytes).map_err(|_| too_large(size_bytes))?);
    // The file may grow between the two calls: read at most one byte more than allowed.
    let read = file.take(limit_bytes.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|e| FileError::io("read", path, e))?;
    if bytes.len() as u64 > limit_bytes {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(bytes)
}

/// Opens a regular file: a pipe or a device would block or never end.
fn open_regular(path: &Path) -> Result<File, FileError> {
    let kind = std::fs::metadata(path).map_err(|e| FileError::io("open", path, e))?;
    if !kind.is_file() {
        let why = std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is no regular file");
        return Err(FileError::io("open", path, why));
    }
    File::open(path).map_err(|e| FileError::io("open", path, e))
}

#[cfg(test)]
mod tests {
    #[cfg(target_os = "linux")]
    #[test]
    fn released_pages_leave_memory_and_come_back_unchanged() {
        let resident = || -> usize {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|l| l.starts_with("RssFile:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bytes");
        let bytes: Vec<u8> = (0..32_usize << 20).map(|i| (i / 4096 % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let map = super::map_file(&path).unwrap();
        assert!(map.as_bytes() == bytes);
        let full = resident();
        // From within a page to within another.
        map.slice(5000..30 << 20).unwrap().release();
        let less = resident();
        assert!(full > less + (28 << 20), "{full} bytes of files in memory, then {less}");
        assert!(map.as_bytes() == bytes);
    }
}
