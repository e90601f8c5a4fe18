//! All integration tests in one binary, which is faster to link.
#![allow(clippy::disallowed_methods)] // results are compared on the host
#![allow(clippy::unwrap_used)] // also in helper functions

mod common;
mod example;
mod oracle;
mod scene;
