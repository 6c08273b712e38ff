//! SentencePiece's compiled normalisation rules (`precompiled_charsmap`).
//!
//! Layout: length of the trie in bytes (u32, little-endian), the trie (a double array of u32 units as darts-clone
//! writes it), then the replacements, each ended by a zero byte. Source: sentencepiece `normalizer.cc`
//! (`DecodePrecompiledCharsMap`, `NormalizePrefix`), darts-clone `darts.h` (`DoubleArrayUnit`).

use super::TokenizerError;

/// Rules that replace the longest matching prefix, position by position.
#[derive(Debug, Clone)]
pub(super) struct Charsmap {
    bytes: Vec<u8>,
    trie: Vec<u32>,
    replacements: String,
}

impl Charsmap {
    pub(super) fn new(bytes: &[u8]) -> Result<Self, TokenizerError> {
        let bad = |detail: String| TokenizerError::BadVocab { field: "precompiled_charsmap", detail };
        let head = bytes.first_chunk::<4>().ok_or_else(|| bad(format!("has only {} bytes", bytes.len())))?;
        let length = u32::from_le_bytes(*head) as usize;
        let rest = &bytes[4..];
        if length == 0 || !length.is_multiple_of(4) || length > rest.len() {
            return Err(bad(format!("its table claims {length} of the {} bytes there are", rest.len())));
        }
        let trie =
            rest[..length].chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let replacements = std::str::from_utf8(&rest[length..])
            .map_err(|e| bad(format!("its replacements: {e}")))?
            .to_owned();
        Ok(Self { bytes: bytes.to_vec(), trie, replacements })
    }

    /// The rules as they came.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends the normalised text.
    pub(super) fn apply(&self, text: &str, out: &mut String) {
        let mut at = 0;
        while at < text.len() {
            let rest = &text[at..];
            let (length, replacement) = match self.longest(rest.as_bytes()) {
                // A rule that ends within a character or points nowhere is a damaged one: the text stays.
                Some((length, offset)) if rest.is_char_boundary(length) => (length, self.replacement(offset)),
                _ => (0, None),
            };
            match replacement {
                Some(replacement) => {
                    out.push_str(replacement);
                    at += length;
                }
                None => {
                    let length = rest.chars().next().map_or(1, char::len_utf8);
                    out.push_str(&rest[..length]);
                    at += length;
                }
            }
        }
    }

    /// Length of the longest rule that `key` starts with, and where its replacement begins.
    fn longest(&self, key: &[u8]) -> Option<(usize, usize)> {
        let mut found = None;
        let mut node = offset(*self.trie.first()?);
        for (i, &byte) in key.iter().enumerate() {
            node ^= usize::from(byte);
            let Some(&unit) = self.trie.get(node) else { break };
            // Label: the byte, with the top bit set in leaves.
            if unit & 0x8000_00FF != u32::from(byte) {
                break;
            }
            node ^= offset(unit);
            let has_leaf = unit >> 8 & 1 == 1;
            if let Some(&leaf) = self.trie.get(node).filter(|_| has_leaf) {
                found = Some((i + 1, (leaf & 0x7FFF_FFFF) as usize));
            }
        }
        found
    }

    fn replacement(&self, offset: usize) -> Option<&str> {
        self.replacements.get(offset..)?.split('\0').next()
    }
}

/// Distance to the children of a unit.
fn offset(unit: u32) -> usize {
    ((unit >> 10) << ((unit & 1 << 9) >> 6)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule "A" -> "a", written by hand: unit 0 leads to `'A' ^ 1`, whose leaf holds offset 0.
    fn lower_a() -> Vec<u8> {
        let mut trie = vec![0u32; 0x42];
        trie[0] = 1 << 10;
        let node = 1 ^ 0x41; // 0x40
        trie[node] = 0x41 | 1 << 8 | 1 << 10; // leaf at 0x40 ^ 1 = 0x41
        trie[node ^ 1] = 1 << 31;
        let mut bytes = ((trie.len() * 4) as u32).to_le_bytes().to_vec();
        bytes.extend(trie.iter().flat_map(|u| u.to_le_bytes()));
        bytes.extend(b"a\0");
        bytes
    }

    #[test]
    fn rules_replace_what_they_match_and_nothing_else() {
        let mut out = String::new();
        Charsmap::new(&lower_a()).unwrap().apply("BAnAnA é", &mut out);
        assert_eq!(out, "Banana é");
    }

    #[test]
    fn damaged_rules_are_refused_or_harmless() {
        for bytes in [&[1u8][..], &[255, 255, 255, 255, 0], &[4, 0, 0, 0, 1, 2, 3, 4, 0xFF], &[0; 4]] {
            assert!(Charsmap::new(bytes).is_err(), "{bytes:?}");
        }
        let good = lower_a();
        for at in 4..good.len() - 2 {
            let mut damaged = good.clone();
            damaged[at] ^= 0xFF;
            let mut out = String::new();
            Charsmap::new(&damaged).unwrap().apply("BAnAnA é", &mut out);
        }
    }
}
