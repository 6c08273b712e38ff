//! Token ids back to text, one at a time; and stop strings in the text that comes out.

use std::borrow::Borrow;

use super::Tokenizer;
use super::tokenizer::Lead;

/// Turns a stream of ids into pieces of text that are valid UTF-8, whose concatenation is
/// [`Tokenizer::decode`] of all of them.
///
/// A character spread over several tokens comes out with its last one. The leading space that SentencePiece
/// vocabularies put before a text is dropped once, at the start.
#[derive(Debug, Clone)]
pub struct StreamDecoder<T: Borrow<Tokenizer>> {
    tokenizer: T,
    skip_special: bool,
    /// Bytes of an unfinished character, at most 3 between calls.
    held: Vec<u8>,
    at_start: bool,
}

impl<T: Borrow<Tokenizer>> StreamDecoder<T> {
    /// A decoder at the start of an answer, over a tokenizer borrowed or shared (`Arc`). `skip_special` leaves control
    /// tokens out of the text.
    pub fn new(tokenizer: T, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, held: Vec::new(), at_start: true }
    }

    /// Takes one id; returns the text that is certain now (often empty within a multi-byte character).
    pub fn push(&mut self, id: u32) -> String {
        self.tokenizer.borrow().push_bytes(id, self.skip_special, &mut self.held);
        if self.at_start && !self.held.is_empty() {
            let drops = self.tokenizer.borrow().drops();
            let spaces = self.held.iter().take_while(|byte| **byte == b' ').count();
            let dropped = match drops {
                Lead::Nothing => 0,
                Lead::OneSpace => spaces.min(1),
                Lead::AllSpaces => spaces,
            };
            self.held.drain(..dropped);
            self.at_start = drops == Lead::AllSpaces && self.held.is_empty();
        }
        self.take_certain()
    }

    /// Returns what was held back; an incomplete character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        rest
    }

    /// Takes all but an unfinished character off the held bytes.
    fn take_certain(&mut self) -> String {
        let mut text = String::new();
        let mut at = 0;
        loop {
            match std::str::from_utf8(&self.held[at..]) {
                Ok(valid) => {
                    text.push_str(valid);
                    at = self.held.len();
                    break;
                }
                Err(error) => {
                    let valid_end = at + error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.held[at..valid_end]));
                    at = valid_end;
                    // No length: the end of the input lies within a character that may still become whole.
                    let Some(invalid) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    at += invalid;
                }
            }
        }
        self.held.drain(..at);
        text
    }
}

/// Finds stop strings in streamed text and holds back what could be the start of one.
///
/// The result does not depend on how the text is cut into pieces.
///
/// # Examples
/// ```
/// use margay_prompt::text::StopMatcher;
/// let mut stops = StopMatcher::new(["</s>"]);
/// assert_eq!(stops.push("a sign</"), ("a sign".to_owned(), false));
/// assert_eq!(stops.push("b>"), ("</b>".to_owned(), false));
/// assert_eq!(stops.push("end</s>more"), ("end".to_owned(), true));
/// ```
#[derive(Debug, Clone, Default)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl StopMatcher {
    /// A matcher for these stop strings; empty ones are ignored.
    pub fn new<S: Into<String>>(stops: impl IntoIterator<Item = S>) -> Self {
        let stops = stops.into_iter().map(Into::into).filter(|s: &String| !s.is_empty()).collect();
        Self { stops, held: String::new(), stopped: false }
    }

    /// Takes a piece; returns the text that can be shown, and whether a stop string was met (it is not part of the text).
    ///
    /// Of several stop strings the one that is complete first counts, of those the longest. After a stop nothing
    /// comes any more.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        if self.stopped {
            return (String::new(), true);
        }
        let before = self.held.len();
        self.held.push_str(piece);
        // Ends of characters that are new with this piece.
        let ends = self.held.char_indices().map(|(at, c)| at + c.len_utf8()).filter(|end| *end > before);
        for end in ends {
            let seen = &self.held[..end];
            let met = self.stops.iter().filter(|stop| seen.ends_with(stop.as_str())).map(String::len).max();
            if let Some(length) = met {
                self.stopped = true;
                let shown = self.held[..end - length].to_owned();
                self.held.clear();
                return (shown, true);
            }
        }
        let certain = self.held.len() - self.longest_start();
        let rest = self.held.split_off(certain);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// Returns what was held back at the end of the stream.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of the held text that some stop string starts with.
    fn longest_start(&self) -> usize {
        let starts = |length: &usize| {
            let tail = self.held.get(self.held.len() - length..);
            tail.is_some_and(|tail| {
                self.stops.iter().any(|stop| stop.len() > tail.len() && stop.starts_with(tail))
            })
        };
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0).saturating_sub(1);
        (1..=longest.min(self.held.len())).rev().find(starts).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stop_that_is_complete_first_wins_however_the_text_is_cut() {
        let text = "one two <stop> three";
        for cut in 0..=text.len() {
            let mut stops = StopMatcher::new(["<stop> th", "<stop>", "stop>"]);
            let (first, met) = stops.push(&text[..cut]);
            let (second, met_later) = stops.push(&text[cut..]);
            assert_eq!(
                (format!("{first}{second}").as_str(), met || met_later),
                ("one two ", true),
                "cut {cut}"
            );
            assert_eq!(stops.finish(), "");
            assert_eq!(stops.push("more"), (String::new(), true));
        }
    }

    #[test]
    fn what_only_looked_like_a_stop_comes_out_at_the_end() {
        let mut stops = StopMatcher::new(["###", "\nUSER:"]);
        assert_eq!(stops.push("é##"), ("é".to_owned(), false));
        assert_eq!(stops.push("\nUS"), ("##".to_owned(), false));
        assert_eq!(stops.finish(), "\nUS");
    }
}
