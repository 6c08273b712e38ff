//! Keys and values of what prompts begin with, in a folder: for the next process.
//!
//! A file holds one prefix: its token ids, which pictures stand in it, their visual tokens and the KV cache. Its name is two digests:
//! of the model, its settings and the form of the cache; and of the ids and pictures. What is looked for is the file that shares
//! most with a prompt; as much of it is used as is shared, so that one file serves every prompt that begins as it does, however
//! far. See [`crate::folder`].

use crate::{
    Error,
    digest::hexadecimal,
    folder::{Folder, Kept},
    image::ImageDigest,
    image_cache::Seen,
};
use margay_tensor::Tensor;
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::Arc,
};

/// What its files' names end with.
const ENDING: &str = ".prefix.safetensors";
/// Names of the parts: ids, little-endian; visual rows, float32; the cache as [`margay_graph::State::snapshot`] gives it.
const IDS: &str = "ids";
const ROWS: &str = "rows";
const CACHE: &str = "cache";
/// Changes whenever a file means something else.
const VERSION: u32 = 1;

/// Tokens that a file has to spare computing, at least: fewer are not worth its while.
pub(crate) const LEAST_TOKENS: usize = 32;

/// A picture of a prefix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Picture {
    pub(crate) digest: ImageDigest,
    /// Its visual tokens.
    pub(crate) tokens: usize,
    /// What it became.
    pub(crate) seen: Seen,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    version: u32,
    pictures: Vec<Picture>,
}

/// A prefix that is to be kept.
pub(crate) struct Prefix {
    /// As [`margay_prompt::layout::Sequence::ids`] has them.
    pub(crate) ids: Vec<i32>,
    pub(crate) pictures: Vec<Picture>,
    /// Visual rows of the pictures, [V, E].
    pub(crate) rows: Vec<f32>,
    pub(crate) cache: Vec<u8>,
}

/// What a file is said to hold: its checksum was not looked at.
struct Entry {
    ids: Vec<i32>,
    pictures: Vec<Picture>,
}

/// A folder of prefixes, of one model under one set of settings.
pub(crate) struct PrefixFiles {
    folder: Arc<Folder>,
    identity: String,
    /// Columns of a visual row.
    width: usize,
    /// What the files seen so far hold, by name.
    known: HashMap<String, Entry>,
    /// The file that was read last.
    open: Option<(String, Arc<Kept>)>,
}

/// Writes prefixes of one model and form.
pub(crate) struct Pen {
    folder: Arc<Folder>,
    root: String,
}

impl Pen {
    /// Writes a prefix; `false` for one that is larger than the folder may be.
    pub(crate) fn write(&self, prefix: &Prefix) -> Result<bool, Error> {
        let Prefix { ids, pictures, rows, cache } = prefix;
        let about = About { version: VERSION, pictures: pictures.clone() };
        let about = serde_json::to_string(&about).expect("invariant: numbers and words become JSON");
        let name = format!("{}-{}", self.root, name_of(prefix));
        let ids: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let rows: Vec<u8> = rows.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.folder.keep(&name, &about, &[(IDS, &ids), (ROWS, &rows), (CACHE, cache)])
    }
}

/// A file that was found.
pub(crate) struct Found {
    /// Tokens that the prompt shares with it.
    pub(crate) shared: usize,
    pub(crate) ids: Vec<i32>,
    kept: Arc<Kept>,
}

impl Found {
    /// The cache of all its tokens, as bytes.
    pub(crate) fn cache(&self) -> Option<Tensor> {
        self.kept.part(CACHE)
    }
}

impl PrefixFiles {
    /// Makes the folder where it is not there. `identity`: everything but the form of the cache that decides what a prefix becomes.
    /// Visual rows have `width` columns.
    pub(crate) fn new(folder: &Path, most_bytes: u64, identity: String, width: usize) -> Result<Self, Error> {
        let folder = Arc::new(Folder::new(folder, most_bytes, ENDING)?);
        Ok(PrefixFiles { folder, identity, width, known: HashMap::new(), open: None })
    }

    /// Tokens at the start of a prompt that some file holds.
    pub(crate) fn covered(&mut self, form: &str, ids: &[i32], pictures: &[(ImageDigest, usize)]) -> usize {
        self.look(form);
        self.known.values().map(|entry| entry.shared(ids, pictures)).max().unwrap_or(0)
    }

    /// The whole file that shares most with a prompt: at least `least` tokens, and no more tokens than `most` in all.
    pub(crate) fn find(
        &mut self,
        form: &str,
        (ids, pictures): (&[i32], &[(ImageDigest, usize)]),
        (least, most): (usize, usize),
    ) -> Option<Found> {
        self.look(form);
        loop {
            let fits = self.known.iter().filter(|(_, entry)| entry.ids.len() <= most);
            let shared = fits.map(|(name, entry)| (entry.shared(ids, pictures), entry.ids.len(), name));
            // Of those that share as much, the shortest is read soonest.
            let best = shared.max_by_key(|(shared, len, _)| (*shared, std::cmp::Reverse(*len)));
            let (shared, name) =
                best.filter(|(shared, ..)| *shared >= least).map(|(s, _, n)| (s, n.clone()))?;
            if let Some(kept) = self.read(&name) {
                let ids = self.known[&name].ids.clone();
                return Some(Found { shared, ids, kept });
            }
        }
    }

    /// The visual rows of a picture, [V, E], and what it became, where some file holds it whole.
    pub(crate) fn picture(&mut self, form: &str, picture: &ImageDigest) -> Option<(Vec<f32>, Seen)> {
        let width = self.width;
        self.look(form);
        loop {
            let holds = |entry: &Entry| entry.pictures.iter().any(|held| held.digest == *picture);
            let name = self.known.iter().find(|(_, entry)| holds(entry)).map(|(name, _)| name.clone())?;
            let Some(kept) = self.read(&name) else { continue };
            let pictures = &self.known[&name].pictures;
            let at = pictures.iter().position(|held| held.digest == *picture)?;
            let before: usize = pictures[..at].iter().map(|held| held.tokens).sum();
            let rows = kept.part(ROWS)?;
            let bytes = rows.bytes().as_chunks::<4>().0;
            let rows = bytes.get(before * width..(before + pictures[at].tokens) * width)?;
            let rows = rows.iter().map(|x| f32::from_le_bytes(*x)).collect();
            return Some((rows, pictures[at].seen.clone()));
        }
    }

    /// What writing a prefix takes, so that nobody waits for the disk meanwhile.
    pub(crate) fn pen(&self, form: &str) -> Pen {
        Pen { folder: self.folder.clone(), root: self.root(form) }
    }

    /// A prefix was written: removes those that it goes on from and that are at least half as long.
    pub(crate) fn written(&mut self, prefix: &Prefix) {
        let Prefix { ids, pictures, .. } = prefix;
        let shown: Vec<_> = pictures.iter().map(|picture| (picture.digest, picture.tokens)).collect();
        let longer = |entry: &Entry| {
            let len = entry.ids.len();
            len < ids.len() && 2 * len >= ids.len() && entry.shared(ids, &shown) == len
        };
        let gone: Vec<String> =
            self.known.iter().filter(|(_, entry)| longer(entry)).map(|(name, _)| name.clone()).collect();
        gone.iter().for_each(|name| self.folder.remove(name));
    }

    /// What all names of files of this model and form begin with.
    fn root(&self, form: &str) -> String {
        let mut context = Context::new(&SHA256);
        context.update(&VERSION.to_le_bytes());
        for part in [&self.identity, form] {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part.as_bytes());
        }
        hexadecimal(context)
    }

    /// Learns what other processes have put there or taken away since.
    fn look(&mut self, form: &str) {
        let there: HashSet<String> = self.folder.names(&self.root(form)).into_iter().collect();
        self.known.retain(|name, _| there.contains(name));
        for name in there {
            if self.known.contains_key(&name) {
                continue;
            }
            match self.folder.peek(&name).and_then(|kept| entry_of(&kept, self.width)) {
                Some(entry) => _ = self.known.insert(name, entry),
                None => self.folder.remove(&name),
            }
        }
    }

    /// Reads a file, or forgets it where it is not whole.
    fn read(&mut self, name: &str) -> Option<Arc<Kept>> {
        if let Some((open, kept)) = &self.open
            && open == name
        {
            self.folder.looked_at(name);
            return Some(kept.clone());
        }
        // What was peeked at may have been damaged: what counts is what has a checksum.
        let whole =
            self.folder.read(name).and_then(|kept| Some((entry_of(&kept, self.width)?, Arc::new(kept))));
        let Some((entry, kept)) = whole else {
            self.known.remove(name);
            return None;
        };
        let as_peeked = self
            .known
            .get(name)
            .is_some_and(|known| known.ids == entry.ids && known.pictures == entry.pictures);
        if !as_peeked {
            self.folder.remove(name);
            self.known.remove(name);
            return None;
        }
        self.open = Some((name.to_owned(), kept.clone()));
        Some(kept)
    }
}

impl Entry {
    /// Tokens that a prompt, whose pictures have so many visual tokens each, shares with it.
    fn shared(&self, ids: &[i32], pictures: &[(ImageDigest, usize)]) -> usize {
        let own = self.pictures.iter().map(|picture| (picture.digest, picture.tokens));
        let same = own.zip(pictures).take_while(|(own, other)| own == *other);
        let rows: usize = same.map(|((_, tokens), _)| tokens).sum();
        let known = |(own, other): &(&i32, &i32)| own == other && -1 - i64::from(**own) < rows as i64;
        self.ids.iter().zip(ids).take_while(known).count()
    }
}

/// What a file says that it holds; `None` for one of another kind.
fn entry_of(kept: &Kept, width: usize) -> Option<Entry> {
    let about: About = serde_json::from_str(&kept.about).ok()?;
    let ids = kept.part(IDS)?;
    let ids: Vec<i32> = ids.bytes().as_chunks().0.iter().map(|id| i32::from_le_bytes(*id)).collect();
    let tokens = sum(about.pictures.iter().map(|picture| picture.tokens))?;
    let whole = about.version == VERSION
        && tokens.checked_mul(width)?.checked_mul(4)? == kept.part(ROWS)?.bytes().len()
        && about.pictures.iter().all(|p| sum(p.seen.counts.iter().copied()) == Some(p.tokens));
    whole.then_some(Entry { ids, pictures: about.pictures })
}

fn sum(mut counts: impl Iterator<Item = usize>) -> Option<usize> {
    counts.try_fold(0usize, usize::checked_add)
}

/// A digest of the tokens, of which those of pictures are told by what the pictures show.
fn name_of(prefix: &Prefix) -> String {
    let mut context = Context::new(&SHA256);
    context.update(&(prefix.pictures.len() as u64).to_le_bytes());
    for picture in &prefix.pictures {
        context.update(&picture.digest);
        context.update(&(picture.tokens as u64).to_le_bytes());
    }
    prefix.ids.iter().for_each(|id| context.update(&id.to_le_bytes()));
    hexadecimal(context)
}

#[cfg(test)]
mod tests;
