//! Servers on this machine: one of the hub's file URLs, and one that answers as it is told.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use idefics_generate::hub::HubOptions;
use idefics_generate::nn::checkpoint::Pickles;
use tempfile::TempDir;

use super::{COMMIT, INDEX, REPO, SHARDS, WANTED};

#[derive(Clone)]
pub(super) struct State {
    pub(super) files: BTreeMap<String, Vec<u8>>,
    pub(super) commit: String,
    /// `METHOD path authorization range`, one a request.
    pub(super) log: Vec<String>,
    /// File, the bytes after which its connection breaks off, and how many times.
    pub(super) cut: Option<(&'static str, usize, usize)>,
    /// Status and error code of every answer.
    pub(super) refuse: Option<(u16, &'static str)>,
    pub(super) ranges: bool,
    /// Where shards are redirected to.
    pub(super) storage: Option<String>,
}

/// A server of the hub's file URLs for one repository, until it is dropped.
pub(super) struct Hub {
    pub(super) endpoint: String,
    pub(super) state: Arc<Mutex<State>>,
    pub(super) stopped: Arc<AtomicBool>,
}

impl Hub {
    /// A repository with two shards, and files that no fetch should touch.
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
        let state = State { files, commit, log, cut: None, refuse: None, ranges: true, storage: None };
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
        let (endpoint, cache_dir) = (self.endpoint.clone(), cache.path().to_owned());
        HubOptions { endpoint, cache_dir, token: None, offline: false, pickles: Pickles::Refused }
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

    pub(super) fn asked_for(&self, file: &str) -> bool {
        self.requests().iter().any(|line| line.contains(file))
    }

    /// After this, nobody listens at the endpoint.
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

    let answer = |status: &str, headers: &str, length: usize, body: &[u8]| {
        let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n");
        let mut stream = &stream;
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
    let etag = etag(&content);
    if let Some(storage) = state.storage.as_ref().filter(|_| file.ends_with(".safetensors")) {
        let linked = format!("x-linked-etag: \"{etag}\"\r\nx-linked-size: {}\r\n", content.len());
        let location = format!("location: {storage}{path}\r\n");
        return answer("302 Found", &format!("{commit}{linked}{location}"), 9, b"see there");
    }
    let start: usize = header("range").trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap_or(0);
    let headers = format!("{commit}etag: W/\"{etag}\"\r\n");
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
    answer(status, &format!("{headers}{range}"), rest.len(), sent);
}

pub(super) fn etag(content: &[u8]) -> String {
    let sum = content.iter().fold(1, |sum: u64, &byte| sum * 31 % 65521 + u64::from(byte));
    format!("{:x}-{sum}", content.len())
}

/// A server that answers with what a function of the request's head says, and nothing of the hub's protocol.
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
        let (endpoint, cache_dir) = (self.endpoint.clone(), cache.path().to_owned());
        HubOptions { endpoint, cache_dir, token: None, offline: false, pickles: Pickles::Refused }
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

/// The files of a model, at `/org/tiny/resolve/main/` and `/cdn/`.
pub(super) struct Model(pub(super) Arc<Mutex<BTreeMap<&'static str, &'static str>>>);

impl Model {
    pub(super) fn new() -> Model {
        let files = [("config.json", "{1}"), ("tokenizer.json", "{2}"), ("model.safetensors", "weights")];
        Model(Arc::new(Mutex::new(BTreeMap::from(files))))
    }

    /// 404, or what `found` makes of the file's content.
    pub(super) fn answer(&self, request: &str, found: impl FnOnce(&str) -> String) -> String {
        let (folder, name) = request.split(' ').nth(1).unwrap().rsplit_once('/').unwrap();
        let is_served = folder == "/org/tiny/resolve/main" || folder.ends_with("/cdn");
        match self.0.lock().unwrap().get(name).filter(|_| is_served) {
            Some(content) => found(content),
            None => "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned(),
        }
    }
}
