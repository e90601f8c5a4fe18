//! Signals end every command, and work that is finished is kept.
//!
//! No test depends on exact timing: a program that ignored its signal would run for much longer than [`TIMEOUT`].

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{checkpoint, photo, text};

/// Maximum time to wait for a program to end.
const TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_idefics"));
    command.args(["--device", "cpu", "--model"]).arg(checkpoint()).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub(crate) fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Waits for the process to end; kills it and panics after [`TIMEOUT`].
pub(crate) fn wait_for_end(child: &mut Child) -> ExitStatus {
    let start = Instant::now();
    while start.elapsed() < TIMEOUT {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    panic!("the program did not end");
}

/// Reads standard error until a line contains `word`.
fn wait_for(child: &mut Child, word: &str) -> BufReader<ChildStderr> {
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains(word) {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "the program ended without printing {word:?}");
    }
    stderr
}

/// Starts a server that accepts connections and never answers. Returns its URL, and a channel with its connections.
fn silent_server() -> (String, mpsc::Receiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || listener.incoming().flatten().try_for_each(|stream| sender.send(stream)));
    (address, receiver)
}

#[test]
fn signal_ends_a_chat_waiting_for_a_question() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let mut child = program(&["chat", "--max-new-tokens", "2"]).spawn().unwrap();
        let stdin = child.stdin.take().unwrap(); // kept open, so that the chat waits
        let stderr = wait_for(&mut child, "/help");
        send(&child, signal);
        assert_eq!(wait_for_end(&mut child).code(), Some(code), "{signal:?}");
        drop((stdin, stderr));
    }
}

#[test]
fn signal_ends_a_long_answer_and_keeps_the_history() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let folder = tempfile::tempdir().unwrap();
        let args = ["chat", "--max-new-tokens", "1900", "--suppress-tokens", "2,476"];
        let mut child = program(&args).env("XDG_STATE_HOME", folder.path()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"A question\n").unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut first = [0];
        stdout.read_exact(&mut first).unwrap(); // the answer has begun
        send(&child, signal);
        assert_eq!(wait_for_end(&mut child).code(), Some(code));
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        let history = fs::read_to_string(folder.path().join("idefics/history")).unwrap();
        assert!(history.contains("A question"), "{history}");
    }
}

#[test]
fn signal_ends_commands_waiting_for_an_image() {
    let (address, requests) = silent_server();
    let url = format!("{address}/a.png");
    let folder = tempfile::tempdir().unwrap();
    let prompts = folder.path().join("prompts.json");
    fs::write(&prompts, json!({"text": "<image>", "images": [url]}).to_string()).unwrap();
    let rows = folder.path().join("rows.jsonl");
    fs::write(&rows, json!({"text": "<image>", "images": [url]}).to_string()).unwrap();
    let (prompts, rows) = (prompts.to_str().unwrap(), rows.to_str().unwrap());
    let output = folder.path().join("out.jsonl");
    let commands: [&[&str]; 6] = [
        &["caption", &url, &url],
        &["ask", &url, "What?"],
        &["classify", &url, "--labels", "a,b"],
        &["generate", "--prompt-file", prompts],
        &["batch", rows, "--output", output.to_str().unwrap()],
        &["batch", rows, "--output", "-"],
    ];
    for (index, command) in commands.into_iter().enumerate() {
        let mut child = program(command).spawn().unwrap();
        let connection = requests.recv_timeout(TIMEOUT).unwrap();
        let signal = [Signal::INT, Signal::TERM][index % 2];
        send(&child, signal);
        let status = wait_for_end(&mut child);
        assert_eq!(status.code(), Some([130, 143][index % 2]), "{command:?}");
        drop(connection);
    }
}

#[test]
fn signal_ends_a_model_download() {
    let (address, requests) = silent_server();
    let home = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_idefics"))
        .args(["--model", "test/tiny", "caption", &photo()])
        .env("HF_ENDPOINT", &address)
        .env("HF_HOME", home.path())
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_HUB_OFFLINE")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let connection = requests.recv_timeout(TIMEOUT).unwrap();
    send(&child, Signal::INT);
    assert_eq!(wait_for_end(&mut child).code(), Some(130));
    drop(connection);
}

#[test]
fn signal_ends_commands_reading_standard_input() {
    for args in [&["generate", "--prompt-file", "-"][..], &["batch", "-", "--output", "-"]] {
        let mut child = program(args).spawn().unwrap();
        // The test cannot see whether the program is reading already. The signal must end it in either case.
        std::thread::sleep(Duration::from_millis(300));
        send(&child, Signal::TERM);
        let code = wait_for_end(&mut child).code();
        assert!(code == Some(143) || code.is_none(), "{args:?}: {code:?}"); // `None` if no handler was installed yet
    }
}

#[test]
fn signal_removes_the_files_of_the_built_in_model() {
    let folder = tempfile::tempdir().unwrap();
    let is_empty = || fs::read_dir(folder.path()).unwrap().next().is_none();
    let mut command = Command::new(env!("CARGO_BIN_EXE_idefics"));
    command.args(["--device", "cpu", "batch", "-", "--output", "-"]);
    command.env("TMPDIR", folder.path()).env_remove("IDEFICS_MODEL");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"{\"text\": \"a\"}\n").unwrap(); // the program then waits for more input
    let start = Instant::now();
    while is_empty() && start.elapsed() < TIMEOUT {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(!is_empty());
    send(&child, Signal::TERM);
    assert_eq!(wait_for_end(&mut child).code(), Some(143));
    assert!(is_empty());
    drop(stdin);
}

#[test]
fn exceeding_the_file_size_limit_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -f 1; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_idefics"), "--model"]).arg(checkpoint());
    shell.args(["quantize", "--to", "q4"]).arg(folder.path().join("out"));
    let output = shell.output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{:?} {stderr}", output.status);
    assert!(stderr.contains("out") && stderr.contains("cannot be written"), "{stderr}");
    assert!(fs::read_dir(folder.path()).unwrap().next().is_none());
}

#[test]
fn interrupted_batch_keeps_its_rows() {
    let folder = tempfile::tempdir().unwrap();
    let (rows, output) = (folder.path().join("rows.jsonl"), folder.path().join("out.jsonl"));
    let part = folder.path().join("out.jsonl.part");
    let lines: String = (0..400).map(|row| format!("{}\n", json!({"id": row, "text": format!("row {row}")}))).collect();
    fs::write(&rows, lines).unwrap();
    let args = ["batch", rows.to_str().unwrap(), "--output", output.to_str().unwrap(), "--max-new-tokens", "8"];
    let args = [&args[..], &["--batch-size", "2"]].concat();
    let mut child = program(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while fs::read_to_string(&part).map_or(0, |part| part.lines().count()) < 4 && start.elapsed() < TIMEOUT {
        std::thread::sleep(Duration::from_millis(1));
    }
    send(&child, Signal::INT);
    assert_eq!(wait_for_end(&mut child).code(), Some(130));
    let kept = fs::read_to_string(&part).unwrap();
    let n_kept = kept.lines().count() - 1;
    assert!((3..400).contains(&n_kept), "{n_kept} rows");
    assert!(!output.exists());

    let again = program(&args).output().unwrap();
    assert!(again.status.success(), "{}", text(&again.stderr));
    let rows: Vec<Value> =
        fs::read_to_string(&output).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(rows.iter().enumerate().all(|(index, row)| row["id"] == index) && rows.len() == 400);
    // The rows of the first run were not computed again.
    for line in kept.lines().skip(1) {
        let row: Value = serde_json::from_str(line.splitn(3, ' ').nth(2).unwrap()).unwrap();
        assert_eq!(row, rows[row["id"].as_u64().unwrap() as usize]);
    }
}

#[test]
fn signals_ignored_by_the_parent_stay_ignored() {
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_idefics"), "--device", "cpu", "--model"]);
    shell.arg(checkpoint()).args(["chat", "--max-new-tokens", "2"]);
    shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = shell.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let stderr = wait_for(&mut child, "/help");
    send(&child, Signal::HUP);
    stdin.write_all(b"Hello\n").unwrap();
    drop(stdin);
    assert_eq!(wait_for_end(&mut child).code(), Some(0));
    drop(stderr);
}
