//! The folder that Hugging Face's own tools keep models in.
//!
//! ```text
//! models--OWNER--NAME/refs/REVISION                a commit
//!                     blobs/ETAG                   a file's bytes
//!                     snapshots/COMMIT/PATH        links to blobs
//! .locks/models--OWNER--NAME/ETAG.lock             held while a blob is written
//! ```
//!
//! Source: huggingface_hub's documentation, "Understand caching".

use crate::{HubError, HubOptions, ModelRef};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

/// The part of the cache that holds one repository.
pub(crate) struct RepoCache {
    root: PathBuf,
    name: String,
}

impl RepoCache {
    pub(crate) fn new(options: &HubOptions, model: &ModelRef) -> Self {
        RepoCache { root: options.cache.clone(), name: format!("models--{}", model.repo.replace('/', "--")) }
    }

    fn folder(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.folder().join("blobs").join(etag)
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder().join("snapshots").join(commit)
    }

    /// The commit that a revision was when it was last asked for; a commit stands for itself.
    pub(crate) fn commit(&self, revision: &str) -> Option<String> {
        let noted = fs::read_to_string(self.folder().join("refs").join(revision)).ok();
        let commit = noted.map_or_else(|| revision.to_owned(), |text| text.trim().to_owned());
        (crate::reference::is_plain(&commit) && self.snapshot(&commit).is_dir()).then_some(commit)
    }

    /// Notes which commit a revision is.
    pub(crate) fn note_commit(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if revision == commit {
            return Ok(());
        }
        let path = self.folder().join("refs").join(revision);
        make_folder_of(&path)?;
        fs::write(&path, commit).map_err(|e| HubError::io("write", &path, e))
    }

    /// Files of a snapshot, as paths below it.
    pub(crate) fn files(&self, commit: &str) -> Vec<String> {
        let (root, mut found) = (self.snapshot(commit), vec![]);
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for path in fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
                if path.is_dir() {
                    folders.push(path);
                } else if let Ok(below) = path.strip_prefix(&root)
                    && path.is_file()
                {
                    let parts: Vec<_> = below.iter().map(|part| part.to_string_lossy()).collect();
                    found.push(parts.join("/"));
                }
            }
        }
        found.sort();
        found
    }

    /// Waits until nobody else writes that blob, and holds it while the file lives.
    pub(crate) fn lock(&self, etag: &str) -> Result<File, HubError> {
        let path = self.root.join(".locks").join(&self.name).join(format!("{etag}.lock"));
        make_folder_of(&path)?;
        let failed = |e| HubError::io("lock", &path, e);
        let file = File::create(&path).map_err(failed)?;
        // A file system without locks: names tell downloads of different files apart all the same.
        let _ = file.lock();
        Ok(file)
    }

    /// Makes a blob a file of a snapshot: a link, or a copy where there are no links.
    pub(crate) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<PathBuf, HubError> {
        let path = self.snapshot(commit).join(file);
        make_folder_of(&path)?;
        let blob = self.blob(etag);
        if path.exists() && fs::canonicalize(&path).ok() == fs::canonicalize(&blob).ok() {
            return Ok(path);
        }
        let _ = fs::remove_file(&path);
        link(&blob, file, etag, &path).map_err(|e| HubError::io("create", &path, e))?;
        Ok(path)
    }
}

#[cfg(unix)]
fn link(_: &Path, file: &str, etag: &str, path: &Path) -> std::io::Result<()> {
    // From snapshots/COMMIT/, one step more for each folder of the file.
    let up = "../".repeat(2 + file.matches('/').count());
    std::os::unix::fs::symlink(format!("{up}blobs/{etag}"), path)
}

#[cfg(not(unix))]
fn link(blob: &Path, _: &str, _: &str, path: &Path) -> std::io::Result<()> {
    fs::hard_link(blob, path).or_else(|_| fs::copy(blob, path).map(|_| ()))
}

pub(crate) fn make_folder_of(path: &Path) -> Result<(), HubError> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(|e| HubError::io("create", folder, e))
}
