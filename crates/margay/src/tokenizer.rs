//! The tokenizer of a model, from whichever file holds its vocabulary.

use crate::Error;
use margay_file::{
    FileError, HfFolder, ModelFiles,
    gguf::Metadata,
    tokenizer_model::{Algorithm, PieceType, TokenizerModel},
};
use margay_prompt::text::{
    GgufVocab, PieceKind, SentencePieceModel, SentencePieceType, Tokenizer, TokenizerError,
};

/// The tokenizer that model files bring.
///
/// # Errors
/// [`Error::File`] where there is none, [`Error::Tokenizer`] where it is unusable.
pub fn tokenizer_of(files: &ModelFiles) -> Result<Tokenizer, Error> {
    match files {
        ModelFiles::Gguf { text, .. } => {
            let field = "tokenizer.ggml.precompiled_charsmap";
            if text.metadata().contains(field) {
                let detail = "normalisation rules are not supported".to_owned();
                return Err(TokenizerError::BadVocab { field, detail }.into());
            }
            Ok(Tokenizer::from_gguf(&gguf_vocab(text.metadata())?)?)
        }
        ModelFiles::Hf(folder) => of_folder(folder),
    }
}

/// `tokenizer.json` knows tokens added later; `tokenizer.model` is what the first LLaVA checkpoints bring alone.
fn of_folder(folder: &HfFolder) -> Result<Tokenizer, Error> {
    let config = folder.file("tokenizer_config.json")?;
    if let Some(json) = folder.tokenizer_json()? {
        return Ok(Tokenizer::from_tokenizer_json(&json, config.as_deref())?);
    }
    if let Some(bytes) = folder.tokenizer_model()? {
        let model = TokenizerModel::from_bytes(&bytes)?;
        // Its rules are not read; leaving them out would give other ids without a word.
        if !["", "identity"].contains(&model.normalizer_name.as_str()) {
            let detail = format!(
                "{:?} rules are not supported; use the checkpoint's tokenizer.json",
                model.normalizer_name
            );
            return Err(TokenizerError::BadVocab { field: "normalizer", detail }.into());
        }
        return Ok(Tokenizer::from_sentencepiece(&sentencepiece(&model))?);
    }
    let why =
        "holds neither tokenizer.json nor tokenizer.model; copy one from the original checkpoint".to_owned();
    Err(FileError::Folder { path: folder.path().to_owned(), why }.into())
}

fn sentencepiece(model: &TokenizerModel) -> SentencePieceModel {
    let kind = |t: PieceType| match t {
        PieceType::Normal => PieceKind::Normal,
        PieceType::Unknown => PieceKind::Unknown,
        PieceType::Control => PieceKind::Control,
        PieceType::UserDefined => PieceKind::UserDefined,
        PieceType::Unused => PieceKind::Unused,
        PieceType::Byte => PieceKind::Byte,
    };
    SentencePieceModel {
        model_type: match model.algorithm {
            Algorithm::Bpe => SentencePieceType::Bpe,
            Algorithm::Unigram => SentencePieceType::Unigram,
            Algorithm::Word => SentencePieceType::Word,
            Algorithm::Char => SentencePieceType::Char,
        },
        pieces: model.pieces.iter().map(|p| (p.text.clone(), p.score, kind(p.piece_type))).collect(),
        unk_id: u32::try_from(model.unk_id).ok(),
        bos_id: u32::try_from(model.bos_id).ok(),
        eos_id: u32::try_from(model.eos_id).ok(),
        pad_id: u32::try_from(model.pad_id).ok(),
        byte_fallback: model.byte_fallback,
        add_dummy_prefix: model.add_dummy_prefix,
        remove_extra_whitespaces: model.remove_extra_whitespaces,
        escape_whitespaces: model.escape_whitespaces,
        ..SentencePieceModel::default()
    }
}

fn gguf_vocab(meta: &Metadata) -> Result<GgufVocab, FileError> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let strings = |name: &str| -> Result<Vec<String>, FileError> {
        Ok(meta.opt_strings(&key(name))?.map(|s| s.iter().map(str::to_owned).collect()).unwrap_or_default())
    };
    Ok(GgufVocab {
        model: meta.str(&key("model"))?.to_owned(),
        pre: meta.opt_str(&key("pre"))?.map(str::to_owned),
        tokens: strings("tokens")?,
        scores: meta.opt_f32s(&key("scores"))?.map(|s| s.into_owned()).unwrap_or_default(),
        token_types: meta.opt_i32s(&key("token_type"))?.map(|s| s.into_owned()).unwrap_or_default(),
        merges: strings("merges")?,
        bos: meta.opt_u32(&key("bos_token_id"))?,
        eos: meta.opt_u32(&key("eos_token_id"))?,
        eot: meta.opt_u32(&key("eot_token_id"))?,
        unk: meta.opt_u32(&key("unknown_token_id"))?,
        pad: meta.opt_u32(&key("padding_token_id"))?,
        add_bos: meta.opt_bool(&key("add_bos_token"))?,
        add_eos: meta.opt_bool(&key("add_eos_token"))?,
        add_space_prefix: meta.opt_bool(&key("add_space_prefix"))?,
        space_prefix: meta.opt_str("margay.tokenizer.space_prefix")?.map(str::to_owned),
        remove_extra_whitespaces: meta.opt_bool(&key("remove_extra_whitespaces"))?,
        precompiled_charsmap: None,
        chat_template: meta.opt_str("tokenizer.chat_template")?.map(str::to_owned),
    })
}
