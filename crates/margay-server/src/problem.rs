//! What was wrong with a request, in the form that OpenAI's clients read.

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
    response::IntoResponse,
};
use serde_json::{Value, json};
use std::time::Duration;

/// Why a request is not answered.
///
/// Source of the form: OpenAI API reference, "Error codes"; `openai-python`, `_exceptions.py`.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// The place in the request that is at fault, as in `messages[0].content`.
    pub(crate) param: Option<String>,
    pub(crate) code: Option<&'static str>,
    /// When to ask again.
    pub(crate) retry_after: Option<Duration>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Problem { status, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// A request that has to change before it can be answered.
    pub(crate) fn bad(param: impl Into<String>, what: impl AsRef<str>) -> Self {
        let param = param.into();
        let message = if param.is_empty() {
            format!("the request {}", what.as_ref())
        } else {
            format!("{param} {}", what.as_ref())
        };
        let param = Some(param).filter(|param| !param.is_empty());
        Problem { param, ..Problem::new(StatusCode::BAD_REQUEST, message) }
    }

    pub(crate) fn with_code(self, code: &'static str) -> Self {
        Problem { code: Some(code), ..self }
    }

    /// The server ends.
    pub(crate) fn stopping() -> Self {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down")
            .with_code("shutting_down")
    }

    /// The request took longer than requests may.
    pub(crate) fn late(limit: Duration) -> Self {
        let message = format!("the request took longer than {} s, the limit of this server", limit.as_secs());
        Problem::new(StatusCode::GATEWAY_TIMEOUT, message).with_code("timeout")
    }

    /// What the engine says of a request.
    pub(crate) fn of_engine(error: &margay::Error) -> Self {
        use margay::Error as E;
        let problem = |status| Problem::new(status, error.to_string());
        let messages = || Problem { param: Some("messages".to_owned()), ..problem(StatusCode::BAD_REQUEST) };
        match error {
            E::PromptTooLong { .. } | E::LongPrefix { .. } => messages().with_code("context_length_exceeded"),
            E::Image { place, .. } => {
                Problem { param: Some(place.clone()), ..messages() }.with_code("invalid_image")
            }
            E::NoVision { .. } | E::OnePicture { .. } => messages().with_code("image_not_supported"),
            E::Turns { .. } | E::EmptyPrompt | E::Template(_) | E::Layout(_) | E::Tokenizer(_) => messages(),
            E::Option { option, .. } => {
                Problem { param: Some((*option).to_owned()), ..problem(StatusCode::BAD_REQUEST) }
            }
            E::Form(_) => {
                Problem { param: Some("response_format".to_owned()), ..problem(StatusCode::BAD_REQUEST) }
            }
            E::Refused { retry_after, .. } => {
                let after = Some(*retry_after);
                Problem { retry_after: after, ..problem(StatusCode::SERVICE_UNAVAILABLE) }
                    .with_code("device_limit")
            }
            E::Busy { .. } => problem(StatusCode::TOO_MANY_REQUESTS).with_code("busy"),
            _ => problem(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// `{"error": {"message", "type", "param", "code"}}`.
    pub(crate) fn json(&self) -> Value {
        json!({ "error": {
            "message": self.message, "type": self.kind(), "param": self.param, "code": self.code,
        }})
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response<Body> {
        let mut response = json_response(self.status, &self.json());
        let headers = response.headers_mut();
        if let Some(after) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A JSON value as an answer.
pub(crate) fn json_response(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
