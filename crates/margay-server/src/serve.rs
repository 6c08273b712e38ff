//! A server: its socket, its connections, and its end.

use crate::{ServerError, ServerOptions, app::App, routes};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use margay::{Load, Model, Scheduler};
use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout},
};

/// A request's head that takes longer ends its connection, as does one without a further request.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// Bytes of a request's head at most.
const MOST_HEAD_BYTES: usize = 32 << 10;
/// After a refused connection (no more file handles, say) so long until the next is tried.
const AFTER_REFUSAL: Duration = Duration::from_millis(50);

/// A server that listens already.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    app: Arc<App>,
    stop: watch::Sender<Stop>,
}

/// Ends a server, from any thread.
#[derive(Clone)]
pub struct Handle {
    stop: watch::Sender<Stop>,
    scheduler: Scheduler,
}

/// Whether a server is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stop {
    Never,
    /// When what runs is answered.
    Gently,
    AtOnce,
}

impl Handle {
    /// Takes no more requests and ends when what runs is answered, or its grace is over; the second time, at once.
    pub fn stop(&self) {
        self.stop.send_modify(|stop| *stop = if *stop == Stop::Never { Stop::Gently } else { Stop::AtOnce });
    }

    /// How busy the model is.
    pub fn load(&self) -> Load {
        self.scheduler.load()
    }
}

impl Server {
    /// Listens for callers of a model; [`Server::run`] answers them.
    ///
    /// # Errors
    /// [`ServerError::NeedsKey`], [`ServerError::Bind`], [`ServerError::Option`], and [`ServerError::Engine`] for a
    /// scheduler that cannot be.
    pub fn bind(model: Model, options: ServerOptions) -> Result<Self, ServerError> {
        let key = options.key.as_deref();
        if key.is_some_and(|key| key.trim().is_empty() || !key.bytes().all(|b| b.is_ascii_graphic())) {
            let what = "must be visible ASCII characters, one at least".to_owned();
            return Err(ServerError::Option { option: "api-key", what });
        }
        if !options.host.is_loopback() && key.is_none() && !options.open {
            return Err(ServerError::NeedsKey { host: options.host });
        }
        let address = SocketAddr::new(options.host, options.port);
        let fail = |source| ServerError::Bind { address, source };
        let listener = TcpListener::bind(address).map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        let scheduler = Scheduler::new(model, options.scheduler.clone())?;
        let app = Arc::new(App::new(scheduler, options));
        Ok(Server { listener, address, app, stop: watch::Sender::new(Stop::Never) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What ends it.
    pub fn handle(&self) -> Handle {
        Handle { stop: self.stop.clone(), scheduler: self.app.scheduler.clone() }
    }

    /// Answers until it is stopped: by its [`Handle`], by Ctrl-C, or by the signal to terminate. Blocks.
    ///
    /// # Errors
    /// [`ServerError::System`] where the system gives no threads.
    pub fn run(self) -> Result<(), ServerError> {
        // Two threads carry thousands of waiting connections; computing has threads of its own.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(8)
            .thread_name("margay-serve")
            .enable_all()
            .build()?;
        let Server { listener, app, stop, .. } = self;
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            tokio::spawn(signals(Handle { stop: stop.clone(), scheduler: app.scheduler.clone() }));
            accept(listener, &app, stop.subscribe()).await;
            Ok::<_, ServerError>(())
        })?;
        // What is left of connections is dropped here, and its answers end with it.
        runtime.shutdown_timeout(Duration::from_millis(200));
        Ok(())
    }
}

async fn accept(listener: tokio::net::TcpListener, app: &Arc<App>, mut stop: watch::Receiver<Stop>) {
    let most = app.limits().connections.clamp(1, Semaphore::MAX_PERMITS);
    let places = Arc::new(Semaphore::new(most));
    let router = routes::router(app.clone());
    let told = stop.clone();
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        tokio::select! {
            (place, accepted) = accepted => match (place, accepted) {
                (Ok(place), Ok((stream, _))) => {
                    tokio::spawn(connection(stream, router.clone(), told.clone(), place));
                }
                _ => sleep(AFTER_REFUSAL).await,
            },
            _ = stop.wait_for(|stop| *stop >= Stop::Gently) => break,
        }
    }
    drop(listener);
    app.stop();
    // Connections give their places back when they end.
    let all = u32::try_from(most).unwrap_or(u32::MAX);
    tokio::select! {
        _ = timeout(app.options.grace, places.acquire_many(all)) => {}
        _ = stop.wait_for(|stop| *stop == Stop::AtOnce) => {}
    }
}

async fn connection(
    stream: TcpStream,
    router: axum::Router,
    mut stop: watch::Receiver<Stop>,
    _place: OwnedSemaphorePermit,
) {
    // Tokens are small and shall not wait for one another.
    let _ = stream.set_nodelay(true);
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(MOST_HEAD_BYTES);
    let served = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut served = std::pin::pin!(served);
    // That a client breaks off or speaks no HTTP is its own affair.
    tokio::select! {
        _ = served.as_mut() => return,
        _ = stop.wait_for(|stop| *stop >= Stop::Gently) => {}
    }
    served.as_mut().graceful_shutdown();
    let _ = served.await;
}

/// Hands on what the system asks for.
#[cfg(unix)]
async fn signals(handle: Handle) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    loop {
        let heard = tokio::select! {
            heard = interrupt.recv() => heard,
            heard = terminate.recv() => heard,
        };
        if heard.is_none() {
            return;
        }
        handle.stop();
    }
}

#[cfg(not(unix))]
async fn signals(handle: Handle) {
    while tokio::signal::ctrl_c().await.is_ok() {
        handle.stop();
    }
}
