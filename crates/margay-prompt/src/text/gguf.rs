//! Vocabularies from and to GGUF metadata, and from SentencePiece models.

use std::collections::{HashMap, HashSet};

use super::hub::{MAX_VOCAB, steers};
use super::spm::{self, SpmBpe};
use super::tokenizer::{Engine, Lead, Parts, Prefix, Token};
use super::{GgufVocab, PieceKind, SentencePieceModel, Tokenizer, TokenizerError, byte_level};

/// Score of a piece that merging never makes; below every rank.
const NEVER_MERGED: f32 = -1e9;

fn bad(field: &'static str, detail: impl Into<String>) -> TokenizerError {
    TokenizerError::BadVocab { field, detail: detail.into() }
}

/// Reads GGUF metadata.
pub(super) fn read(vocab: &GgufVocab) -> Result<Parts, TokenizerError> {
    check_sizes(vocab)?;
    match vocab.model.as_str() {
        "llama" => read_spm(vocab),
        "gpt2" => read_byte_level(vocab),
        other => Err(TokenizerError::UnsupportedModel {
            model: other.to_owned(),
            supported: "\"llama\" (SentencePiece BPE), \"gpt2\" (byte-level BPE)",
        }),
    }
}

fn check_sizes(vocab: &GgufVocab) -> Result<(), TokenizerError> {
    let count = vocab.tokens.len();
    if count == 0 || count > MAX_VOCAB {
        return Err(bad("tokens", format!("{count} tokens, expected 1 to {MAX_VOCAB}")));
    }
    for (field, length) in [("scores", vocab.scores.len()), ("token_type", vocab.token_types.len())] {
        if length != 0 && length != count {
            return Err(bad(field, format!("{length} entries for {count} tokens")));
        }
    }
    let ids = [
        ("bos_token_id", vocab.bos),
        ("eos_token_id", vocab.eos),
        ("eot_token_id", vocab.eot),
        ("unknown_token_id", vocab.unk),
        ("padding_token_id", vocab.pad),
    ];
    for (field, id) in ids {
        if id.is_some_and(|id| id as usize >= count) {
            return Err(bad(field, format!("{} is outside the {count} tokens", id.unwrap_or_default())));
        }
    }
    Ok(())
}

/// Kind of every token; without the list, from the texts and the special ids.
fn kinds(vocab: &GgufVocab) -> Result<Vec<PieceKind>, TokenizerError> {
    let specials = [vocab.bos, vocab.eos, vocab.eot];
    let kind = |(id, text): (usize, &String)| {
        let id32 = Some(id as u32);
        let listed = match vocab.token_types.get(id) {
            Some(&number) => PieceKind::from_i32(number)
                .ok_or_else(|| bad("token_type", format!("token {id} has the unknown type {number}")))?,
            None if id32 == vocab.unk => PieceKind::Unknown,
            None if vocab.model == "llama" && spm::parse_byte(text).is_some() => PieceKind::Byte,
            None => PieceKind::Normal,
        };
        // Whatever the list says: what ends or begins a text, and what looks like markup, steers the model.
        let special = specials.contains(&id32) && listed != PieceKind::Unknown;
        let markup = steers(text) && matches!(listed, PieceKind::Normal | PieceKind::UserDefined);
        Ok(if special || markup { PieceKind::Control } else { listed })
    };
    vocab.tokens.iter().enumerate().map(kind).collect()
}

fn read_spm(vocab: &GgufVocab) -> Result<Parts, TokenizerError> {
    if vocab.scores.is_empty() {
        return Err(bad("scores", "absent, but a \"llama\" vocabulary merges by them"));
    }
    let kinds = kinds(vocab)?;
    let pieces = vocab.tokens.iter().cloned().zip(&vocab.scores).zip(&kinds);
    let has_bytes = kinds.contains(&PieceKind::Byte);
    let mut parts = from_sentencepiece(&SentencePieceModel {
        pieces: pieces.map(|((text, score), kind)| (text, *score, *kind)).collect(),
        unk_id: vocab.unk,
        bos_id: vocab.bos,
        eos_id: vocab.eos,
        pad_id: vocab.pad,
        byte_fallback: has_bytes,
        add_dummy_prefix: vocab.add_space_prefix.unwrap_or(true),
        remove_extra_whitespaces: vocab.remove_extra_whitespaces.unwrap_or(false),
        precompiled_charsmap: vocab.precompiled_charsmap.clone().unwrap_or_default(),
        ..SentencePieceModel::default()
    })?;
    match vocab.space_prefix.as_deref() {
        None => {}
        Some(METASPACE) => parts.prefix = Prefix::IfMissing(spm::SPACE),
        Some(METASPACE_FIRST) => {
            parts.prefix = Prefix::IfMissing(spm::SPACE);
            parts.prefix_after_special = false;
        }
        Some(other) => return Err(bad("space_prefix", format!("the rule {other:?} is not known"))),
    }
    parts.eot = vocab.eot;
    parts.add_bos = vocab.add_bos.unwrap_or(true);
    parts.add_eos = vocab.add_eos.unwrap_or(false);
    parts.chat_template = vocab.chat_template.clone();
    Ok(parts)
}

/// Takes over a SentencePiece model.
pub(super) fn from_sentencepiece(model: &SentencePieceModel) -> Result<Parts, TokenizerError> {
    let count = model.pieces.len();
    if count == 0 || count > MAX_VOCAB {
        return Err(bad("pieces", format!("{count} pieces, expected 1 to {MAX_VOCAB}")));
    }
    for (field, id) in [("bos_id", model.bos_id), ("eos_id", model.eos_id), ("pad_id", model.pad_id)] {
        if id.is_some_and(|id| id as usize >= count) {
            return Err(bad(field, format!("{} is outside the {count} pieces", id.unwrap_or_default())));
        }
    }
    let engine = SpmBpe::new(model)?;
    let drops = match (model.remove_extra_whitespaces, model.add_dummy_prefix) {
        (true, _) => Lead::AllSpaces,
        (false, true) => Lead::OneSpace,
        (false, false) => Lead::Nothing,
    };
    let tokens =
        model.pieces.iter().map(|(text, _, kind)| Token { text: text.clone(), kind: *kind }).collect();
    Ok(Parts {
        engine: Engine::Spm(Box::new(engine)),
        byte_level: false,
        tokens,
        prefix: if model.add_dummy_prefix { Prefix::Always(spm::SPACE) } else { Prefix::Never },
        prefix_after_special: true,
        drops,
        strip: HashMap::new(),
        bos: model.bos_id,
        eos: model.eos_id,
        eot: None,
        unk: model.unk_id,
        pad: model.pad_id,
        add_bos: model.bos_id.is_some(),
        add_eos: false,
        pre: None,
        chat_template: None,
    })
}

fn read_byte_level(vocab: &GgufVocab) -> Result<Parts, TokenizerError> {
    let kinds = kinds(vocab)?;
    let mergeable = |kind: PieceKind| matches!(kind, PieceKind::Normal | PieceKind::UserDefined);
    let mut seen = HashSet::with_capacity(vocab.tokens.len());
    let mut words = Vec::with_capacity(vocab.tokens.len());
    let mut user_defined = Vec::new();
    for ((text, kind), id) in vocab.tokens.iter().zip(&kinds).zip(0u32..) {
        if mergeable(*kind) && !text.is_empty() && seen.insert(text.as_str()) {
            words.push((text.clone(), id));
            if *kind == PieceKind::UserDefined {
                user_defined.push(text.clone());
            }
        }
    }
    let steering: HashSet<&str> =
        vocab.tokens.iter().zip(&kinds).filter(|(_, k)| !mergeable(**k)).map(|(t, _)| t.as_str()).collect();
    let mut merges = Vec::with_capacity(vocab.merges.len());
    for merge in &vocab.merges {
        // The first character may itself be a space in old files.
        let cut = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let cut = cut.ok_or_else(|| bad("merges", format!("{merge:?} is not a pair")))?;
        let (left, right) = (merge[..cut].to_owned(), merge[cut + 1..].to_owned());
        if !steering.contains(format!("{left}{right}").as_str()) {
            merges.push((left, right));
        }
    }
    let pre = vocab.pre.as_deref();
    let engine = byte_level::build(pre, words, merges, user_defined)?;
    let prefixed = vocab.add_space_prefix.unwrap_or(false);
    Ok(Parts {
        engine: Engine::Hub(Box::new(engine)),
        byte_level: true,
        tokens: vocab
            .tokens
            .iter()
            .zip(kinds)
            .map(|(text, kind)| Token { text: text.clone(), kind })
            .collect(),
        prefix: if prefixed { Prefix::IfMissing(' ') } else { Prefix::Never },
        prefix_after_special: true,
        drops: Lead::Nothing,
        strip: HashMap::new(),
        bos: vocab.bos,
        eos: vocab.eos,
        eot: vocab.eot,
        unk: vocab.unk,
        pad: vocab.pad,
        add_bos: vocab.add_bos.unwrap_or_else(|| byte_level::adds_bos(pre)),
        add_eos: vocab.add_eos.unwrap_or(false),
        pre: Some(pre.unwrap_or("gpt-2").to_owned()),
        chat_template: vocab.chat_template.clone(),
    })
}

/// The dummy space goes before every run of text that does not begin with a space.
const METASPACE: &str = "metaspace";
/// The same, but only at the start of the whole text, not after control tokens.
const METASPACE_FIRST: &str = "metaspace-first";

/// Writes GGUF metadata.
pub(super) fn write(tokenizer: &Tokenizer) -> Result<GgufVocab, TokenizerError> {
    let mut vocab = GgufVocab {
        tokens: tokenizer.tokens.iter().map(|t| t.text.clone()).collect(),
        token_types: tokenizer.tokens.iter().map(|t| t.kind as i32).collect(),
        bos: tokenizer.bos(),
        eos: tokenizer.eos(),
        eot: tokenizer.eot,
        unk: tokenizer.unk,
        pad: tokenizer.pad,
        add_bos: Some(tokenizer.adds_bos()),
        add_eos: Some(tokenizer.add_eos),
        add_space_prefix: Some(tokenizer.prefix != Prefix::Never),
        chat_template: tokenizer.chat_template().map(str::to_owned),
        ..GgufVocab::default()
    };
    // Holes get a name, as the public converters give them one: readers expect distinct texts.
    for (id, text) in vocab.tokens.iter_mut().enumerate().filter(|(_, text)| text.is_empty()) {
        *text = format!("[PAD{id}]");
        vocab.token_types[id] = PieceKind::Unused as i32;
    }
    match &tokenizer.engine {
        Engine::Spm(model) => {
            vocab.model = "llama".to_owned();
            vocab.space_prefix = tokenizer.space_prefix_rule();
            vocab.scores = (0..vocab.tokens.len()).map(|id| model.score(id as u32)).collect();
            vocab.remove_extra_whitespaces = Some(model.remove_extra_whitespaces());
            vocab.precompiled_charsmap = model.charsmap_bytes().map(<[u8]>::to_vec);
        }
        Engine::Hub(model) => {
            let description = serde_json::to_value(model.as_ref())
                .map_err(|e| TokenizerError::NotExpressible { detail: e.to_string() })?;
            if description["model"]["type"] != "BPE" {
                let detail = format!("its model is {}, not BPE", description["model"]["type"]);
                return Err(TokenizerError::NotExpressible { detail });
            }
            let merges = merges_of(&description);
            if tokenizer.is_byte_level() {
                let named = tokenizer
                    .pre
                    .clone()
                    .map_or_else(|| byte_level::name_of(&description).map(str::to_owned), Ok);
                vocab.model = "gpt2".to_owned();
                vocab.pre = Some(named?);
                vocab.merges = merges.into_iter().map(|(left, right)| format!("{left} {right}")).collect();
            } else {
                check_spm_like(tokenizer, &description)?;
                vocab.model = "llama".to_owned();
                vocab.remove_extra_whitespaces = Some(false);
                scores_from_ranks(&mut vocab, &merges);
                vocab.space_prefix = tokenizer.space_prefix_rule();
            }
        }
    }
    Ok(vocab)
}

impl Tokenizer {
    /// Where the dummy space goes, if not before every run of text as SentencePiece has it.
    fn space_prefix_rule(&self) -> Option<String> {
        let rule = if self.prefix_after_special { METASPACE } else { METASPACE_FIRST };
        matches!(self.prefix, Prefix::IfMissing(_)).then(|| rule.to_owned())
    }
}

/// The merges of a described BPE model, in order of rank.
fn merges_of(description: &serde_json::Value) -> Vec<(String, String)> {
    let pair = |merge: &serde_json::Value| match merge.as_array() {
        Some(pair) => Some((pair.first()?.as_str()?.to_owned(), pair.get(1)?.as_str()?.to_owned())),
        None => merge.as_str()?.split_once(' ').map(|(l, r)| (l.to_owned(), r.to_owned())),
    };
    let merges = description["model"]["merges"].as_array();
    merges.map(|list| list.iter().filter_map(pair).collect()).unwrap_or_default()
}

/// Refuses pipelines that do more than SentencePiece BPE does.
fn check_spm_like(tokenizer: &Tokenizer, description: &serde_json::Value) -> Result<(), TokenizerError> {
    let not = |detail: String| Err(TokenizerError::NotExpressible { detail });
    let escapes = |step: &serde_json::Value| {
        step["type"] == "Replace" && step["pattern"]["String"] == " " && step["content"] == "▁"
    };
    let normalizer = &description["normalizer"];
    let steps = normalizer["normalizers"].as_array();
    let plain =
        normalizer.is_null() || escapes(normalizer) || steps.is_some_and(|list| list.iter().all(escapes));
    if !plain {
        return not(format!("its normalizer {normalizer} does more than write spaces as ▁"));
    }
    let pre = &description["pre_tokenizer"];
    // Split at spaces, no piece with a space inside could ever be made; SentencePiece would make it.
    let inner_space = |text: &str| text.char_indices().skip(1).any(|(_, c)| c == spm::SPACE);
    let splits = pre["split"].as_bool().unwrap_or(true);
    let metaspace =
        pre["type"] == "Metaspace" && (!splits || !tokenizer.tokens.iter().any(|t| inner_space(&t.text)));
    if !pre.is_null() && !metaspace {
        return not(format!("its pre_tokenizer {pre} is not SentencePiece's"));
    }
    if normalizer.is_null() && pre.is_null() {
        return not("neither its normalizer nor its pre_tokenizer writes spaces as ▁".to_owned());
    }
    Ok(())
}

/// Scores that make SentencePiece merge in the order of the ranks: minus the rank of the first merge into a piece.
fn scores_from_ranks(vocab: &mut GgufVocab, merges: &[(String, String)]) {
    let mut first_rank: HashMap<String, usize> = HashMap::with_capacity(merges.len());
    for (rank, (left, right)) in merges.iter().enumerate() {
        first_rank.entry(format!("{left}{right}")).or_insert(rank);
    }
    vocab.scores = Vec::with_capacity(vocab.tokens.len());
    for (text, kind) in vocab.tokens.iter().zip(&mut vocab.token_types) {
        let rank = first_rank.get(text);
        vocab.scores.push(rank.map_or(NEVER_MERGED, |rank| -(*rank as f32)));
        // A word without a merge is never made here: unused, SentencePiece takes it apart again.
        if rank.is_none() && *kind == PieceKind::Normal as i32 && text.chars().nth(1).is_some() {
            *kind = PieceKind::Unused as i32;
        }
    }
}
