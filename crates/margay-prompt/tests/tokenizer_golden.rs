//! Tokenizers against the published libraries: sentencepiece and tokenizers, on committed corpora.
//!
//! The corpora and vocabularies of `tests/golden/tokenizers/` at the root were made by
//! `tests/golden/make_tokenizer*.py`, those of this crate by `golden/make_tokenizers.py`.
#![allow(clippy::unwrap_used, reason = "a test stops where its data is not as expected")]

use std::path::PathBuf;

use margay_file::gguf::{Gguf, Metadata};
use margay_file::tokenizer_model::TokenizerModel;
use margay_prompt::text::{
    EncodeOptions, GgufVocab, PieceKind, Segment, SentencePieceModel, StreamDecoder, Tokenizer,
};
use margay_tensor::Storage;
use proptest::prelude::*;
use serde_json::Value;

/// Folders of the shared corpora, and whether control tokens written out in their texts count.
const FOLDERS: [(&str, bool); 4] =
    [("spm", false), ("bbpe", true), ("bbpe-qwen2", true), ("bbpe-llama3", true)];

fn read(folder: &str, file: &str) -> Vec<u8> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tokenizers");
    let path = root.join(folder).join(file);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

struct Case {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

fn cases(list: &Value) -> Vec<Case> {
    let case = |v: &Value| Case {
        text: v["text"].as_str().unwrap().to_owned(),
        ids: v["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect(),
        decoded: v["decoded"].as_str().unwrap().to_owned(),
    };
    list.as_array().unwrap().iter().map(case).collect()
}

fn corpus(folder: &str) -> Vec<Case> {
    let cases = cases(&serde_json::from_slice(&read(folder, "corpus.json")).unwrap());
    assert_eq!(cases.len(), 150, "{folder}");
    cases
}

fn gguf_vocab(meta: &Metadata) -> GgufVocab {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let strings = |name: &str| {
        let list = meta.opt_strings(&key(name)).unwrap();
        list.map(|l| l.iter().map(str::to_owned).collect()).unwrap_or_default()
    };
    GgufVocab {
        model: meta.opt_str(&key("model")).unwrap().unwrap().to_owned(),
        pre: meta.opt_str(&key("pre")).unwrap().map(str::to_owned),
        tokens: strings("tokens"),
        scores: meta.opt_f32s(&key("scores")).unwrap().map(|s| s.into_owned()).unwrap_or_default(),
        token_types: meta.opt_i32s(&key("token_type")).unwrap().map(|s| s.into_owned()).unwrap_or_default(),
        merges: strings("merges"),
        bos: meta.opt_u32(&key("bos_token_id")).unwrap(),
        eos: meta.opt_u32(&key("eos_token_id")).unwrap(),
        unk: meta.opt_u32(&key("unknown_token_id")).unwrap(),
        add_bos: meta.opt_bool(&key("add_bos_token")).unwrap(),
        add_space_prefix: meta.opt_bool(&key("add_space_prefix")).unwrap(),
        ..GgufVocab::default()
    }
}

/// Every way to build the tokenizer of a folder.
fn tokenizers(folder: &str) -> Vec<(&'static str, Tokenizer)> {
    let config = read(folder, "tokenizer_config.json");
    let json = Tokenizer::from_tokenizer_json(&read(folder, "tokenizer.json"), Some(&config)).unwrap();
    let file = Gguf::from_bytes(Storage::from_bytes(&read(folder, "tokenizer.gguf"))).unwrap();
    let gguf = Tokenizer::from_gguf(&gguf_vocab(file.metadata())).unwrap();
    let there_and_back = |t: &Tokenizer| Tokenizer::from_gguf(&t.to_gguf_vocab().unwrap()).unwrap();
    let mut all = vec![
        ("json to gguf", there_and_back(&json)),
        ("gguf to gguf", there_and_back(&gguf)),
        ("json", json),
        ("gguf", gguf),
    ];
    if folder == "spm" {
        let model = TokenizerModel::from_bytes(&read(folder, "tokenizer.model")).unwrap();
        let model = Tokenizer::from_sentencepiece(&sentencepiece(&model)).unwrap();
        all.push(("model to gguf", there_and_back(&model)));
        all.push(("model", model));
    }
    all
}

fn sentencepiece(model: &TokenizerModel) -> SentencePieceModel {
    let kind = |number: i32| PieceKind::from_i32(number).unwrap();
    SentencePieceModel {
        pieces: model.pieces.iter().map(|p| (p.text.clone(), p.score, kind(p.piece_type as i32))).collect(),
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

fn assert_equal(name: &str, tokenizer: &Tokenizer, cases: &[Case], special: bool) {
    for case in cases {
        let options = EncodeOptions { special, ..EncodeOptions::default() };
        let ids = tokenizer.encode(&case.text, options).unwrap();
        assert_eq!(ids, case.ids, "{name}: {:?}", case.text);
        assert_eq!(tokenizer.decode(&ids, false), case.decoded, "{name}: {:?}", case.text);
    }
}

#[test]
fn ids_and_texts_equal_the_published_libraries_from_every_file_form() {
    for (folder, special) in FOLDERS {
        let cases = corpus(folder);
        for (form, tokenizer) in tokenizers(folder) {
            assert_equal(&format!("{folder} from {form}"), &tokenizer, &cases, special);
        }
    }
}

#[test]
fn the_form_transformers_5_writes_equals_its_own_library() {
    let mut json: Value = serde_json::from_slice(&read("spm", "tokenizer.json")).unwrap();
    json["normalizer"] = Value::Null;
    json["pre_tokenizer"] = serde_json::json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    let tokenizer = Tokenizer::from_tokenizer_json(json.to_string().as_bytes(), None).unwrap();
    let listed: Value = serde_json::from_slice(&read("spm", "disagreements.json")).unwrap();
    let listed = listed.as_array().unwrap();
    let mut differing = 0;
    for case in corpus("spm") {
        let its_own = |d: &&Value| {
            d["text"] == case.text.as_str() && d["form"].as_str().unwrap().starts_with("Metaspace")
        };
        let ids = match listed.iter().find(its_own).and_then(|d| d["ids"].as_array()) {
            None => case.ids,
            Some(ids) => {
                differing += 1;
                ids.iter().map(|id| id.as_u64().unwrap() as u32).collect()
            }
        };
        let options = EncodeOptions { special: true, ..EncodeOptions::default() };
        assert_eq!(tokenizer.encode(&case.text, options).unwrap(), ids, "{:?}", case.text);
    }
    assert!(differing > 10, "{differing}");
    // Through GGUF it stays what it is; a reader that passes our key over has the SentencePiece vocabulary.
    let vocab = tokenizer.to_gguf_vocab().unwrap();
    let gguf = Tokenizer::from_gguf(&vocab).unwrap();
    for case in corpus("spm") {
        let options = EncodeOptions { special: true, ..EncodeOptions::default() };
        let expected = tokenizer.encode(&case.text, options).unwrap();
        assert_eq!(gguf.encode(&case.text, options).unwrap(), expected, "{:?}", case.text);
    }
    let elsewhere = Tokenizer::from_gguf(&GgufVocab { space_prefix: None, ..vocab.clone() }).unwrap();
    assert_equal("transformers 5 to gguf, read elsewhere", &elsewhere, &corpus("spm"), false);
    let unknown = GgufVocab { space_prefix: Some("backwards".into()), ..vocab };
    assert!(Tokenizer::from_gguf(&unknown).unwrap_err().to_string().contains("backwards"));
}

#[test]
fn rules_user_defined_and_unused_pieces_equal_sentencepiece() {
    let json: Value = serde_json::from_str(include_str!("golden/spm_rules.json")).unwrap();
    for (name, described) in json.as_object().unwrap() {
        let bit = |key: &str| described[key].as_bool().unwrap();
        let id = |key: &str| described[key].as_u64().map(|id| id as u32);
        let piece = |p: &Value| {
            let kind = PieceKind::from_i32(p[2].as_i64().unwrap() as i32).unwrap();
            (p[0].as_str().unwrap().to_owned(), p[1].as_f64().unwrap() as f32, kind)
        };
        let hex = described["precompiled_charsmap"].as_str().unwrap();
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let model = SentencePieceModel {
            pieces: described["pieces"].as_array().unwrap().iter().map(piece).collect(),
            unk_id: id("unk_id"),
            bos_id: id("bos_id"),
            eos_id: id("eos_id"),
            byte_fallback: bit("byte_fallback"),
            add_dummy_prefix: bit("add_dummy_prefix"),
            remove_extra_whitespaces: bit("remove_extra_whitespaces"),
            precompiled_charsmap: (0..hex.len()).step_by(2).map(byte).collect(),
            ..SentencePieceModel::default()
        };
        let tokenizer = Tokenizer::from_sentencepiece(&model).unwrap();
        let back = Tokenizer::from_gguf(&tokenizer.to_gguf_vocab().unwrap()).unwrap();
        for case in cases(&described["cases"]) {
            let plain = EncodeOptions::default();
            assert_eq!(tokenizer.encode(&case.text, plain).unwrap(), case.ids, "{name}: {:?}", case.text);
            assert_eq!(
                back.encode(&case.text, plain).unwrap(),
                case.ids,
                "{name} through gguf: {:?}",
                case.text
            );
            // The library writes unknown tokens as " ⁇ ", here they keep their name.
            if !case.decoded.contains('⁇') {
                assert_eq!(tokenizer.decode(&case.ids, false), case.decoded, "{name}: {:?}", case.text);
            }
        }
    }
}

#[test]
fn nothing_a_user_types_becomes_a_control_token() {
    for (folder, _) in FOLDERS {
        for (form, tokenizer) in tokenizers(folder) {
            let size = tokenizer.vocab_size() as u32;
            let controls: Vec<u32> = (0..size).filter(|id| tokenizer.is_control(*id)).collect();
            assert!(controls.len() >= 2, "{folder} from {form}");
            for id in controls {
                let mark = tokenizer.token_text(id).unwrap();
                for text in [mark.to_owned(), format!("a{mark}b"), format!(" {mark}\n{mark}")] {
                    let name = format!("{folder} from {form}: {text:?}");
                    let ids = tokenizer.encode_segments(&[Segment::untrusted(&text)]).unwrap();
                    assert!(ids.iter().all(|id| !tokenizer.is_control(*id)), "{name}");
                    assert_eq!(tokenizer.decode(&ids, true), text, "{name}");
                    let ids = tokenizer.encode_segments(&[Segment::trusted(&text)]).unwrap();
                    assert!(ids.contains(&id), "{name}");
                }
                // Split over a template's and a user's words it is no control token either.
                let (head, tail) = mark.split_at(1);
                let ids =
                    tokenizer.encode_segments(&[Segment::trusted(head), Segment::untrusted(tail)]).unwrap();
                assert!(ids.iter().all(|id| !tokenizer.is_control(*id)), "{folder} from {form}: {mark:?}");
            }
        }
    }
}

#[test]
fn segments_encode_as_their_joined_text() {
    for (folder, _) in FOLDERS {
        for (form, tokenizer) in tokenizers(folder) {
            for case in corpus(folder).iter().filter(|case| case.text.chars().count() > 3) {
                let middle = case.text.char_indices().nth(2).unwrap().0;
                let (head, tail) = case.text.split_at(middle);
                let whole = tokenizer.encode(&case.text, EncodeOptions::default()).unwrap();
                let parts = [Segment::untrusted(head), Segment::untrusted(tail)];
                assert_eq!(
                    tokenizer.encode_segments(&parts).unwrap(),
                    whole,
                    "{folder} from {form}: {:?}",
                    case.text
                );
            }
        }
    }
}

#[test]
fn bos_and_stop_tokens_are_found_in_every_file_form() {
    for (folder, expected) in [
        ("spm", (Some("<s>"), true, "</s>")),
        ("bbpe", (Some("<|endoftext|>"), false, "<|im_end|>")),
        ("bbpe-llama3", (Some("<|begin_of_text|>"), true, "<|im_end|>")),
    ] {
        for (form, tokenizer) in tokenizers(folder) {
            let (bos, adds_bos, stop) = expected;
            assert_eq!(tokenizer.bos().and_then(|id| tokenizer.token_text(id)), bos, "{folder} from {form}");
            assert_eq!(tokenizer.adds_bos(), adds_bos, "{folder} from {form}");
            let stop = tokenizer.token_id(stop).unwrap();
            assert!(tokenizer.stop_ids().contains(&stop), "{folder} from {form}: {:?}", tokenizer.stop_ids());
        }
    }
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
    let mut decoder = StreamDecoder::new(tokenizer, skip_special);
    let mut text: String = ids.iter().map(|id| decoder.push(*id)).collect();
    text.push_str(&decoder.finish());
    text
}

#[test]
fn a_character_of_several_tokens_comes_out_with_its_last_one() {
    for (folder, _) in FOLDERS {
        for (form, tokenizer) in tokenizers(folder) {
            let text = "🙂";
            let ids = tokenizer.encode(text, EncodeOptions::default()).unwrap();
            let mut decoder = StreamDecoder::new(&tokenizer, true);
            let pieces: Vec<String> = ids.iter().map(|id| decoder.push(*id)).collect();
            let (last, before) = pieces.split_last().unwrap();
            assert!(ids.len() > 2 && before.iter().all(String::is_empty), "{folder} from {form}: {pieces:?}");
            assert_eq!(last, text, "{folder} from {form}");
            // Cut short, it is one replacement character and not an error.
            assert_eq!(streamed(&tokenizer, &ids[..ids.len() - 1], true), "\u{FFFD}", "{folder} from {form}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_text_survives_encoding_and_decoding(text in "\\PC{0,40}") {
        for (folder, _) in FOLDERS {
            // Qwen2 composes characters first, so that only composed text comes back as it was.
            if folder == "bbpe-qwen2" { continue; }
            for (form, tokenizer) in cached(folder) {
                let ids = tokenizer.encode(&text, EncodeOptions::default()).unwrap();
                prop_assert_eq!(tokenizer.decode(&ids, false), text.clone(), "{} from {}", folder, form);
            }
        }
    }

    #[test]
    fn any_ids_stream_to_the_text_of_all_of_them(ids in prop::collection::vec(0u32..700, 0..40), skip in any::<bool>()) {
        for (folder, _) in FOLDERS {
            for (form, tokenizer) in cached(folder) {
                let mut decoder = StreamDecoder::new(tokenizer, skip);
                let mut bytes_before = 0;
                let mut text = String::new();
                for id in &ids {
                    text.push_str(&decoder.push(*id));
                    prop_assert!(text.len() >= bytes_before);
                    bytes_before = text.len();
                }
                text.push_str(&decoder.finish());
                prop_assert_eq!(&text, &tokenizer.decode(&ids, skip), "{} from {}", folder, form);
            }
        }
    }
}

/// The tokenizers of a folder, built once.
fn cached(folder: &'static str) -> &'static [(&'static str, Tokenizer)] {
    use std::collections::HashMap;
    use std::sync::OnceLock;
    type All = HashMap<&'static str, Vec<(&'static str, Tokenizer)>>;
    static ALL: OnceLock<All> = OnceLock::new();
    &ALL.get_or_init(|| FOLDERS.iter().map(|(folder, _)| (*folder, tokenizers(folder))).collect())[folder]
}

#[test]
fn damaged_files_are_errors_and_never_panics() {
    let whole = String::from_utf8(read("bbpe-llama3", "tokenizer.json")).unwrap();
    for (broken, expected) in [
        (String::new(), "not usable"),
        ("[]".to_owned(), "not a JSON object"),
        (
            whole.replacen("\"type\":\"BPE\"", "\"type\":\"WordPiece\"", 1).replacen(
                "\"type\": \"BPE\"",
                "\"type\": \"WordPiece\"",
                1,
            ),
            "WordPiece",
        ),
        (r#"{"model":{"type":"BPE","vocab":{"a":4294967295},"merges":[]}}"#.to_owned(), "limit"),
        (r#"{"model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}}"#.to_owned(), "\"b\""),
        (r#"{"model":{"type":"BPE","vocab":{"a":0},"merges":["ab"]}}"#.to_owned(), "not a pair"),
        (r#"{"model":{"type":"BPE","vocab":{},"merges":[]}}"#.to_owned(), "largest id"),
        (
            r#"{"added_tokens":[{"id":0}],"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}"#.to_owned(),
            "no content",
        ),
    ] {
        let error = Tokenizer::from_tokenizer_json(broken.as_bytes(), None).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} should mention {expected}");
    }
    let good = Tokenizer::from_tokenizer_json(whole.as_bytes(), None).unwrap().to_gguf_vocab().unwrap();
    let tokens = good.tokens.len();
    for (broken, expected) in [
        (GgufVocab { model: "bert".into(), ..good.clone() }, "bert"),
        (GgufVocab { pre: Some("klingon".into()), ..good.clone() }, "klingon"),
        (GgufVocab { tokens: Vec::new(), ..good.clone() }, "0 tokens"),
        (GgufVocab { token_types: vec![1; 3], ..good.clone() }, "3 entries"),
        (GgufVocab { token_types: vec![77; tokens], ..good.clone() }, "unknown type 77"),
        (GgufVocab { eos: Some(u32::MAX), ..good.clone() }, "eos_token_id"),
        (GgufVocab { merges: vec!["nospace".into()], ..good.clone() }, "not a pair"),
        (GgufVocab { merges: vec!["Ġ zzzz".into()], ..good.clone() }, "zzzz"),
        (GgufVocab { model: "llama".into(), ..good.clone() }, "scores"),
    ] {
        let error = Tokenizer::from_gguf(&broken).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} should mention {expected}");
    }
}

#[test]
fn files_with_a_few_wrong_bytes_never_panic() {
    let mut seed = 1u32;
    let mut random = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        seed >> 8
    };
    for (folder, _) in FOLDERS {
        let whole = read(folder, "tokenizer.json");
        // Half of the damage goes to the pipeline in front of the vocabulary, where the structure is.
        let pipeline = whole.windows(7).position(|w| w == b"\"vocab\"").unwrap();
        for i in 0..150 {
            let mut damaged = whole.clone();
            let span = if i % 2 == 0 { pipeline } else { whole.len() };
            for _ in 0..2 {
                let at = random() as usize % span;
                damaged[at] = b"0129-\",:{}[]atfn\\ xX|"[random() as usize % 21];
            }
            if let Ok(tokenizer) = Tokenizer::from_tokenizer_json(&damaged, None) {
                let ids = tokenizer.encode("The sign says <s> 12 🙂", EncodeOptions::default());
                let _ = ids.map(|ids| tokenizer.decode(&ids, false));
                let _ = tokenizer.to_gguf_vocab().map(|vocab| Tokenizer::from_gguf(&vocab).is_ok());
            }
        }
    }
}
