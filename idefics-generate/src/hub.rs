//! Model folders from the Hugging Face hub, through the standard hub cache.
//!
//! Protocol: `HEAD` and `GET` of `{endpoint}/{repo}/resolve/{revision}/{file}`, with the headers `X-Repo-Commit`,
//! `X-Linked-ETag`, `X-Linked-Size` and `X-Error-Code`. The cache is the one that `huggingface_hub` documents
//! (<https://huggingface.co/docs/huggingface_hub/guides/manage-cache>) and shares with it:
//!
//! ```text
//! {cache}/models--{org}--{name}/refs/{revision}             the commit that a branch or a tag stood at
//!                               snapshots/{commit}/{file}   links to blobs; this folder is what is returned
//!                               blobs/{etag}[.incomplete]   contents, and what has come of an interrupted download
//!                               .no_exist/{commit}/{file}   files that the commit is known not to have
//! {cache}/.locks/models--{org}--{name}/{etag}.lock
//! ```
//!
//! `refs` is written last, so a branch never points at a snapshot that is still incomplete.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    env, fmt, fs,
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use serde::Deserialize;
use ureq::{Agent, Body, http::Response};

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
const DEFAULT_REVISION: &str = "main";

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const WEIGHTS: &str = "model.safetensors";
const WEIGHTS_INDEX: &str = "model.safetensors.index.json";
/// What a folder may have besides its configuration, its tokenizer and its weights.
const OPTIONAL: [&str; 8] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
];

const MAX_INDEX_BYTES: u64 = 64 << 20;
const MAX_SHARDS: usize = 1000;
const MAX_REDIRECTS: usize = 10;
/// Attempts in a row that bring not one new byte before a download is given up.
const MAX_FRUITLESS: u32 = 4;
const BUFFER_BYTES: usize = 256 << 10;

/// Where a model is: a folder, or a repository of the Hugging Face hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// A model folder on this machine.
    Folder(PathBuf),
    /// A repository of the hub.
    Hub {
        /// `org/name`.
        repo: String,
        /// A branch, a tag or a commit; the branch `main` when not given.
        revision: Option<String>,
    },
}

impl ModelSource {
    /// Reads the value of `--model`.
    ///
    /// What exists is a folder, as is whatever looks like a path: it starts with `.`, `/` or `~`, holds a backslash,
    /// or has not exactly one `/` before the first `@`. All else is `org/name[@revision]`. A leading `~/` becomes the
    /// home folder.
    pub fn parse(source: &str) -> ModelSource {
        let (repo, revision) = match source.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision.to_owned())),
            None => (source, None),
        };
        let path_like = source.starts_with(['.', '/', '~']) || source.contains('\\') || repo.matches('/').count() != 1;
        if path_like || Path::new(source).exists() {
            ModelSource::Folder(expand_home(source))
        } else {
            ModelSource::Hub { repo: repo.to_owned(), revision }
        }
    }
}

/// How far a download is. Bytes that an earlier, interrupted run left count as done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HubProgress {
    /// The file that is downloaded now, relative to the repository.
    pub file: String,
    /// Bytes of this file that are here.
    pub file_done: u64,
    /// Bytes of this file, when the server says how many.
    pub file_total: Option<u64>,
    /// Bytes of all files to download that are here; files that the cache had before are not counted.
    pub done: u64,
    /// Bytes of all files to download. A sharded checkpoint's index is downloaded first, and until then the shards
    /// are not in it.
    pub total: u64,
}

/// The server, the cache and the credentials of a [`fetch_with`].
#[derive(Clone, PartialEq, Eq)]
pub struct HubOptions {
    /// Base URL of the hub or of a mirror (`HF_ENDPOINT`).
    pub endpoint: String,
    /// Folder of the hub cache (`HF_HUB_CACHE`).
    pub cache_dir: PathBuf,
    /// Access token, sent to the endpoint's own host and nowhere else (`HF_TOKEN`).
    pub token: Option<String>,
    /// Use the cache alone and never the network (`HF_HUB_OFFLINE`).
    pub offline: bool,
}

/// The token is not shown.
impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("cache_dir", &self.cache_dir)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("offline", &self.offline)
            .finish()
    }
}

impl HubOptions {
    /// Reads the hub's environment variables.
    ///
    /// - cache: `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME/hub`, `XDG_CACHE_HOME/huggingface/hub`,
    ///   `~/.cache/huggingface/hub`
    /// - token: `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`; then, unless `HF_HUB_DISABLE_IMPLICIT_TOKEN` is set, the file
    ///   `HF_TOKEN_PATH` or `token` in the hub's home folder
    /// - `HF_ENDPOINT`, `HF_HUB_OFFLINE`
    ///
    /// An empty variable counts as not set.
    ///
    /// # Errors
    /// [`HubError::NoCacheFolder`] when neither a variable nor a home folder says where the cache is.
    pub fn from_env() -> Result<HubOptions, HubError> {
        let folder = |name| variable(name).map(|path| expand_home(&path));
        let home = folder("HF_HOME")
            .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
            .or_else(|| env::home_dir().map(|home| home.join(".cache").join("huggingface")));
        let cache_dir = folder("HF_HUB_CACHE")
            .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| home.as_ref().map(|home| home.join("hub")))
            .ok_or(HubError::NoCacheFolder)?;
        let stored_token = || {
            if is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
                return None;
            }
            let path = folder("HF_TOKEN_PATH").or_else(|| home.as_ref().map(|home| home.join("token")))?;
            let token = fs::read_to_string(path).ok()?.trim().to_owned();
            (!token.is_empty()).then_some(token)
        };
        Ok(HubOptions {
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()),
            cache_dir,
            token: variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN")).or_else(stored_token),
            offline: is_set("HF_HUB_OFFLINE"),
        })
    }
}

/// Brings the files that a model folder may have into the standard hub cache, and returns the snapshot folder.
///
/// [`fetch_with`] under the environment's options.
///
/// # Errors
/// As [`fetch_with`], and [`HubError::NoCacheFolder`].
pub fn fetch(repo: &str, revision: Option<&str>, progress: &mut dyn FnMut(HubProgress)) -> Result<PathBuf, HubError> {
    fetch_with(&HubOptions::from_env()?, repo, revision, progress)
}

/// Brings the files that a model folder may have into the hub cache, and returns the snapshot folder.
///
/// Only what [`crate`] reads is downloaded: the configuration, tokenizer, processor and template files, and
/// `model.safetensors` or the shards that `model.safetensors.index.json` names. What the cache has is not downloaded
/// again, and an interrupted file goes on where it stopped, in this run or in a later one. A revision that is a commit
/// and is in the cache needs no network; for a branch or a tag the server is asked once where it stands, and when it
/// cannot be reached a complete snapshot in the cache is taken instead.
///
/// # Errors
/// [`HubError::kind`] sorts them: `Network`, `NotFound`, `Unauthorized`, `FileSystem`, `Offline`, and `Rejected` for an
/// index that does not name plain `.safetensors` files.
pub fn fetch_with(
    options: &HubOptions,
    repo: &str,
    revision: Option<&str>,
    progress: &mut dyn FnMut(HubProgress),
) -> Result<PathBuf, HubError> {
    let revision = revision.unwrap_or(DEFAULT_REVISION);
    check_id(repo, revision)?;
    let cache = RepoCache::new(&options.cache_dir, repo);
    let cached = cache.complete_snapshot(revision);
    if options.offline {
        return cached;
    }
    if let Ok(snapshot) = &cached
        && is_commit(revision)
        && OPTIONAL.iter().all(|file| cache.presence(revision, file).is_some())
    {
        return Ok(snapshot.clone());
    }

    let server = Server::new(options, repo, revision);
    // With a snapshot at hand an unreachable server is no reason to wait.
    let attempts = if cached.is_ok() { 1 } else { 3 };
    let config = match server.look_up(revision, CONFIG, attempts) {
        Err(error) if error.is_transient() => return cached.map_err(|_| error),
        found => found?.ok_or_else(|| server.file_not_found(CONFIG))?,
    };
    let commit = config.commit.clone();
    let found = BTreeMap::from([(CONFIG.to_owned(), config)]);
    let mut download = Download { server: &server, cache: &cache, commit: &commit, found, progress, done: 0, total: 0 };

    // The index comes before all else: what it names decides whether anything is downloaded at all.
    let mut weights = vec![WEIGHTS.to_owned()];
    if !download.is_in_repo(WEIGHTS)? {
        if !download.is_in_repo(WEIGHTS_INDEX)? {
            return Err(server.file_not_found("model.safetensors (or model.safetensors.index.json)"));
        }
        download.run(&[WEIGHTS_INDEX.to_owned()])?;
        weights = shard_names(&cache.file(&commit, WEIGHTS_INDEX), repo)?.into_iter().collect();
    }
    let mut files = vec![CONFIG.to_owned(), TOKENIZER.to_owned()];
    for file in OPTIONAL {
        if download.is_in_repo(file)? {
            files.push(file.to_owned());
        }
    }
    files.extend(weights);
    download.run(&files)?;

    if !is_commit(revision) {
        cache.write_ref(revision, &commit)?;
    }
    Ok(cache.snapshot(&commit))
}

/// The files of one commit on their way into the cache.
struct Download<'a> {
    server: &'a Server<'a>,
    cache: &'a RepoCache,
    commit: &'a str,
    /// What the server has said of files that the cache lacks.
    found: BTreeMap<String, Remote>,
    progress: &'a mut dyn FnMut(HubProgress),
    done: u64,
    total: u64,
}

impl Download<'_> {
    /// Asks the cache, then the server; a commit's files never change, so "no" is remembered.
    fn is_in_repo(&mut self, file: &str) -> Result<bool, HubError> {
        if let Some(present) = self.cache.presence(self.commit, file) {
            return Ok(present);
        }
        if !self.found.contains_key(file) {
            match self.server.look_up(self.commit, file, 3)? {
                Some(remote) => self.found.insert(file.to_owned(), remote),
                None => {
                    self.cache.write_no_exist(self.commit, file)?;
                    return Ok(false);
                }
            };
        }
        Ok(true)
    }

    /// Downloads those of the files that the cache lacks.
    fn run(&mut self, files: &[String]) -> Result<(), HubError> {
        let mut wanted = Vec::new();
        for file in files {
            if !self.is_in_repo(file)? {
                return Err(self.server.file_not_found(file));
            }
            let Some(remote) = self.found.remove(file) else { continue }; // it is in the cache
            if file == WEIGHTS_INDEX && remote.size.is_some_and(|size| size > MAX_INDEX_BYTES) {
                return Err(bad_index(self.server.repo, "it is larger than 64 MiB"));
            }
            self.total += remote.size.unwrap_or(0);
            wanted.push((file, remote));
        }
        for (file, remote) in wanted {
            self.blob(file, &remote)?;
            self.cache.link(self.commit, file, &remote.etag)?;
            self.done += remote.size.unwrap_or(0);
        }
        Ok(())
    }

    /// Downloads one file's contents, going on where an earlier attempt stopped.
    fn blob(&mut self, file: &str, remote: &Remote) -> Result<(), HubError> {
        let blob = self.cache.blob(&remote.etag);
        let is_here = || fs::metadata(&blob).is_ok_and(|meta| remote.size.is_none_or(|size| size == meta.len()));
        if is_here() {
            return Ok(());
        }
        let _lock = self.cache.lock(&remote.etag)?;
        if is_here() {
            return Ok(()); // another process downloaded it meanwhile
        }
        let part = self.cache.blob(&format!("{}.incomplete", remote.etag));
        create_parent(&part)?;
        let length = || fs::metadata(&part).map_or(0, |meta| meta.len());
        let (mut longest, mut fruitless) = (length(), 0);
        while let Err(error) = self.attempt(file, remote, &part) {
            if length() > longest {
                (longest, fruitless) = (length(), 0);
            } else {
                fruitless += 1;
            }
            if !error.is_transient() || fruitless >= MAX_FRUITLESS {
                return Err(error);
            }
            back_off(fruitless);
        }
        fs::rename(&part, &blob).map_err(|source| file_system("cannot write", &blob, source))
    }

    fn attempt(&mut self, file: &str, remote: &Remote, part: &Path) -> Result<(), HubError> {
        let failed = |source| file_system("cannot write", part, source);
        let mut out = fs::OpenOptions::new().write(true).create(true).truncate(false).open(part).map_err(failed)?;
        let mut at = out.seek(SeekFrom::End(0)).map_err(failed)?;
        // Without a size nothing tells whether what is here belongs to the start of the file.
        if remote.size.is_none_or(|size| at > size) {
            at = 0;
            out.set_len(0).map_err(failed)?;
        }
        if remote.size == Some(at) {
            return Ok(());
        }

        let (response, url) = self.server.get(self.commit, file, at)?;
        let resumed =
            header(&response, "content-range").is_some_and(|range| range.starts_with(&format!("bytes {at}-")));
        match response.status().as_u16() {
            206 if resumed => {}
            200 => at = 0, // the whole file: the server does not resume
            206 | 416 => {
                out.set_len(0).map_err(failed)?;
                return Err(self.server.bad_response(file, url, "does not answer with the range that was asked for"));
            }
            _ => return Err(self.server.refusal(&response, file, url)),
        }
        out.set_len(at).map_err(failed)?;
        out.seek(SeekFrom::Start(at)).map_err(failed)?;

        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            (self.progress)(HubProgress {
                file: file.to_owned(),
                file_done: at,
                file_total: remote.size,
                done: self.done + at,
                total: self.total.max(self.done + at),
            });
            let n_bytes = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n_bytes) => n_bytes,
                Err(source) => return Err(self.server.interrupted(file, url, at, source)),
            };
            out.write_all(&buffer[..n_bytes]).map_err(failed)?;
            at += n_bytes as u64;
            if remote.size.is_some_and(|size| at > size) {
                out.set_len(0).map_err(failed)?;
                return Err(self.server.bad_response(file, url, "sends more bytes than it announced"));
            }
        }
        if remote.size.is_some_and(|size| at < size) {
            return Err(self.server.interrupted(file, url, at, io::ErrorKind::UnexpectedEof.into()));
        }
        out.sync_all().map_err(failed)
    }
}

/// What the server says of one file.
struct Remote {
    commit: String,
    etag: String,
    /// Bytes.
    size: Option<u64>,
}

/// The file URLs of one repository.
struct Server<'a> {
    agent: Agent,
    endpoint: &'a str,
    token: Option<&'a str>,
    repo: &'a str,
    revision: &'a str,
    /// The server has answered for this revision, so what it does not find from here on is a file.
    is_known: Cell<bool>,
}

impl<'a> Server<'a> {
    fn new(options: &'a HubOptions, repo: &'a str, revision: &'a str) -> Server<'a> {
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
        let token = options.token.as_deref();
        Server { agent: config.build().new_agent(), endpoint, token, repo, revision, is_known: Cell::new(false) }
    }

    /// One file's commit, name in the cache and size; `None` when the revision has no such file.
    fn look_up(&self, revision: &str, file: &str, attempts: u32) -> Result<Option<Remote>, HubError> {
        for attempt in 1.. {
            match self.head(revision, file) {
                Err(error) if error.is_transient() && attempt < attempts => back_off(attempt),
                answer => return answer,
            }
        }
        unreachable!("the loop ends by returning")
    }

    fn head(&self, revision: &str, file: &str) -> Result<Option<Remote>, HubError> {
        let (response, url) = self.request(true, revision, file, 0)?;
        let status = response.status();
        if !status.is_success() && !status.is_redirection() {
            return match self.refusal(&response, file, url) {
                HubError::FileNotFound { .. } => Ok(None),
                error => Err(error),
            };
        }
        let commit = header(&response, "x-repo-commit").filter(|commit| is_commit(commit));
        let etag = header(&response, "x-linked-etag").or_else(|| header(&response, "etag"));
        let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"')).filter(|etag| is_plain_name(etag));
        // The length of a redirection is its own, not the file's.
        let length = if status.is_success() { header(&response, "content-length") } else { None };
        let size = header(&response, "x-linked-size").or(length).and_then(|size| size.parse().ok());
        match (commit, etag) {
            (Some(commit), Some(etag)) => {
                self.is_known.set(true);
                Ok(Some(Remote { commit: commit.to_owned(), etag: etag.to_owned(), size }))
            }
            (None, _) => Err(self.bad_response(file, url, "answers without a valid X-Repo-Commit header")),
            (_, None) => Err(self.bad_response(file, url, "answers without a valid ETag header")),
        }
    }

    /// The file from byte `start` on, and the URL that answered.
    fn get(&self, commit: &str, file: &str, start: u64) -> Result<(Response<Body>, String), HubError> {
        self.request(false, commit, file, start)
    }

    /// Follows redirections: all of them for contents; for headers only those within the server (a renamed
    /// repository), because the last answer before a storage server is the one that tells the commit.
    fn request(
        &self,
        is_head: bool,
        revision: &str,
        file: &str,
        start: u64,
    ) -> Result<(Response<Body>, String), HubError> {
        let mut url = format!("{}/{}/resolve/{}/{file}", self.endpoint, self.repo, percent_encode(revision));
        for _ in 0..=MAX_REDIRECTS {
            let mut request = if is_head { self.agent.head(&url) } else { self.agent.get(&url) };
            if let Some(token) = self.token
                && origin(&url) == origin(self.endpoint)
            {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if start > 0 {
                request = request.header("range", format!("bytes={start}-"));
            }
            let response = request.call().map_err(|source| HubError::Unreachable {
                repo: self.repo.to_owned(),
                file: file.to_owned(),
                url: without_query(&url),
                source: Box::new(source),
            })?;
            let location = header(&response, "location").filter(|_| response.status().is_redirection());
            let next = match location {
                Some(path) if path.starts_with('/') && !path.starts_with("//") => format!("{}{path}", origin(&url)),
                Some(_) if is_head && header(&response, "x-repo-commit").is_some() => return Ok((response, url)),
                Some(target) if target.starts_with("https://") => target.to_owned(),
                Some(target) if target.starts_with("http://") && url.starts_with("http://") => target.to_owned(),
                Some(_) => return Err(self.bad_response(file, url, "redirects to a place that is not accepted")),
                None => return Ok((response, url)),
            };
            url = next;
        }
        Err(self.bad_response(file, url, "redirects without end"))
    }

    /// The error that a status other than success stands for.
    fn refusal(&self, response: &Response<Body>, file: &str, url: String) -> HubError {
        let (repo, url, status) = (self.repo.to_owned(), without_query(&url), response.status().as_u16());
        match (status, header(response, "x-error-code")) {
            (401 | 403, code) => {
                let advice = match (code, self.token) {
                    (Some("GatedRepo"), _) => "accept the model's terms on its page and set HF_TOKEN to your token",
                    (_, None) => "the repository is private, gated or absent; set HF_TOKEN if you have access",
                    (_, Some(_)) => "the token in HF_TOKEN does not give access, or the repository is absent",
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

    fn file_not_found(&self, file: &str) -> HubError {
        HubError::FileNotFound {
            repo: self.repo.to_owned(),
            revision: self.revision.to_owned(),
            file: file.to_owned(),
            endpoint: self.endpoint.to_owned(),
        }
    }

    fn bad_response(&self, file: &str, url: String, fault: &'static str) -> HubError {
        let (repo, file) = (self.repo.to_owned(), file.to_owned());
        HubError::BadResponse { repo, file, url: without_query(&url), fault }
    }

    fn interrupted(&self, file: &str, url: String, done: u64, source: io::Error) -> HubError {
        let (repo, file) = (self.repo.to_owned(), file.to_owned());
        HubError::Interrupted { repo, file, url: without_query(&url), done, source }
    }
}

/// The hub cache's folders of one repository.
struct RepoCache {
    cache_dir: PathBuf,
    repo: String,
    /// `models--{org}--{name}`.
    folder: String,
}

impl RepoCache {
    fn new(cache_dir: &Path, repo: &str) -> RepoCache {
        let folder = format!("models--{}", repo.replace('/', "--"));
        RepoCache { cache_dir: cache_dir.to_owned(), repo: repo.to_owned(), folder }
    }

    fn root(&self) -> PathBuf {
        self.cache_dir.join(&self.folder)
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.root().join("snapshots").join(commit)
    }

    fn file(&self, commit: &str, file: &str) -> PathBuf {
        self.snapshot(commit).join(file)
    }

    fn blob(&self, name: &str) -> PathBuf {
        self.root().join("blobs").join(name)
    }

    fn no_exist(&self, commit: &str, file: &str) -> PathBuf {
        self.root().join(".no_exist").join(commit).join(file)
    }

    /// Whether the commit has the file; `None` when the cache does not know.
    fn presence(&self, commit: &str, file: &str) -> Option<bool> {
        if self.file(commit, file).is_file() {
            Some(true)
        } else {
            self.no_exist(commit, file).exists().then_some(false)
        }
    }

    /// The snapshot of a revision when all that a model needs is in it.
    fn complete_snapshot(&self, revision: &str) -> Result<PathBuf, HubError> {
        let not_cached = |missing: &str| HubError::NotCached {
            repo: self.repo.clone(),
            revision: revision.to_owned(),
            missing: missing.to_owned(),
            cache_dir: self.cache_dir.clone(),
        };
        let commit = if is_commit(revision) {
            revision.to_owned()
        } else {
            let known = fs::read_to_string(self.root().join("refs").join(revision)).unwrap_or_default();
            Some(known.trim().to_owned()).filter(|known| is_commit(known)).ok_or_else(|| not_cached("the revision"))?
        };
        let has = |file: &str| self.file(&commit, file).is_file();
        let mut needed = vec![CONFIG.to_owned(), TOKENIZER.to_owned()];
        if !has(WEIGHTS) && has(WEIGHTS_INDEX) {
            needed.extend(shard_names(&self.file(&commit, WEIGHTS_INDEX), &self.repo)?);
        } else {
            needed.push(WEIGHTS.to_owned());
        }
        match needed.iter().find(|file| !has(file)) {
            Some(missing) => Err(not_cached(missing)),
            None => Ok(self.snapshot(&commit)),
        }
    }

    fn write_ref(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        write(&self.root().join("refs").join(revision), commit)
    }

    fn write_no_exist(&self, commit: &str, file: &str) -> Result<(), HubError> {
        write(&self.no_exist(commit, file), "")
    }

    /// Keeps other processes from the same contents while the file is held.
    fn lock(&self, etag: &str) -> Result<fs::File, HubError> {
        let path = self.cache_dir.join(".locks").join(&self.folder).join(format!("{etag}.lock"));
        create_parent(&path)?;
        let failed = |source| file_system("cannot lock", &path, source);
        let file = fs::File::create(&path).map_err(failed)?;
        file.lock().map_err(failed)?;
        Ok(file)
    }

    fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let (link, blob) = (self.file(commit, file), self.blob(etag));
        create_parent(&link)?;
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => link_or_copy(&blob, &Path::new("../../blobs").join(etag), &link),
        }
        .map_err(|source| file_system("cannot write", &link, source))
    }
}

#[cfg(unix)]
fn link_or_copy(_blob: &Path, relative: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(relative, link)
}

/// Links need a privilege on some systems; a copy costs space and nothing else.
#[cfg(not(unix))]
fn link_or_copy(blob: &Path, _relative: &Path, link: &Path) -> io::Result<()> {
    fs::hard_link(blob, link).or_else(|_| fs::copy(blob, link).map(|_| ()))
}

/// The shards that an index names, each a plain file name.
fn shard_names(index: &Path, repo: &str) -> Result<BTreeSet<String>, HubError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let failed = |source| file_system("cannot read", index, source);
    if fs::metadata(index).map_err(failed)?.len() > MAX_INDEX_BYTES {
        return Err(bad_index(repo, "it is larger than 64 MiB"));
    }
    let bytes = fs::read(index).map_err(failed)?;
    let parsed: Index = serde_json::from_slice(&bytes).map_err(|error| bad_index(repo, error))?;
    let shards: BTreeSet<String> = parsed.weight_map.into_values().collect();
    if shards.is_empty() || shards.len() > MAX_SHARDS {
        return Err(bad_index(repo, format_args!("it names {} files, expected 1 to {MAX_SHARDS}", shards.len())));
    }
    match shards.iter().find(|shard| !is_plain_name(shard) || !shard.ends_with(".safetensors")) {
        Some(shard) => {
            let shard = shard.chars().take(100).collect();
            Err(HubError::ShardName { repo: repo.to_owned(), index: WEIGHTS_INDEX, shard })
        }
        None => Ok(shards),
    }
}

fn bad_index(repo: &str, fault: impl fmt::Display) -> HubError {
    HubError::BadIndex { repo: repo.to_owned(), index: WEIGHTS_INDEX, fault: fault.to_string() }
}

fn check_id(repo: &str, revision: &str) -> Result<(), HubError> {
    let parts: Vec<&str> = repo.split('/').collect();
    let repo_is_valid = parts.len() == 2 && parts.iter().all(|part| is_plain_name(part) && !part.contains(".."));
    // A revision becomes a path below `refs`.
    let revision_is_valid = revision.len() <= 255
        && revision
            .split('/')
            .all(|part| !part.is_empty() && !part.starts_with('.') && !part.contains(['\\', ':', '\0', '\n', '\r']));
    if repo_is_valid && revision_is_valid {
        return Ok(());
    }
    Err(HubError::InvalidId { id: format!("{repo}@{revision}").chars().take(200).collect() })
}

/// `[A-Za-z0-9._-]{1,255}`, not hidden.
fn is_plain_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=255).contains(&name.len()) && name.bytes().all(is_plain) && !name.starts_with('.')
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// `https://host:port` of a URL.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url[host..].find(['/', '?', '#']).map_or(url.len(), |at| host + at);
    &url[..end]
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

/// 0.1 s, doubled each time.
fn back_off(attempt: u32) {
    thread::sleep(Duration::from_millis(100 << attempt.min(6)));
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

fn is_set(name: &str) -> bool {
    variable(name).is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str()))
}

fn expand_home(path: &str) -> PathBuf {
    match (path.strip_prefix('~'), env::home_dir()) {
        (Some(""), Some(home)) => home,
        (Some(rest), Some(home)) if rest.starts_with('/') => home.join(&rest[1..]),
        _ => PathBuf::from(path),
    }
}

fn create_parent(path: &Path) -> Result<(), HubError> {
    let parent = path.parent().expect("every path in the cache has a parent");
    fs::create_dir_all(parent).map_err(|source| file_system("cannot create", parent, source))
}

fn write(path: &Path, text: &str) -> Result<(), HubError> {
    create_parent(path)?;
    fs::write(path, text).map_err(|source| file_system("cannot write", path, source))
}

fn file_system(action: &'static str, path: &Path, source: io::Error) -> HubError {
    HubError::FileSystem { action, path: path.to_owned(), source }
}

/// The class of a [`HubError`], which decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HubErrorKind {
    /// The server could not be reached, broke off or answered amiss.
    Network,
    /// There is no such repository, revision or file.
    NotFound,
    /// The server wants a token, or another one.
    Unauthorized,
    /// The cache could not be read or written.
    FileSystem,
    /// The network is switched off and the cache does not have the model.
    Offline,
    /// The repository's index is not one that is followed.
    Rejected,
}

/// Why a model could not be brought from the hub.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The name of the repository or of its revision cannot be one.
    #[error("{id:?} is not a hub id: expected org/name or org/name@revision")]
    InvalidId {
        /// Both, as given.
        id: String,
    },
    /// No connection, or no answer.
    #[error("cannot reach {url} for {file} of {repo}: {source}; check the connection and HF_ENDPOINT")]
    Unreachable {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// What was asked for.
        url: String,
        /// What the HTTP client says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A download broke off; what has come is kept.
    #[error("{file} of {repo} broke off after {done} bytes ({url}): {source}; run again to go on from there")]
    Interrupted {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// What was asked for.
        url: String,
        /// Bytes that are in the cache.
        done: u64,
        /// What the connection says.
        source: io::Error,
    },
    /// The server answered with a status that is no success.
    #[error("{url} answers HTTP {status} for {file} of {repo}; try again later")]
    Status {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// The server does not speak the hub's protocol.
    #[error("{url} {fault}, asked for {file} of {repo}; check HF_ENDPOINT")]
    BadResponse {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// What was asked for.
        url: String,
        /// What is wrong with the answer.
        fault: &'static str,
    },
    /// There is no such repository.
    #[error("the hub has no model {repo} ({url}); check the name")]
    RepoNotFound {
        /// The repository.
        repo: String,
        /// What was asked for.
        url: String,
    },
    /// The repository has no such branch, tag or commit.
    #[error("{repo} has no revision {revision:?} ({url}); give a branch, a tag or a full commit")]
    RevisionNotFound {
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
        /// What was asked for.
        url: String,
    },
    /// The repository lacks a file that every model needs, or a shard that its index names.
    #[error("{repo}@{revision} at {endpoint} has no {file}; only repositories in safetensors format can be loaded")]
    FileNotFound {
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
        /// The file.
        file: String,
        /// The server.
        endpoint: String,
    },
    /// The server does not let this user read the repository.
    #[error("{url} answers HTTP {status} for {file} of {repo}: {advice}")]
    Unauthorized {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// What was asked for.
        url: String,
        /// 401 or 403.
        status: u16,
        /// What to do.
        advice: &'static str,
    },
    /// The network is switched off and the cache lacks a file.
    #[error(
        "{repo}@{revision} is not in the cache {} ({missing} is missing) and HF_HUB_OFFLINE is set; unset it to \
         download, or give a model folder",
        cache_dir.display()
    )]
    NotCached {
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
        /// The first thing that is missing.
        missing: String,
        /// The cache that was searched.
        cache_dir: PathBuf,
    },
    /// Nothing says where the cache is.
    #[error("no home folder for the hub cache; set HF_HOME or HF_HUB_CACHE")]
    NoCacheFolder,
    /// The cache could not be read or written.
    #[error("{action} {}: {source}", path.display())]
    FileSystem {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The index names a file outside the repository's top folder, or one that is not in safetensors format.
    #[error("{index} of {repo} names {shard:?}; expected a plain file name that ends in .safetensors")]
    ShardName {
        /// The repository.
        repo: String,
        /// The index file.
        index: &'static str,
        /// The name, at most its first 100 characters.
        shard: String,
    },
    /// The index cannot be read.
    #[error("{index} of {repo} is not a checkpoint index: {fault}")]
    BadIndex {
        /// The repository.
        repo: String,
        /// The index file.
        index: &'static str,
        /// What is wrong with it.
        fault: String,
    },
}

impl HubError {
    /// The class of the error.
    pub fn kind(&self) -> HubErrorKind {
        match self {
            HubError::Unreachable { .. }
            | HubError::Interrupted { .. }
            | HubError::Status { .. }
            | HubError::BadResponse { .. } => HubErrorKind::Network,
            HubError::InvalidId { .. }
            | HubError::RepoNotFound { .. }
            | HubError::RevisionNotFound { .. }
            | HubError::FileNotFound { .. } => HubErrorKind::NotFound,
            HubError::Unauthorized { .. } => HubErrorKind::Unauthorized,
            HubError::NoCacheFolder | HubError::FileSystem { .. } => HubErrorKind::FileSystem,
            HubError::NotCached { .. } => HubErrorKind::Offline,
            HubError::ShardName { .. } | HubError::BadIndex { .. } => HubErrorKind::Rejected,
        }
    }

    /// Whether the same request may succeed a moment later.
    fn is_transient(&self) -> bool {
        match self {
            HubError::Status { status, .. } => matches!(status, 408 | 429 | 500..),
            error => error.kind() == HubErrorKind::Network,
        }
    }
}
