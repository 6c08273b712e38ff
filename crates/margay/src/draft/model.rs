//! Tokens guessed by a smaller model of the same vocabulary.
//!
//! It is asked as the model would be: a copy of the sampler chooses from its logits with the same random numbers, penalties
//! and form, so that it guesses what would be chosen and not only what is likeliest. What it guesses is put to the test as
//! any other guess is, so that nothing of it can change an answer. Sources: Leviathan et al., arXiv 2211.17192; a draft
//! that sees no pictures: Gagrani et al., arXiv 2404.08856.

use crate::{
    DraftModel, Error, LoadOptions, ModelSource, Session,
    batches::batch_end,
    engine::{Engine, TextCall, prefix_of},
    sample::Sampler,
};
use margay_graph::{Backend, Cancel, MemoryUse, State};
use margay_model::ModelConfig;
use margay_observe::Stopwatch;
use margay_prompt::text::Tokenizer;
use std::{
    path::Path,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

/// Tokens by which two vocabularies may differ in size, so that a model and its draft may pad them differently. Source:
/// llama.cpp, `common/speculative.cpp`.
const MOST_MORE_TOKENS: usize = 128;

/// A draft model, for all conversations.
pub(crate) struct Drafter {
    engine: Mutex<Engine>,
    config: ModelConfig,
    /// Logits that stand for tokens of both.
    logits: usize,
    told: DraftModel,
}

/// What a draft model has computed of a conversation.
pub(crate) struct Drafted {
    state: Box<dyn State>,
    /// Ids of the tokens in its cache, negative for visual rows. They are those of the conversation that the draft model can
    /// see, and behind them what it guessed last.
    held: Vec<i32>,
}

/// What lies ahead of a draft model: the conversation as it is held, and a token behind it.
pub(crate) struct Ahead<'a> {
    /// Ids of the conversation, negative for visual rows.
    pub held: &'a [i32],
    /// The token behind it.
    pub last: i32,
    /// The places of the first tokens, and of the one behind all, from which on places count up.
    pub places: (&'a [[i32; 3]], i32),
    /// Visual rows, [V, E].
    pub visual: &'a [f32],
    /// Stops it.
    pub cancel: &'a Cancel,
}

/// Guesses, and what they took.
#[derive(Default)]
pub(crate) struct Guesses {
    pub ids: Vec<i32>,
    /// Tokens of the conversation that were computed for them, and how long that took.
    pub behind: (usize, Duration),
    /// How long the steps behind those took.
    pub took: Duration,
}

impl Drafter {
    /// Loads a draft model for `target`, whose options these are.
    ///
    /// # Errors
    /// As loading a model; [`Error::Option`] where the two do not fit.
    pub(crate) fn load(
        path: &Path,
        target: &ModelSource,
        backend: &dyn Backend,
        options: &LoadOptions,
        context: usize,
    ) -> Result<Self, Error> {
        let (source, told) = open(path, target)?;
        let engine = Engine::new(&source, backend, &draft_options(options), context)?;
        let logits = source.config.text.vocabulary.min(target.config.text.vocabulary);
        Ok(Drafter { engine: Mutex::new(engine), config: source.config, logits, told })
    }

    /// What it is.
    pub(crate) fn told(&self) -> &DraftModel {
        &self.told
    }

    /// Bytes it holds, caches not counted.
    pub(crate) fn memory(&self) -> Result<MemoryUse, Error> {
        Ok(self.engine()?.memory())
    }

    /// Nothing of a conversation of up to so many tokens.
    pub(crate) fn begin(&self, context: usize) -> Result<Drafted, Error> {
        Ok(Drafted { state: self.engine()?.new_state(context, None)?, held: vec![] })
    }

    /// Whether it can see that token of the conversation.
    fn sees(&self, id: i32) -> bool {
        usize::try_from(id).map_or(self.told.sees_pictures, |id| id < self.config.text.vocabulary)
    }

    /// The conversation as it sees it, and where each of its tokens stands in the model's own.
    fn seen<'a>(&'a self, ahead: &'a Ahead<'_>) -> impl Iterator<Item = (usize, i32)> + 'a {
        let all = ahead.held.iter().chain(std::iter::once(&ahead.last)).copied().enumerate();
        all.filter(|(_, id)| self.sees(*id))
    }

    /// Tokens that it has to compute before its first guess.
    pub(crate) fn behind(&self, drafted: &Drafted, ahead: &Ahead<'_>) -> usize {
        self.seen(ahead).count() - self.shared(drafted, ahead)
    }

    /// Tokens of its cache that are those of the conversation; the last is computed again where none is new, since its logits
    /// are wanted.
    fn shared(&self, drafted: &Drafted, ahead: &Ahead<'_>) -> usize {
        let mut seen = self.seen(ahead);
        let shared = drafted.held.iter().zip(&mut seen).take_while(|(held, (_, id))| *held == id).count();
        let all = self.seen(ahead).count();
        self.whole(&drafted.held, shared.min(all.saturating_sub(1)))
    }

    /// So many tokens, or none where that would cut tokens that saw one another.
    fn whole(&self, held: &[i32], tokens: usize) -> usize {
        if tokens < prefix_of(&self.config, held) { 0 } else { tokens }
    }

    /// Keeps of a conversation what belongs to the first tokens of `held` as well, which are all that is left of it.
    pub(crate) fn keep(&self, drafted: &mut Drafted, held: &[i32]) {
        let tokens = held.iter().filter(|id| self.sees(**id)).count();
        let tokens = self.whole(&drafted.held, tokens.min(drafted.held.len()));
        drafted.held.truncate(tokens);
        drafted.state.truncate(tokens);
    }

    /// Of a conversation, what belongs to the first tokens, `held`; nothing of a backend that shares nothing.
    pub(crate) fn fork(&self, drafted: &Drafted, held: &[i32], context: usize) -> Result<Drafted, Error> {
        let seen = held.iter().filter(|id| self.sees(**id));
        let tokens = drafted.held.iter().zip(seen).take_while(|(a, b)| a == b).count();
        let tokens = self.whole(&drafted.held, tokens);
        match drafted.state.fork(tokens) {
            Ok(state) => Ok(Drafted { state, held: drafted.held[..tokens].to_vec() }),
            Err(_) => self.begin(context),
        }
    }

    /// At most `count` guesses at what the sampler will choose behind the last token, as many as its cache has room for. At most
    /// `most` tokens that it is behind are computed: where they are more, there are no guesses yet.
    ///
    /// # Errors
    /// [`Error::Backend`], cancelling included.
    pub(crate) fn guess(
        &self,
        drafted: &mut Drafted,
        ahead: &Ahead<'_>,
        count: usize,
        most: usize,
        sampler: &mut Sampler,
    ) -> Result<Guesses, Error> {
        let mut guesses = Guesses::default();
        let clock = Stopwatch::start();
        let (mut at, mut ids): (Vec<usize>, Vec<i32>) = self.seen(ahead).unzip();
        // The last guess is not computed.
        let count = count.min((drafted.state.capacity() + 1).saturating_sub(ids.len()));
        let prefix = prefix_of(&self.config, &ids);
        let mut engine = self.engine()?;
        // Its own batches may be too small for a picture that sees itself whole.
        if ids.is_empty() || count == 0 || engine.batch() < prefix {
            return Ok(guesses);
        }
        let from = self.shared(drafted, ahead);
        drafted.held.truncate(from);
        drafted.state.truncate(from);
        // All but the last of them are the conversation's; its logits are wanted.
        let all = ids.len();
        while drafted.held.len() < all {
            let done = drafted.held.len();
            let left = most.saturating_sub(guesses.behind.0);
            // Tokens that see one another are computed together, whatever the pace.
            if left == 0 {
                guesses.behind.1 = clock.elapsed();
                return Ok(guesses);
            }
            let to = batch_end(&ids, done, left.min(engine.batch()), prefix, false);
            self.run(&mut engine, drafted, ahead, (&at[done..to], &ids[done..to]), prefix)?;
            guesses.behind.0 += to - done;
        }
        guesses.behind.1 = clock.elapsed();
        let mut sampler = sampler.ahead(count);
        loop {
            let logits = engine.logits();
            // Logits that no token can be chosen from are no reason to end an answer that is not theirs.
            let Ok(id) = sampler.choose(&logits[..self.logits.min(logits.len())]) else { break };
            guesses.ids.push(id as i32);
            if guesses.ids.len() >= count || sampler.accept(id).is_err() || sampler.is_complete() {
                break;
            }
            let place = ahead.held.len() + guesses.ids.len();
            (at, ids) = (vec![place], vec![id as i32]);
            self.run(&mut engine, drafted, ahead, (&at, &ids), prefix)?;
        }
        guesses.took = clock.elapsed().saturating_sub(guesses.behind.1);
        Ok(guesses)
    }

    /// Computes tokens, which stand at those places of the conversation.
    fn run(
        &self,
        engine: &mut Engine,
        drafted: &mut Drafted,
        ahead: &Ahead<'_>,
        (at, ids): (&[usize], &[i32]),
        prefix: usize,
    ) -> Result<(), Error> {
        let width = self.config.text.width;
        // One that sees no pictures counts its own places.
        let (known, next) = ahead.places;
        let place = |at: &usize| match known.get(*at) {
            Some(place) => *place,
            None => [next + *at as i32 - ahead.held.len() as i32; 3],
        };
        let places: Vec<_> = at.iter().filter(|_| self.told.sees_pictures).map(place).collect();
        let visual = if self.told.sees_pictures { ahead.visual } else { &[] };
        let position = drafted.held.len();
        let call = TextCall { ids, places: &places, visual, width, position, prefix };
        engine.run_text(&call, 1, drafted.state.as_mut(), ahead.cancel)?;
        drafted.held.extend_from_slice(ids);
        Ok(())
    }

    fn engine(&self) -> Result<MutexGuard<'_, Engine>, Error> {
        self.engine.lock().map_err(|_| Error::Poisoned)
    }
}

impl Drafted {
    /// Forgets the conversation.
    pub(crate) fn clear(&mut self) {
        self.held.clear();
        self.state.truncate(0);
    }

    /// See [`State::used_bytes`].
    pub(crate) fn used_bytes(&self) -> usize {
        self.state.used_bytes()
    }

    /// See [`State::size_bytes`].
    pub(crate) fn size_bytes(&self) -> usize {
        self.state.size_bytes()
    }
}

impl Session {
    /// Tokens of the conversation that the draft model has not computed, where there is one.
    #[cfg(test)]
    pub(crate) fn drafted_tokens(&self) -> Option<usize> {
        self.drafted.as_ref().map(|drafted| drafted.held.len())
    }
}

/// Opens a draft model for `target` and says what it is.
///
/// # Errors
/// As opening a model; [`Error::Option`] where the two do not fit.
pub(crate) fn open(path: &Path, target: &ModelSource) -> Result<(ModelSource, DraftModel), Error> {
    let source = ModelSource::open(path, None)?;
    fits(&source.tokenizer, source.config.text.vocabulary, &target.tokenizer).map_err(|what| {
        let name = &source.config.name;
        let what = format!(
            "{name} cannot guess for {}: {what}; take a draft with the same vocabulary",
            target.config.name
        );
        Error::Option { option: "draft-model", what }
    })?;
    let (draft, model) = (&source.config, &target.config);
    // Rows of another projector mean nothing to a decoder; that they come from the same one is told by family and width alone.
    let sees_pictures = draft.family == model.family
        && draft.vision.is_some()
        && model.vision.is_some()
        && draft.text.width == model.text.width;
    let told = DraftModel { name: draft.name.clone(), sees_pictures };
    Ok((source, told))
}

/// Whether tokens of a draft model with so many logits are those of the model.
fn fits(draft: &Tokenizer, vocabulary: usize, model: &Tokenizer) -> Result<(), String> {
    let (few, many) = (draft.vocab_size(), model.vocab_size());
    if few.abs_diff(many) > MOST_MORE_TOKENS {
        return Err(format!("its vocabulary has {few} tokens, not {many}"));
    }
    for id in 0..few.min(many).min(vocabulary) as u32 {
        let (a, b) = (draft.token_text(id), model.token_text(id));
        // What is a hole in one of the two stands for nothing there.
        let hole = |text: Option<&str>| text.is_none_or(str::is_empty);
        if a != b && !hole(a) && !hole(b) {
            let [a, b] = [a, b].map(Option::unwrap_or_default);
            return Err(format!("its token {id} is {a:?}, not {b:?}"));
        }
    }
    Ok(())
}

/// How a draft is loaded for a model of these options: as its files have it, keys and values as the model's.
pub(crate) fn draft_options(options: &LoadOptions) -> LoadOptions {
    LoadOptions {
        mmproj: None,
        dtype: None,
        vision_dtype: None,
        max_image_tokens: None,
        eviction: None,
        outputs: 1,
        image_folder: None,
        reduction: None,
        pruning: None,
        repeated_patches: None,
        changed_patches: false,
        prefix_folder: None,
        embeddings: false,
        draft_model: None,
        ..options.clone()
    }
}
