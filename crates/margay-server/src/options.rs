//! What a server may do, and how much of it.

use margay::{KvType, SchedulerOptions};
use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

/// Fetches the bytes at an address of `http` or `https`: so many at most, within that time. An error is its reason, for people.
pub type Get = dyn Fn(&str, u64, Duration) -> Result<Vec<u8>, String> + Send + Sync;

/// How pictures are fetched. This room asks nobody itself.
#[derive(Clone)]
pub struct Fetch {
    /// Hosts that may be asked: `example.org`, with a port that is not the usual one `example.org:8000`.
    pub hosts: Vec<String>,
    /// Asks one of them; it follows no redirect to another.
    pub get: Arc<Get>,
}

/// Without the function.
impl std::fmt::Debug for Fetch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetch").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Address to listen at.
    pub host: IpAddr,
    /// Port to listen at; 0 takes any that is free.
    pub port: u16,
    /// What callers have to know, as `Authorization: Bearer KEY`.
    pub key: Option<String>,
    /// Serve beyond this machine without a key.
    pub open: bool,
    /// Names of the model beside its own.
    pub names: Vec<String>,
    /// Pages of other origins that may call, as `https://example.org`; `*` for all.
    pub origins: Vec<String>,
    /// Names of this machine that callers may use beside `localhost` and addresses.
    pub hosts: Vec<String>,
    /// How pictures are had that requests name by address; `None` fetches nothing.
    pub fetch: Option<Fetch>,
    /// How the model keeps keys and values, for telling what a request would take.
    pub kv: KvType,
    /// How many answers at the same time, and how many may wait.
    pub scheduler: SchedulerOptions,
    /// Tokens that an answer drafts ahead at most while it is the only one.
    pub draft: usize,
    /// What one request may take.
    pub limits: Limits,
    /// How long running answers may go on when the server is asked to end.
    pub grace: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        ServerOptions {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 8080,
            key: None,
            open: false,
            names: vec![],
            origins: vec![],
            hosts: vec![],
            fetch: None,
            kv: KvType::default(),
            scheduler: SchedulerOptions::default(),
            draft: 0,
            limits: Limits::default(),
            grace: Duration::from_secs(30),
        }
    }
}

/// What one request may take, and all together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Pixels of all pictures of a request.
    pub pixels: u64,
    /// Pixels of the pictures of all requests that wait or run.
    pub held_pixels: u64,
    /// Pictures of a request.
    pub pictures: usize,
    /// Tokens of an answer.
    pub tokens: usize,
    /// Answers of a request (`n`).
    pub choices: usize,
    /// From a request's head to the end of its answer.
    pub time: Duration,
    /// Connections; more wait to be accepted.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            body_bytes: 64 << 20,
            // A phone's largest ordinary picture; decoded, 192 MB.
            pixels: 64_000_000,
            held_pixels: 160_000_000,
            pictures: 16,
            tokens: 2048,
            choices: 8,
            time: Duration::from_secs(600),
            connections: 256,
        }
    }
}
