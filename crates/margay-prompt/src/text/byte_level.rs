//! Byte-level BPE (GPT-2 and its heirs): the byte alphabet, and the pre-tokenizers by their GGUF names.

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use super::TokenizerError;

/// How text is cut into words before merging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// GPT-2's expression, built into the byte-level pre-tokenizer.
    Gpt2,
    /// GPT-2's expression after every digit became a word of its own.
    DigitsThenGpt2,
    /// An expression of its own.
    Regex(&'static str),
}

/// A pre-tokenizer with a name.
struct PreTokenizer {
    name: &'static str,
    cut: Cut,
    /// Unicode NFC before anything else. (llama.cpp leaves it out; the published tokenizer has it.)
    nfc: bool,
    /// A word that is a token as it stands is not merged from its bytes.
    ignore_merges: bool,
    /// BOS is added unless the file says otherwise.
    adds_bos: bool,
}

/// Source: Meta-Llama-3 `tokenizer.json`, `pre_tokenizer`.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Source: Qwen2 `tokenizer.json`, `pre_tokenizer`.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const fn gpt2(name: &'static str) -> PreTokenizer {
    PreTokenizer { name, cut: Cut::Gpt2, nfc: false, ignore_merges: false, adds_bos: false }
}

const fn digits(name: &'static str) -> PreTokenizer {
    PreTokenizer { cut: Cut::DigitsThenGpt2, ..gpt2(name) }
}

const fn llama3(name: &'static str) -> PreTokenizer {
    PreTokenizer { name, cut: Cut::Regex(LLAMA3), nfc: false, ignore_merges: true, adds_bos: true }
}

const fn qwen2(name: &'static str) -> PreTokenizer {
    PreTokenizer { name, cut: Cut::Regex(QWEN2), nfc: true, ignore_merges: false, adds_bos: false }
}

/// The first name of each behaviour is the one written. Source of the names: llama.cpp `llama-vocab.cpp`.
static PRE_TOKENIZERS: &[PreTokenizer] = &[
    gpt2("gpt-2"),
    gpt2("default"),
    gpt2("phi-2"),
    gpt2("olmo"),
    gpt2("mpt"),
    digits("smollm"),
    digits("starcoder"),
    digits("refact"),
    digits("command-r"),
    llama3("llama-bpe"),
    llama3("llama3"),
    llama3("llama-v3"),
    PreTokenizer { ignore_merges: false, adds_bos: false, ..llama3("dbrx") },
    qwen2("qwen2"),
    qwen2("deepseek-r1-qwen"),
    PreTokenizer { nfc: false, ..qwen2("stablelm2") },
];

/// Pre-tokenizer names (`tokenizer.ggml.pre`) that are understood.
pub const SUPPORTED_PRE_TOKENIZERS: &[&str] = &names();

const fn names() -> [&'static str; PRE_TOKENIZERS.len()] {
    let mut names = [""; PRE_TOKENIZERS.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = PRE_TOKENIZERS[i].name;
        i += 1;
    }
    names
}

fn find(pre: Option<&str>) -> Result<&'static PreTokenizer, TokenizerError> {
    // Files from before the key existed are GPT-2's.
    let name = pre.unwrap_or("gpt-2");
    PRE_TOKENIZERS.iter().find(|p| p.name == name).ok_or_else(|| TokenizerError::UnsupportedPreTokenizer {
        pre: name.to_owned(),
        supported: SUPPORTED_PRE_TOKENIZERS.join(", "),
    })
}

/// Whether this pre-tokenizer's models begin with BOS unless told otherwise.
pub(super) fn adds_bos(pre: Option<&str>) -> bool {
    find(pre).is_ok_and(|p| p.adds_bos)
}

/// A byte-level BPE tokenizer.
///
/// `vocab`: the tokens merging may produce, with their ids; `merges`: pairs in order of rank; `user_defined`: tokens
/// (part of `vocab`) that are cut out of the text before anything else.
pub(super) fn build(
    pre: Option<&str>,
    vocab: Vec<(String, u32)>,
    merges: Vec<(String, String)>,
    user_defined: Vec<String>,
) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let pre = find(pre)?;
    let failed = |field: &'static str| {
        move |e: tokenizers::Error| TokenizerError::BadVocab { field, detail: e.to_string() }
    };
    let vocab: tokenizers::models::bpe::Vocab = vocab.into_iter().collect();
    for (left, right) in &merges {
        let merged = format!("{left}{right}");
        if let Some(missing) = [left, right, &merged].into_iter().find(|t| !vocab.contains_key(t.as_str())) {
            let detail = format!(
                "merge {left:?} + {right:?} needs the token {missing:?}, which is not in the vocabulary"
            );
            return Err(TokenizerError::BadVocab { field: "merges", detail });
        }
    }
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .ignore_merges(pre.ignore_merges)
        .build()
        .map_err(failed("merges"))?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    if pre.nfc {
        tokenizer.with_normalizer(Some(NFC)).map_err(failed("normalizer"))?;
    }
    let gpt2 = |use_regex| PreTokenizerWrapper::from(ByteLevel::new(false, true, use_regex));
    let cut = match pre.cut {
        Cut::Gpt2 => gpt2(true),
        Cut::DigitsThenGpt2 => Sequence::new(vec![Digits::new(true).into(), gpt2(true)]).into(),
        Cut::Regex(regex) => {
            let split =
                Split::new(SplitPattern::Regex(regex.to_owned()), SplitDelimiterBehavior::Isolated, false)
                    .map_err(failed("pre"))?;
            Sequence::new(vec![split.into(), gpt2(false)]).into()
        }
    };
    tokenizer.with_pre_tokenizer(Some(cut));
    let added = user_defined.into_iter().map(|text| AddedToken::from(text, false).normalized(false));
    tokenizer.add_tokens(added).map_err(failed("token_type"))?;
    Ok(tokenizer)
}

/// The name of the pre-tokenizer a `tokenizer.json` describes, if it has one.
pub(super) fn name_of(json: &serde_json::Value) -> Result<&'static str, TokenizerError> {
    let kind = |v: &serde_json::Value| v["type"].as_str().unwrap_or_default().to_owned();
    let pre = &json["pre_tokenizer"];
    let steps: Vec<&serde_json::Value> = match pre["pretokenizers"].as_array() {
        Some(steps) => steps.iter().collect(),
        None => vec![pre],
    };
    let kinds: Vec<String> = steps.iter().map(|s| kind(s)).collect();
    let kinds: Vec<&str> = kinds.iter().map(String::as_str).collect();
    let uses_regex = steps.last().is_some_and(|s| s["use_regex"].as_bool().unwrap_or(true));
    let not_expressible =
        || TokenizerError::NotExpressible { detail: format!("its pre_tokenizer has no name: {pre}") };
    let cut = match (kinds.as_slice(), uses_regex) {
        (["ByteLevel"], true) => Cut::Gpt2,
        (["Digits", "ByteLevel"], true) if steps[0]["individual_digits"] == true => Cut::DigitsThenGpt2,
        (["Split", "ByteLevel"], false)
            if steps[0]["behavior"] == "Isolated" && steps[0]["invert"] != true =>
        {
            let regex = steps[0]["pattern"]["Regex"].as_str();
            Cut::Regex(
                [LLAMA3, QWEN2]
                    .into_iter()
                    .find(|known| Some(*known) == regex)
                    .ok_or_else(not_expressible)?,
            )
        }
        _ => return Err(not_expressible()),
    };
    let normalizer = &json["normalizer"];
    let nfc = kind(normalizer) == "NFC";
    if !nfc && !normalizer.is_null() {
        return Err(TokenizerError::NotExpressible {
            detail: format!("its normalizer has no name: {normalizer}"),
        });
    }
    let ignore_merges = json["model"]["ignore_merges"].as_bool().unwrap_or(false);
    PRE_TOKENIZERS
        .iter()
        .find(|p| p.cut == cut && p.nfc == nfc && p.ignore_merges == ignore_merges)
        .map(|p| p.name)
        .ok_or_else(not_expressible)
}

/// The byte a character of the byte alphabet stands for. Source: openai/gpt-2 `encoder.py`, `bytes_to_unicode`.
pub(super) fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        // Printable Latin-1 stands for itself.
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(code as u8),
        // The other 68 bytes follow from U+0100 on, in order: 0..=0x20, 0x7F..=0xA0, 0xAD.
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_byte_alphabet_covers_every_byte_once() {
        let alphabet = ByteLevel::alphabet();
        assert_eq!(alphabet.len(), 256);
        let bytes: HashSet<u8> = alphabet.into_iter().map(|c| byte_of(c).unwrap()).collect();
        assert_eq!(bytes.len(), 256);
        assert_eq!((byte_of('Ġ'), byte_of('Ċ'), byte_of('▁')), (Some(b' '), Some(b'\n'), None));
    }

    #[test]
    fn an_unknown_pre_tokenizer_is_named_with_the_supported_ones() {
        let error = build(Some("klingon"), Vec::new(), Vec::new(), Vec::new()).unwrap_err().to_string();
        assert!(
            error.contains("\"klingon\"") && error.contains("llama-bpe, ") && error.contains("qwen2"),
            "{error}"
        );
    }

    #[test]
    fn merges_of_missing_tokens_are_refused() {
        let vocab = vec![("a".to_owned(), 0), ("b".to_owned(), 1)];
        let error = build(None, vocab, vec![("a".to_owned(), "b".to_owned())], Vec::new()).unwrap_err();
        assert!(error.to_string().contains("\"ab\""), "{error}");
    }
}
