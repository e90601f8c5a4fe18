//! Tests of training, in a single binary because linking Burn is slow.

#![allow(clippy::disallowed_methods)] // results are compared on the host
#![allow(clippy::unwrap_used)] // in test helpers

mod batch;
mod formats;
mod idefics1;
mod idefics3;
mod loss;
mod memory;
mod state;
mod training;

use std::path::{Path, PathBuf};

/// Returns the path of a folder of `xtask`, which contains the checkpoints written by the reference.
fn xtask_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../xtask").join(name)
}
