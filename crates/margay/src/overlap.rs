//! Which stages of an answer run at the same time.
//!
//! Reading a picture is one thread's work, beside which the others are idle or compute something else: always worth it. Encoding and the
//! prompt both use all threads; on halves of them at the same time they take as many operations. Let a tile take `E` and
//! the tokens beside it `P` on all threads. With twice that on half of them, both together would take `E + P`, as long as one
//! behind the other; they take less where threads share work badly, and more where the two take the cache and the memory's
//! bandwidth from one another. Only a clock can say which, so it is asked: what both took together over `E + P`.

use crate::{Error, LoadOptions, Overlap, model::Model};
use margay_cpu::KvType;
use margay_graph::Backend;
use margay_model::ModelConfig;
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// Threads from which on halves are tried: on two they were measured to take 1.04 times as long (docs/sessions.md).
const LEAST_THREADS: usize = 4;
/// Time of a tile and tokens on halves, over that of one behind the other, up to which halves are taken: what is less of a gain
/// is noise.
const PAYS: f64 = 0.97;
/// Share that the shorter of the two has of both, from which on their time tells whether halves pay.
const LEAST_SHARE: f64 = 0.125;
/// Tokens that are computed before others at least: fewer would read all weights for little.
pub(crate) const LEAST_TOKENS: usize = 16;
/// Pixels of a picture from which on it is read or resized by another thread: of fewer it takes less than a few
/// milliseconds.
pub(crate) const LEAST_PIXELS: u64 = 1 << 19;

/// Pictures that are read at the same time at most: each takes the memory of a decoder.
const MOST_READERS: usize = 4;

/// What of a model's answers overlaps.
pub(crate) struct Overlapping {
    pub asked: Overlap,
    /// Why prompts of this model are computed whole, whatever is asked; where they are.
    pub whole: Option<&'static str>,
    /// The other half's threads, where there may be halves.
    vision: Option<Box<dyn Backend>>,
    threads: usize,
    halves: Mutex<Halves>,
}

/// Threads that are halved until this is dropped.
pub(crate) struct Halved<'m> {
    vision: &'m dyn Backend,
    text: &'m dyn Backend,
}

impl Halved<'_> {
    /// The tower has run: all threads are the decoder's.
    pub(crate) fn leave_vision(&self) {
        self.text.use_threads(usize::MAX);
    }

    /// The decoder has run: all threads are the tower's.
    pub(crate) fn leave_text(&self) {
        self.vision.use_threads(usize::MAX);
    }
}

impl Drop for Halved<'_> {
    fn drop(&mut self) {
        self.leave_vision();
        self.leave_text();
    }
}

/// What was measured of a model's stages on all threads and on halves of them.
#[derive(Clone, Copy, Debug, Default)]
struct Halves {
    /// Seconds a pixel of a tile, on all threads.
    encode: Option<f64>,
    /// Seconds a token of a prompt, on all threads.
    prefill: Option<f64>,
    /// Time of both on halves, over that of one behind the other on all.
    ratio: Option<f64>,
}

/// What a tile and the tokens that are ready are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// One behind the other; the tokens when it is their turn.
    Apart,
    /// One behind the other, the tokens at once, so that what they take is known.
    Learn,
    /// At the same time.
    Halves,
}

impl Overlapping {
    /// `backend`: what the text side runs on.
    ///
    /// # Errors
    /// As making a backend.
    pub(crate) fn new(
        options: &LoadOptions,
        config: &ModelConfig,
        backend: &dyn Backend,
    ) -> Result<Self, Error> {
        let left_out = options.reduction.is_some() || options.repeated_patches.is_some();
        let threads = backend.compute_threads();
        let whole = if options.overlap == Overlap::Off {
            Some("turned off")
        } else if threads.is_none() {
            Some("only the cpu backend rounds alike however a prompt is cut")
        } else if config.text.decoder.has_prefix() {
            Some("this model's picture sees all of itself, and no part of it can be computed alone")
        } else if options.pruning.is_some() || options.eviction.is_some() || left_out {
            Some("what is left out of pictures or of the cache is known when the whole prompt is")
        } else if options.kv == KvType::Kivi2 || options.kv_image.is_some() {
            Some("keys and values of these types depend on how a prompt is cut")
        } else if options.prefix_folder.is_some() {
            Some("what the prompt shares with a kept one is looked up when its pictures are known")
        } else {
            None
        };
        let threads = threads.unwrap_or(1);
        let least = match options.overlap {
            Overlap::Auto => LEAST_THREADS,
            Overlap::On => 2,
            Overlap::Off => usize::MAX,
        };
        let halved = config.vision.is_some() && whole.is_none() && threads >= least;
        let vision = if halved { backend.beside()? } else { None };
        Ok(Overlapping { asked: options.overlap, whole, vision, threads, halves: Mutex::default() })
    }

    /// What the vision side runs on, where that is not what the text side runs on.
    pub(crate) fn vision(&self) -> Option<&dyn Backend> {
        self.vision.as_deref()
    }

    /// Pictures that are read at the same time.
    pub(crate) fn readers(&self) -> usize {
        self.threads.clamp(1, MOST_READERS)
    }

    /// Threads of either half.
    fn half(&self) -> (usize, usize) {
        let text = self.threads / 2;
        (self.threads - text, text)
    }

    pub(crate) fn choose(&self) -> Choice {
        let halves = self.halves();
        match (&self.vision, self.asked) {
            (None, _) | (_, Overlap::Off) => Choice::Apart,
            (_, Overlap::On) => Choice::Halves,
            (_, Overlap::Auto) => halves.choose(),
        }
    }

    /// Why halves are taken, or not, for people.
    pub(crate) fn why(&self) -> String {
        let threads = self.threads;
        match (self.asked, &self.vision, self.halves().ratio) {
            (Overlap::On, Some(_), _) => {
                let (vision, text) = self.half();
                format!(
                    "halves of the threads ({vision} and {text}) encode and compute the prompt, as asked for"
                )
            }
            (_, None, _) if threads == 1 => {
                "encoding and prompt take turns: one thread cannot be halved".to_owned()
            }
            (_, None, _) if threads < LEAST_THREADS => {
                format!(
                    "encoding and prompt take turns: halves of {threads} threads were measured not to pay"
                )
            }
            (_, None, _) => "encoding and prompt take turns".to_owned(),
            (_, _, None) => {
                "encoding and prompt take turns: what halves of the threads take is not known yet".to_owned()
            }
            (_, _, Some(ratio)) => {
                let how = if ratio <= PAYS { "at the same time" } else { "in turn" };
                format!(
                    "encoding and prompt run {how}: on halves of the threads both took {ratio:.2} times as long"
                )
            }
        }
    }

    /// A tile of so many pixels took so long on all threads.
    pub(crate) fn learn_encode(&self, pixels: usize, took: Duration) {
        learn(&mut self.halves().encode, pixels, took);
    }

    /// So many tokens of a prompt took so long on all threads.
    pub(crate) fn learn_prefill(&self, tokens: usize, took: Duration) {
        if tokens >= LEAST_TOKENS {
            learn(&mut self.halves().prefill, tokens, took);
        }
    }

    /// Both took so long at the same time.
    pub(crate) fn learn_both(&self, pixels: usize, tokens: usize, took: Duration) {
        self.halves().learn_both(pixels, tokens, took);
    }

    fn halves(&self) -> std::sync::MutexGuard<'_, Halves> {
        // Numbers that are replaced one by one are sound whoever panicked.
        self.halves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Halves {
    fn choose(&self) -> Choice {
        match (self.encode, self.prefill, self.ratio) {
            (_, _, Some(ratio)) if ratio <= PAYS => Choice::Halves,
            (_, _, Some(_)) => Choice::Apart,
            // One try.
            (Some(_), Some(_), None) => Choice::Halves,
            (_, None, None) => Choice::Learn,
            (None, Some(_), None) => Choice::Apart,
        }
    }

    fn learn_both(&mut self, pixels: usize, tokens: usize, took: Duration) {
        let (Some(encode), Some(prefill)) = (self.encode, self.prefill) else { return };
        let (encode, prefill) = (encode * pixels as f64, prefill * tokens as f64);
        // Where one of the two is short, little can be gained or lost, and less be learned.
        if encode.min(prefill) >= LEAST_SHARE * (encode + prefill) {
            mean(&mut self.ratio, took.as_secs_f64() / (encode + prefill).max(f64::MIN_POSITIVE));
        }
    }
}

fn learn(each: &mut Option<f64>, count: usize, took: Duration) {
    mean(each, took.as_secs_f64() / count.max(1) as f64);
}

/// The newest counts for half, so that what a machine became is soon known.
fn mean(of: &mut Option<f64>, new: f64) {
    *of = Some(of.map_or(new, |known| (known + new) / 2.0));
}

impl Model {
    /// What the vision side runs on.
    pub(crate) fn vision_backend(&self) -> &dyn Backend {
        self.overlapping().vision().unwrap_or_else(|| self.backend())
    }

    /// Gives either side half of the threads.
    pub(crate) fn halve(&self) -> Halved<'_> {
        let halved = Halved { vision: self.vision_backend(), text: self.backend() };
        let (vision, text) = self.overlapping().half();
        halved.vision.use_threads(vision);
        halved.text.use_threads(text);
        halved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_tried_once_what_apart_takes_is_known_and_kept_only_where_they_pay() {
        let ms = Duration::from_millis;
        for (both, choice) in [(60, Choice::Halves), (99, Choice::Apart), (130, Choice::Apart)] {
            let mut halves = Halves::default();
            assert_eq!(halves.choose(), Choice::Learn);
            learn(&mut halves.prefill, 100, ms(20));
            assert_eq!(halves.choose(), Choice::Apart, "a tile tells of itself");
            learn(&mut halves.encode, 1000, ms(80));
            assert_eq!(halves.choose(), Choice::Halves, "one try");
            halves.learn_both(1000, 100, ms(both));
            assert_eq!(halves.choose(), choice, "{both} ms where 100 are apart");
        }
    }
}
