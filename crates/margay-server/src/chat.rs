//! `POST /v1/chat/completions`.

use crate::{
    app::{App, HeldPixels},
    dry_run,
    metrics::Metrics,
    problem::{Problem, json_response},
    reply::{Head, choice, completion, token},
    request::ChatRequest,
    stream, tools, turns,
};
use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    http::StatusCode,
    response::Response,
};
use margay::{AskOptions, Cancel, Error, Event, Job, Report, Turn};
use margay_observe::{Stopwatch, unix_seconds};
use serde_json::Value;
use std::{pin::Pin, sync::Arc, time::Duration};
use tokio::{
    sync::{
        Semaphore,
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    },
    time::{Sleep, sleep, timeout},
};

/// A body that takes longer is no longer waited for.
const BODY_TIME: Duration = Duration::from_secs(60);

/// What an answer told, and which of a request's answers it is.
pub(crate) type Told = (usize, Result<Event, Error>);

/// When a request's time is over.
pub(crate) type Deadline = Pin<Box<Sleep>>;

/// A request that can be given to the engine.
pub(crate) struct Prepared {
    pub(crate) request: ChatRequest,
    pub(crate) turns: Vec<Turn>,
    held: HeldPixels,
}

/// Answers that are being made. Dropping it ends them.
pub(crate) struct Running {
    pub(crate) told: UnboundedReceiver<Told>,
    pub(crate) choices: usize,
    cancels: Vec<Cancel>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancels.iter().for_each(Cancel::cancel);
    }
}

/// Answers a request.
pub(crate) async fn chat(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    let limit = app.limits().time;
    let mut deadline = Box::pin(sleep(limit));
    let arrived = Stopwatch::start();
    let prepared = tokio::select! {
        prepared = prepare(&app, request) => prepared?,
        () = &mut deadline => return Err(Problem::late(limit)),
    };
    let model = app.name(prepared.request.model.clone())?;
    if prepared.request.dry_run {
        let told = dry_run::tell(&app, &prepared, &model)?;
        return Ok(json_response(StatusCode::OK, &told));
    }
    let (number, random) = app.number();
    let head = Head { id: format!("chatcmpl-{:x}{number:06x}", app.started), created: unix_seconds(), model };
    let options = stream::Options::of(&prepared.request);
    let (streams, calls) = (prepared.request.stream, prepared.request.tools.any());
    // Tokenising may take a while.
    let asked = app.clone();
    let submitted = tokio::task::spawn_blocking(move || submit(&asked, prepared, random, arrived));
    let running = submitted.await.map_err(|_| broken())??;
    if streams {
        return stream::respond(app, head, options, running, deadline).await;
    }
    tokio::select! {
        answered = collect(&head, running, calls) => answered,
        () = &mut deadline => Err(Problem::late(limit)),
    }
}

/// Reads the body, checks it and decodes its pictures.
async fn prepare(app: &Arc<App>, request: Request) -> Result<Prepared, Problem> {
    let body = body_of(app, request.into_body()).await?;
    let asked = app.clone();
    let mut request = in_turn(&app.preparing, move || ChatRequest::read(&body, asked.limits())).await?;
    let said = turns::fetched(app, std::mem::take(&mut request.messages)).await?;
    let asked = app.clone();
    in_turn(&app.preparing, move || {
        let (turns, held) = turns::of(&asked, said, request.choices as u64)?;
        Ok(Prepared { request, turns, held })
    })
    .await
}

/// Work that takes a core, when it is its turn.
pub(crate) async fn in_turn<T: Send + 'static>(
    turns: &Arc<Semaphore>,
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let permit = turns.clone().acquire_owned().await.map_err(|_| Problem::stopping())?;
    let done = tokio::task::spawn_blocking(move || {
        // The core is taken until the work is done, whether or not somebody still waits for it.
        let _permit = permit;
        work()
    });
    done.await.map_err(|_| broken())?
}

/// Work on a request panicked: a defect of ours, which shall not end the server.
pub(crate) fn broken() -> Problem {
    Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the server failed to read the request; this is a defect of the server",
    )
}

pub(crate) async fn body_of(app: &App, body: Body) -> Result<Bytes, Problem> {
    let limit = app.limits().body_bytes;
    match timeout(BODY_TIME, axum::body::to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(e)) => {
            // axum tells a body that is too long and one that breaks off by the same type.
            let mut cause: Option<&dyn std::error::Error> = Some(&e);
            while let Some(error) = cause {
                if error.to_string().contains("length limit") {
                    return Err(too_long(limit));
                }
                cause = error.source();
            }
            Err(Problem::bad("", format!("cannot be read: {e}")))
        }
        Err(_) => {
            let message = format!("the request's body did not come within {} s", BODY_TIME.as_secs());
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, message))
        }
    }
}

pub(crate) fn too_long(limit: usize) -> Problem {
    let message = format!("the request's body is larger than {limit} bytes, the limit of this server");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, message).with_code("body_too_large")
}

/// Gives the request to the engine: a job for each answer.
fn submit(app: &App, prepared: Prepared, random: u64, arrived: Stopwatch) -> Result<Running, Problem> {
    if app.is_stopping() {
        return Err(Problem::stopping());
    }
    let Prepared { request, turns, held } = prepared;
    let jobs = (0..request.choices).map(|index| {
        let mut sampling = request.sampling;
        sampling.seed = request.seed.unwrap_or(random).wrapping_add(index as u64);
        let options = AskOptions {
            sampling,
            max_tokens: request.max_tokens.unwrap_or(app.limits().tokens),
            stops: request.stops.clone(),
            form: request.form.clone(),
            logit_bias: request.bias.clone(),
            draft: app.options.draft,
            logprobs: request.logprobs,
            ..AskOptions::default()
        };
        Job { turns: turns.clone(), options }
    });
    start(app, jobs, (held, arrived), request.tools.any().then_some("tools"))
}

/// Gives jobs to the engine. `form_of`: which parameter asked for the form of the answers, where another than its own did.
pub(crate) fn start(
    app: &App,
    jobs: impl ExactSizeIterator<Item = Job>,
    (held, arrived): (HeldPixels, Stopwatch),
    form_of: Option<&str>,
) -> Result<Running, Problem> {
    let (tell, told) = unbounded_channel();
    let held = Arc::new(held);
    let mut running = Running { told, choices: jobs.len(), cancels: vec![] };
    for (index, job) in jobs.enumerate() {
        let mut teller = Teller {
            index,
            tell: tell.clone(),
            metrics: app.metrics.clone(),
            arrived,
            began: None,
            spoke: false,
            _held: held.clone(),
        };
        let submitted = app.scheduler.submit(job, Box::new(move |event| teller.hear(event)));
        // What was submitted before ends with `running`.
        running.cancels.push(submitted.map_err(|e| match (&e, form_of) {
            (Error::Busy { .. }, _) if app.is_stopping() => Problem::stopping(),
            (Error::Busy { .. }, _) => app.busy(),
            (Error::Form(_), Some(param)) => {
                Problem { param: Some(param.to_owned()), ..Problem::of_engine(&e) }
            }
            _ => Problem::of_engine(&e),
        })?);
    }
    Ok(running)
}

/// Hears what an answer tells, on the engine's thread, and hands it on.
struct Teller {
    index: usize,
    tell: UnboundedSender<Told>,
    metrics: Arc<Metrics>,
    arrived: Stopwatch,
    /// Since the first that was told.
    began: Option<Stopwatch>,
    spoke: bool,
    _held: Arc<HeldPixels>,
}

impl Teller {
    fn hear(&mut self, event: Result<Event, Error>) -> bool {
        let began = *self.began.get_or_insert_with(Stopwatch::start);
        match &event {
            Ok(Event::Text(_)) if !self.spoke => {
                self.spoke = true;
                self.metrics.first_text(self.arrived.elapsed());
            }
            Ok(Event::Done(report)) => self.metrics.answered(report, self.arrived.elapsed(), began.elapsed()),
            Err(_) => self.metrics.failed(),
            Ok(_) => {}
        }
        self.tell.send((self.index, event)).is_ok()
    }
}

/// Waits for every answer.
async fn collect(head: &Head, mut running: Running, calls: bool) -> Result<Response, Problem> {
    let mut reports: Vec<Option<Box<Report>>> = vec![None; running.choices];
    let mut tokens: Vec<Option<Vec<Value>>> = vec![None; running.choices];
    while reports.iter().any(Option::is_none) {
        match running.told.recv().await {
            Some((index, Ok(Event::Done(report)))) => reports[index] = Some(report),
            Some((index, Ok(Event::Token(chosen)))) => {
                tokens[index].get_or_insert_default().push(token(&chosen));
            }
            Some((_, Ok(_))) => {}
            Some((_, Err(e))) => return Err(Problem::of_engine(&e)),
            // The engine let go of a job that it will not do.
            None => return Err(Problem::stopping()),
        }
    }
    let reports: Vec<_> = reports.into_iter().flatten().collect();
    if reports.iter().any(|report| report.stop == margay::Stop::Cancelled) {
        return Err(Problem::stopping());
    }
    let choices = reports.iter().zip(tokens).enumerate();
    let choices = choices
        .map(|(index, (report, tokens))| {
            let id_of = |number| tools::id(&head.id, index, number);
            choice(index, report, tokens, calls.then_some(&id_of))
        })
        .collect();
    Ok(json_response(StatusCode::OK, &completion(head, choices, &reports)))
}
