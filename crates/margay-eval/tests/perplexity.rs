//! Perplexity equals what transformers gives (`golden/make_perplexity.py`), in both definitions.
#![allow(clippy::unwrap_used, reason = "a test")]

use margay::{LoadOptions, ModelSource, Tracer};
use margay_eval::{Definition, EvalError, Perplexity, perplexity};
use std::{ops::ControlFlow, path::Path};

/// Two float32 implementations, relative. The two definitions, and windows moved by one token, differ by 1e-3 and more.
const TOLERANCE: f64 = 2e-6;

fn source() -> (ModelSource, String) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let source = ModelSource::open(&golden.join("llama"), None).unwrap();
    (source, std::fs::read_to_string(golden.join("training_text.txt")).unwrap())
}

#[test]
fn both_definitions_equal_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/perplexity.json");
    let expected: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let (source, text) = source();
    let mut tracer = Tracer::of_logits(&source, &LoadOptions::default()).unwrap();
    for (definition, key) in [(Definition::Windows, "windows"), (Definition::Chunks, "chunks")] {
        for case in expected[key].as_array().unwrap() {
            let window = case["window"].as_u64().unwrap() as usize;
            let mut told = 0;
            let found: Perplexity = perplexity(&mut tracer, &text, definition, window, &mut |done, of, _| {
                told = done;
                assert!(done <= of);
                ControlFlow::Continue(())
            })
            .unwrap()
            .unwrap();
            let close = |name: &str, value: f64| {
                let wanted = case[name].as_f64().unwrap();
                assert!(
                    (value / wanted - 1.0).abs() < TOLERANCE,
                    "{key} {window} {name}: {value}, not {wanted}"
                );
            };
            close("perplexity", found.perplexity);
            if !case["standard_error"].is_null() {
                let wanted = case["standard_error"].as_f64().unwrap();
                // A difference of squares.
                assert!((found.standard_error / wanted - 1.0).abs() < 1e-4, "{}", found.standard_error);
            }
            assert_eq!(found.scored as u64, case["scored"].as_u64().unwrap());
            assert_eq!(found.tokens as u64, expected["tokens"].as_u64().unwrap());
            assert_eq!(told, found.windows);
            assert_eq!(found.tokens, found.windows * window + found.left_out);
        }
    }
}

#[test]
fn a_text_shorter_than_a_window_is_refused_and_work_can_be_stopped() {
    let (source, text) = source();
    let mut tracer = Tracer::of_logits(&source, &LoadOptions::default()).unwrap();
    let mut ask = |text: &str, window: usize, go_on: ControlFlow<()>| {
        perplexity(&mut tracer, text, Definition::Chunks, window, &mut |_, _, _| go_on)
    };
    let error = ask("Too short.", 64, ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, EvalError::ShortText { window: 64, .. }));
    assert!(error.to_string().contains("smaller --chunk"), "{error}");
    assert!(ask(&text, 2, ControlFlow::Continue(())).is_err());
    assert!(ask(&text, 64, ControlFlow::Break(())).unwrap().is_none());
}
