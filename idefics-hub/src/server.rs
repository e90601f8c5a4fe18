//! The file URLs of one repository: `HEAD` and `GET` of `{endpoint}/{org}/{name}/resolve/{revision}/{file}`.
//!
//! The hub and its mirrors tell a file's commit, hash and size in `X-Repo-Commit`, `X-Linked-ETag` or `ETag`, and
//! `X-Linked-Size`. A plain file server with such paths will do as well: `GET` stands in for `HEAD`, and snapshot and
//! blobs are named after the files' paths, their ETags or times of change, and their sizes. If it gives neither an ETag
//! nor a time, files from 16 MiB on are downloaded again when their size changes, and all others on each call.

use std::{
    cell::Cell,
    io,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use ureq::{Agent, Body, http::Response};

use crate::{
    HubError, HubOptions,
    digest::{Digest, opaque_tag},
    error::no_folder,
    id::{is_commit, is_plain_name},
    remote::{Remote, stand_in},
    retry::back_off,
};

const MAX_REDIRECTS: usize = 10;

pub(crate) struct Server<'a> {
    agent: Agent,
    endpoint: &'a str,
    token: Option<&'a str>,
    cancel: &'a AtomicBool,
    pub(crate) repo: &'a str,
    pub(crate) revision: &'a str,
    /// The server has answered for this revision, so what it does not find from here on is a file.
    is_known: Cell<bool>,
    /// Whether it answers to `HEAD`, once that is known.
    knows_head: Cell<Option<bool>>,
}

/// The last response after redirections, and what was learned of the file on the way to it.
pub(crate) struct Answer {
    pub(crate) response: Response<Body>,
    pub(crate) url: String,
    commit: Option<String>,
    /// The hub's hash of the contents.
    hash: Option<String>,
    etag: Option<String>,
    size: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Headers,
    /// For a server that does not know `HEAD`; the body is left unread.
    HeadersByGet,
    /// Contents from this byte on.
    From(u64),
}

impl<'a> Server<'a> {
    pub(crate) fn new(options: &'a HubOptions, repo: &'a str, revision: &'a str) -> Server<'a> {
        let endpoint = options.endpoint.trim_end_matches('/');
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0) // followed in `request`, which knows where the token may go
            .user_agent(concat!("idefics/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_resolve(Some(Duration::from_secs(10)))
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)));
        let host = origin(endpoint).split_once("://").map_or("", |(_, host)| host);
        if ["127.0.0.1", "localhost", "[::1]"].iter().any(|local| host.starts_with(local)) {
            config = config.proxy(None);
        }
        Server {
            agent: config.build().new_agent(),
            endpoint,
            token: options.token.as_deref(),
            cancel: &options.cancel,
            repo,
            revision,
            is_known: Cell::new(false),
            knows_head: Cell::new(None),
        }
    }

    /// # Errors
    /// [`HubError::Cancelled`] if the caller ended the download.
    pub(crate) fn check_cancelled(&self) -> Result<(), HubError> {
        if self.cancel.load(Ordering::Relaxed) { Err(HubError::Cancelled) } else { Ok(()) }
    }

    /// One file's commit, name in the cache and size; `None` when the revision has no such file.
    pub(crate) fn look_up(&self, revision: &str, file: &str, attempts: u32) -> Result<Option<Remote>, HubError> {
        for attempt in 1.. {
            match self.headers(revision, file).and_then(|answer| self.remote(answer, revision, file)) {
                Err(error) if error.is_transient() && attempt < attempts => back_off(attempt),
                found => return found,
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// The file from byte `start` on.
    pub(crate) fn contents(&self, revision: &str, file: &str, start: u64) -> Result<Answer, HubError> {
        self.request(Wanted::From(start), revision, file)
    }

    /// Small servers know `GET` alone, and fail at `HEAD` in many ways.
    fn headers(&self, revision: &str, file: &str) -> Result<Answer, HubError> {
        if self.knows_head.get() != Some(false) {
            let answer = self.request(Wanted::Headers, revision, file);
            let is_doubtful = match &answer {
                Ok(answer) => match answer.response.status().as_u16() {
                    _ if speaks_hub(&answer.response) => false,
                    404 => self.knows_head.get().is_none(),
                    200 => answer.tells_nothing(),
                    status => matches!(status, 400 | 403 | 405 | 501),
                },
                Err(error) => self.knows_head.get().is_none() && broke_off(error),
            };
            if !is_doubtful {
                if answer.as_ref().is_ok_and(Answer::is_found) {
                    self.knows_head.set(Some(true));
                }
                return answer;
            }
        }
        let answer = self.request(Wanted::HeadersByGet, revision, file)?;
        if answer.is_found() && self.knows_head.get().is_none() {
            self.knows_head.set(Some(false));
        }
        Ok(answer)
    }

    fn remote(&self, answer: Answer, revision: &str, file: &str) -> Result<Option<Remote>, HubError> {
        if !answer.is_found() {
            return match self.refusal(&answer.response, file, answer.url) {
                HubError::FileNotFound { .. } => Ok(None),
                error => Err(error),
            };
        }
        self.is_known.set(true);
        let Answer { commit, hash, etag, size, response, .. } = answer;
        if let Some(blob) = hash.filter(|hash| is_plain_name(hash)) {
            let digest = Digest::of_tag(&blob);
            return Ok(Some(Remote { commit, blob, is_versioned: true, size, digest }));
        }
        // Elsewhere two files may share an ETag, which often is no more than a time and a size.
        let version = etag.or_else(|| header(&response, "last-modified").map(str::to_owned));
        let length = size.map_or_else(String::new, |size| size.to_string());
        let blob = stand_in(&[revision, file, version.as_deref().unwrap_or_default(), &length]);
        Ok(Some(Remote { commit, blob, is_versioned: version.is_some(), size, digest: None }))
    }

    /// Follows redirections, relative ones and those to other hosts, and keeps the first word on each header: the hub
    /// tells of a file what the storage servers behind it do not know.
    fn request(&self, wanted: Wanted, revision: &str, file: &str) -> Result<Answer, HubError> {
        let mut url = format!("{}/{}/resolve/{}/{file}", self.endpoint, self.repo, percent_encode(revision));
        let (mut commit, mut hash, mut linked_size) = (None, None, None);
        for _ in 0..=MAX_REDIRECTS {
            self.check_cancelled()?;
            let mut request = if wanted == Wanted::Headers { self.agent.head(&url) } else { self.agent.get(&url) };
            if let Some(token) = self.token
                && origin(&url) == origin(self.endpoint)
            {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if let Wanted::From(start @ 1..) = wanted {
                request = request.header("range", format!("bytes={start}-"));
            }
            let response = request.call().map_err(|source| HubError::Unreachable {
                repo: self.repo.to_owned(),
                file: file.to_owned(),
                url: without_query(&url),
                source: Box::new(source),
            })?;
            let text = |name| header(&response, name).map(str::to_owned);
            let etag = text("etag").map(|etag| opaque_tag(&etag).to_owned());
            let named = text("x-repo-commit").filter(|commit| is_commit(commit));
            let linked_etag = text("x-linked-etag").map(|etag| opaque_tag(&etag).to_owned());
            hash = hash.or(linked_etag).or_else(|| etag.clone().filter(|_| named.is_some()));
            commit = commit.or(named);
            linked_size = linked_size.or_else(|| text("x-linked-size")?.parse().ok());

            let location = text("location").filter(|_| response.status().is_redirection());
            let is_told = commit.is_some() && hash.is_some() && !matches!(wanted, Wanted::From(_));
            let Some(location) = location.filter(|_| !is_told) else {
                // The length of a redirection is its own, and some servers say 0 to every HEAD.
                let length = text("content-length").filter(|_| response.status().is_success());
                let length = length.and_then(|length| length.parse().ok()).filter(|&length| length > 0);
                return Ok(Answer { response, url, commit, hash, etag, size: linked_size.or(length) });
            };
            let target = redirected(&url, &location);
            if !(target.starts_with("https://") || target.starts_with("http://") && url.starts_with("http://")) {
                return Err(self.bad_response(file, url, "redirects to a place that is not accepted"));
            }
            url = target;
        }
        Err(self.bad_response(file, url, "redirects without end"))
    }

    /// The error that a status other than success stands for.
    pub(crate) fn refusal(&self, response: &Response<Body>, file: &str, url: String) -> HubError {
        let (repo, url, status) = (self.repo.to_owned(), without_query(&url), response.status().as_u16());
        match (status, header(response, "x-error-code")) {
            (401 | 403, code) => {
                let advice = match (code, self.token) {
                    (Some("GatedRepo"), _) => {
                        "accept the model's terms on its page and set HF_TOKEN to your token".to_owned()
                    }
                    (_, None) => format!(
                        "the repository is private, gated or absent{}; set HF_TOKEN if you have access",
                        no_folder(&repo)
                    ),
                    (_, Some(_)) => format!(
                        "the token in HF_TOKEN does not give access, or the repository is absent{}",
                        no_folder(&repo)
                    ),
                };
                HubError::Unauthorized { repo, file: file.to_owned(), url, status, advice }
            }
            (404, Some("RevisionNotFound")) => {
                HubError::RevisionNotFound { repo, revision: self.revision.to_owned(), url }
            }
            (404, Some("EntryNotFound")) => self.file_not_found(file),
            (404, code) => {
                let known = self.is_known.get() || header(response, "x-repo-commit").is_some();
                if known && code.is_none() { self.file_not_found(file) } else { HubError::RepoNotFound { repo, url } }
            }
            _ => HubError::Status { repo, file: file.to_owned(), url, status },
        }
    }

    pub(crate) fn file_not_found(&self, file: &str) -> HubError {
        HubError::FileNotFound {
            repo: self.repo.to_owned(),
            revision: self.revision.to_owned(),
            file: file.to_owned(),
            endpoint: self.endpoint.to_owned(),
        }
    }

    pub(crate) fn bad_response(&self, file: &str, url: String, fault: &'static str) -> HubError {
        let (repo, file) = (self.repo.to_owned(), file.to_owned());
        HubError::BadResponse { repo, file, url: without_query(&url), fault }
    }

    pub(crate) fn wrong_contents(&self, file: &str, expected: Digest, found: Digest) -> HubError {
        let (repo, file, url) = (self.repo.to_owned(), file.to_owned(), self.endpoint.to_owned());
        HubError::WrongContents { repo, file, url, expected: expected.to_string(), found: found.to_string() }
    }

    pub(crate) fn lfs_pointer(&self, file: &str, url: String) -> HubError {
        HubError::LfsPointer { repo: self.repo.to_owned(), file: file.to_owned(), url: without_query(&url) }
    }

    pub(crate) fn interrupted(&self, file: &str, url: String, done: u64, source: io::Error) -> HubError {
        let (repo, file) = (self.repo.to_owned(), file.to_owned());
        HubError::Interrupted { repo, file, url: without_query(&url), done, source }
    }
}

impl Answer {
    /// As of a server that says 200 to every `HEAD`.
    fn tells_nothing(&self) -> bool {
        let is_dated = self.etag.is_some() || header(&self.response, "last-modified").is_some();
        !is_dated && self.hash.is_none() && self.size.is_none()
    }

    /// A redirection that tells all there is to know is as good as the file.
    fn is_found(&self) -> bool {
        let status = self.response.status();
        status.is_success() || status.is_redirection() && self.commit.is_some() && self.hash.is_some()
    }
}

fn speaks_hub(response: &Response<Body>) -> bool {
    ["x-repo-commit", "x-error-code"].iter().any(|name| header(response, name).is_some())
}

/// The connection was made, and closed without an answer or with one that is no HTTP.
fn broke_off(error: &HubError) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let HubError::Unreachable { source, .. } = error else { return false };
    match source.downcast_ref::<ureq::Error>() {
        Some(ureq::Error::Io(error)) => {
            matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
        }
        Some(ureq::Error::Protocol(_)) => true,
        _ => false,
    }
}

pub(crate) fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// `https://host:port` of a URL.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url[host..].find(['/', '?', '#']).map_or(url.len(), |at| host + at);
    &url[..end]
}

/// Where a `Location` header leads from a URL.
fn redirected(url: &str, location: &str) -> String {
    let location = location.split('#').next().unwrap_or_default();
    let has_scheme = location.split_once(':').is_some_and(|(scheme, _)| !scheme.contains(['/', '?']));
    if has_scheme {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{}:{location}", url.split(':').next().unwrap_or_default())
    } else if location.starts_with('/') {
        format!("{}{location}", origin(url))
    } else {
        let path = url.split('?').next().unwrap_or_default();
        format!("{}/{location}", path.rsplit_once('/').map_or(path, |(folder, _)| folder))
    }
}

/// Storage servers sign their URLs in the query: long, and not for a log.
fn without_query(url: &str) -> String {
    url.split('?').next().unwrap_or_default().to_owned()
}

/// One URL segment: a branch `a/b` is `a%2Fb`.
fn percent_encode(segment: &str) -> String {
    let encode = |byte: u8| match byte {
        b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    segment.bytes().map(encode).collect()
}
