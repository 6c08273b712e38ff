//! What is asked of a hub.

use crate::{HubError, HubOptions, ModelRef, reference::is_plain};
use serde::Deserialize;
use std::{fs::File, io::Read, path::Path, time::Duration};
use ureq::{
    Agent, Body,
    config::ConfigBuilder,
    http::{Response, StatusCode},
    tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem},
    typestate::AgentScope,
};

/// Most bytes of a list of files; the largest repositories have some thousand.
const MAX_LIST_BYTES: u64 = 32 << 20;
/// Most files of a repository that are looked at.
const MAX_FILES: usize = 100_000;
/// Most bytes of a file of certificates that are read; all public ones together take a quarter of a MB.
const MAX_CERTIFICATES_BYTES: u64 = 16 << 20;
/// Redirects within a hub (repositories that were renamed) before it counts as a loop.
const MAX_REDIRECTS: usize = 5;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Without a byte for so long, a connection counts as broken.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// A hub that can be asked.
pub(crate) struct Client<'a> {
    options: &'a HubOptions,
    model: &'a ModelRef,
    /// Stops at redirects: a hub tells what it knows of a file before it sends elsewhere.
    asking: Agent,
    fetching: Agent,
}

/// A repository at a revision.
pub(crate) struct Repo {
    pub commit: String,
    pub files: Vec<String>,
}

/// A file of a repository.
pub(crate) struct RemoteFile {
    /// Name of its blob, and its checksum.
    pub etag: String,
    pub size: u64,
}

impl<'a> Client<'a> {
    pub(crate) fn new(options: &'a HubOptions, model: &'a ModelRef) -> Result<Self, HubError> {
        let roots = roots(options.certificates.as_deref())?;
        let asking = agent(&roots).max_redirects(0).max_redirects_will_error(false).build().new_agent();
        Ok(Client { options, model, asking, fetching: agent(&roots).build().new_agent() })
    }

    /// The commit of the revision, and the files of it.
    pub(crate) fn repo(&self) -> Result<Repo, HubError> {
        #[derive(Deserialize)]
        struct Answer {
            sha: String,
            #[serde(default)]
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let (repo, revision) = (&self.model.repo, escaped(&self.model.revision, true));
        let url = format!("{}/api/models/{repo}/revision/{revision}", self.endpoint());
        let what = || format!("repository {repo} at {}", self.model.revision);
        let mut answer = self.within_hub("GET", &url)?;
        self.check(answer.status(), &what(), &url)?;
        let nonsense = |why: String| HubError::Answer { what: what(), why };
        let bytes = answer.body_mut().with_config().limit(MAX_LIST_BYTES).read_to_vec();
        let bytes = bytes.map_err(|e| connection(&url, e))?;
        let Answer { sha, siblings } = serde_json::from_slice(&bytes).map_err(|e| nonsense(e.to_string()))?;
        if !is_plain(&sha) || siblings.len() > MAX_FILES {
            return Err(nonsense(format!("commit {sha:?}, {} files", siblings.len())));
        }
        let mut files: Vec<String> = siblings.into_iter().map(|file| file.rfilename).collect();
        // Names that lead elsewhere are not asked for.
        files.retain(|name| crate::reference::is_inside(name));
        files.sort();
        Ok(Repo { commit: sha, files })
    }

    /// Checksum and size of a file.
    pub(crate) fn file(&self, commit: &str, name: &str) -> Result<RemoteFile, HubError> {
        let url = self.file_url(commit, name);
        let answer = self.within_hub("HEAD", &url)?;
        if !answer.status().is_redirection() {
            self.check(answer.status(), &format!("file {name} in {}", self.model.repo), &url)?;
        }
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let nonsense = |why: &str| HubError::Answer { what: name.to_owned(), why: why.to_owned() };
        let etag =
            header("x-linked-etag").or_else(|| header("etag")).ok_or_else(|| nonsense("it has no ETag"))?;
        let etag = etag.trim_start_matches("W/").trim_matches('"');
        // It becomes the name of a file.
        if !is_plain(etag) {
            return Err(nonsense(&format!("its ETag is {etag:?}")));
        }
        let own = header("content-length").filter(|_| !answer.status().is_redirection());
        let size = header("x-linked-size").or(own).and_then(|size| size.parse().ok());
        Ok(RemoteFile { etag: etag.to_owned(), size: size.ok_or_else(|| nonsense("it has no size"))? })
    }

    /// The bytes of a file from `start` on; the second is false where the hub sends all of it instead.
    pub(crate) fn bytes(
        &self,
        commit: &str,
        name: &str,
        start: u64,
    ) -> Result<(Box<dyn Read + Send>, bool), HubError> {
        let url = self.file_url(commit, name);
        let mut request = self.authorised(self.fetching.get(&url)).header("accept-encoding", "identity");
        if start > 0 {
            request = request.header("range", format!("bytes={start}-"));
        }
        let answer = request.call().map_err(|e| connection(&url, e))?;
        self.check(answer.status(), &format!("file {name} in {}", self.model.repo), &url)?;
        let partial = answer.status() == StatusCode::PARTIAL_CONTENT;
        let range = answer.headers().get("content-range").and_then(|value| value.to_str().ok());
        if partial && range.is_none_or(|range| !range.starts_with(&format!("bytes {start}-"))) {
            let why = format!("asked for bytes from {start} on, it sends {}", range.unwrap_or("others"));
            return Err(HubError::Answer { what: name.to_owned(), why });
        }
        Ok((Box::new(answer.into_body().into_reader()), partial))
    }

    fn endpoint(&self) -> &str {
        self.options.endpoint.trim_end_matches('/')
    }

    fn file_url(&self, commit: &str, name: &str) -> String {
        format!("{}/{}/resolve/{commit}/{}", self.endpoint(), self.model.repo, escaped(name, false))
    }

    fn authorised<T>(&self, request: ureq::RequestBuilder<T>) -> ureq::RequestBuilder<T> {
        match &self.options.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    /// Asks, and follows redirects that stay on the hub.
    fn within_hub(&self, method: &str, url: &str) -> Result<Response<Body>, HubError> {
        let mut url = url.to_owned();
        for _ in 0..MAX_REDIRECTS {
            let request = if method == "HEAD" { self.asking.head(&url) } else { self.asking.get(&url) };
            let request = self.authorised(request).header("accept-encoding", "identity");
            let answer = request.call().map_err(|e| connection(&url, e))?;
            let to = answer.headers().get("location").and_then(|value| value.to_str().ok());
            match to
                .filter(|to| answer.status().is_redirection() && to.starts_with('/') && !to.starts_with("//"))
            {
                Some(to) => url = format!("{}{to}", self.host()),
                None => return Ok(answer),
            }
        }
        Err(HubError::Answer { what: url, why: format!("more than {MAX_REDIRECTS} redirects") })
    }

    /// The address without a path.
    fn host(&self) -> &str {
        let endpoint = self.endpoint();
        let start = endpoint.find("://").map_or(0, |at| at + 3);
        endpoint[start..].find('/').map_or(endpoint, |slash| &endpoint[..start + slash])
    }

    fn check(&self, status: StatusCode, what: &str, url: &str) -> Result<(), HubError> {
        let (what, url) = (what.to_owned(), url.to_owned());
        match status.as_u16() {
            200..=299 => Ok(()),
            404 | 410 => Err(HubError::NotFound { what, url }),
            status @ (401 | 403) => {
                let advice = match self.options.token {
                    Some(_) => "the token does not open it (HF_TOKEN)",
                    None => "it may not exist, or need a token (HF_TOKEN)",
                };
                let page = format!("{}/{}", self.endpoint(), self.model.repo);
                Err(HubError::Denied { what, status, advice, page })
            }
            status => Err(HubError::Status { status, url }),
        }
    }
}

/// Who vouches for a server: those in the file, or for `None` those that vouch for public ones.
pub(crate) fn roots(file: Option<&Path>) -> Result<RootCerts, HubError> {
    Ok(match file {
        None => RootCerts::WebPki,
        Some(path) => RootCerts::from(certificates(path)?),
    })
}

/// What every question has in common.
pub(crate) fn agent(roots: &RootCerts) -> ConfigBuilder<AgentScope> {
    Agent::config_builder()
        .user_agent(concat!("margay/", env!("CARGO_PKG_VERSION")))
        .http_status_as_error(false)
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(READ_TIMEOUT))
        .timeout_per_read(Some(READ_TIMEOUT))
        .tls_config(TlsConfig::builder().root_certs(roots.clone()).build())
}

/// The certificates in a file.
fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, HubError> {
    let bad = |why: String| HubError::Certificates { path: path.to_owned(), why };
    let mut bytes = vec![];
    let read = File::open(path).and_then(|file| file.take(MAX_CERTIFICATES_BYTES).read_to_end(&mut bytes));
    read.map_err(|e| bad(format!("cannot be read: {e}")))?;
    let items = parse_pem(&bytes).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(Ok(certificate)),
        Ok(_) => None,
        Err(error) => Some(Err(bad(format!("is damaged: {error}")))),
    });
    let found: Vec<_> = items.collect::<Result<_, _>>()?;
    if found.is_empty() { Err(bad("holds no certificate".to_owned())) } else { Ok(found) }
}

/// A path or revision in an address; a revision's slashes are escaped as well.
fn escaped(text: &str, slashes: bool) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'/' if !slashes => out.push('/'),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => out.push(byte.into()),
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}

fn connection(url: &str, error: ureq::Error) -> HubError {
    HubError::Connection { url: url.to_owned(), source: Box::new(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_escaped() {
        assert_eq!(escaped("refs/pr/3", true), "refs%2Fpr%2F3");
        assert_eq!(escaped("a b/c+d.gguf", false), "a%20b/c%2Bd.gguf");
    }
}
