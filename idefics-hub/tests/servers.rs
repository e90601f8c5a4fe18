//! Local test servers: [`Hub`] implements the hub's file URLs, and [`Plain`] answers with a given function.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use idefics_hub::HubOptions;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::{COMMIT, INDEX, REPO, SHARDS, WANTED};

#[derive(Clone)]
pub(super) struct State {
    pub(super) files: BTreeMap<String, Vec<u8>>,
    pub(super) commit: String,
    /// One line per request: `METHOD path authorization range`.
    pub(super) log: Vec<String>,
    /// The `User-Agent` of each request.
    pub(super) agents: Vec<String>,
    /// Computes the entity tag of a file.
    pub(super) tag: fn(&str, &[u8]) -> String,
    /// Bytes to send for a file instead of its contents.
    pub(super) sent: BTreeMap<String, Vec<u8>>,
    /// Whether responses have a `Content-Length`.
    pub(super) lengths: bool,
    /// The `Content-Encoding` of all contents. Only gzip is actually applied.
    pub(super) encoding: Option<&'static str>,
    /// A file, and the number of bytes after which the server stops sending the file but keeps the connection open.
    pub(super) stall: Option<(&'static str, usize)>,
    /// The connections of stalled files.
    pub(super) stalled: Vec<Arc<TcpStream>>,
    /// A file, the number of bytes after which its connection is closed, and the number of times that this happens.
    pub(super) cut: Option<(&'static str, usize, usize)>,
    /// Status and error code with which the server answers every request.
    pub(super) refuse: Option<(u16, &'static str)>,
    /// Whether the server supports range requests.
    pub(super) ranges: bool,
    /// Base URL to which requests for shards are redirected.
    pub(super) storage: Option<String>,
}

/// A server that implements the hub's file URLs for one repository. It stops when it is dropped.
pub(super) struct Hub {
    pub(super) endpoint: String,
    pub(super) state: Arc<Mutex<State>>,
    pub(super) stopped: Arc<AtomicBool>,
}

impl Hub {
    /// Serves a repository with two shards, and with files that must not be downloaded.
    pub(super) fn sharded() -> Hub {
        let mut files = BTreeMap::new();
        for name in WANTED {
            files.insert(name.to_owned(), b"{}".to_vec());
        }
        files.insert("tokenizer.json".to_owned(), b"{\"model\": {}}".to_vec());
        files.insert("model.safetensors.index.json".to_owned(), INDEX.into());
        for (seed, name) in SHARDS.into_iter().enumerate() {
            files.insert(name.to_owned(), (0..2500 + seed).map(|at| (at * 7 + seed) as u8).collect());
        }
        for name in ["pytorch_model.bin", "README.md", "original/consolidated.00.pth", "runs.pt"] {
            files.insert(name.to_owned(), b"not wanted".to_vec());
        }
        let (commit, log) = (COMMIT.to_owned(), Vec::new());
        let state = State {
            files,
            commit,
            log,
            agents: Vec::new(),
            tag: |_, content| etag(content),
            sent: BTreeMap::new(),
            lengths: true,
            encoding: None,
            stall: None,
            stalled: Vec::new(),
            cut: None,
            refuse: None,
            ranges: true,
            storage: None,
        };
        let state = Arc::new(Mutex::new(state));
        let stopped = Arc::new(AtomicBool::new(false));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (shared, stop) = (state.clone(), stopped.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let shared = shared.clone();
                thread::spawn(move || serve(stream.unwrap(), &shared));
            }
        });
        Hub { endpoint, state, stopped }
    }

    pub(super) fn options(&self, cache: &TempDir) -> HubOptions {
        HubOptions::new(&self.endpoint, cache.path())
    }

    pub(super) fn set<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    pub(super) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        self.set(|state| state.files.clone())
    }

    pub(super) fn requests(&self) -> Vec<String> {
        self.set(|state| state.log.clone())
    }

    pub(super) fn was_requested(&self, file: &str) -> bool {
        self.requests().iter().any(|line| line.contains(file))
    }

    /// Stops the server, and waits until it no longer accepts connections.
    pub(super) fn stop(&self) {
        let address = self.endpoint.trim_start_matches("http://").to_owned();
        if !self.stopped.swap(true, Ordering::SeqCst) {
            let _ = TcpStream::connect(&address); // wakes the listener, which then closes
        }
        while TcpStream::connect(&address).is_ok() {
            thread::yield_now();
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Answers one request and closes the connection.
fn serve(stream: TcpStream, state: &Mutex<State>) {
    let stream = Arc::new(stream);
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let headers: BTreeMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let header = |name: &str| headers.get(name).map_or("-", String::as_str);
    let mut state = state.lock().unwrap();
    state.log.push(format!("{method} {path} {} {}", header("authorization"), header("range")));
    state.agents.push(header("user-agent").to_owned());

    let lengths = state.lengths;
    let answer = |status: &str, headers: &str, length: usize, body: &[u8]| {
        let length = if lengths { format!("content-length: {length}\r\n") } else { String::new() };
        let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\n{length}{headers}\r\n");
        let mut stream = &*stream;
        let _ = stream.write_all(head.as_bytes());
        if method == "GET" {
            let _ = stream.write_all(body);
        }
    };
    if let Some((status, code)) = state.refuse {
        return answer(&format!("{status} No"), &format!("x-error-code: {code}\r\n"), 2, b"no");
    }
    let revisions = [state.commit.as_str(), "main", "feature%2Fx"];
    let path_in_repo = path.strip_prefix(&format!("/{REPO}/resolve/")).and_then(|path| path.split_once('/'));
    let Some((_, file)) = path_in_repo.filter(|(revision, _)| revisions.contains(revision)) else {
        return answer("404 Not Found", "x-error-code: RevisionNotFound\r\n", 0, b"");
    };
    let commit = format!("x-repo-commit: {}\r\n", state.commit);
    let Some(content) = state.files.get(file).cloned() else {
        return answer("404 Not Found", &format!("{commit}x-error-code: EntryNotFound\r\n"), 0, b"");
    };
    let etag = (state.tag)(file, &content);
    let content = state.sent.get(file).cloned().unwrap_or(content);
    let content = if state.encoding == Some("gzip") { gzip(&content) } else { content };
    if let Some(storage) = state.storage.as_ref().filter(|_| file.ends_with(".safetensors")) {
        let linked = format!("x-linked-etag: \"{etag}\"\r\nx-linked-size: {}\r\n", content.len());
        let location = format!("location: {storage}{path}\r\n");
        return answer("302 Found", &format!("{commit}{linked}{location}"), 9, b"see there");
    }
    let start: usize = header("range").trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap_or(0);
    let encoding = state.encoding.map_or_else(String::new, |encoding| format!("content-encoding: {encoding}\r\n"));
    let headers = format!("{commit}etag: W/\"{etag}\"\r\n{encoding}");
    let (status, start) = if state.ranges && start > 0 { ("206 Partial Content", start) } else { ("200 OK", 0) };
    let range = match start {
        0 => String::new(),
        _ => format!("content-range: bytes {start}-{}/{}\r\n", content.len() - 1, content.len()),
    };
    let rest = &content[start..];
    let sent = match &mut state.cut {
        Some((cut_file, bytes, times)) if *cut_file == file && method == "GET" && *times > 0 => {
            *times -= 1;
            &rest[..rest.len().min(bytes.saturating_sub(start))]
        }
        _ => rest,
    };
    let stall = state.stall.filter(|(name, _)| *name == file && method == "GET");
    if stall.is_some() {
        state.stalled.push(stream.clone());
    }
    let sent = stall.map_or(sent, |(_, bytes)| &sent[..bytes]);
    answer(status, &format!("{headers}{range}"), rest.len(), sent);
}

pub(super) fn etag(content: &[u8]) -> String {
    let sum = content.iter().fold(1, |sum: u64, &byte| sum * 31 % 65521 + u64::from(byte));
    format!("{:x}-{sum}", content.len())
}

/// Computes an entity tag of 64 digits, as the hub sends for large files.
pub(super) fn sha256(_: &str, content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

/// Computes an entity tag of 40 digits, as the hub sends for small files.
pub(super) fn git_blob(_: &str, content: &[u8]) -> String {
    hex(&Sha1::new_with_prefix(format!("blob {}\0", content.len())).chain_update(content).finalize())
}

/// Computes an entity tag of 40 digits, as sent by mirrors that store files by SHA-1.
pub(super) fn sha1(_: &str, content: &[u8]) -> String {
    hex(&Sha1::digest(content))
}

/// Computes the entity tag that the hub sends: the SHA-256 for weights, which are in LFS storage, and the SHA-1 of the
/// git blob for other files.
pub(super) fn hub_tag(file: &str, content: &[u8]) -> String {
    if file.ends_with(".safetensors") { sha256(file, content) } else { git_blob(file, content) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// A server that passes the head of each request to a function and sends the function's result. It speaks the hub's
/// protocol only if the function does.
pub(super) struct Plain {
    pub(super) endpoint: String,
    pub(super) stopped: Arc<AtomicBool>,
}

impl Plain {
    pub(super) fn start(answer: impl Fn(&str) -> String + Send + 'static) -> Plain {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let stopped = Arc::new(AtomicBool::new(false));
        let stop = stopped.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                if !head.is_empty() {
                    let _ = (&stream).write_all(answer(&head.join("\n")).as_bytes());
                }
            }
        });
        Plain { endpoint, stopped }
    }

    pub(super) fn options(&self, cache: &TempDir) -> HubOptions {
        HubOptions::new(&self.endpoint, cache.path())
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let address = self.endpoint.trim_start_matches("http://").to_owned();
        while TcpStream::connect(&address).is_ok() {
            thread::yield_now();
        }
    }
}

/// The files of a model, served at `/org/tiny/resolve/main/` and `/cdn/`.
pub(super) struct Model(pub(super) Arc<Mutex<BTreeMap<&'static str, &'static str>>>);

impl Model {
    pub(super) fn new() -> Model {
        let files = [("config.json", "{1}"), ("tokenizer.json", "{2}"), ("model.safetensors", "weights")];
        Model(Arc::new(Mutex::new(BTreeMap::from(files))))
    }

    /// Returns the response that `found` creates from the contents of the requested file, or a 404 response if there is
    /// no such file.
    pub(super) fn answer(&self, request: &str, found: impl FnOnce(&str) -> String) -> String {
        let (folder, name) = request.split(' ').nth(1).unwrap().rsplit_once('/').unwrap();
        let is_served = folder == "/org/tiny/resolve/main" || folder.ends_with("/cdn");
        match self.0.lock().unwrap().get(name).filter(|_| is_served) {
            Some(content) => found(content),
            None => "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned(),
        }
    }
}
