//! Sends requests to the file URLs of one repository: `HEAD` and `GET` on
//! `{endpoint}/{org}/{name}/resolve/{revision}/{file}`.
//!
//! The hub and its mirrors send the commit, hash and size of a file in `X-Repo-Commit`, `X-Linked-ETag` or `ETag`, and
//! `X-Linked-Size`. A plain file server with the same paths works too. If it does not support `HEAD`, `GET` is used
//! instead. For a plain file server, the snapshot and the blobs are named after the paths of the files, their ETags or
//! modification times, and their sizes. If the server sends neither an ETag nor a time, files of at least 16 MiB are
//! downloaded again when their size changes, and smaller files on every call.

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
    error::no_folder_hint,
    id::{is_commit, is_plain_name},
    remote::{Remote, synthetic_id},
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
    /// Whether the server has found a file of this revision. After that, a 404 means that a file is missing, not that
    /// the repository is missing.
    is_known: Cell<bool>,
    /// Whether the server supports `HEAD`; `None` until this is known.
    supports_head: Cell<Option<bool>>,
}

/// The final response after redirects, and the metadata collected from all responses.
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
    /// The headers of a `GET`, for servers that do not support `HEAD`. The body is not read.
    HeadersByGet,
    /// The contents from this byte offset to the end.
    From(u64),
}

impl<'a> Server<'a> {
    pub(crate) fn new(options: &'a HubOptions, repo: &'a str, revision: &'a str) -> Server<'a> {
        let endpoint = options.endpoint.trim_end_matches('/');
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0) // `request` follows redirects, so that the token is sent only to the endpoint
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
            supports_head: Cell::new(None),
        }
    }

    /// Checks that the caller has not cancelled the download.
    ///
    /// # Errors
    /// [`HubError::Cancelled`] if the download was cancelled.
    pub(crate) fn check_cancelled(&self) -> Result<(), HubError> {
        if self.cancel.load(Ordering::Relaxed) { Err(HubError::Cancelled) } else { Ok(()) }
    }

    /// Requests the metadata of a file. Returns `None` if the revision does not have the file. After a transient error,
    /// the request is repeated, with at most `attempts` attempts in total.
    pub(crate) fn look_up(&self, revision: &str, file: &str, attempts: u32) -> Result<Option<Remote>, HubError> {
        for attempt in 1.. {
            match self.headers(revision, file).and_then(|answer| self.remote(answer, revision, file)) {
                Err(error) if error.is_transient() && attempt < attempts => back_off(attempt),
                found => return found,
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// Requests the contents of a file from byte offset `start`.
    pub(crate) fn contents(&self, revision: &str, file: &str, start: u64) -> Result<Answer, HubError> {
        self.request(Wanted::From(start), revision, file)
    }

    /// Requests the headers of a file. Falls back to `GET`, because simple servers support only `GET` and answer `HEAD`
    /// with various errors.
    fn headers(&self, revision: &str, file: &str) -> Result<Answer, HubError> {
        if self.supports_head.get() != Some(false) {
            let answer = self.request(Wanted::Headers, revision, file);
            let is_inconclusive = match &answer {
                Ok(answer) => match answer.response.status().as_u16() {
                    _ if is_hub_response(&answer.response) => false,
                    404 => self.supports_head.get().is_none(),
                    200 => answer.has_no_metadata(),
                    status => matches!(status, 400 | 403 | 405 | 501),
                },
                Err(error) => self.supports_head.get().is_none() && connection_lost(error),
            };
            if !is_inconclusive {
                if answer.as_ref().is_ok_and(Answer::is_found) {
                    self.supports_head.set(Some(true));
                }
                return answer;
            }
        }
        let answer = self.request(Wanted::HeadersByGet, revision, file)?;
        if answer.is_found() && self.supports_head.get().is_none() {
            self.supports_head.set(Some(false));
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
            let digest = Digest::from_tag(&blob);
            return Ok(Some(Remote { commit, blob, is_versioned: true, size, digest }));
        }
        // On other servers, an ETag is often just a time and a size, so two files may have the same ETag. The name of
        // the blob therefore depends on the name of the file too.
        let version = etag.or_else(|| header(&response, "last-modified").map(str::to_owned));
        let length = size.map_or_else(String::new, |size| size.to_string());
        let blob = synthetic_id(&[revision, file, version.as_deref().unwrap_or_default(), &length]);
        Ok(Some(Remote { commit, blob, is_versioned: version.is_some(), size, digest: None }))
    }

    /// Sends a request and follows redirects, including relative redirects and redirects to other hosts. If several
    /// responses have the same metadata header, the first value is kept, because the hub sends metadata that its
    /// storage servers do not have.
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
            let commit_header = text("x-repo-commit").filter(|commit| is_commit(commit));
            let linked_etag = text("x-linked-etag").map(|etag| opaque_tag(&etag).to_owned());
            hash = hash.or(linked_etag).or_else(|| etag.clone().filter(|_| commit_header.is_some()));
            commit = commit.or(commit_header);
            linked_size = linked_size.or_else(|| text("x-linked-size")?.parse().ok());

            let location = text("location").filter(|_| response.status().is_redirection());
            let has_metadata = commit.is_some() && hash.is_some() && !matches!(wanted, Wanted::From(_));
            let Some(location) = location.filter(|_| !has_metadata) else {
                // The `Content-Length` of a redirect is the length of the redirect's own body, not of the file. Some
                // servers send 0 in response to every `HEAD`.
                let length = text("content-length").filter(|_| response.status().is_success());
                let length = length.and_then(|length| length.parse().ok()).filter(|&length| length > 0);
                return Ok(Answer { response, url, commit, hash, etag, size: linked_size.or(length) });
            };
            let target = redirected(&url, &location);
            if !(target.starts_with("https://") || target.starts_with("http://") && url.starts_with("http://")) {
                return Err(self.bad_response(file, url, "redirected to a URL that is not https"));
            }
            url = target;
        }
        Err(self.bad_response(file, url, "redirected too many times"))
    }

    /// Creates the error for a response with an error status.
    pub(crate) fn refusal(&self, response: &Response<Body>, file: &str, url: String) -> HubError {
        let (repo, url, status) = (self.repo.to_owned(), without_query(&url), response.status().as_u16());
        match (status, header(response, "x-error-code")) {
            (401 | 403, code) => {
                let advice = match (code, self.token) {
                    (Some("GatedRepo"), _) => {
                        "accept the model's terms on its page and set HF_TOKEN to your token".to_owned()
                    }
                    (_, None) => format!(
                        "the repository is private or gated, or does not exist{}; set HF_TOKEN if you have access",
                        no_folder_hint(&repo)
                    ),
                    (_, Some(_)) => format!(
                        "the token in HF_TOKEN does not give access, or the repository does not exist{}",
                        no_folder_hint(&repo)
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
    /// Returns whether the response has no metadata. Some servers answer every `HEAD` with 200 and send no metadata.
    fn has_no_metadata(&self) -> bool {
        let is_dated = self.etag.is_some() || header(&self.response, "last-modified").is_some();
        !is_dated && self.hash.is_none() && self.size.is_none()
    }

    /// Returns whether the file exists: the response is a success, or a redirect with all metadata.
    fn is_found(&self) -> bool {
        let status = self.response.status();
        status.is_success() || status.is_redirection() && self.commit.is_some() && self.hash.is_some()
    }
}

fn is_hub_response(response: &Response<Body>) -> bool {
    ["x-repo-commit", "x-error-code"].iter().any(|name| header(response, name).is_some())
}

/// Returns whether the connection was established, but closed without a valid HTTP response.
fn connection_lost(error: &HubError) -> bool {
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

/// Returns the origin of a URL: `https://host:port`.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url[host..].find(['/', '?', '#']).map_or(url.len(), |at| host + at);
    &url[..end]
}

/// Resolves a `Location` header against the URL of the request.
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

/// Removes the query from a URL. Storage servers put signatures into the query. These are long and must not be logged.
fn without_query(url: &str) -> String {
    url.split('?').next().unwrap_or_default().to_owned()
}

/// Percent-encodes one URL segment: the branch `a/b` becomes `a%2Fb`.
fn percent_encode(segment: &str) -> String {
    let encode = |byte: u8| match byte {
        b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    segment.bytes().map(encode).collect()
}
