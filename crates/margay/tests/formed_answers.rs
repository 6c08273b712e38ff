//! Answers of a given form.

#![allow(clippy::unwrap_used, reason = "a test")]

use margay::{AskOptions, Error, Form, Image, KvType, LoadOptions, Model, Sampling, Stop};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn options(form: Form) -> AskOptions {
    AskOptions { max_tokens: 120, form: Some(form), ..AskOptions::default() }
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "sign": {"type": "string", "maxLength": 12},
            "circles": {"type": "integer", "minimum": 0, "maximum": 9},
            "colour": {"enum": ["red", "green", "blue"]},
        },
        "required": ["sign", "circles", "colour"],
        "additionalProperties": false,
    })
}

/// Of models that know nothing of JSON, byte-level and SentencePiece vocabularies alike, at temperatures at which they say
/// anything.
#[test]
fn answers_have_their_form_whatever_the_model_would_say() {
    let nano = Model::nano().unwrap();
    let llava = Model::load(root().join("tests/golden/mobilevlm-v2")).unwrap();
    let picture = Image::open(root().join("examples/images/street.png")).unwrap();
    for model in [&nano, &llava] {
        for seed in 0..3 {
            let sampling =
                Sampling { temperature: 1.5, top_k: 0, top_p: 1.0, min_p: 0.0, seed, ..Sampling::default() };
            let ask = |form: Form| {
                let options = AskOptions { sampling, ..options(form) };
                let mut session = model.session().unwrap();
                session
                    .ask_with(std::slice::from_ref(&picture), "What is there?", &options)
                    .unwrap()
                    .report()
                    .unwrap()
            };
            let report = ask(Form::JsonSchema(schema()));
            assert_eq!(report.stop, Stop::End, "{}", report.text);
            let told: Value = serde_json::from_str(&report.text).unwrap();
            assert!(told["circles"].as_u64().unwrap() <= 9, "{told}");
            assert!(["red", "green", "blue"].contains(&told["colour"].as_str().unwrap()), "{told}");
            assert!(told["sign"].as_str().unwrap().chars().count() <= 12, "{told}");
            assert_eq!(told.as_object().unwrap().len(), 3);

            let report = ask(Form::Regex("(yes|no), [0-9]{3}".to_owned()));
            let (word, number) = report.text.split_once(", ").unwrap();
            assert!(["yes", "no"].contains(&word) && number.len() == 3, "{}", report.text);
            let report = ask(Form::Lark("start: \"a\" (\"b\" | \"c\")+ \"d\"".to_owned()));
            assert!(report.stop == Stop::Length || report.text.ends_with('d'), "{}", report.text);
            assert!(report.text.starts_with("ab") || report.text.starts_with("ac"), "{}", report.text);
        }
    }
}

#[test]
fn drafts_and_forms_go_together() {
    let load = |outputs| LoadOptions { outputs, kv: KvType::F32, ..LoadOptions::default() };
    let list =
        Form::JsonSchema(json!({"type": "array", "items": {"enum": [true]}, "minItems": 12, "maxItems": 12}));
    let ask = |outputs, draft| {
        let model = Model::nano_with(&load(outputs)).unwrap();
        let mut session = model.session().unwrap();
        let options = AskOptions { draft, ..options(list.clone()) };
        session.ask_with(&[], "Say it.", &options).unwrap().report().unwrap()
    };
    let (plain, drafted) = (ask(1, 0), ask(8, 7));
    assert_eq!(drafted.tokens, plain.tokens);
    assert_eq!(serde_json::from_str::<Value>(&plain.text).unwrap(), json!(vec![true; 12]));
}

#[test]
fn a_form_that_cannot_be_understood_is_refused_before_anything_is_computed() {
    let model = Model::nano().unwrap();
    let mut session = model.session().unwrap();
    for form in [
        Form::Regex("(".to_owned()),
        Form::Lark("start: missing".to_owned()),
        Form::JsonSchema(json!({"type": "nothing"})),
        Form::JsonSchema(json!(7)),
    ] {
        let refused = session.ask_with(&[], "Say it.", &options(form.clone())).err();
        assert!(matches!(refused, Some(Error::Form(_))), "{form:?}: {refused:?}");
    }
    assert_eq!(session.used_tokens(), 0);
}
