//! Runs the program as a user does and checks output, exit codes and one-line errors.

#![allow(clippy::disallowed_methods)] // results are compared on the host
#![allow(clippy::unwrap_used)] // also in helper functions

mod answers;
mod batch_input;
#[cfg(unix)]
mod batch_output;
mod bench;
#[cfg(unix)]
mod chat;
mod demo;
mod faults;
mod grammar;
mod hub;
mod idefics1;
mod messages;
mod models;
#[cfg(unix)]
mod pipes;
mod quantize;
mod samples;
#[cfg(unix)]
mod signals;
mod tasks;
mod videos;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Returns a path under `xtask/`, which contains the checkpoints, cases and images of the reference.
fn xtask_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../xtask").join(name)
}

fn checkpoint() -> PathBuf {
    xtask_folder("checkpoints/tiny-idefics2")
}

fn photo() -> String {
    xtask_folder("images/coffee.jpg").to_str().unwrap().to_owned()
}

fn idefics(model: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_idefics")).arg("--model").arg(model).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Returns the standard output of a run that must succeed.
fn answer(args: &[&str]) -> String {
    let output = idefics(&checkpoint(), args);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}
