//! A vocabulary as GGUF metadata.

use crate::PackError;
use margay::ModelSource;
use margay_file::gguf::Metadata;
use margay_prompt::text::{GgufVocab, PieceKind};

/// Score of a piece that is never produced. Source: what public converters write for padding.
const UNUSED_SCORE: f32 = -1000.0;

/// Adds the `tokenizer.*` keys of the model's vocabulary; says what they cannot express for other readers.
pub(crate) fn write(source: &ModelSource, meta: &mut Metadata) -> Result<Option<String>, PackError> {
    let mut vocab = source.tokenizer.to_gguf_vocab()?;
    // Checkpoints pad their embedding tables; readers count the rows by the tokens.
    for id in vocab.tokens.len()..source.config.text.vocabulary {
        vocab.tokens.push(format!("[PAD{id}]"));
        if !vocab.scores.is_empty() {
            vocab.scores.push(UNUSED_SCORE);
        }
        if !vocab.token_types.is_empty() {
            vocab.token_types.push(PieceKind::Unused as i32);
        }
    }
    put(&vocab, meta);
    let note = vocab.space_prefix.as_ref().map(|rule| {
        meta.insert("margay.tokenizer.space_prefix", rule.as_str());
        let what = match rule.as_str() {
            "metaspace-first" => "put a space before the text behind a picture or a control token",
            _ => "put one more space before a text that begins with a space",
        };
        format!("no GGUF key says where this vocabulary puts its leading space: other runtimes will {what}")
    });
    if let Some(template) = &source.template_source {
        meta.insert("tokenizer.chat_template", template.as_str());
    }
    Ok(note)
}

/// Adds the keys that other readers know.
pub(crate) fn put(vocab: &GgufVocab, meta: &mut Metadata) {
    let mut put = |name: &str, value: margay_file::gguf::Value| {
        meta.insert(&format!("tokenizer.ggml.{name}"), value);
    };
    put("model", vocab.model.as_str().into());
    if let Some(pre) = &vocab.pre {
        put("pre", pre.as_str().into());
    }
    put("tokens", vocab.tokens.clone().into());
    if !vocab.scores.is_empty() {
        put("scores", vocab.scores.clone().into());
    }
    if !vocab.token_types.is_empty() {
        put("token_type", vocab.token_types.clone().into());
    }
    if !vocab.merges.is_empty() {
        put("merges", vocab.merges.clone().into());
    }
    for (name, id) in [
        ("bos_token_id", vocab.bos),
        ("eos_token_id", vocab.eos),
        ("eot_token_id", vocab.eot),
        ("unknown_token_id", vocab.unk),
        ("padding_token_id", vocab.pad),
    ] {
        if let Some(id) = id {
            put(name, id.into());
        }
    }
    for (name, flag) in [
        ("add_bos_token", vocab.add_bos),
        ("add_eos_token", vocab.add_eos),
        ("add_space_prefix", vocab.add_space_prefix),
        ("remove_extra_whitespaces", vocab.remove_extra_whitespaces),
    ] {
        if let Some(flag) = flag {
            put(name, flag.into());
        }
    }
}
