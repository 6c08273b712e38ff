//! Tokens guessed ahead.
//!
//! The decoder computes logits for several tokens in one run for little more than for one, as long as reading its weights
//! is what takes the time. So a guess at the next tokens is run along, and each is kept as long as it is the token that
//! would have been chosen: the sampler draws from the model's own logits at every place, and a guess only saves a run
//! where it was right. Answers are therefore those of a decoder without guesses, whatever the temperature. Source of
//! guessing ahead: Leviathan et al., arXiv 2211.17192, of which this is the case of a draft that is sure of itself; of
//! looking tokens up in the prompt: Saxena, Prompt Lookup Decoding, 2023.

mod model;
mod payoff;

pub(crate) use model::{Ahead, Drafted, Drafter, draft_options, open};
pub(crate) use payoff::{Payoff, Source};

use std::collections::HashMap;

/// Tokens that must have come before in the same order, longest first.
const SPANS: [usize; 2] = [3, 2];

/// Looks up what came behind the last tokens when they came before.
#[derive(Default)]
pub(crate) struct Lookup {
    tokens: Vec<i32>,
    /// Where each span was followed last: the place behind it.
    seen: [HashMap<[i32; 3], usize>; SPANS.len()],
}

impl Lookup {
    /// Takes tokens of the prompt or of the answer; negative ones are visual, and match nothing.
    pub(crate) fn push(&mut self, tokens: &[i32]) {
        for token in tokens {
            // What ends here is seen once something follows it.
            for (span, seen) in SPANS.into_iter().zip(&mut self.seen) {
                if let Some(key) = key(&self.tokens, span) {
                    seen.insert(key, self.tokens.len());
                }
            }
            self.tokens.push(*token);
        }
    }

    /// At most so many tokens that may come next.
    pub(crate) fn guess(&self, most: usize) -> &[i32] {
        for (span, seen) in SPANS.into_iter().zip(&self.seen) {
            if let Some(at) = key(&self.tokens, span).and_then(|key| seen.get(&key)) {
                let rest = &self.tokens[*at..];
                let text = rest.iter().position(|token| *token < 0).unwrap_or(rest.len());
                return &rest[..text.min(most)];
            }
        }
        &[]
    }
}

fn key(tokens: &[i32], span: usize) -> Option<[i32; 3]> {
    let last = &tokens[tokens.len().checked_sub(span)?..];
    let mut key = [-1; 3];
    key[..span].copy_from_slice(last);
    last.iter().all(|token| *token >= 0).then_some(key)
}

#[cfg(test)]
mod tests;
