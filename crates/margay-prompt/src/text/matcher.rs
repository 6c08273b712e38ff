//! Finds fixed texts (control tokens, user-defined symbols) in a text: leftmost, then longest.

use std::collections::HashMap;

/// A set of texts with their ids.
#[derive(Debug, Clone, Default)]
pub(super) struct Matcher {
    /// By first byte, longest first.
    by_first: HashMap<u8, Vec<(String, u32)>>,
}

impl Matcher {
    /// Empty texts are ignored.
    pub(super) fn new(entries: impl IntoIterator<Item = (String, u32)>) -> Self {
        let mut by_first: HashMap<u8, Vec<(String, u32)>> = HashMap::new();
        for (text, id) in entries {
            if let Some(&first) = text.as_bytes().first() {
                by_first.entry(first).or_default().push((text, id));
            }
        }
        for list in by_first.values_mut() {
            // Stable: of equal texts the first one given wins.
            list.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        }
        Self { by_first }
    }

    /// The longest entry that starts at byte `at`: its end and its id.
    pub(super) fn longest_at(&self, text: &str, at: usize) -> Option<(usize, u32)> {
        let rest = &text.as_bytes()[at..];
        let list = self.by_first.get(rest.first()?)?;
        list.iter()
            .find(|(entry, _)| rest.starts_with(entry.as_bytes()))
            .map(|(entry, id)| (at + entry.len(), *id))
    }

    /// All matches without overlap: start, end, id.
    pub(super) fn find_all(&self, text: &str) -> Vec<(usize, usize, u32)> {
        let mut found = Vec::new();
        let mut at = 0;
        while !self.by_first.is_empty() && at < text.len() {
            match self.longest_at(text, at) {
                Some((end, id)) => {
                    found.push((at, end, id));
                    at = end;
                }
                None => at += 1, // entries are UTF-8, so that a match never starts inside a character
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_are_leftmost_then_longest() {
        let m = Matcher::new([
            ("<a>".to_owned(), 1),
            ("<a><b>".to_owned(), 2),
            ("é".to_owned(), 3),
            (String::new(), 4),
        ]);
        assert_eq!(m.find_all("x<a><a><b>é<a"), [(1, 4, 1), (4, 10, 2), (10, 12, 3)]);
        assert!(Matcher::default().find_all("<a>").is_empty());
    }
}
