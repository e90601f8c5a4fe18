//! One binary for all integration tests, so that they link once.
#![allow(clippy::disallowed_methods)] // results are compared on the host
#![allow(clippy::unwrap_used)]

mod common;
mod idefics1;
mod image;
mod messages;
mod processor;
mod prompt;
mod stream;
mod tokenizer;
mod toy_family;
