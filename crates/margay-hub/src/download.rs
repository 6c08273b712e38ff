//! Fetches, verifies and files away.

use crate::{
    HubError, HubOptions, ModelRef,
    cache::{RepoCache, make_folder_of},
    choose::{Choice, INDEX, choose, shards},
    client::{Client, RemoteFile, Repo},
};
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Duration,
};

/// Bytes received between two looks at whether to stop.
const PIECE_BYTES: usize = 1 << 17;
/// Breaks of a connection in a row, without a byte in between, that are borne.
const MOST_BREAKS: u32 = 4;
/// Before a broken connection is opened again; longer each time.
const PAUSE: Duration = Duration::from_millis(250);

/// How far a download is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file being fetched.
    pub file: &'a str,
    /// Bytes of it that are there.
    pub done_bytes: u64,
    /// Its size.
    pub of_bytes: u64,
}

/// What was pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// What to open: a GGUF file, or a folder.
    pub path: PathBuf,
    /// The commit it is of.
    pub commit: String,
    /// All files of it.
    pub files: Vec<PulledFile>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// A file of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PulledFile {
    /// Its path in the repository.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// Bytes of it that were received now; 0 where it was in the cache.
    pub received_bytes: u64,
}

/// Fetches what is missing of a model. `progress` is told of every piece, and may stop; what was received is kept, and
/// the next call goes on from there.
///
/// Where the hub cannot be reached and the cache holds the model as it was last asked for, that is taken, with a note.
///
/// # Errors
/// [`HubError`]; no file is then in the cache that is not whole and verified.
pub fn pull(
    options: &HubOptions,
    model: &ModelRef,
    progress: &mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
) -> Result<Pulled, HubError> {
    let cache = RepoCache::new(options, model);
    if options.offline {
        let missing = || HubError::Offline { what: model.to_string(), cache: options.cache.clone() };
        return cached(&cache, model).ok_or_else(missing);
    }
    let client = Client::new(options, model)?;
    let repo = match client.repo() {
        Ok(repo) => repo,
        Err(error @ HubError::Connection { .. }) => {
            let mut pulled = cached(&cache, model).ok_or(error)?;
            pulled.notes.push("the hub cannot be reached; the cache's copy was taken".to_owned());
            return Ok(pulled);
        }
        Err(error) => return Err(error),
    };
    let Choice { files, main, note } = choose(model, &repo.files)?;
    let notes = note.into_iter().collect();
    let mut puller = Puller { client, cache, repo, progress, files: vec![], notes, received: 0 };
    for name in &files {
        puller.fetch(name)?;
    }
    if files.iter().any(|name| name == INDEX) {
        for name in puller.named_shards()? {
            puller.fetch(&name)?;
        }
    }
    let Puller { cache, repo, files, notes, .. } = puller;
    cache.note_commit(&model.revision, &repo.commit)?;
    let snapshot = cache.snapshot(&repo.commit);
    let path = main.map_or_else(|| snapshot.clone(), |main| snapshot.join(main));
    Ok(Pulled { path, commit: repo.commit, files, notes })
}

/// The model as the cache holds it, or `None` where a part of it is missing.
fn cached(cache: &RepoCache, model: &ModelRef) -> Option<Pulled> {
    let commit = cache.commit(&model.revision)?;
    let there = cache.files(&commit);
    let Choice { mut files, main, note } = choose(model, &there).ok()?;
    let snapshot = cache.snapshot(&commit);
    if files.iter().any(|name| name == INDEX) {
        files.extend(shards(&fs::read(snapshot.join(INDEX)).ok()?).ok()?);
    }
    let file = |name: String| {
        let size_bytes = fs::metadata(snapshot.join(&name)).ok().filter(|meta| meta.is_file())?.len();
        Some(PulledFile { name, size_bytes, received_bytes: 0 })
    };
    let files = files.into_iter().map(file).collect::<Option<Vec<_>>>()?;
    let path = main.map_or_else(|| snapshot.clone(), |main| snapshot.join(main));
    Some(Pulled { path, commit, files, notes: note.into_iter().collect() })
}

struct Puller<'a> {
    client: Client<'a>,
    cache: RepoCache,
    repo: Repo,
    progress: &'a mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
    files: Vec<PulledFile>,
    notes: Vec<String>,
    /// Bytes received of the present file.
    received: u64,
}

impl Puller<'_> {
    fn named_shards(&self) -> Result<Vec<String>, HubError> {
        let path = self.cache.snapshot(&self.repo.commit).join(INDEX);
        let index = fs::read(&path).map_err(|e| HubError::io("read", &path, e))?;
        let nonsense = |why: String| HubError::Answer { what: INDEX.to_owned(), why };
        let names: Vec<String> = shards(&index).map_err(nonsense)?.into_iter().collect();
        match names.iter().find(|name| !self.repo.files.contains(name)) {
            Some(missing) => Err(nonsense(format!("it names {missing:?}, which the repository lacks"))),
            None => Ok(names),
        }
    }

    /// Makes the file part of the snapshot.
    fn fetch(&mut self, name: &str) -> Result<(), HubError> {
        let remote = self.client.file(&self.repo.commit, name)?;
        let blob = self.cache.blob(&remote.etag);
        let lock = self.cache.lock(&remote.etag)?;
        let mut received_bytes = 0;
        // Blobs are verified before they bear their name.
        if fs::metadata(&blob).map_or(0, |meta| meta.len()) != remote.size || !blob.is_file() {
            received_bytes = self.receive(name, &remote, &blob)?;
        }
        self.cache.link(&self.repo.commit, name, &remote.etag)?;
        drop(lock);
        self.files.push(PulledFile { name: name.to_owned(), size_bytes: remote.size, received_bytes });
        Ok(())
    }

    /// Receives a blob, going on behind what an earlier run left of it; gives the bytes that came.
    fn receive(&mut self, name: &str, remote: &RemoteFile, blob: &Path) -> Result<u64, HubError> {
        let partial = blob.with_file_name(format!("{}.incomplete", remote.etag));
        make_folder_of(&partial)?;
        let failed = |e| HubError::io("write", &partial, e);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&partial)
            .map_err(failed)?;
        let mut at = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if at > remote.size {
            file.set_len(0).map_err(failed)?;
            at = 0;
        }
        self.received = 0;
        let mut breaks = 0;
        loop {
            let before = at;
            let broken = match self.receive_some(name, remote, &mut file, &mut at, &partial) {
                Ok(()) if at == remote.size => break,
                Ok(()) => "the connection ended".to_owned(),
                Err(HubError::Connection { source, .. }) => source.to_string(),
                Err(error) => return Err(error),
            };
            breaks = if at > before { 0 } else { breaks + 1 };
            if breaks == MOST_BREAKS {
                let (file, got, size) = (name.to_owned(), at, remote.size);
                return Err(HubError::BrokenOff { file, got, size, why: broken });
            }
            std::thread::sleep(PAUSE * breaks);
        }
        self.verify(name, remote, &mut file, &partial)?;
        file.sync_all().map_err(failed)?;
        drop(file);
        fs::rename(&partial, blob).map_err(|e| HubError::io("create", blob, e))?;
        Ok(self.received)
    }

    /// Receives until the connection ends or breaks; `at` is where the file ends.
    fn receive_some(
        &mut self,
        name: &str,
        remote: &RemoteFile,
        file: &mut File,
        at: &mut u64,
        path: &Path,
    ) -> Result<(), HubError> {
        let failed = |e| HubError::io("write", path, e);
        if *at == remote.size {
            return Ok(());
        }
        let (mut bytes, partial) = self.client.bytes(&self.repo.commit, name, *at)?;
        if !partial && *at > 0 {
            *at = 0;
        }
        file.set_len(*at).and_then(|()| file.seek(SeekFrom::Start(*at))).map_err(failed)?;
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let read = match bytes.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                // What came stays; the caller asks for the rest.
                Err(e) => {
                    let url = name.to_owned();
                    return Err(HubError::Connection { url, source: Box::new(ureq::Error::Io(e)) });
                }
            };
            if *at + read as u64 > remote.size {
                let why = format!("it sends more than the {} bytes it announced", remote.size);
                return Err(HubError::Answer { what: name.to_owned(), why });
            }
            file.write_all(&piece[..read]).map_err(failed)?;
            *at += read as u64;
            self.received += read as u64;
            let step = Progress { file: name, done_bytes: *at, of_bytes: remote.size };
            if (self.progress)(&step).is_break() {
                return Err(HubError::Stopped);
            }
        }
    }

    /// Compares a whole file with the checksum that the hub gives: SHA-256 for large files, for others git's own.
    fn verify(
        &mut self,
        name: &str,
        remote: &RemoteFile,
        file: &mut File,
        path: &Path,
    ) -> Result<(), HubError> {
        let hex = remote.etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        let (kind, mut hash) = match remote.etag.len() {
            64 if hex => ("SHA-256", Context::new(&SHA256)),
            40 if hex => {
                let mut hash = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
                hash.update(format!("blob {}\0", remote.size).as_bytes());
                ("git checksum", hash)
            }
            _ => {
                self.notes.push(format!("{name} could not be verified: the hub gives no checksum of it"));
                return Ok(());
            }
        };
        let failed = |e| HubError::io("read", path, e);
        file.rewind().map_err(failed)?;
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match file.read(&mut piece).map_err(failed)? {
                0 => break,
                read => hash.update(&piece[..read]),
            }
        }
        let got: String = hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        if got == remote.etag.to_ascii_lowercase() {
            return Ok(());
        }
        // Going on with it would never end well.
        fs::remove_file(path).map_err(|e| HubError::io("delete", path, e))?;
        Err(HubError::Damaged { file: name.to_owned(), kind, expected: remote.etag.clone(), got })
    }
}
