//! `margay serve`: the model over HTTP, and a page.

use crate::{
    Outcome, Usage, environment, hub,
    interrupt::{Interrupt, Late},
    model::{LoadArgs, draft_model},
    output,
};
use clap::{Args, builder::TypedValueParser};
use margay::{Cancel, LoadOptions, SchedulerOptions};
use margay_server::{Fetch, Limits, Server, ServerError, ServerOptions};
use std::{
    net::{IpAddr, Ipv4Addr},
    num::{NonZeroU64, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

const AFTER_HELP: &str = "\
EXAMPLES:
  margay serve                            the built-in model; the page is at http://127.0.0.1:8080/
  margay serve llava.gguf --slots 8 --context 8192
  MARGAY_API_KEY=secret margay serve llava.gguf --host 0.0.0.0
  curl http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"What is a margay?\"}]}'

ADDRESSES:
  /  /v1/chat/completions  /v1/models  /v1/margay/status  /health  /metrics  /openapi.json
  docs/serving.md tells every parameter. OpenAI's clients work with base_url http://127.0.0.1:8080/v1.

ENDING:
  Ctrl-C (or SIGTERM) lets running answers end, for --grace seconds at most; a second one ends at once.";

/// Answer over HTTP, as OpenAI's API does, with a page to ask from
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Serve {
    /// A GGUF file or a Hugging Face folder; the built-in model unless given
    model: Option<PathBuf>,
    /// Address to listen at; others than this machine's own need a key
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Port to listen at; 0 takes one that is free
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// What callers have to send as "Authorization: Bearer KEY"; better given as MARGAY_API_KEY, which others do not see
    #[arg(long, value_name = "KEY", conflicts_with = "no_key")]
    api_key: Option<String>,
    /// Serve other machines without a key
    #[arg(long)]
    no_key: bool,
    /// Another name for the model, as clients may ask for it; may be repeated
    #[arg(long = "alias", value_name = "NAME")]
    names: Vec<String>,
    /// A page of another origin that may call, as in https://example.org; * for all; may be repeated
    #[arg(long = "allow-origin", value_name = "ORIGIN")]
    origins: Vec<String>,
    /// A name of this machine that callers may use, beside localhost and addresses; may be repeated
    #[arg(long = "allow-host", value_name = "NAME")]
    hosts: Vec<String>,
    /// A host from which pictures are fetched that requests name by address, as in example.org or example.org:8000; none
    /// unless given; may be repeated
    #[arg(long = "image-host", value_name = "HOST")]
    image_hosts: Vec<String>,
    /// Answers that are made at the same time
    #[arg(long, value_name = "N", default_value = "4")]
    slots: NonZeroUsize,
    /// Requests that may wait for one; more are told to come again
    #[arg(long, value_name = "N", default_value_t = SchedulerOptions::default().queue)]
    queue: usize,
    /// Conversations whose keys and values are kept when they are answered, for their next turn
    #[arg(long, value_name = "N", default_value_t = SchedulerOptions::default().kept)]
    kept: usize,
    /// Million bytes of visual tokens that are kept, so that a picture seen before is not encoded again
    #[arg(long, value_name = "MEGABYTES", default_value_t = 64)]
    image_cache: usize,
    /// Tokens that an answer drafts ahead at most while it is the only one, and while that pays
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=64).map(usize::from))]
    draft: usize,
    /// A smaller model of the same vocabulary that makes drafts where none is looked up; of the same family and width it sees
    /// pictures, else the words alone
    #[arg(long, value_name = "FILE", requires = "draft")]
    draft_model: Option<PathBuf>,
    /// Tokens of an answer at most
    #[arg(long, value_name = "N", default_value = "2048")]
    max_tokens: NonZeroUsize,
    /// Pictures of a request at most
    #[arg(long, value_name = "N", default_value_t = Limits::default().pictures)]
    max_images: usize,
    /// Million pixels of a request's pictures at most
    #[arg(long, value_name = "MILLIONS", default_value = "64")]
    max_pixels: NonZeroU64,
    /// Million bytes of a request at most
    #[arg(long, value_name = "MEGABYTES", default_value = "64")]
    max_body: NonZeroUsize,
    /// Seconds a request may take
    #[arg(long, value_name = "SECONDS", default_value = "600")]
    timeout: NonZeroU64,
    /// Seconds that running answers may go on when the server is asked to end
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    grace: u64,
    #[command(flatten)]
    load: LoadArgs,
}

impl Serve {
    pub(crate) fn run(self, interrupt: &Interrupt) -> anyhow::Result<Outcome> {
        let options = self.options(self.fetch()?);
        if !options.host.is_loopback() && options.key.is_none() && !options.open {
            // Said before a large model is loaded.
            return Err(Usage(ServerError::NeedsKey { host: options.host }.to_string()).into());
        }
        let load = LoadOptions {
            outputs: self.slots.get().max(self.draft + 1),
            draft_model: draft_model(self.draft_model.as_deref(), self.draft)?,
            image_cache: self.image_cache.saturating_mul(1_000_000),
            embeddings: true,
            ..self.load.options()
        };
        let model = self.load.load_as(self.model.as_deref(), load)?;
        let name = output::harmless(&model.config().name).into_owned();
        let server = Server::bind(model, options)?;
        output::line(&format!("{name} at http://{}", server.address()))?;
        // The server hears signals by itself and ends when it has ended; a second Ctrl-C ends the process.
        let _watch = interrupt.watch(Cancel::new(), Late::Wait);
        server.run()?;
        Ok(Outcome::Done)
    }

    /// How pictures are had that requests name by address.
    fn fetch(&self) -> anyhow::Result<Option<Fetch>> {
        if self.image_hosts.is_empty() {
            return Ok(None);
        }
        Ok(Some(Fetch { hosts: self.image_hosts.clone(), get: hub::get()? }))
    }

    fn options(&self, fetch: Option<Fetch>) -> ServerOptions {
        let millions = |n: u64| n.saturating_mul(1_000_000);
        let pixels = millions(self.max_pixels.get());
        ServerOptions {
            host: self.host,
            port: self.port,
            key: self.api_key.clone().or_else(environment::api_key).filter(|_| !self.no_key),
            open: self.no_key,
            names: self.names.clone(),
            origins: self.origins.clone(),
            hosts: self.hosts.clone(),
            fetch,
            kv: self.load.kv.unwrap_or_default(),
            scheduler: SchedulerOptions {
                slots: self.slots.get(),
                queue: self.queue,
                kept: self.kept,
                ..SchedulerOptions::default()
            },
            draft: self.draft,
            limits: Limits {
                body_bytes: self.max_body.get().saturating_mul(1_000_000),
                pixels,
                held_pixels: Limits::default().held_pixels.max(pixels),
                pictures: self.max_images,
                tokens: self.max_tokens.get(),
                time: Duration::from_secs(self.timeout.get()),
                ..Limits::default()
            },
            grace: Duration::from_secs(self.grace),
        }
    }
}
