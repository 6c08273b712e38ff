//! What a server says of itself: `/health`, `/v1/models`, `/v1/margay/status`.

use crate::{
    app::App,
    exposition,
    problem::{Problem, json_response},
};
use axum::{
    body::Body,
    extract::{Path, State},
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use margay::GovernorReport;
use serde_json::{Value, json};
use std::sync::Arc;

pub(crate) async fn health(State(app): State<Arc<App>>) -> Response {
    let load = app.scheduler.load();
    let (status, word) = match app.is_stopping() {
        false => (StatusCode::OK, "ok"),
        true => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
    };
    json_response(
        status,
        &json!({
            "status": word, "ready": status == StatusCode::OK, "version": env!("CARGO_PKG_VERSION"),
            "running": load.running, "waiting": load.waiting,
        }),
    )
}

pub(crate) async fn models(State(app): State<Arc<App>>) -> Response {
    let data: Vec<_> = app.names.iter().map(|name| model(&app, name)).collect();
    json_response(StatusCode::OK, &json!({ "object": "list", "data": data }))
}

pub(crate) async fn one_model(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let name = app.name(Some(name))?;
    Ok(json_response(StatusCode::OK, &model(&app, &name)))
}

fn model(app: &App, name: &str) -> Value {
    let config = app.model().config();
    json!({
        "id": name, "object": "model", "created": app.started, "owned_by": "margay",
        "margay": {
            "family": config.family, "context_tokens": app.model().context(), "vision": config.vision.is_some(),
        },
    })
}

pub(crate) async fn status(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    in_the_background(move || {
        let now = app.machine.now();
        let (load, served, config) = (app.scheduler.load(), app.metrics.served(), app.model().config());
        let limits = app.limits();
        let told = |value: usize| Some(value).filter(|_| load.cache_bytes > 0);
        let value = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": app.names[0],
            "vision": config.vision.is_some(),
            "context_tokens": app.model().context(),
            "uptime_seconds": app.clock.now().as_secs_f64(),
            "running": load.running, "slots": app.options.scheduler.slots,
            "waiting": load.waiting, "queue": app.options.scheduler.queue,
            "kv_tokens": told(load.cached_tokens), "kv_bytes": told(load.cache_bytes),
            "rss_bytes": now.sample.rss_bytes, "available_bytes": now.sample.available_bytes,
            "temperature_celsius": now.sample.temperature_celsius,
            "cpu_percent": now.sample.process_cpu_percent,
            "power_watts": now.sample.power_watts, "power_scope": now.power_scope, "joules": now.joules,
            "prefill_ms_per_token": served.rates.prefill_ms, "decode_ms_per_token": served.rates.decode_ms,
            "notes": app.model().notes().unwrap_or_default(),
            "governor": app.model().governor().map(|governor| governed(&governor)),
            "limits": {
                "body_bytes": limits.body_bytes, "pixels": limits.pixels, "pictures": limits.pictures,
                "tokens": limits.tokens, "choices": limits.choices, "seconds": limits.time.as_secs_f64(),
            },
        });
        json_response(StatusCode::OK, &value)
    })
    .await
}

/// What a governor does and did.
fn governed(governor: &GovernorReport) -> Value {
    let settings = &governor.settings;
    let moves = governor.moves.iter();
    let steps: serde_json::Map<_, _> =
        moves.map(|(rung, moves)| ((*rung).to_owned(), Value::from(moves.step))).collect();
    let last = governor.events.last();
    json!({
        "speed": settings.speed, "decode_speed": settings.decode_speed, "pace": settings.pace, "hold": settings.hold,
        "steps": steps, "unknown": governor.unknown, "rested_seconds": governor.rested.as_secs_f64(),
        "why": last.map(|event| format!("{} for {}: {}", event.rung, event.resource.name(), event.why)),
    })
}

pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    in_the_background(move || {
        let mut response = Response::new(Body::from(exposition::page(&app)));
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    })
    .await
}

/// Sensors are files: reading them blocks.
async fn in_the_background(work: impl FnOnce() -> Response + Send + 'static) -> Result<Response, Problem> {
    let failed = |_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the sensors could not be read");
    tokio::task::spawn_blocking(work).await.map_err(failed)
}
