//! The program ends quietly when the reader of its output closes the pipe.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use crate::signals::{program, wait_for_end};
use crate::{photo, text, xtask_folder};

/// Reads one line of standard output and closes the pipe. Returns the exit code and standard error.
fn after_a_line(command: &mut Command) -> (Option<i32>, String) {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::with_capacity(1, child.stdout.take().unwrap());
    stdout.read_until(b'\n', &mut Vec::new()).unwrap();
    drop(stdout);
    let mut stderr = Vec::new();
    child.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
    (wait_for_end(&mut child).code(), text(&stderr))
}

#[test]
fn commands_end_quietly_on_a_broken_pipe() {
    let photo = photo();
    let prompts = xtask_folder("../examples");
    assert!(prompts.is_dir());
    for args in [
        &["--help"][..],
        &["generate", "--help"],
        &["completions", "bash"],
        &["man"],
        &["inspect"],
        &["devices"],
        &["--json", "devices"],
        &["demo", "--count", "20", "--no-pictures"],
        &["--json", "demo", "--count", "20"],
        &["caption", &photo, &photo, &photo, &photo, "--max-new-tokens", "2"],
        &["--json", "caption", &photo, &photo, &photo, "--max-new-tokens", "2"],
        &["caption", "no-such.png", &photo, "no-such.png", &photo, "--max-new-tokens", "2"],
        &["classify", &photo, "--labels", "a,b,c,d", "--rank"],
    ] {
        let (code, stderr) = after_a_line(&mut program(args));
        // The exit code is 1 if an input failed and the program printed its last line before the pipe was closed.
        assert!(code == Some(0) || args.contains(&"no-such.png") && code == Some(1), "{args:?}: {code:?} {stderr}");
        assert!(!stderr.contains("panic") && !stderr.contains("bug"), "{args:?}: {stderr}");
        assert!(!stderr.contains("standard output"), "{args:?}: {stderr}");
    }
}

#[test]
fn closed_standard_output_is_not_an_error() {
    for args in [&["ask", &photo(), "What?", "--max-new-tokens", "40"][..], &["--help"], &["man"]] {
        let mut child = program(args).stdin(Stdio::null()).spawn().unwrap();
        drop(child.stdout.take());
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(wait_for_end(&mut child).code(), Some(0), "{args:?}: {stderr}");
        assert_eq!(stderr, "", "{args:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn full_device_as_standard_output_is_an_error() {
    for args in [&["--help"][..], &["--version"], &["help", "ask"], &["man"], &["completions", "bash"], &["devices"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = program(args).stdout(full).stdin(Stdio::null()).output().unwrap();
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{args:?}: {stderr}");
        assert!(stderr.starts_with("error: standard output: ") && stderr.lines().count() == 1, "{args:?}: {stderr}");
    }
}

#[test]
fn closed_standard_error_does_not_change_the_exit_code() {
    let mut child = program(&["-v", "caption", "no-such.png", &photo(), "--max-new-tokens", "2"]).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(wait_for_end(&mut child).code(), Some(1));
    let mut child = program(&["caption", "no-such.png"]).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(wait_for_end(&mut child).code(), Some(5));
}
