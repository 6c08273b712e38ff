//! Files that appear whole or not at all.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use tempfile::{NamedTempFile, TempPath};

use crate::FileError;

/// Bytes gathered before they are handed to the system.
const BUFFER_BYTES: usize = 1 << 20;

/// A file under a temporary name in the target's folder. [`AtomicFile::commit`] gives it its name; dropped before
/// that, it is deleted and the target is as it was.
#[derive(Debug)]
pub(crate) struct AtomicFile {
    out: BufWriter<File>,
    temporary: TempPath,
    target: PathBuf,
}

impl AtomicFile {
    pub(crate) fn create(target: &Path) -> Result<Self, FileError> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".margay-").suffix(".part");
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
        })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.out.write_all(bytes).map_err(|e| FileError::io("write", &self.target, e))
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
        let AtomicFile { out, temporary, target } = self;
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
