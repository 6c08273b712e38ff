//! What the command reads of its environment: variables, and whether a person is looking.

use std::io::{IsTerminal, stderr, stdin, stdout};

/// The instruction set that `MARGAY_ISA` asks for; unset and empty mean the best there is.
pub(crate) fn isa() -> Option<String> {
    std::env::var("MARGAY_ISA").ok().filter(|isa| !isa.is_empty())
}

/// The program that decodes video files: what `MARGAY_FFMPEG` says, else the `ffmpeg` there is.
pub(crate) fn ffmpeg() -> std::path::PathBuf {
    let said = std::env::var_os("MARGAY_FFMPEG").filter(|path| !path.is_empty());
    said.map_or_else(|| "ffmpeg".into(), Into::into)
}

/// What callers of `margay serve` have to know; unset and empty mean no key.
pub(crate) fn api_key() -> Option<String> {
    std::env::var("MARGAY_API_KEY").ok().filter(|key| !key.is_empty())
}

/// What the variables of Hugging Face's own tools say of a hub. Source: huggingface_hub, "Environment variables";
/// httpx and requests, on which it stands, for the certificates.
#[cfg(feature = "hub")]
pub(crate) fn hub() -> anyhow::Result<margay_hub::HubOptions> {
    use std::path::PathBuf;
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let home = || match (set("HF_HOME"), set("XDG_CACHE_HOME"), std::env::home_dir()) {
        (Some(home), _, _) => Ok(PathBuf::from(home)),
        (None, Some(caches), _) => Ok(PathBuf::from(caches).join("huggingface")),
        (None, None, Some(home)) => Ok(home.join(".cache/huggingface")),
        (None, None, None) => Err(crate::Usage("say with HF_HOME where models are kept".to_owned())),
    };
    let cache = match set("HF_HUB_CACHE") {
        Some(cache) => cache.into(),
        None => home()?.join("hub"),
    };
    let token_path = set("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(home().ok()?.join("token")));
    let of_file = || std::fs::read_to_string(token_path?).ok();
    let token = set("HF_TOKEN").or_else(of_file).map(|token| token.trim().to_owned());
    let mut options = margay_hub::HubOptions::new(cache);
    options.token = token.filter(|token| !token.is_empty());
    if let Some(endpoint) = set("HF_ENDPOINT") {
        options.endpoint = endpoint;
    }
    options.certificates = certificates();
    let yes = |value: String| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str());
    options.offline = set("HF_HUB_OFFLINE").is_some_and(yes);
    Ok(options)
}

/// File of certificates that vouch for servers, in place of the public ones.
#[cfg(feature = "hub")]
pub(crate) fn certificates() -> Option<std::path::PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    set("SSL_CERT_FILE").or_else(|| set("REQUESTS_CA_BUNDLE")).map(Into::into)
}

/// True where a person types.
pub(crate) fn stdin_is_terminal() -> bool {
    stdin().is_terminal()
}

/// True where a person reads the answer.
pub(crate) fn stdout_is_terminal() -> bool {
    stdout().is_terminal()
}

/// True where a person reads the messages.
pub(crate) fn stderr_is_terminal() -> bool {
    stderr().is_terminal()
}

/// True where stderr may be coloured: on a terminal that can, unless `NO_COLOR` is set. Source: <https://no-color.org>.
pub(crate) fn stderr_has_colours() -> bool {
    stderr_is_terminal() && colours_are_welcome()
}

/// The same of stdout.
pub(crate) fn stdout_has_colours() -> bool {
    stdout_is_terminal() && colours_are_welcome()
}

fn colours_are_welcome() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
    !refused && !dumb
}
