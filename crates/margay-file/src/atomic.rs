//! Files that appear whole or not at all, and that can go on where a killed process stopped.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use crc32fast::Hasher;
use tempfile::{NamedTempFile, TempPath};

use crate::{FileError, limits, read_file};

/// Bytes gathered before they are handed to the system.
const BUFFER_BYTES: usize = 1 << 20;

/// First word of a journal.
const JOURNAL_MAGIC: &str = "margay-journal-1";

/// A file under a temporary name in the target's folder. [`AtomicFile::commit`] gives it its name; dropped before
/// that, it is deleted and the target is as it was. A process that is killed leaves what it wrote: under a name that
/// nobody asks for again, or for [`AtomicFile::resume`] to go on with.
#[derive(Debug)]
pub(crate) struct AtomicFile {
    out: BufWriter<File>,
    temporary: TempPath,
    target: PathBuf,
    journal: Option<Journal>,
}

/// What is known of an unfinished file: `margay-journal-1 KEY`, then for each stretch of it a line with its end and
/// the checksum of its bytes.
#[derive(Debug)]
struct Journal {
    file: File,
    /// Deletes it in the end.
    _path: TempPath,
    /// Bytes since the last mark.
    hasher: Hasher,
    /// Bytes written.
    at: u64,
}

/// How temporary names begin and end.
const TEMPORARY: (&str, &str) = (".margay-", ".part");

/// Whether a file of that name is half written: by [`write_file`], or by a process that was killed in it.
pub fn is_half_written(name: &str) -> bool {
    name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1)
}

/// Writes a whole file, or leaves what was there.
///
/// # Errors
/// [`FileError::Io`] where it cannot be written.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut file = AtomicFile::create(path)?;
    file.write(bytes)?;
    file.commit()
}

impl AtomicFile {
    pub(crate) fn create(target: &Path) -> Result<Self, FileError> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(TEMPORARY.0).suffix(TEMPORARY.1);
        #[cfg(unix)]
        {
            // What `File::create` would give, less the user's umask; temporary files are private otherwise.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        if target.is_dir() {
            // Found now rather than after the work, when the file is to take this name.
            return Err(FileError::io("create", target, io::ErrorKind::IsADirectory.into()));
        }
        let folder = folder_of(target);
        let file =
            builder.tempfile_in(folder).map_err(|e| FileError::io("create", target, reason(folder, e)))?;
        let (file, temporary) = NamedTempFile::into_parts(file);
        Ok(AtomicFile {
            out: BufWriter::with_capacity(BUFFER_BYTES, file),
            temporary,
            target: target.to_owned(),
            journal: None,
        })
    }

    /// A file that is written in stretches, each ended by [`AtomicFile::mark`]. Where a process with the same `key` was
    /// killed, the stretches that it left are kept, as far as each is as its checksum says; their ends are given back,
    /// and writing goes on behind them. A file left under another key is written anew.
    pub(crate) fn resume(target: &Path, key: &str) -> Result<(Self, Vec<u64>), FileError> {
        if target.is_dir() {
            return Err(FileError::io("create", target, io::ErrorKind::IsADirectory.into()));
        }
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let beside = |ending: &str| target.with_file_name(format!(".{name}.margay-{ending}"));
        let (part, journal_path) = (beside("part"), beside("journal"));
        let open = |path: &Path| {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
            file.map_err(|e| FileError::io("create", target, reason(folder_of(target), e)))
        };
        let mut file = open(&part)?;
        hold(&file, &part, target)?;
        let failed = |e: io::Error| FileError::io("write", target, e);
        // Nobody else writes the journal: whoever does holds the file.
        let first_line = format!("{JOURNAL_MAGIC} {}\n", key.replace(['\n', '\r'], " "));
        let old = read_file(&journal_path, limits::MAX_JOURNAL_BYTES).unwrap_or_default();
        let old = String::from_utf8(old).unwrap_or_default();
        let told = old.strip_prefix(&first_line).unwrap_or_default();
        let (ends, told_bytes) = verified(&mut file, told).map_err(failed)?;
        let at = ends.last().copied().unwrap_or(0);
        file.set_len(at).and_then(|()| file.seek(SeekFrom::Start(at))).map_err(failed)?;

        let mut journal = open(&journal_path)?;
        let kept = if ends.is_empty() { 0 } else { first_line.len() + told_bytes };
        journal.set_len(kept as u64).and_then(|()| journal.seek(SeekFrom::End(0))).map_err(failed)?;
        if kept == 0 {
            journal.write_all(first_line.as_bytes()).map_err(failed)?;
        }
        let delete = |path| TempPath::try_from_path(path).map_err(failed);
        let journal = Journal { file: journal, _path: delete(journal_path)?, hasher: Hasher::new(), at };
        let resumed = AtomicFile {
            out: BufWriter::with_capacity(BUFFER_BYTES, file),
            temporary: delete(part)?,
            target: target.to_owned(),
            journal: Some(journal),
        };
        Ok((resumed, ends))
    }

    /// Ends a stretch of a file that [`AtomicFile::resume`] opened; of others it does nothing.
    pub(crate) fn mark(&mut self) -> Result<(), FileError> {
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let line = format!("{} {:08x}\n", journal.at, std::mem::take(&mut journal.hasher).finalize());
        // The bytes first: a line that tells of bytes that are not there would only be found out later.
        let written = self.out.flush().and_then(|()| journal.file.write_all(line.as_bytes()));
        written.map_err(|e| FileError::io("write", &self.target, e))
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        if let Some(journal) = &mut self.journal {
            journal.hasher.update(bytes);
            journal.at += bytes.len() as u64;
        }
        self.out.write_all(bytes).map_err(|e| FileError::io("write", &self.target, e))
    }

    /// Bytes that were written, by the same handle: another one may be kept out.
    pub(crate) fn read_back(&mut self, start: u64, len: usize) -> Result<Vec<u8>, FileError> {
        let mut bytes = vec![0; len];
        let read = self.out.flush().and_then(|()| {
            let file = self.out.get_mut();
            let end = file.stream_position()?;
            file.seek(SeekFrom::Start(start))?;
            file.read_exact(&mut bytes)?;
            file.seek(SeekFrom::Start(end))
        });
        read.map_err(|e| FileError::io("read back", &self.target, e))?;
        Ok(bytes)
    }

    pub(crate) fn write_zeros(&mut self, mut count: u64) -> Result<(), FileError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while count > 0 {
            let now = count.min(ZEROS.len() as u64);
            self.write(&ZEROS[..now as usize])?;
            count -= now;
        }
        Ok(())
    }

    /// Makes sure the bytes are on the disk, then gives the file its name.
    pub(crate) fn commit(self) -> Result<(), FileError> {
        // The journal goes once the file has its name.
        let AtomicFile { out, temporary, target, journal: _journal } = self;
        let failed = |e: io::Error| FileError::io("write", &target, e);
        let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
        file.sync_all().map_err(failed)?;
        temporary.persist(&target).map_err(|e| failed(e.error))?;
        // The new name itself is on the disk once the folder is; not every system can sync one, and the file is
        // whole either way.
        #[cfg(unix)]
        if let Ok(folder) = File::open(folder_of(&target)) {
            let _ = folder.sync_all();
        }
        Ok(())
    }
}

/// Locks the unfinished file, so that two processes never write the same one.
fn hold(file: &File, part: &Path, target: &Path) -> Result<(), FileError> {
    let busy = |what: &str| FileError::io("write", target, io::Error::new(io::ErrorKind::ResourceBusy, what));
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(busy("another process is writing it")),
        // A file system without locks; names are all that tells two processes apart there.
        Err(TryLockError::Error(_)) => return Ok(()),
    }
    // Its last owner may have given it its final name between our opening and locking it.
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let id = |meta: io::Result<std::fs::Metadata>| meta.ok().map(|meta| (meta.dev(), meta.ino()));
        if id(file.metadata()) != id(std::fs::metadata(part)) {
            return Err(busy("another process has just written it"));
        }
    }
    #[cfg(not(unix))]
    let _ = part;
    Ok(())
}

/// The ends of the stretches that are as the lines of a journal say, up to the first that is not, and how many bytes
/// those lines take.
fn verified(file: &mut File, lines: &str) -> io::Result<(Vec<u64>, usize)> {
    let length = file.metadata()?.len();
    let (mut ends, mut told, mut at) = (vec![], 0, 0);
    file.rewind()?;
    // A line that a kill cut off has no end.
    for line in lines.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let Some((end, sum)) = line.trim_end().split_once(' ') else { break };
        let (Ok(end), Ok(sum)) = (end.parse::<u64>(), u32::from_str_radix(sum, 16)) else { break };
        if end <= at || end > length || checksum(file, end - at)? != sum {
            break;
        }
        ends.push(end);
        (at, told) = (end, told + line.len());
    }
    Ok((ends, told))
}

/// Of the next `count` bytes.
fn checksum(file: &mut File, count: u64) -> io::Result<u32> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut from = file.take(count);
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(hasher.finalize()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// Why no file could be made in `folder`, without the temporary name, which nobody asked for.
fn reason(folder: &Path, error: io::Error) -> io::Error {
    std::fs::metadata(folder).err().unwrap_or_else(|| error.kind().into())
}

fn folder_of(target: &Path) -> &Path {
    match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "of this model";

    /// Writes three stretches and is "killed" after so many of them, with half of the next written.
    fn killed_after(target: &Path, key: &str, stretches: usize) {
        let (mut file, ends) = AtomicFile::resume(target, key).unwrap();
        assert_eq!(ends, [0; 0]);
        for stretch in 0..stretches {
            file.write(&[stretch as u8; 100]).unwrap();
            file.mark().unwrap();
        }
        file.write(&[9; 50]).unwrap();
        file.out.flush().unwrap();
        // What a kill does: nothing is dropped, locks are.
        file.out.get_ref().unlock().unwrap();
        std::mem::forget(file);
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = crate::hf::file_names(folder).unwrap();
        names.sort();
        names
    }

    #[test]
    fn a_killed_writer_is_gone_on_with_and_leaves_nothing_in_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("x");
        killed_after(&target, KEY, 2);
        assert_eq!(names(folder.path()), [".x.margay-journal", ".x.margay-part"]);
        let (mut file, ends) = AtomicFile::resume(&target, KEY).unwrap();
        assert_eq!(ends, [100, 200]);
        file.write(&[2; 100]).unwrap();
        file.mark().unwrap();
        file.commit().unwrap();
        let expected: Vec<u8> = [0, 1, 2].into_iter().flat_map(|v| [v; 100]).collect();
        assert_eq!(std::fs::read(&target).unwrap(), expected);
        assert_eq!(names(folder.path()), ["x"]);
    }

    #[test]
    fn what_a_kill_left_is_not_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("x");
        let [part, journal] = [".x.margay-part", ".x.margay-journal"].map(|name| folder.path().join(name));
        let damage = |path: &Path, change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = std::fs::read(path).unwrap();
            change(&mut bytes);
            std::fs::write(path, bytes).unwrap();
        };
        type Change<'a> = (&'a Path, &'a dyn Fn(&mut Vec<u8>), &'a [u64]);
        let changes: [Change<'_>; 7] = [
            (&part, &|bytes| bytes[150] ^= 1, &[100]),
            (&part, &|bytes| bytes[0] ^= 1, &[]),
            (&part, &|bytes| bytes.truncate(199), &[100]),
            (&journal, &|bytes| bytes.truncate(bytes.len() - 1), &[100]),
            (&journal, &|bytes| bytes.extend(b"150 00000000\n99999999999999999999 0\nx\n"), &[100, 200]),
            (&journal, &|bytes| bytes.insert(0, 0xff), &[]),
            (&journal, &|bytes| bytes.clear(), &[]),
        ];
        for (i, (path, change, expected)) in changes.into_iter().enumerate() {
            killed_after(&target, KEY, 2);
            damage(path, change);
            let (file, ends) = AtomicFile::resume(&target, KEY).unwrap();
            assert_eq!(ends, expected, "change {i}");
            drop(file);
            assert_eq!(names(folder.path()), [""; 0], "a file that is given up leaves nothing");
        }
        killed_after(&target, "of another model", 2);
        assert_eq!(AtomicFile::resume(&target, KEY).unwrap().1, [0; 0]);
    }

    #[test]
    fn two_processes_do_not_write_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("x");
        let first = AtomicFile::resume(&target, KEY).unwrap();
        let second = AtomicFile::resume(&target, KEY).unwrap_err().to_string();
        assert!(second.contains("another process is writing it"), "{second}");
        drop(first);
        AtomicFile::resume(&target, KEY).unwrap();
    }
}
