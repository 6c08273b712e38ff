//! Visual tokens that the decoder's first layers see, and its others do not.
//!
//! Sources: Chen et al., FastV, arXiv 2403.06764 (`attention`); Alvar et al., DivPrune, arXiv 2503.02175 (`diverse`, whose
//! authors apply it in front of the decoder).

mod attention;
mod diverse;
mod even;
mod random;
mod split;
mod state;

use crate::{Error, LoadOptions};
use margay_graph::Backend;
use margay_model::ModelConfig;

pub(crate) use split::{Decoder, Split};
pub(crate) use state::SplitState;

/// A way to choose the visual tokens that all layers see.
pub struct PruningEntry {
    /// Short lower-case name.
    pub id: &'static str,
    /// One line for people.
    pub what: &'static str,
    /// Whether another question about the same picture chooses others. Then what was computed of a picture is of no use to
    /// the next question, and the tokens of all pictures compete; else each picture, or tile, keeps its share, and the next
    /// question goes on from what is there.
    pub by_question: bool,
    /// Numbers of the rows that stay, ascending.
    choose: fn(&Candidates<'_>, usize) -> Vec<usize>,
}

/// All of them.
pub static PRUNINGS: &[PruningEntry] = &[attention::ENTRY, diverse::ENTRY, even::ENTRY, random::ENTRY];

/// How many visual tokens all layers of the decoder see, and which.
#[derive(Clone, Debug, PartialEq)]
pub struct Pruning {
    /// Id of an entry of [`PRUNINGS`].
    pub method: String,
    /// Their share, above 0 and at most 1; at least one stays.
    pub keep: f64,
    /// Layers that see all: at least 1, and fewer than the decoder has.
    pub layer: usize,
}

/// Visual tokens to choose from.
struct Candidates<'c> {
    /// Their hidden rows behind the last layer that sees all. [V, E]
    rows: &'c [f32],
    /// E
    width: usize,
    /// The attention that the prompt's last token pays to each in that layer, summed over heads, where the method sees it. `[V]`
    attention: &'c [f32],
}

impl Candidates<'_> {
    fn count(&self) -> usize {
        self.rows.len() / self.width
    }
}

impl Pruning {
    /// # Errors
    /// [`Error::Unknown`] for the method; [`Error::Option`] for a share or layer out of range, and for models, backends and
    /// options that do not fit.
    pub(crate) fn check(
        &self,
        config: &ModelConfig,
        backend: &dyn Backend,
        options: &LoadOptions,
    ) -> Result<(), Error> {
        let bad = |what: String| Err(Error::Option { option: "prune-image-tokens", what });
        let entry = self.entry()?;
        let (name, layers) = (&config.name, config.text.layers);
        if !(self.keep > 0.0 && self.keep <= 1.0) {
            return bad(format!("{} is not above 0 and at most 1", self.keep));
        }
        if self.layer == 0 || self.layer >= layers {
            return bad(format!(
                "{name} has {layers} layers, of which 1 to {} can see all visual tokens, not {}",
                layers.saturating_sub(1),
                self.layer
            ));
        }
        if config.vision.is_none() {
            return bad(format!("{name} sees no pictures"));
        }
        if options.eviction.is_some() {
            return bad(
                "tokens are dropped from the cache already; leave --evict and --kv-window out".to_owned()
            );
        }
        if options.prefix_folder.is_some() {
            return bad(
                "prompts that are kept hold all their visual tokens; leave --prefix-folder out".to_owned()
            );
        }
        if options.kv_image.is_some() {
            return bad(
                "the blocks of the deeper layers lie across pictures; leave --kv-image out".to_owned()
            );
        }
        if entry.by_question && backend.id() != "cpu" {
            return bad(format!(
                "{} needs the attention of a layer, which the {} backend does not tell; use the cpu backend, or {}",
                entry.id,
                backend.id(),
                ids(|entry| !entry.by_question)
            ));
        }
        Ok(())
    }

    pub(crate) fn entry(&self) -> Result<&'static PruningEntry, Error> {
        PRUNINGS.iter().find(|entry| entry.id == self.method).ok_or_else(|| Error::Unknown {
            what: "way to prune visual tokens",
            name: self.method.clone(),
            known: ids(|_| true),
        })
    }

    /// What tells states apart that hold other tokens.
    fn form(&self) -> String {
        format!("pruned behind layer {} to {} by {}", self.layer, self.keep, self.method)
    }

    /// Whether the tokens that stay are others for another question.
    pub(crate) fn is_by_question(&self) -> Result<bool, Error> {
        Ok(self.keep < 1.0 && self.entry()?.by_question)
    }

    /// Tokens of a prompt that need not be computed again of the first `shared`, which were computed before: none from the
    /// first picture on where another question chooses others, and no part of a picture's tokens, which compete.
    pub(crate) fn reused(&self, ids: &[i32], shared: usize) -> Result<usize, Error> {
        if self.keep >= 1.0 {
            return Ok(shared);
        }
        if self.is_by_question()? {
            return Ok(ids[..shared].iter().position(|id| *id < 0).unwrap_or(shared));
        }
        let within = ids.get(shared).is_some_and(|id| *id < 0);
        let of_picture = ids[..shared].iter().rev().take_while(|id| within && **id < 0).count();
        Ok(shared - of_picture)
    }

    /// Numbers of the tokens that stay, ascending: all words, the last token, and the chosen ones of the visual tokens.
    ///
    /// `ids`: those of the tokens, `[T]`, negative for visual ones. `rows`: what the first layers made of them, [T, E].
    /// `attention`: what the last of them pays to each, `[T]`, where the method sees it.
    pub(crate) fn kept(&self, ids: &[i32], rows: &[f32], attention: &[f32]) -> Result<Vec<usize>, Error> {
        let entry = self.entry()?;
        let width = rows.len() / ids.len().max(1);
        let visual: Vec<usize> = (0..ids.len()).filter(|at| ids[*at] < 0).collect();
        let groups: Vec<&[usize]> = match entry.by_question {
            true => vec![visual.as_slice()],
            // One behind the other: of one picture, or of one of its tiles.
            false => visual.chunk_by(|a, b| a + 1 == *b).collect(),
        };
        let mut stays: Vec<bool> = ids.iter().map(|id| *id >= 0).collect();
        for group in groups {
            let of = |at: &usize| rows[at * width..][..width].iter().copied();
            let candidates = Candidates {
                rows: &group.iter().flat_map(of).collect::<Vec<_>>(),
                width,
                attention: &group.iter().filter_map(|at| attention.get(*at).copied()).collect::<Vec<_>>(),
            };
            let keep = self.count(group.len());
            let chosen: Vec<usize> =
                if keep >= group.len() { (0..keep).collect() } else { (entry.choose)(&candidates, keep) };
            chosen.into_iter().for_each(|at| stays[group[at]] = true);
        }
        // Its logits are wanted.
        if let Some(last) = stays.last_mut() {
            *last = true;
        }
        Ok((0..ids.len()).filter(|at| stays[*at]).collect())
    }

    /// Tokens that stay of so many.
    pub(crate) fn count(&self, tokens: usize) -> usize {
        // A share of tokens is far below what a float counts exactly.
        ((tokens as f64 * self.keep).round() as usize).clamp(tokens.min(1), tokens)
    }
}

fn ids(of: impl Fn(&PruningEntry) -> bool) -> String {
    PRUNINGS.iter().filter(|entry| of(entry)).map(|entry| entry.id).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
