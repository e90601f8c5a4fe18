//! Tests of training, one binary: linking Burn is the slow part.

#![allow(clippy::disallowed_methods)] // results are compared on the host
#![allow(clippy::unwrap_used)] // helpers too

mod idefics1;
mod loss;
mod training;

use std::path::{Path, PathBuf};

/// Checkpoints of the reference.
fn xtask_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../xtask").join(name)
}
