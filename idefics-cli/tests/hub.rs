//! Downloads from a local server that serves a model at the same paths as the hub.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use sha2::{Digest, Sha256};

use crate::{checkpoint, photo, text};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the server behaves.
#[derive(Clone, Copy, Default)]
struct Site {
    /// Name of a file that is sent with one bit flipped.
    damaged: Option<&'static str>,
    /// Whether the headers with commit and hash are left out.
    is_plain: bool,
    /// Whether only the first [`START`] bytes of the weights are sent, and the connection then stays open.
    is_stalled: bool,
}

/// Number of bytes of the weights that a stalled server sends.
const START: usize = 1000;

/// A server of the tiny checkpoint under the name `test/tiny`, until it is stopped.
struct Server {
    address: String,
    stopped: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Server {
    fn start(site: Site) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let stopped = Arc::new(AtomicBool::new(false));
        let seen = stopped.clone();
        let thread = std::thread::spawn(move || {
            let (mut requests, mut stalled) = (0, Vec::new());
            for stream in listener.incoming() {
                if seen.load(Ordering::SeqCst) {
                    break;
                }
                let stream = stream.unwrap();
                if site.is_stalled {
                    stalled.push(stream.try_clone().unwrap());
                }
                requests += usize::from(respond(stream, site).is_ok());
            }
            requests
        });
        Self { address, stopped, thread }
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Stops the server and returns the number of requests that it answered.
    fn stop(self) -> usize {
        self.stopped.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(&self.address));
        self.thread.join().unwrap()
    }
}

fn respond(mut stream: TcpStream, site: Site) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let (method, path) = request.split_once(' ').unwrap_or_default();
    let path = path.split(' ').next().unwrap_or_default();
    let revisions: &[&str] = if site.is_plain { &["main"] } else { &["main", COMMIT] };
    let name = revisions.iter().find_map(|revision| path.strip_prefix(&format!("/test/tiny/resolve/{revision}/")));
    let found = name.and_then(|name| Some((name, fs::read(checkpoint().join(name)).ok()?)));
    let Some((name, mut body)) = found else {
        let code = if site.is_plain { "" } else { "X-Error-Code: EntryNotFound\r\n" };
        let head = format!("HTTP/1.1 404 Not Found\r\n{code}Content-Length: 0\r\nConnection: close\r\n\r\n");
        return stream.write_all(head.as_bytes());
    };
    let hash: String = Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    let tags = match name.ends_with(".safetensors") {
        _ if site.is_plain => format!("ETag: \"1-{}\"\r\n", body.len()),
        true => format!("X-Linked-ETag: \"{hash}\"\r\nX-Linked-Size: {}\r\nX-Repo-Commit: {COMMIT}\r\n", body.len()),
        false => format!("ETag: \"{}\"\r\nX-Repo-Commit: {COMMIT}\r\n", name.replace('.', "-")),
    };
    if site.damaged == Some(name) {
        *body.last_mut().unwrap() ^= 1;
    }
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{tags}Connection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    let is_stalled = site.is_stalled && name.ends_with(".safetensors");
    if method == "GET" {
        stream.write_all(if is_stalled { &body[..START] } else { &body })?;
    }
    if !is_stalled {
        stream.shutdown(std::net::Shutdown::Both)?;
    }
    Ok(())
}

fn command(program: impl AsRef<std::ffi::OsStr>, photo: &str, endpoint: &str, home: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .args(["--model", "test/tiny", "ask", photo, "What is this?", "--max-new-tokens", "4"])
        .env("HF_ENDPOINT", endpoint)
        .env("HF_HOME", home)
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_HUB_OFFLINE")
        .env_remove("HF_TOKEN");
    command
}

fn ask(endpoint: &str, home: &Path) -> Output {
    command(env!("CARGO_BIN_EXE_idefics"), &photo(), endpoint, home).output().unwrap()
}

#[test]
fn second_run_works_from_the_cache() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(Site::default());
    let endpoint = server.endpoint();
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
    assert!(!text(&third.stderr).contains("os error"), "{}", text(&third.stderr));
}

#[test]
fn rejects_and_removes_a_download_with_the_wrong_hash() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(Site { damaged: Some("model.safetensors"), ..Site::default() });
    let refused = ask(&server.endpoint(), home.path());
    server.stop();
    let message = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(7), "{message}");
    assert!(message.lines().count() == 1 && message.contains("model.safetensors of test/tiny"), "{message}");
    let blobs = fs::read_dir(home.path().join("hub/models--test--tiny/blobs")).unwrap();
    let largest = blobs.map(|blob| blob.unwrap().metadata().unwrap().len()).max().unwrap();
    assert!(largest < fs::metadata(checkpoint().join("model.safetensors")).unwrap().len());

    let server = Server::start(Site::default());
    let again = ask(&server.endpoint(), home.path());
    server.stop();
    assert!(again.status.success(), "{}", text(&again.stderr));
}

#[cfg(unix)]
#[test]
fn signal_ends_a_stalled_download_and_keeps_the_part() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(Site { is_stalled: true, ..Site::default() });
    let mut command = command(env!("CARGO_BIN_EXE_idefics"), &photo(), &server.endpoint(), home.path());
    let mut program = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let part = || {
        let blobs = fs::read_dir(home.path().join("hub/models--test--tiny/blobs")).ok()?;
        let mut parts = blobs.map(|blob| blob.unwrap().path());
        parts.find(|path| path.extension().is_some() && fs::metadata(path).is_ok_and(|it| it.len() == START as u64))
    };
    while part().is_none() {
        assert!(program.try_wait().unwrap().is_none(), "the program ended before the signal");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(Command::new("kill").args(["-TERM", &program.id().to_string()]).status().unwrap().success());
    let output = program.wait_with_output().unwrap();
    server.stop();
    assert_eq!(output.status.code(), Some(143), "{}", text(&output.stderr));
    assert!(part().is_some() && text(&output.stderr).lines().count() <= 1, "{}", text(&output.stderr));

    let server = Server::start(Site::default());
    let again = ask(&server.endpoint(), home.path());
    server.stop();
    assert!(again.status.success(), "{}", text(&again.stderr));
}

#[cfg(unix)]
mod read_only {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::CommandExt;
    use std::path::PathBuf;

    /// Id of an unprivileged user. Tests that run as root need it, because root can write everywhere.
    const NOBODY: u32 = 65534;

    fn set_modes(folder: &Path, file_mode: u32, folder_mode: u32) {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                set_modes(&entry.path(), file_mode, folder_mode);
            } else if kind.is_file() {
                fs::set_permissions(entry.path(), fs::Permissions::from_mode(file_mode)).unwrap();
            }
        }
        fs::set_permissions(folder, fs::Permissions::from_mode(folder_mode)).unwrap();
    }

    /// A cache that the program can only read, in a temporary folder.
    struct ReadOnly {
        folder: tempfile::TempDir,
        is_root: bool,
    }

    impl ReadOnly {
        fn downloaded(site: Site) -> (Self, Output) {
            let folder = tempfile::tempdir().unwrap();
            let is_root = folder.path().metadata().unwrap().uid() == 0;
            let cache = Self { folder, is_root };
            let server = Server::start(site);
            let first = ask(&server.endpoint(), &cache.home());
            server.stop();
            assert!(first.status.success(), "{}", text(&first.stderr));
            (cache, first)
        }

        fn home(&self) -> PathBuf {
            self.folder.path().join("home")
        }

        fn repo(&self) -> PathBuf {
            self.home().join("hub/models--test--tiny")
        }

        fn ask(&self, site: Site) -> Output {
            let (program, picture) = (self.folder.path().join("idefics"), self.folder.path().join("photo"));
            fs::copy(env!("CARGO_BIN_EXE_idefics"), &program).unwrap();
            fs::copy(photo(), &picture).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            fs::set_permissions(&picture, fs::Permissions::from_mode(0o644)).unwrap();
            fs::set_permissions(self.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
            set_modes(&self.home(), 0o444, 0o555);
            let server = Server::start(site);
            let mut command = command(&program, picture.to_str().unwrap(), &server.endpoint(), &self.home());
            command.current_dir("/").env("HOME", "/nonexistent");
            if self.is_root {
                command.uid(NOBODY).gid(NOBODY);
            }
            let output = command.output().unwrap();
            server.stop();
            set_modes(&self.home(), 0o644, 0o755);
            output
        }
    }

    #[test]
    fn complete_read_only_cache_is_sufficient() {
        for is_plain in [false, true] {
            let site = Site { is_plain, ..Site::default() };
            let (cache, first) = ReadOnly::downloaded(site);
            if !is_plain {
                fs::remove_dir_all(cache.repo().join(".no_exist")).unwrap();
                fs::remove_dir_all(cache.repo().join("refs")).unwrap();
            }
            let again = cache.ask(site);
            assert!(again.status.success(), "{is_plain}: {}", text(&again.stderr));
            assert_eq!(again.stdout, first.stdout);
        }
    }

    #[test]
    fn missing_file_is_named() {
        for is_blob_there in [false, true] {
            let (cache, _) = ReadOnly::downloaded(Site::default());
            let link = cache.repo().join("snapshots").join(COMMIT).join("model.safetensors");
            if !is_blob_there {
                fs::remove_file(link.canonicalize().unwrap()).unwrap();
            }
            fs::remove_file(link).unwrap();
            let refused = cache.ask(Site::default());
            let message = text(&refused.stderr);
            assert_eq!(refused.status.code(), Some(5), "{message}");
            let words = ["model.safetensors of test/tiny", "cannot be written", "Permission denied", "HF_HUB_CACHE"];
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
            assert!(message.lines().count() == 1 && !message.contains("os error"), "{message}");
        }
    }
}
