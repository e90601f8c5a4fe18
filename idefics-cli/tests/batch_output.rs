//! Output targets of `batch`: pipes, devices and links.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::signals::wait_for_end;
use crate::{checkpoint, text};

fn folder_with(rows: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let lines: String =
        (0..rows).map(|row| format!("{}\n", json!({"id": row, "text": format!("row {row}")}))).collect();
    fs::write(folder.path().join("in.jsonl"), lines).unwrap();
    folder
}

fn batch(folder: &TempDir, output: impl AsRef<Path>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_idefics"));
    command.current_dir(folder.path()).arg("--model").arg(checkpoint()).args(["batch", "in.jsonl", "--output"]);
    command.arg(output.as_ref()).args(["--max-new-tokens", "2", "--batch-size", "2"]);
    command.stdin(Stdio::null());
    command
}

fn names(folder: &TempDir) -> Vec<String> {
    let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

fn ids(lines: &str) -> Vec<u64> {
    let rows = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.map(|row| row["id"].as_u64().unwrap()).collect()
}

fn fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn writes_to_a_named_pipe() {
    let folder = folder_with(5);
    let pipe = folder.path().join("pipe");
    fifo(&pipe);
    let mut child = batch(&folder, "pipe").stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = String::new();
    File::open(&pipe).unwrap().read_to_string(&mut lines).unwrap();
    assert_eq!(wait_for_end(&mut child).code(), Some(0));
    assert_eq!(ids(&lines), [0, 1, 2, 3, 4]);
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    assert_eq!(names(&folder), ["in.jsonl", "pipe"]);
}

#[test]
fn writes_to_an_open_file_descriptor() {
    let folder = folder_with(3);
    let command = batch(&folder, "/dev/fd/7");
    let mut script = Command::new("bash");
    script.current_dir(folder.path()).stdin(Stdio::null()).args(["-c", r#""$@" 7> >(cat > rows); wait $!"#, "bash"]);
    script.arg(command.get_program()).args(command.get_args());
    let output = script.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(ids(&fs::read_to_string(folder.path().join("rows")).unwrap()), [0, 1, 2]);
    assert_eq!(names(&folder), ["in.jsonl", "rows"]);
}

#[test]
fn writes_to_standard_output_by_any_of_its_names() {
    let folder = folder_with(3);
    for name in ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        if name.starts_with('/') && !Path::new(name).exists() {
            continue; // this system has no such name
        }
        let output = batch(&folder, name).output().unwrap();
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
        assert_eq!(ids(&text(&output.stdout)), [0, 1, 2], "{name}");
    }
    // Standard output may be a file with contents, to which the rows are appended.
    let log = folder.path().join("log");
    fs::write(&log, "{\"id\":9}\n").unwrap();
    let file = OpenOptions::new().append(true).open(&log).unwrap();
    assert!(batch(&folder, "/dev/stdout").stdout(file).status().unwrap().success());
    assert_eq!(ids(&fs::read_to_string(&log).unwrap()), [9, 0, 1, 2]);
    assert_eq!(names(&folder), ["in.jsonl", "log"]);
}

#[test]
fn writes_to_a_device_without_replacing_it() {
    let folder = folder_with(2);
    symlink("/dev/null", folder.path().join("link")).unwrap();
    for restart in [&[][..], &["--restart"]] {
        for name in ["link", "/dev/null"] {
            let output = batch(&folder, name).args(restart).output().unwrap();
            assert!(output.status.success(), "{}", text(&output.stderr));
        }
    }
    assert!(fs::symlink_metadata(folder.path().join("link")).unwrap().is_symlink());
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    assert_eq!(names(&folder), ["in.jsonl", "link"]);
    assert!(!Path::new("/dev/null.lock").exists() && !Path::new("/dev/null.part").exists());
}

#[test]
fn follows_links_and_keeps_foreign_files() {
    let folder = folder_with(2);
    fs::create_dir(folder.path().join("data")).unwrap();
    symlink("data/real.jsonl", folder.path().join("link")).unwrap(); // the target does not exist yet
    let output = batch(&folder, "link").output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(fs::symlink_metadata(folder.path().join("link")).unwrap().is_symlink());
    let real = folder.path().join("data/real.jsonl");
    assert_eq!(ids(&fs::read_to_string(&real).unwrap()), [0, 1]);
    let again = batch(&folder, "link").output().unwrap();
    assert!(text(&again.stderr).contains("already complete"), "{}", text(&again.stderr));

    // A file written by another program is not overwritten.
    fs::write(&real, "theirs\n").unwrap();
    let refused = batch(&folder, "link").output().unwrap();
    assert_eq!(refused.status.code(), Some(5), "{}", text(&refused.stderr));
    assert_eq!(fs::read_to_string(&real).unwrap(), "theirs\n");

    symlink("round", folder.path().join("round")).unwrap();
    let refused = batch(&folder, "round").output().unwrap();
    assert_eq!(refused.status.code(), Some(5), "{}", text(&refused.stderr));
    let refused = batch(&folder, "data").output().unwrap();
    assert_eq!(refused.status.code(), Some(5), "{}", text(&refused.stderr));
}

#[test]
fn answers_each_row_of_a_pipe_immediately() {
    let folder = folder_with(0);
    let mut command = Command::new(env!("CARGO_BIN_EXE_idefics"));
    command.current_dir(folder.path()).arg("--model").arg(checkpoint());
    command.args(["batch", "-", "--output", "-", "--max-new-tokens", "2", "--batch-size", "1"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    for row in 0..3 {
        writeln!(stdin, "{}", json!({"id": row, "text": "a"})).unwrap();
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap(); // before the next row is written
        assert_eq!(ids(&line), [row]);
    }
    // The reader of the output closes its pipe while there is still input.
    drop(stdout);
    // Another test may start a child process at this moment, which keeps the pipe open until its `exec`.
    for row in 4..200 {
        if child.try_wait().unwrap().is_some() || writeln!(stdin, "{}", json!({"id": row, "text": "a"})).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let status = wait_for_end(&mut child);
    assert_eq!(status.code(), Some(0));
    drop(stdin);
}
