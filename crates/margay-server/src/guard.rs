//! Who may ask: names of this machine, origins of pages, the API key.

use crate::{ServerOptions, app::App, chat, problem::Problem, routes};
use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use std::{net::IpAddr, sync::Arc};
use subtle::ConstantTimeEq;

/// Stands before every route: counts, checks, and adds what every answer says.
pub(crate) async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let route = routes::name(request.uri().path());
    let origin = request.headers().get(header::ORIGIN).cloned();
    let mut response = match check(&app, &request) {
        Ok(()) if request.method() == Method::OPTIONS => preflight(&request),
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    app.metrics.requested(route, response.status().as_u16());
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    if let Some(origin) = origin.filter(|origin| may_call(&app.options, origin)) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("retry-after"));
    }
    response
}

fn check(app: &App, request: &Request) -> Result<(), Problem> {
    let headers = request.headers();
    host(&app.options, request)?;
    origin(&app.options, request)?;
    let path = request.uri().path();
    if request.method() != Method::OPTIONS && !routes::is_public(path) {
        key(app.options.key.as_deref(), headers)?;
    }
    let length =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let limit = app.limits().body_bytes;
    if length.is_some_and(|length| length > limit as u64) {
        return Err(chat::too_long(limit));
    }
    if app.is_stopping() && path != "/health" {
        return Err(Problem::stopping());
    }
    Ok(())
}

/// A page of the internet may make its own name mean this machine (DNS rebinding), and its scripts could then ask as
/// if they were ours. The name they use stays theirs, though. Beyond the machine itself the key keeps them out.
fn host(options: &ServerOptions, request: &Request) -> Result<(), Problem> {
    if !options.host.is_loopback() && options.key.is_some() {
        return Ok(());
    }
    let named = request.uri().host().or_else(|| request.headers().get(header::HOST)?.to_str().ok());
    let Some(name) = named.map(name_of) else {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "the request names no host"));
    };
    let own = name.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || name.to_ascii_lowercase().ends_with(".localhost")
        || options.hosts.iter().any(|host| host.eq_ignore_ascii_case(name));
    if own {
        return Ok(());
    }
    let message = format!(
        "{:?} is no name of this server: use localhost or its address, or allow the name with --allow-host",
        crate::fields::shown(name)
    );
    Err(Problem::new(StatusCode::FORBIDDEN, message).with_code("host_not_allowed"))
}

/// A host without its port, an address of version 6 without its brackets.
fn name_of(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    host.split(':').next().unwrap_or(host)
}

/// Browsers say which page asks; what asks without a browser says nothing.
fn origin(options: &ServerOptions, request: &Request) -> Result<(), Problem> {
    let Some(origin) = request.headers().get(header::ORIGIN) else { return Ok(()) };
    let own = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let same = own.is_some_and(|host| {
        let text = origin.to_str().unwrap_or_default();
        text.split_once("://").is_some_and(|(_, name)| name.eq_ignore_ascii_case(host))
    });
    if same || may_call(options, origin) {
        return Ok(());
    }
    let message = "pages of other origins may not call this server; allow one with --allow-origin";
    Err(Problem::new(StatusCode::FORBIDDEN, message).with_code("origin_not_allowed"))
}

fn may_call(options: &ServerOptions, origin: &HeaderValue) -> bool {
    options.origins.iter().any(|allowed| allowed == "*" || allowed.as_bytes() == origin.as_bytes())
}

/// What a browser asks before a page of another origin may ask.
fn preflight(request: &Request) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    let asked = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let usual = HeaderValue::from_static("authorization, content-type");
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.unwrap_or(usual));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

/// Compares in a time that tells nothing of where two keys differ.
fn key(expected: Option<&str>, headers: &HeaderMap) -> Result<(), Problem> {
    let Some(expected) = expected else { return Ok(()) };
    let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    let is_bearer = given.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer "));
    let given = if is_bearer { given[7..].trim_ascii() } else { &[] };
    if bool::from(given.ct_eq(expected.as_bytes())) {
        return Ok(());
    }
    let message = match is_bearer {
        true => "the API key is not that of this server",
        false => "this server needs its API key, as \"Authorization: Bearer KEY\"",
    };
    Err(Problem::new(StatusCode::UNAUTHORIZED, message).with_code("invalid_api_key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_told_from_its_port() {
        for (host, name) in [
            ("localhost:8080", "localhost"),
            ("[::1]:8080", "::1"),
            ("[::1]", "::1"),
            ("127.0.0.1", "127.0.0.1"),
            ("evil.example:80", "evil.example"),
            ("", ""),
        ] {
            assert_eq!(name_of(host), name);
        }
    }

    #[test]
    fn only_the_whole_key_opens() {
        let with = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
            key(Some("secret"), &headers).is_ok()
        };
        assert!(with("Bearer secret") && with("bearer  secret "));
        assert!(!with("Bearer secre") && !with("Bearer secrets") && !with("Basic secret") && !with("secret"));
        assert!(key(Some("secret"), &HeaderMap::new()).is_err());
        assert!(key(None, &HeaderMap::new()).is_ok());
    }
}
