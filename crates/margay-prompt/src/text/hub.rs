//! `tokenizer.json` and `tokenizer_config.json`, as Hugging Face writes them.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::tokenizer::{Engine, Lead, Parts, Prefix, Token};
use super::{PieceKind, TokenizerError};

/// Ids above this are a damaged or hostile file; the largest published vocabularies have 256 thousand.
pub(super) const MAX_VOCAB: usize = 4 << 20;

const JSON: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";

/// Tokens that some vocabularies list as ordinary words although they steer the model.
const STEERING: &[&str] =
    &["<start_of_turn>", "<end_of_turn>", "<end_of_utterance>", "<image>", "<s>", "</s>"];

/// Whether a text is the name of a token that steers a model.
pub(super) fn steers(text: &str) -> bool {
    STEERING.contains(&text) || (text.starts_with("<|") && text.ends_with("|>") && text.len() > 4)
}

/// Reads both files.
pub(super) fn read(json: &[u8], config: Option<&[u8]>) -> Result<Parts, TokenizerError> {
    let mut json: Value = parse(json, JSON)?;
    let config: Value = config.map_or(Ok(Value::Null), |bytes| parse(bytes, CONFIG))?;
    let bad = |detail: String| TokenizerError::BadFile { file: JSON, detail };

    check_model(&json)?;
    let added = added_tokens(&mut json)?;
    let special: HashSet<String> = added.iter().filter(|t| t.special).map(|t| t.text.clone()).collect();
    forbid_merging_into(&mut json, &special)?;
    let byte_level = is_byte_level(&json);
    let drops = if strips_leading_space(&json["decoder"]) { Lead::OneSpace } else { Lead::Nothing };
    let (prefix, prefix_after_special) = take_prefix(&mut json);
    json["truncation"] = Value::Null;
    json["padding"] = Value::Null;

    let mut engine: tokenizers::Tokenizer = serde_json::from_value(json).map_err(|e| bad(e.to_string()))?;
    let template = template_ids(&engine, bad)?;
    engine.set_encode_special_tokens(true);

    let vocab = engine.get_vocab(true);
    let size = vocab.values().copied().max().map_or(0, |id| id as usize + 1);
    if vocab.is_empty() || size > MAX_VOCAB {
        return Err(bad(format!(
            "its largest id is {}, the limit {MAX_VOCAB} tokens",
            size.saturating_sub(1)
        )));
    }
    let mut tokens = vec![Token { text: String::new(), kind: PieceKind::Unused }; size];
    for (text, id) in vocab {
        let kind = if !byte_level && super::spm::parse_byte(&text).is_some() {
            PieceKind::Byte
        } else {
            PieceKind::Normal
        };
        tokens[id as usize] = Token { text, kind };
    }
    let ids: HashMap<&str, u32> = tokens.iter().zip(0u32..).map(|(t, id)| (t.text.as_str(), id)).collect();
    let added_ids: Vec<Option<u32>> = added.iter().map(|t| ids.get(t.text.as_str()).copied()).collect();
    let named = |key: &str| token_text(&config[key]).and_then(|text| ids.get(text).copied());
    let first_of = |names: &[&str]| names.iter().find_map(|name| ids.get(name).copied());
    let leads = template.first().copied();
    let bos = named("bos_token").or(leads).or_else(|| first_of(&["<s>", "<|begin_of_text|>", "<bos>"]));
    let eos = named("eos_token")
        .or_else(|| first_of(&["</s>", "<|im_end|>", "<|end_of_text|>", "<|endoftext|>", "<eos>"]));
    let pad = named("pad_token");
    let unk = named("unk_token").or_else(|| first_of(&["<unk>"]).filter(|_| !byte_level));

    let mut strip = HashMap::new();
    for (token, id) in added.iter().zip(added_ids) {
        let Some(id) = id else { continue };
        let kind = if Some(id) == unk && !byte_level {
            PieceKind::Unknown
        } else if token.special {
            PieceKind::Control
        } else {
            PieceKind::UserDefined
        };
        tokens[id as usize].kind = kind;
        if token.lstrip || token.rstrip {
            strip.insert(id, (token.lstrip, token.rstrip));
        }
    }
    Ok(Parts {
        engine: Engine::Hub(Box::new(engine)),
        byte_level,
        tokens,
        prefix,
        prefix_after_special,
        drops,
        strip,
        bos,
        eos,
        eot: None,
        unk,
        pad,
        add_bos: config["add_bos_token"].as_bool().unwrap_or(bos.is_some() && leads == bos),
        add_eos: config["add_eos_token"]
            .as_bool()
            .unwrap_or(eos.is_some() && template.last() == eos.as_ref() && template.len() > 1),
        pre: None,
        chat_template: chat_template(&config),
    })
}

fn parse(bytes: &[u8], file: &'static str) -> Result<Value, TokenizerError> {
    let value: Value =
        serde_json::from_slice(bytes).map_err(|e| TokenizerError::BadFile { file, detail: e.to_string() })?;
    if !value.is_object() {
        return Err(TokenizerError::BadFile { file, detail: "it is not a JSON object".to_owned() });
    }
    Ok(value)
}

/// Refuses what this crate has no meaning for, and what the `tokenizers` crate would panic on.
fn check_model(json: &Value) -> Result<(), TokenizerError> {
    let model = &json["model"];
    let kind = model["type"].as_str().unwrap_or("BPE");
    if kind != "BPE" && kind != "Unigram" {
        return Err(TokenizerError::UnsupportedModel { model: kind.to_owned(), supported: "BPE, Unigram" });
    }
    for affix in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if model[affix].as_str().is_some_and(|s| !s.is_empty()) {
            return Err(TokenizerError::UnsupportedModel {
                model: format!("{kind} with {affix}"),
                supported: "BPE without affixes, Unigram",
            });
        }
    }
    if json["normalizer"].to_string().contains("\"Precompiled\"") {
        return Err(TokenizerError::UnsupportedModel {
            model: format!("{kind} with a Precompiled normalizer"),
            supported: "BPE, Unigram with other normalizers; or the tokenizer.model it came from",
        });
    }
    Ok(())
}

/// An entry of `added_tokens`.
struct Added {
    text: String,
    special: bool,
    lstrip: bool,
    rstrip: bool,
}

/// Reads the added tokens, and marks the steering ones as special in the JSON too.
fn added_tokens(json: &mut Value) -> Result<Vec<Added>, TokenizerError> {
    let bad =
        |detail: &str| TokenizerError::BadFile { file: JSON, detail: format!("added_tokens: {detail}") };
    let Some(list) = json.get_mut("added_tokens").filter(|v| !v.is_null()) else { return Ok(Vec::new()) };
    let list = list.as_array_mut().ok_or_else(|| bad("not a list"))?;
    let mut added = Vec::with_capacity(list.len());
    for entry in list {
        let text = entry["content"].as_str().ok_or_else(|| bad("an entry has no content"))?.to_owned();
        if text.is_empty() {
            return Err(bad("an entry is empty"));
        }
        if steers(&text) && entry.is_object() {
            entry["special"] = Value::Bool(true);
        }
        let flag = |name: &str| entry[name].as_bool().unwrap_or(false);
        added.push(Added { text, special: flag("special"), lstrip: flag("lstrip"), rstrip: flag("rstrip") });
    }
    Ok(added)
}

/// Removes merges that would build a control token out of plain text, and refuses merges of missing tokens.
///
/// Published files have such merges: `</` + `s>` makes the end-of-sequence token of LLaMA's converted vocabulary.
fn forbid_merging_into(json: &mut Value, special: &HashSet<String>) -> Result<(), TokenizerError> {
    let Some(model) = json.get_mut("model") else { return Ok(()) };
    let Some(Value::Array(merges)) = model.get_mut("merges").map(Value::take) else { return Ok(()) };
    let vocab = model["vocab"].as_object();
    let bad = |detail: String| TokenizerError::BadFile { file: JSON, detail };
    let vocab = vocab.ok_or_else(|| bad("model.vocab is not an object".to_owned()))?;
    let mut kept = Vec::with_capacity(merges.len());
    for merge in merges {
        let pair = match &merge {
            Value::String(s) => s.split_once(' '),
            Value::Array(pair) if pair.len() == 2 => pair[0].as_str().zip(pair[1].as_str()),
            _ => None,
        };
        let (left, right) = pair.ok_or_else(|| bad(format!("merge {merge} is not a pair")))?;
        let merged = format!("{left}{right}");
        if let Some(missing) = [left, right, &merged].into_iter().find(|t| !vocab.contains_key(*t)) {
            return Err(bad(format!(
                "merge {merge} needs the token {missing:?}, which is not in the vocabulary"
            )));
        }
        if !special.contains(&merged) {
            kept.push(merge);
        }
    }
    model["merges"] = Value::Array(kept);
    Ok(())
}

fn is_byte_level(json: &Value) -> bool {
    let mentions = |part: &Value| part.to_string().contains("\"ByteLevel\"");
    mentions(&json["decoder"]) || (json["decoder"].is_null() && mentions(&json["pre_tokenizer"]))
}

/// Whether decoding drops one leading space.
fn strips_leading_space(decoder: &Value) -> bool {
    let drops = |d: &Value| match d["type"].as_str() {
        Some("Strip") => d["content"] == " " && d["start"].as_u64().unwrap_or(0) > 0,
        Some("Metaspace") => d["prepend_scheme"] != "never" && d["add_prefix_space"] != false,
        _ => false,
    };
    drops(decoder) || decoder["decoders"].as_array().is_some_and(|list| list.iter().any(drops))
}

/// Takes the dummy prefix out of the file's pipeline, so that each run of text can choose: the rule, and whether it
/// also holds after a control token.
fn take_prefix(json: &mut Value) -> (Prefix, bool) {
    // `get_mut` and `pointer_mut` throughout: indexing a JSON value to write to it would create what is missing.
    let is_prepend = |v: &Value| v["type"] == "Prepend" && v["prepend"] == "▁";
    if is_prepend(&json["normalizer"]) {
        json["normalizer"] = Value::Null;
        return (Prefix::Always('▁'), true);
    }
    if let Some(list) = json.pointer_mut("/normalizer/normalizers").and_then(Value::as_array_mut)
        && list.first().is_some_and(is_prepend)
    {
        list.remove(0);
        return (Prefix::Always('▁'), true);
    }
    let Some(pre) = json.get_mut("pre_tokenizer").and_then(Value::as_object_mut) else {
        return (Prefix::Never, false);
    };
    let says_no = pre.get("add_prefix_space") == Some(&Value::Bool(false));
    match pre.get("type").and_then(Value::as_str) {
        Some("Metaspace") => {
            let scheme = pre.get("prepend_scheme").and_then(Value::as_str).unwrap_or("always").to_owned();
            pre.insert("prepend_scheme".to_owned(), Value::from("never"));
            pre.remove("add_prefix_space");
            let never = scheme == "never" || says_no;
            if never { (Prefix::Never, false) } else { (Prefix::IfMissing('▁'), scheme != "first") }
        }
        Some("ByteLevel") if !says_no => {
            pre.insert("add_prefix_space".to_owned(), Value::Bool(false));
            (Prefix::IfMissing(' '), true)
        }
        _ => (Prefix::Never, false),
    }
}

/// Ids the file's post-processor puts around a text.
fn template_ids(
    engine: &tokenizers::Tokenizer,
    bad: impl Fn(String) -> TokenizerError,
) -> Result<Vec<u32>, TokenizerError> {
    let encoding = engine.encode_fast("", true).map_err(|e| bad(e.to_string()))?;
    Ok(encoding.get_ids().to_vec())
}

/// A token in `tokenizer_config.json`: a string, or an object with its text in `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

/// The chat template: a string, or a list of named ones of which "default" is meant.
fn chat_template(config: &Value) -> Option<String> {
    let template = &config["chat_template"];
    let named = || {
        let list = template.as_array()?;
        let entry = list.iter().find(|t| t["name"] == "default").or(list.first())?;
        entry["template"].as_str()
    };
    template.as_str().or_else(named).map(str::to_owned)
}
