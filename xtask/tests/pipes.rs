//! The program ends quietly when the reader of its output closes the pipe.

#![cfg(unix)]
#![allow(clippy::unwrap_used)] // also in helper functions

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn verify_ends_quietly_on_a_broken_pipe() {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/head-dim");
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.arg("verify").arg("--case").arg(case).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(141), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}
