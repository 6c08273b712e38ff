//! SentencePiece's byte-pair encoding by score, with its ties, its user-defined symbols and its byte fallback.
//!
//! The `tokenizers` crate merges by rank of the *pair*, SentencePiece by score of the *result*, leftmost first: the
//! two differ on repetitions such as `aaa`, where (`a`, `aa`) and (`aa`, `a`) tie. Hence this small implementation.
//! Source: sentencepiece `bpe_model.cc` (`SampleEncode`), `normalizer.cc`, `sentencepiece_processor.cc`
//! (`PopulateSentencePieceText` for byte fallback and runs of unknown characters).

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};
use std::fmt;

use super::charsmap::Charsmap;
use super::matcher::Matcher;
use super::{PieceKind, SentencePieceModel, SentencePieceType, TokenizerError};

/// What SentencePiece writes for a space.
pub(super) const SPACE: char = '▁';

/// A SentencePiece BPE model ready to encode.
#[derive(Clone)]
pub(super) struct SpmBpe {
    /// Normal, user-defined and unused pieces: what merging can make.
    pieces: HashMap<String, u32>,
    /// Score and kind per id.
    info: Vec<(f32, PieceKind)>,
    /// Id of `<0xNN>` per byte, if all 256 exist and the model falls back to bytes.
    bytes: Option<Box<[u32; 256]>>,
    user_defined: Matcher,
    unknown: u32,
    remove_extra_whitespaces: bool,
    charsmap: Option<Charsmap>,
}

impl fmt::Debug for SpmBpe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpmBpe").field("pieces", &self.info.len()).finish_non_exhaustive()
    }
}

impl SpmBpe {
    pub(super) fn new(model: &SentencePieceModel) -> Result<Self, TokenizerError> {
        if model.model_type != SentencePieceType::Bpe {
            return Err(TokenizerError::UnsupportedModel {
                model: format!("SentencePiece {:?}", model.model_type),
                supported: "SentencePiece BPE; convert other models to tokenizer.json first",
            });
        }
        if !model.escape_whitespaces {
            return Err(TokenizerError::UnsupportedModel {
                model: "SentencePiece without escape_whitespaces".to_owned(),
                supported: "SentencePiece BPE that writes spaces as ▁",
            });
        }
        let bad = |field, detail| Err(TokenizerError::BadVocab { field, detail });
        let mut pieces = HashMap::with_capacity(model.pieces.len());
        let mut info = Vec::with_capacity(model.pieces.len());
        let mut user_defined = Vec::new();
        let mut bytes = [None; 256];
        for (id, (text, score, kind)) in (0u32..).zip(&model.pieces) {
            if !score.is_finite() {
                return bad("scores", format!("piece {id} {text:?} has score {score}"));
            }
            info.push((*score, *kind));
            match kind {
                PieceKind::Byte => match parse_byte(text) {
                    Some(byte) => bytes[usize::from(byte)] = Some(id),
                    None => {
                        return bad(
                            "token_type",
                            format!("piece {id} {text:?} is a byte, but not written <0xNN>"),
                        );
                    }
                },
                PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused if !text.is_empty() => {
                    if *kind == PieceKind::UserDefined {
                        user_defined.push((text.clone(), id));
                    }
                    // The first of equal pieces wins, as in published vocabularies with padding entries.
                    pieces.entry(text.clone()).or_insert(id);
                }
                _ => {}
            }
        }
        let unknown = match model.unk_id {
            Some(id) if (id as usize) < info.len() => id,
            Some(id) => return bad("unk_id", format!("{id} is outside the {} pieces", info.len())),
            None => info.iter().position(|(_, kind)| *kind == PieceKind::Unknown).unwrap_or(0) as u32,
        };
        let bytes = if model.byte_fallback {
            let mut ids = Box::new([0; 256]);
            for (byte, id) in bytes.iter().enumerate() {
                match id {
                    Some(id) => ids[byte] = *id,
                    None => return bad("byte_fallback", format!("there is no piece <0x{byte:02X}>")),
                }
            }
            Some(ids)
        } else {
            None
        };
        let charsmap = match model.precompiled_charsmap.as_slice() {
            [] => None,
            rules => Some(Charsmap::new(rules)?),
        };
        Ok(Self {
            pieces,
            info,
            bytes,
            user_defined: Matcher::new(user_defined),
            unknown,
            remove_extra_whitespaces: model.remove_extra_whitespaces,
            charsmap,
        })
    }

    pub(super) fn score(&self, id: u32) -> f32 {
        self.info.get(id as usize).map_or(0.0, |(score, _)| *score)
    }

    pub(super) fn remove_extra_whitespaces(&self) -> bool {
        self.remove_extra_whitespaces
    }

    pub(super) fn charsmap_bytes(&self) -> Option<&[u8]> {
        self.charsmap.as_ref().map(Charsmap::bytes)
    }

    /// Appends the ids of a plain text; `prefix` puts the dummy space in front.
    pub(super) fn encode(&self, text: &str, prefix: bool, ids: &mut Vec<u32>) {
        let text = self.normalise(text, prefix);
        let mut merger = Merger::new(self, &text);
        merger.run();
        let mut unknown_run = false;
        for (start, end) in merger.spans() {
            merger.resegment(start, end, &mut |piece, id| match (id, &self.bytes) {
                (Some(id), _) => {
                    unknown_run = false;
                    ids.push(id);
                }
                (None, Some(bytes)) => ids.extend(piece.bytes().map(|b| bytes[usize::from(b)])),
                (None, None) => {
                    // A run of unknown characters is one unknown token.
                    if !unknown_run {
                        ids.push(self.unknown);
                    }
                    unknown_run = true;
                }
            });
        }
    }

    /// Applies the model's rules and writes spaces as `▁`.
    fn normalise(&self, text: &str, prefix: bool) -> String {
        let mapped = match &self.charsmap {
            None => text.to_owned(),
            Some(rules) => {
                // User-defined symbols are not touched by the rules.
                let mut mapped = String::with_capacity(text.len());
                let mut plain = 0;
                for (start, end, _) in self.user_defined.find_all(text) {
                    rules.apply(&text[plain..start], &mut mapped);
                    mapped.push_str(&text[start..end]);
                    plain = end;
                }
                rules.apply(&text[plain..], &mut mapped);
                mapped
            }
        };
        let mut out = String::with_capacity(mapped.len() + 3);
        let kept = if self.remove_extra_whitespaces { mapped.trim_matches(' ') } else { &mapped };
        if kept.is_empty() {
            return out;
        }
        if prefix {
            out.push(SPACE);
        }
        let mut last_was_space = false;
        for c in kept.chars() {
            let is_space = c == ' ' || c == SPACE;
            if !(is_space && last_was_space && self.remove_extra_whitespaces) {
                out.push(if c == ' ' { SPACE } else { c });
            }
            last_was_space = is_space;
        }
        out
    }

    fn kind(&self, id: u32) -> PieceKind {
        self.info.get(id as usize).map_or(PieceKind::Unused, |(_, kind)| *kind)
    }
}

/// `<0xNN>` to the byte.
pub(super) fn parse_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if is_hex { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// A stretch of the text that is one symbol, linked to its neighbours.
struct Symbol {
    start: usize,
    end: usize,
    prev: Option<usize>,
    next: Option<usize>,
    /// User-defined: takes part in no merge.
    frozen: bool,
}

/// A possible merge. Ordered by score, then leftmost.
struct Candidate {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of the merged symbol: another length means that a side has changed since.
    len: usize,
}

impl Candidate {
    fn key(&self) -> (f32, Reverse<usize>) {
        (self.score, Reverse(self.left))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        let ((a, left), (b, other_left)) = (self.key(), other.key());
        a.total_cmp(&b).then(left.cmp(&other_left))
    }
}

struct Merger<'m, 't> {
    model: &'m SpmBpe,
    text: &'t str,
    symbols: Vec<Symbol>,
    candidates: BinaryHeap<Candidate>,
    /// Where an unused piece was put together, to take it apart again.
    unused: HashMap<&'t str, usize>,
}

impl<'m, 't> Merger<'m, 't> {
    fn new(model: &'m SpmBpe, text: &'t str) -> Self {
        let mut symbols: Vec<Symbol> = Vec::new();
        let mut at = 0;
        while at < text.len() {
            let (end, frozen) = match model.user_defined.longest_at(text, at) {
                Some((end, _)) => (end, true),
                None => (at + text[at..].chars().next().map_or(1, char::len_utf8), false),
            };
            let index = symbols.len();
            symbols.push(Symbol {
                start: at,
                end,
                prev: index.checked_sub(1),
                next: Some(index + 1),
                frozen,
            });
            at = end;
        }
        if let Some(last) = symbols.last_mut() {
            last.next = None;
        }
        Self { model, text, symbols, candidates: BinaryHeap::new(), unused: HashMap::new() }
    }

    fn run(&mut self) {
        for right in 1..self.symbols.len() {
            self.consider(right - 1, right);
        }
        while let Some(Candidate { left, right, len, .. }) = self.candidates.pop() {
            let (l, r) = (&self.symbols[left], &self.symbols[right]);
            // Empty symbols were swallowed; another length means that this candidate is out of date.
            if l.start == l.end || r.start == r.end || r.end - l.start != len {
                continue;
            }
            let (end, next) = (r.end, r.next);
            self.symbols[left].end = end;
            self.symbols[left].next = next;
            self.symbols[right].start = end;
            if let Some(next) = next {
                self.symbols[next].prev = Some(left);
                self.consider(left, next);
            }
            if let Some(prev) = self.symbols[left].prev {
                self.consider(prev, left);
            }
        }
    }

    fn consider(&mut self, left: usize, right: usize) {
        let (l, r) = (&self.symbols[left], &self.symbols[right]);
        if l.frozen || r.frozen {
            return;
        }
        let merged = &self.text[l.start..r.end];
        if let Some(&id) = self.model.pieces.get(merged) {
            if self.model.kind(id) == PieceKind::Unused {
                self.unused.insert(merged, l.end - l.start);
            }
            let score = self.model.score(id);
            self.candidates.push(Candidate { score, left, right, len: merged.len() });
        }
    }

    /// The symbols that are left, as byte ranges.
    fn spans(&self) -> Vec<(usize, usize)> {
        self.symbols.iter().filter(|s| s.start < s.end).map(|s| (s.start, s.end)).collect()
    }

    /// Hands out a symbol as a piece; an unused piece as the parts it was merged from.
    fn resegment(&self, start: usize, end: usize, emit: &mut impl FnMut(&str, Option<u32>)) {
        // A stack rather than recursion: pieces can be as long as the text.
        let mut stack = vec![(start, end)];
        while let Some((start, end)) = stack.pop() {
            let piece = &self.text[start..end];
            let id = self.model.pieces.get(piece).copied();
            let split = id
                .filter(|id| self.model.kind(*id) == PieceKind::Unused)
                .and_then(|_| self.unused.get(piece));
            match split {
                Some(&left) => stack.extend([(start + left, end), (start, start + left)]),
                None => emit(piece, id),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(pieces: &[(&str, f32, PieceKind)]) -> SentencePieceModel {
        let mut all = vec![("<unk>".to_owned(), 0.0, PieceKind::Unknown)];
        all.extend(pieces.iter().map(|(t, s, k)| ((*t).to_owned(), *s, *k)));
        SentencePieceModel {
            pieces: all,
            byte_fallback: false,
            add_dummy_prefix: false,
            bos_id: None,
            eos_id: None,
            ..SentencePieceModel::default()
        }
    }

    fn encode(model: &SentencePieceModel, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        SpmBpe::new(model).unwrap().encode(text, model.add_dummy_prefix, &mut ids);
        ids
    }

    const N: PieceKind = PieceKind::Normal;

    #[test]
    fn ties_of_one_result_go_to_the_leftmost_pair() {
        // "aaaaa": aa aa a, then (aa, aa) is no piece, (aa, a) at the right is.
        let m = model(&[("a", -9.0, N), ("aa", -1.0, N), ("aaa", -2.0, N)]);
        assert_eq!(encode(&m, "aaa"), [3]);
        assert_eq!(encode(&m, "aaaaa"), [2, 3]);
    }

    #[test]
    fn user_defined_symbols_are_matched_first_and_never_merged() {
        let m =
            model(&[("a", -9.0, N), ("b", -9.0, N), ("ab", -1.0, PieceKind::UserDefined), ("aab", -2.0, N)]);
        assert_eq!(encode(&m, "aab"), [1, 3]);
    }

    #[test]
    fn unused_pieces_fall_apart_into_what_they_were_merged_from() {
        let m = model(&[("a", -9.0, N), ("b", -9.0, N), ("ab", -1.0, PieceKind::Unused), ("abb", -2.0, N)]);
        assert_eq!(encode(&m, "ab"), [1, 2]);
        assert_eq!(encode(&m, "abb"), [4]);
    }

    #[test]
    fn a_run_of_unknown_characters_is_one_unknown_token() {
        let m = model(&[("a", -9.0, N)]);
        assert_eq!(encode(&m, "xyazz"), [0, 1, 0]);
    }

    #[test]
    fn extra_whitespace_is_removed_only_where_the_model_says_so() {
        let mut m = model(&[("a", -9.0, N), ("▁", -9.0, N)]);
        assert_eq!(encode(&m, " a  a "), [2, 1, 2, 2, 1, 2]);
        m.remove_extra_whitespaces = true;
        m.add_dummy_prefix = true;
        assert_eq!(encode(&m, "  a  a "), [2, 1, 2, 1]);
        assert!(encode(&m, "   ").is_empty());
    }

    #[test]
    fn vocabularies_that_contradict_themselves_are_refused() {
        let refused = |m: &SentencePieceModel| SpmBpe::new(m).unwrap_err();
        assert!(matches!(
            refused(&model(&[("a", f32::NAN, N)])),
            TokenizerError::BadVocab { field: "scores", .. }
        ));
        let half_bytes =
            SentencePieceModel { byte_fallback: true, ..model(&[("<0x00>", 0.0, PieceKind::Byte)]) };
        assert!(refused(&half_bytes).to_string().contains("<0x01>"));
        assert!(matches!(
            refused(&SentencePieceModel { unk_id: Some(9), ..model(&[]) }),
            TokenizerError::BadVocab { field: "unk_id", .. }
        ));
        let unigram = SentencePieceModel { model_type: SentencePieceType::Unigram, ..model(&[]) };
        assert!(refused(&unigram).to_string().contains("Unigram"));
    }
}
