//! One binary for all integration tests, so that they link once.
#![allow(clippy::unwrap_used)] // helpers too

mod common;
mod example;
mod oracle;
mod scene;
