//! One binary for all integration tests, so that they link once.
#![allow(clippy::disallowed_methods)] // results are compared on the host
#![allow(clippy::unwrap_used)] // helpers too

mod common;
mod example;
mod oracle;
mod scene;
