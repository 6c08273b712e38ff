//! What prompts begin with, kept in files by a thread of its own, and gone on from.
//!
//! Where a file shares more with a prompt than the conversation holds, the conversation goes on from the file. Behind an answer, what
//! its prompt began with is kept: up to the end of its last picture where little follows it, since the next question is another one,
//! else all of it. What is cheaper to compute than to read is not, nor what is mostly there already.

use crate::{
    Error, Session,
    engine::prefix_of,
    image::ImageDigest,
    image_cache::Seen,
    prefix_files::{LEAST_TOKENS, Picture, Prefix, PrefixFiles},
};
use margay_prompt::layout::PictureLayout;
use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
};

/// Bytes a second that are read and summed up at least, assumed: what an eMMC reads.
const READ_BYTES_A_SECOND: f64 = 250e6;
/// Tokens behind the last picture that are not kept with it, at most.
const QUESTION_TOKENS: usize = 64;
/// Of a file, one part in so many has to be new.
const NEW_PART: usize = 4;

/// The prefixes of one model.
pub(crate) struct Prefixes {
    shared: Arc<Shared>,
    /// Made for the first prefix that is kept.
    writer: Mutex<Option<Writer>>,
}

struct Shared {
    files: Mutex<PrefixFiles>,
    status: Mutex<Status>,
    idle: Condvar,
}

#[derive(Default)]
struct Status {
    /// Prefixes that wait to be written.
    waiting: usize,
    /// Why it is no longer used.
    ended: Option<String>,
}

struct Writer {
    to_write: SyncSender<(String, Prefix)>,
    thread: JoinHandle<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Files say themselves whether they are whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn write(&self, form: &str, prefix: &Prefix) {
        let _writing = Writing(self);
        let pen = lock(&self.files).pen(form);
        match pen.write(prefix) {
            Ok(true) => lock(&self.files).written(prefix),
            Ok(false) => {}
            Err(e) => self.end(&e.to_string()),
        }
    }

    fn end(&self, why: &str) {
        let note = || format!("prefixes of prompts are no longer kept in files: {why}");
        lock(&self.status).ended.get_or_insert_with(note);
    }
}

/// A prefix that is being written: in a panic, too, nobody may wait for it.
struct Writing<'s>(&'s Shared);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            self.0.end("the thread that writes them failed");
        }
        let mut status = lock(&self.0.status);
        // Nobody writes what waits behind a panic.
        status.waiting = if failed { 0 } else { status.waiting.saturating_sub(1) };
        drop(status);
        self.0.idle.notify_all();
    }
}

impl Prefixes {
    pub(crate) fn new(files: PrefixFiles) -> Self {
        let shared = Shared { files: Mutex::new(files), status: Mutex::default(), idle: Condvar::new() };
        Prefixes { shared: Arc::new(shared), writer: Mutex::new(None) }
    }

    /// What a person should know, once all that was to be written is.
    pub(crate) fn note(&self) -> Option<String> {
        let mut status = lock(&self.shared.status);
        while status.waiting > 0 {
            status = self.shared.idle.wait(status).unwrap_or_else(PoisonError::into_inner);
        }
        status.ended.clone()
    }

    fn has_ended(&self) -> bool {
        lock(&self.shared.status).ended.is_some()
    }

    /// Hands a prefix to the thread that writes; one more than it is at waits, others are not kept.
    fn keep(&self, form: String, prefix: Prefix) {
        let mut writer = lock(&self.writer);
        if writer.is_none() {
            let (to_write, prefixes) = sync_channel::<(String, Prefix)>(1);
            let shared = self.shared.clone();
            let work = move || prefixes.into_iter().for_each(|(form, prefix)| shared.write(&form, &prefix));
            let Ok(thread) = std::thread::Builder::new().name("prefixes".to_owned()).spawn(work) else {
                return;
            };
            *writer = Some(Writer { to_write, thread });
        }
        let Some(Writer { to_write, .. }) = &*writer else { return };
        lock(&self.shared.status).waiting += 1;
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = to_write.try_send((form, prefix))
        {
            let mut status = lock(&self.shared.status);
            status.waiting = status.waiting.saturating_sub(1);
        }
    }
}

impl Drop for Prefixes {
    fn drop(&mut self) {
        if let Some(Writer { to_write, thread }) = lock(&self.writer).take() {
            drop(to_write);
            // A panic there was told by its own message.
            let _ = thread.join();
        }
    }
}

impl Session {
    /// Notes what a picture became; nothing where it was not seen as another process would see it.
    pub(crate) fn note_picture(&mut self, picture: ImageDigest, seen: Option<&Seen>) {
        let known = self.looked.entry(picture).or_insert_with(|| seen.cloned());
        if seen.is_none() {
            *known = None;
        }
    }

    /// Pictures at the start of the conversation that another process would see alike, and their visual tokens.
    fn shown(&self) -> Vec<(ImageDigest, usize)> {
        let tokens = self.images.iter().map(PictureLayout::visual_tokens);
        let alike = |picture: &(ImageDigest, usize)| matches!(self.looked.get(&picture.0), Some(Some(_)));
        self.digests.iter().copied().zip(tokens).take_while(alike).collect()
    }

    /// Appends the visual rows of a picture that was encoded before; says what it became.
    pub(crate) fn known_picture(&mut self, picture: &ImageDigest) -> Result<Option<Seen>, Error> {
        let model = self.model.clone();
        let seen = model.images()?.read(picture, &mut self.visual)?;
        if seen.is_some() {
            return Ok(seen);
        }
        let start = self.visual.len();
        let seen = self.read_kept_picture(picture);
        if let Some(seen) = &seen {
            model.images()?.keep(*picture, &mut self.visual[start..], seen)?;
        }
        Ok(seen)
    }

    /// The same of one that stands in a prefix that was kept.
    fn read_kept_picture(&mut self, picture: &ImageDigest) -> Option<Seen> {
        let prefixes = self.model.prefixes()?;
        let form = self.state.form()?;
        let (rows, seen) = lock(&prefixes.shared.files).picture(&form, picture)?;
        self.visual.extend(rows);
        Some(seen)
    }

    /// Goes on from a prefix that was kept, where it shares more with the prompt than is held: `held` tokens of `ids`, the first
    /// `prefix` of which see one another. Says how many are held then.
    pub(crate) fn restore_prefix(&mut self, ids: &[i32], prefix: usize, held: usize) -> Result<usize, Error> {
        let model = self.model.clone();
        let Some(prefixes) = model.prefixes() else { return Ok(held) };
        if ids.len() < held + LEAST_TOKENS {
            // No file is worth its while.
            return Ok(held);
        }
        self.fit_cache()?;
        let Some(form) = self.state.form() else { return Ok(held) };
        let limits = (held + LEAST_TOKENS, self.state.capacity());
        let found = lock(&prefixes.shared.files).find(&form, (ids, &self.shown()), limits);
        let Some(found) = found else { return Ok(held) };
        // The last token is computed anew: its logits are wanted.
        let shared = found.shared.min(ids.len().saturating_sub(1));
        if shared < prefix.max(prefix_of(model.config(), &found.ids)) || shared <= held {
            return Ok(held);
        }
        // What is no such cache in spite of its checksum is passed over.
        let cache = found.cache();
        let restored = cache.map(|cache| self.state.restore(found.ids.len(), cache.bytes()));
        if !matches!(restored, Some(Ok(()))) {
            return Ok(held);
        }
        self.state.truncate(shared);
        self.held = ids[..shared].to_vec();
        self.whole = None;
        Ok(shared)
    }

    /// Keeps what a prompt of those ids began with, as far as it is computed, where that is worth its while: a token took so many
    /// seconds.
    pub(crate) fn keep_prefix(&self, ids: &[i32], seconds_each: f64) {
        let Some(prefixes) = self.model.prefixes().filter(|prefixes| !prefixes.has_ended()) else { return };
        let Some(form) = self.state.form() else { return };
        let len = worth_keeping(ids).min(self.intact());
        let ids = &ids[..len];
        if len < LEAST_TOKENS || self.held.get(..len) != Some(ids) {
            return;
        }
        let rows = ids.iter().filter(|id| **id < 0).count();
        let mut shown = self.shown();
        let mut sum = 0;
        shown.retain(|(_, tokens)| {
            sum += tokens;
            sum <= rows
        });
        let kept = lock(&prefixes.shared.files).covered(&form, ids, &shown);
        let fresh = len - kept;
        if fresh < LEAST_TOKENS || NEW_PART * fresh < len {
            return;
        }
        let picture = |(digest, tokens): &(ImageDigest, usize)| {
            let seen = self.looked.get(digest)?.clone()?;
            Some(Picture { digest: *digest, tokens: *tokens, seen })
        };
        let Some(pictures) = shown.iter().map(picture).collect::<Option<Vec<_>>>() else { return };
        // Each of them whole, and none that another process would see in another way.
        let whole: usize = shown.iter().map(|(_, tokens)| tokens).sum();
        if whole != rows {
            return;
        }
        let cache = self.state.snapshot(len);
        if seconds_each * (fresh as f64) < cache.len() as f64 / READ_BYTES_A_SECOND {
            return;
        }
        let rows = self.visual[..rows * self.model.config().text.width].to_vec();
        prefixes.keep(form, Prefix { ids: ids.to_vec(), pictures, rows, cache });
    }
}

/// Tokens at the start of a prompt that the next one may begin with.
fn worth_keeping(ids: &[i32]) -> usize {
    match ids.iter().rposition(|id| *id < 0) {
        Some(last) if ids.len() - (last + 1) <= QUESTION_TOKENS => last + 1,
        _ => ids.len(),
    }
}

#[cfg(test)]
mod tests {
    use crate::{AskOptions, Content, Image, Model, Turn};

    #[test]
    fn what_is_noted_of_pictures_is_that_of_the_conversation_alone() {
        let mut session = Model::nano().unwrap().session().unwrap();
        let ask = AskOptions { max_tokens: 1, ..AskOptions::default() };
        // One conversation behind the other, as a server gives them to a session.
        for shade in 0..4 {
            let picture = Content::Image(Image::filled(20, 30, [shade, 200, 30]).unwrap());
            let turn =
                Turn { role: "user".to_owned(), content: vec![picture, Content::Text("one".to_owned())] };
            session.ask_turns(&[turn], &ask).unwrap().report().unwrap();
            let noted: Vec<_> = session.looked.keys().copied().collect();
            assert_eq!(noted, session.digests, "{shade}");
        }
    }
}
