//! Which address is answered by what.

use crate::{app::App, chat, embeddings, guard, page, problem::Problem, status};
use axum::{
    Router,
    http::StatusCode,
    middleware::from_fn_with_state,
    routing::{get, post},
};
use std::sync::Arc;

/// Every address, and whether it is answered without the key: the page, which asks for the key, and what says nothing
/// of what was asked.
const ROUTES: &[(&str, bool)] = &[
    ("/", true),
    ("/style.css", true),
    ("/app.js", true),
    ("/icon.svg", true),
    ("/health", true),
    ("/openapi.json", true),
    ("/metrics", false),
    ("/v1/models", false),
    ("/v1/models/{id}", false),
    ("/v1/chat/completions", false),
    ("/v1/embeddings", false),
    ("/v1/margay/status", false),
];

/// The address of a request as it is counted: few words, whatever is asked for.
pub(crate) fn name(path: &str) -> &'static str {
    let path = if path.starts_with("/v1/models/") { "/v1/models/{id}" } else { path };
    ROUTES.iter().find(|(route, _)| *route == path).map_or("other", |(route, _)| route)
}

pub(crate) fn is_public(path: &str) -> bool {
    ROUTES.iter().any(|(route, public)| *public && *route == path)
}

pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(page::index))
        .route("/style.css", get(page::style))
        .route("/app.js", get(page::script))
        .route("/icon.svg", get(page::icon))
        .route("/openapi.json", get(page::openapi))
        .route("/health", get(status::health))
        .route("/metrics", get(status::metrics))
        .route("/v1/models", get(status::models))
        .route("/v1/models/{*id}", get(status::one_model))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/margay/status", get(status::status))
        .fallback(nothing_here)
        .method_not_allowed_fallback(other_method)
        .layer(from_fn_with_state(app.clone(), guard::guard))
        .with_state(app)
}

async fn nothing_here() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "there is nothing at this address; /openapi.json tells what there is")
        .with_code("unknown_url")
}

async fn other_method() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "this address takes another method; /openapi.json tells which",
    )
    .with_code("method_not_allowed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeSet;

    #[test]
    fn the_openapi_document_tells_of_every_address_and_no_other() {
        let document: Value = serde_json::from_str(page::OPENAPI).unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        let paths: BTreeSet<&str> =
            document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        let page = ["/style.css", "/app.js", "/icon.svg"];
        let routes: BTreeSet<&str> =
            ROUTES.iter().map(|(route, _)| *route).filter(|route| !page.contains(route)).collect();
        assert_eq!(paths, routes);
    }

    #[test]
    fn every_parameter_of_the_document_is_known() {
        let document: Value = serde_json::from_str(page::OPENAPI).unwrap();
        let parameters = document["components"]["schemas"]["ChatRequest"]["properties"].as_object().unwrap();
        assert!(parameters.len() > 25);
        for name in parameters.keys().filter(|name| *name != "messages") {
            let body =
                format!("{{\"messages\": [{{\"role\": \"user\", \"content\": \"x\"}}], \"{name}\": null}}");
            let read = crate::request::ChatRequest::read(body.as_bytes(), &crate::Limits::default());
            assert!(read.is_ok(), "{name}: {read:?}");
        }
    }

    #[test]
    fn every_parameter_of_an_embedding_is_known() {
        let document: Value = serde_json::from_str(page::OPENAPI).unwrap();
        let schema = &document["components"]["schemas"]["EmbeddingRequest"]["properties"];
        for name in schema.as_object().unwrap().keys().filter(|name| *name != "input") {
            let body = format!("{{\"input\": \"x\", \"{name}\": null}}");
            let read = embeddings::EmbeddingRequest::read(body.as_bytes(), 192);
            assert!(read.is_ok(), "{name}: {read:?}");
        }
    }

    #[test]
    fn an_unknown_address_is_counted_as_other() {
        assert_eq!(name("/v1/models/a"), "/v1/models/{id}");
        assert_eq!((name("/etc/passwd"), is_public("/etc/passwd")), ("other", false));
    }
}
