//! Embeddings over a real socket, from the built-in model.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

mod support;

use base64::{Engine, engine::general_purpose::STANDARD};
use margay::{LoadOptions, Model};
use margay_server::ServerOptions;
use serde_json::{Value, json};
use support::{Answer, Site, about, data_url};

fn site() -> Site {
    let load = LoadOptions { embeddings: true, ..LoadOptions::default() };
    Site::of(Model::nano_with(&load).unwrap(), ServerOptions::default())
}

fn embed(site: &Site, body: &Value) -> Answer {
    site.request("POST", "/v1/embeddings", "", &body.to_string())
}

fn vectors(answer: &Answer) -> Vec<Vec<f64>> {
    assert_eq!(answer.status, 200, "{}", answer.body);
    let numbers =
        |data: &Value| data["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    answer.json()["data"].as_array().unwrap().iter().map(numbers).collect()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn texts_and_pictures_become_vectors_of_length_1_in_their_order() {
    let site = site();
    let picture = |name| json!({"type": "image_url", "image_url": {"url": data_url(name)}});
    let both = json!([picture("street.png"), {"type": "text", "text": "a sign"}]);
    let inputs = json!(["a red circle", "a green square", "a red circle", picture("street.png"), both]);
    let answer = embed(&site, &json!({ "input": inputs, "model": "margay-nano" }));
    let all = vectors(&answer);
    let width = Model::nano().unwrap().config().text.width;
    assert!(all.iter().all(|vector| vector.len() == width && (cosine(vector, vector) - 1.0).abs() < 1e-5));
    assert!(cosine(&all[0], &all[2]) > 0.9999 && cosine(&all[0], &all[1]) < 0.9999);
    assert!(cosine(&all[3], &all[4]) < 0.9999 && cosine(&all[0], &all[3]) < 0.9999);
    let told = answer.json();
    assert_eq!((told["object"].as_str(), told["data"][4]["index"].as_u64()), (Some("list"), Some(4)));
    assert!(told["usage"]["prompt_tokens"].as_u64().unwrap() > 36 * 2);
    assert_eq!(told["usage"]["total_tokens"], told["usage"]["prompt_tokens"]);

    // One alone, in the form that OpenAI's clients ask for, is the same.
    let alone = embed(&site, &json!({"input": "a green square", "encoding_format": "base64"}));
    assert_eq!(alone.status, 200, "{}", alone.body);
    let bytes = STANDARD.decode(alone.json()["data"][0]["embedding"].as_str().unwrap()).unwrap();
    let alone: Vec<f64> =
        bytes.as_chunks::<4>().0.iter().map(|x| f64::from(f32::from_le_bytes(*x))).collect();
    assert!(cosine(&alone, &all[1]) > 0.9999);
    // Conversations go on beside them.
    let said = site.ask(&about("street.png", "What does the sign say?")).json();
    assert!(said["choices"][0]["message"]["content"].as_str().unwrap().contains("BAR"), "{said}");
}

#[test]
fn what_cannot_be_embedded_is_refused_with_its_place() {
    let site = site();
    for (body, param) in [
        (json!({"input": [[1, 2]]}), "input[0]"),
        (json!({"input": ["a"], "dimension": 3}), "dimension"),
        (
            json!({"input": {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}}),
            "input[0].image_url",
        ),
    ] {
        let answer = embed(&site, &body);
        assert_eq!((answer.status, answer.problem().1.as_str()), (400, param), "{}", answer.body);
    }
    let long = embed(&site, &json!({"input": "word ".repeat(5000)}));
    assert_eq!(long.status, 400, "{}", long.body);
    // Without embeddings the address says so.
    let plain = Site::nano(ServerOptions::default());
    assert_eq!(embed(&plain, &json!({"input": "a"})).status, 501);
}
