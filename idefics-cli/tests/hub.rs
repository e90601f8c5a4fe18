//! A model folder behind a small server that speaks the hub's file URLs.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::{checkpoint, photo, text};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves the tiny checkpoint as `test/tiny` until it is stopped.
struct Server {
    address: String,
    stopped: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let stopped = Arc::new(AtomicBool::new(false));
        let seen = stopped.clone();
        let thread = std::thread::spawn(move || {
            let mut requests = 0;
            for stream in listener.incoming() {
                if seen.load(Ordering::SeqCst) {
                    break;
                }
                requests += usize::from(respond(stream.unwrap()).is_ok());
            }
            requests
        });
        Self { address, stopped, thread }
    }

    /// Stops listening and tells how many requests there were.
    fn stop(self) -> usize {
        self.stopped.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(&self.address));
        self.thread.join().unwrap()
    }
}

fn respond(mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let (method, path) = request.split_once(' ').unwrap_or_default();
    let path = path.split(' ').next().unwrap_or_default();
    let name =
        ["main", COMMIT].iter().find_map(|revision| path.strip_prefix(&format!("/test/tiny/resolve/{revision}/")));
    let body = name.and_then(|name| std::fs::read(checkpoint().join(name)).ok());
    let Some(body) = body else {
        return stream.write_all(
            b"HTTP/1.1 404 Not Found\r\nX-Error-Code: EntryNotFound\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        );
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nETag: \"{}-{}\"\r\nX-Repo-Commit: {COMMIT}\r\nConnection: close\r\n\r\n",
        body.len(),
        name.unwrap_or_default().replace('.', "-"),
        body.len(),
    );
    stream.write_all(head.as_bytes())?;
    if method == "GET" {
        stream.write_all(&body)?;
    }
    Ok(())
}

fn ask(endpoint: &str, home: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_idefics"))
        .args(["--model", "test/tiny", "ask", &photo(), "What is this?", "--max-new-tokens", "4"])
        .env("HF_ENDPOINT", endpoint)
        .env("HF_HOME", home)
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_HUB_OFFLINE")
        .env_remove("HF_TOKEN")
        .output()
        .unwrap()
}

#[test]
fn the_second_time_the_cache_is_enough() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start();
    let endpoint = format!("http://{}", server.address);
    let first = ask(&endpoint, home.path());
    assert!(first.status.success(), "{}", text(&first.stderr));
    assert!(server.stop() > 4);
    assert!(home.path().join("hub/models--test--tiny/snapshots").join(COMMIT).join("config.json").exists());

    let second = ask(&endpoint, home.path());
    assert!(second.status.success(), "{}", text(&second.stderr));
    assert_eq!(second.stdout, first.stdout);

    let elsewhere = tempfile::tempdir().unwrap();
    let third = ask(&endpoint, elsewhere.path());
    assert_eq!(third.status.code(), Some(7), "{}", text(&third.stderr));
    assert_eq!(text(&third.stderr).lines().count(), 1);
}
