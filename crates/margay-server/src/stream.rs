//! Answers as they come, as server-sent events. Source: WHATWG HTML, "Server-sent events"; OpenAI API reference, "Streaming".

use crate::{
    app::App,
    chat::{Deadline, Running, Told},
    problem::Problem,
    reply::{self, Head, chunk, finish_reason},
    request::ChatRequest,
    tools,
};
use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header},
    response::Response,
};
use futures_core::Stream;
use margay::{CallPiece, CallReader, Event, Report, Stage, Stop};
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

/// So long an error may take to be an answer of its own; later ones come within the stream.
const EARLY: Duration = Duration::from_millis(250);

/// While nothing is told, a comment so often: for whoever stands between and closes what is silent.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// What of an answer is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    usage: bool,
    stages: bool,
    /// Answers may call functions.
    calls: bool,
}

impl Options {
    pub(crate) fn of(request: &ChatRequest) -> Self {
        Options { usage: request.include_usage, stages: request.include_stages, calls: request.tools.any() }
    }
}

/// Begins to answer. What is wrong with the request itself is told by its status, as without streaming.
pub(crate) async fn respond(
    app: Arc<App>,
    head: Head,
    options: Options,
    mut running: Running,
    deadline: Deadline,
) -> Result<Response, Problem> {
    let first = match timeout(EARLY, running.told.recv()).await {
        Ok(None) => return Err(Problem::stopping()),
        Ok(Some((_, Err(e)))) => return Err(Problem::of_engine(&e)),
        Ok(Some(told)) => Some(told),
        Err(_) => None,
    };
    let mut alive = interval(SIGN_OF_LIFE);
    alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    alive.reset();
    let mut events = Events {
        reports: vec![None; running.choices],
        tokens: vec![None; running.choices],
        readers: (0..running.choices).map(|_| (CallReader::default(), 0)).collect(),
        app,
        head,
        options,
        running: Some(running),
        deadline,
        alive,
        ready: VecDeque::new(),
    };
    events.begin();
    if let Some(told) = first {
        events.take(told);
    }
    let mut response = Response::new(Body::from_stream(events));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would gather what should go on at once.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// The events of one request. Dropping it, as happens when the client is gone, ends its answers.
struct Events {
    app: Arc<App>,
    head: Head,
    options: Options,
    /// `None` once all is told.
    running: Option<Running>,
    reports: Vec<Option<Box<Report>>>,
    /// Tokens of each answer, with their probabilities, whose text is still to come.
    tokens: Vec<Option<Vec<Value>>>,
    /// What reads the calls of each answer, and how many there were.
    readers: Vec<(CallReader, usize)>,
    deadline: Deadline,
    alive: Interval,
    ready: VecDeque<Bytes>,
}

impl Events {
    fn begin(&mut self) {
        for index in 0..self.reports.len() {
            self.delta(index, json!({ "role": "assistant", "content": "", "refusal": null }));
        }
    }

    fn take(&mut self, (index, event): Told) {
        match event {
            Ok(Event::Text(text)) if self.options.calls => {
                for piece in self.readers[index].0.push(&text) {
                    self.piece(index, piece);
                }
            }
            Ok(Event::Text(text)) => self.delta(index, json!({ "content": text })),
            Ok(Event::Token(chosen)) => {
                self.tokens[index].get_or_insert_default().push(reply::token(&chosen));
            }
            // A decoded token's stage says nothing that its text does not.
            Ok(Event::Stage { stage, took, done, of }) if self.options.stages && stage != Stage::Decode => {
                let mut value = chunk(&self.head, json!([]), self.no_usage());
                let ms = took.as_secs_f64() * 1000.0;
                value["margay"] =
                    json!({ "index": index, "stage": stage.name(), "took_ms": ms, "done": done, "of": of });
                self.send(&value);
            }
            Ok(Event::Done(report)) if report.stop == Stop::Cancelled => self.fail(&Problem::stopping()),
            Ok(Event::Done(report)) => self.finish(index, report),
            Ok(_) => {}
            Err(e) => self.fail(&Problem::of_engine(&e)),
        }
    }

    fn piece(&mut self, index: usize, piece: CallPiece) {
        match piece {
            CallPiece::Text(text) => self.delta(index, json!({ "content": text })),
            CallPiece::Call { name, arguments } => {
                let number = self.readers[index].1;
                self.readers[index].1 += 1;
                let id = tools::id(&self.head.id, index, number);
                self.delta(
                    index,
                    json!({ "tool_calls": [tools::told(&id, &name, &arguments, Some(number))] }),
                );
            }
        }
    }

    fn finish(&mut self, index: usize, report: Box<Report>) {
        if let Some(rest) = std::mem::take(&mut self.readers[index].0).finish() {
            self.piece(index, rest);
        }
        let called = self.readers[index].1 > 0;
        let logprobs = reply::logprobs(self.tokens[index].take());
        let choice = json!([{
            "index": index, "delta": {}, "logprobs": logprobs, "finish_reason": finish_reason(report.stop, called),
            "margay": reply::stages(&report),
        }]);
        self.send(&chunk(&self.head, choice, self.no_usage()));
        self.reports[index] = Some(report);
        if self.reports.iter().any(Option::is_none) {
            return;
        }
        if self.options.usage {
            let reports: Vec<_> = self.reports.drain(..).flatten().collect();
            self.send(&chunk(&self.head, json!([]), Some(reply::usage(&reports))));
        }
        self.end();
    }

    /// The status is long sent: the error is an event, which OpenAI's clients raise.
    fn fail(&mut self, problem: &Problem) {
        self.send(&problem.json());
        self.end();
    }

    fn end(&mut self) {
        self.ready.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
        self.running = None;
    }

    fn delta(&mut self, index: usize, delta: Value) {
        let logprobs = reply::logprobs(self.tokens[index].take());
        let choice = json!([{ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": null }]);
        self.send(&chunk(&self.head, choice, self.no_usage()));
    }

    fn no_usage(&self) -> Option<Value> {
        self.options.usage.then_some(Value::Null)
    }

    fn send(&mut self, value: &Value) {
        self.ready.push_back(Bytes::from(format!("data: {value}\n\n")));
    }
}

impl Stream for Events {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(bytes) = this.ready.pop_front() {
                this.alive.reset();
                return Poll::Ready(Some(Ok(bytes)));
            }
            let Some(running) = &mut this.running else { return Poll::Ready(None) };
            match running.told.poll_recv(cx) {
                Poll::Ready(Some(told)) => this.take(told),
                // The engine let go of a job that it will not do.
                Poll::Ready(None) => this.fail(&Problem::stopping()),
                Poll::Pending if this.deadline.as_mut().poll(cx).is_ready() => {
                    let problem = Problem::late(this.app.limits().time);
                    this.fail(&problem);
                }
                Poll::Pending => {
                    if this.alive.poll_tick(cx).is_pending() {
                        return Poll::Pending;
                    }
                    this.ready.push_back(Bytes::from_static(b": working\n\n"));
                }
            }
        }
    }
}
